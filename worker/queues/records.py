"""Tasks in Redis from outside: what is asked about them, and what is done to them without a claim."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from worker.db import Connection, Database, fetch
from worker.errors import NotFound
from worker.queues.contract import COUNTED, Cancelled, Queue
from worker.queues.routing import Route, listens
from worker.queues.scripts import Scripts
from worker.queues.shards import AT_ONCE, Shards, to_micros, to_moment
from worker.telemetry import emit

_ROW = (
    "id", "queue", "entity_type", "entity_id", "operation", "priority", "status", "payload", "attempts",
    "max_attempts", "rescues", "run_id", "worker", "result", "error", "error_class", "history", "scheduled_at",
    "started_at", "completed_at", "created_at", "updated_at",
)  # fmt: skip
"""A record's fields, in the order of queue.lua."""
_ENTRY = ("at", "how", "attempt", "class", "error", "worker", "host", "started_at")


class RedisRecords(Queue):
    """The half of the driver `redis` that claims nothing, see `contract.Queue`."""

    in_redis = True

    def __init__(self, db: Database, url: str) -> None:
        self._db = db
        self._scripts = Scripts(url)
        self._shards = Shards(db, self._scripts)
        self._open_in: dict[UUID, UUID] = {}

    # Tasks

    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        found = [
            {"queue": queue, "account_id": account, "status": status, "tasks": tasks,
             "oldest_seconds": None if oldest == "" else float(oldest)}
            for account, rows in self._shards.each("stats", self._shards.everybody(), now)
            for queue, status, tasks, oldest in rows
        ]  # fmt: skip
        return sorted(found, key=lambda row: (row["queue"], row["account_id"], row["status"]))

    def oldest(self, *, now: datetime | None = None) -> float | None:
        return max((row["oldest_seconds"] for row in self.stats(now=now) if row["oldest_seconds"] is not None),
                   default=None)  # fmt: skip

    def processing(self) -> int:
        return sum(row["tasks"] for row in self.stats() if row["status"] == "processing")

    def holders(self) -> Counter[int]:
        counts: Counter[int] = Counter()
        for _, found in self._shards.each("holders", self._shards.everybody(), None):
            counts.update(dict(zip(map(int, found[::2]), map(int, found[1::2]), strict=True)))
        return counts

    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        everybody = self._shards.everybody()
        accounts = everybody if account_id is None else [account for account in everybody if account == account_id]
        rows: list[Mapping[str, Any]] = [
            self._whole(account, row)
            for account, found in self._shards.each("peek", accounts, None, status, limit)
            for row in found
        ]
        return sorted(rows, key=lambda row: (row["updated_at"], row["id"]), reverse=True)[:limit]

    def find(self, id: int) -> Mapping[str, Any] | None:
        for account, numbers in self._shards.locate([id]).items():
            for row in json.loads(self._scripts.run("find", account, "", json.dumps(numbers))) or []:
                return self._whole(account, row)
        return None

    def _whole(self, account: UUID, values: Sequence[Any]) -> dict[str, Any]:
        """A record as the database driver shows it."""
        row = dict(zip(_ROW, values, strict=True))
        row |= {name: to_moment(row[name]) for name in _ROW if name.endswith("_at")}
        row |= {name: row[name] or None for name in ("max_attempts", "worker", "result", "error", "error_class")}
        history = [dict(zip(_ENTRY, entry, strict=True)) for entry in row["history"] or []]
        for entry in history:
            for name in ("at", "started_at"):
                moment = to_moment(entry[name])
                entry[name] = moment and moment.isoformat()
            entry["host"] = entry["host"] or None
            entry["worker"] = entry["worker"] or None
        return row | {
            "id": self._shards.first(account) + int(row["id"]),
            "account_id": account,
            "payload": json.loads(row["payload"]),
            "run_id": UUID(row["run_id"]) if row["run_id"] else None,
            "history": history or None,
        }

    # Runs

    def progress(self, run: UUID) -> dict[str, int]:
        counts = self._progress_here(run)
        counts["pending"] += sum(row["tasks"] for row in self._db.fetch("outbox_runs", runs=[run]))
        counts.update(self._db.fetch("run_progress", run=run)[0]["counts"])  # what has not been moved, or has been
        return dict(counts)

    def _progress_here(self, run: UUID) -> Counter[str]:
        """`progress` without what is on its way, or in PostgreSQL."""
        counts = Counter(dict.fromkeys(COUNTED, 0))
        fields = [name if name in ("pending", "processing", "completed", "failed") else f"result:{name}"
                  for name in COUNTED]  # fmt: skip
        for _, found in self._shards.each("progress", self._shards.everybody(), None, str(run), *fields):
            counts.update(dict(zip(COUNTED, found, strict=True)))
        return counts

    def unfinished(self, runs: Sequence[UUID], waiting: Sequence[UUID] = ()) -> set[UUID]:
        # PostgreSQL first: what leaves it is in Redis by then. Then the account where each run was last seen open,
        # then all; and PostgreSQL again, for what was moved there meanwhile.
        found = self._open_beside(runs, waiting)
        last = {run: self._open_in[run] for run in runs if run in self._open_in and run not in found}
        found |= self._open(list(last), list(set(last.values())), waiting)
        if rest := [run for run in runs if run not in found]:
            found |= self._open(rest, self._shards.everybody(), waiting)
        if rest := [run for run in runs if run not in found]:
            found |= self._open_beside(rest, waiting)
        return found

    def _open_beside(self, runs: Sequence[UUID], waiting: Sequence[UUID]) -> set[UUID]:
        rows = self._db.fetch("open_beside_redis", runs=list(runs), waiting=list(waiting))
        return {row["run_id"] for row in rows}

    def _open(self, runs: Sequence[UUID], accounts: Sequence[UUID], waiting: Sequence[UUID]) -> set[UUID]:
        for run in runs:
            self._open_in.pop(run, None)
        for account, counts in self._shards.each("open", accounts, None, json.dumps(list(map(str, runs)))):
            for run, (processing, pending) in zip(runs, counts, strict=True):
                if processing or (pending and account not in waiting):
                    self._open_in[run] = account
        return {run for run in runs if run in self._open_in}

    def problems(self, run: UUID, limit: int = 50) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = [
            self._whole(account, row)
            for account, found in self._shards.each("problems", self._shards.everybody(), None, str(run), limit)
            for row in found
        ]
        return sorted(rows, key=lambda row: (row["status"] == "failed", row["updated_at"]), reverse=True)[:limit]

    # An operator's word

    def retry_failed(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        since: datetime | None = None,
        error_class: str | None = None,
    ) -> int:
        from_then = to_micros(since) if since else "-inf"
        total = 0
        for account, wanted in self._meant(ids, account_id).items():
            failed = {int(n) for n in self._scripts.run("failed", account, "", from_then)}
            numbers = sorted(failed if wanted is None else failed & set(wanted), reverse=True)
            for n in range(0, len(numbers), AT_ONCE):
                part = json.dumps(numbers[n : n + AT_ONCE])
                total += self._scripts.run("retry_failed", account, "", part, error_class or "", int(ids is not None))
        emit("task.retry_failed", tasks=total)
        return total

    def cancel(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        queue: str | None = None,
        reason: str = "",
    ) -> Cancelled:
        tasks = processing = 0
        meant = self._meant(ids, account_id)
        for account, wanted in meant.items():
            for page in self._pages(account):
                numbers = [n for n, name, _ in page if (wanted is None or n in wanted) and _matches(queue, name)]
                if numbers:
                    tasks += self._scripts.run("cancel", account, "", json.dumps(numbers), reason)
        for account, rows in self._shards.each("processing", list(meant), None):
            wanted = meant[account]
            processing += sum((wanted is None or int(n) in wanted) and _matches(queue, name) for n, name in rows)
        emit("task.cancel", level="warning", tasks=tasks, processing=processing, reason=reason)
        return Cancelled(tasks, processing)

    def forget(self, account_id: UUID, within: Connection) -> None:
        for name in ("forget_tasks", "forget_outbox"):
            fetch(within, name, account_id=account_id)
        for page in self._pages(account_id):
            self._scripts.run("drop", account_id, "", json.dumps([n for n, _, _ in page]))

    def reroute(self, route: Route) -> int:
        moved = 0
        targets = set[str]()
        for account in self._shards.everybody():
            for page in self._pages(account):
                elsewhere: dict[str, list[int]] = defaultdict(list)
                for n, queue, entity_type in page:
                    try:
                        target = route(entity_type, account)
                    except NotFound:
                        continue
                    if target != queue:
                        elsewhere[target].append(n)
                for target, numbers in elsewhere.items():
                    moved += self._scripts.run("reroute", account, "", json.dumps(numbers), target)
                    targets.add(target)
        emit("task.reroute", tasks=moved, queues=",".join(sorted(targets)))
        return moved

    def _pages(self, account: UUID) -> Iterator[list[tuple[int, str, str]]]:
        """What is pending, [number, queue, entity type], page by page."""
        cursor = "0"
        while True:
            cursor, rows = json.loads(self._scripts.run("pending", account, "", cursor))
            yield [(int(n), queue, entity_type) for n, queue, entity_type in rows or []]
            if cursor == "0":
                return

    def _meant(self, ids: Sequence[int] | None, account: UUID | None) -> dict[UUID, list[int] | None]:
        """Accounts, and numbers in each when ids were given, that an operator means."""
        meant: dict[UUID, list[int] | None]
        meant = dict.fromkeys(self._shards.everybody()) if ids is None else dict(self._shards.locate(ids))
        return {each: numbers for each, numbers in meant.items() if account in (None, each)}

    # Keeping

    def prune(self, *, completed_days: float, failed_days: float, now: datetime | None = None) -> int:
        at = now or datetime.now(UTC)
        before = [to_micros(at - timedelta(days=days)) for days in (completed_days, failed_days)]
        total = 0
        for account in self._shards.everybody():
            while gone := self._scripts.run("prune", account, "", *before):
                total += gone
        if total:
            emit("task.prune", tasks=total)
        return total


def _matches(pattern: str | None, queue: str) -> bool:
    return pattern is None or listens([pattern], queue)
