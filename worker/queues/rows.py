"""Tasks in PostgreSQL from outside: what is asked about them, and what is done to them without a claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.errors import UniqueViolation

from worker.db import Connection, Database, fetch, query
from worker.errors import NotFound
from worker.queues.contract import COUNTED, Cancelled, Queue
from worker.queues.routing import Route, like
from worker.telemetry import emit

_AT_ONCE = 10_000
"""Rows that one statement of a sweep through the table changes."""


class DatabaseRecords(Queue):
    """The half of the driver `database` that claims nothing, see `contract.Queue`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def prune(self, *, completed_days: float, failed_days: float, now: datetime | None = None) -> int:
        total = 0
        while True:
            with self._db.connection() as conn:
                gone = conn.execute(
                    query("prune"),
                    {"completed": completed_days, "failed": failed_days, "limit": _AT_ONCE, "now": now},
                ).rowcount
            total += gone
            if gone < _AT_ONCE:
                if total:
                    emit("task.prune", tasks=total)
                return total

    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        return self._db.fetch("stats", now=now)

    def oldest(self, *, now: datetime | None = None) -> float | None:
        seconds: float | None = self._db.fetch("oldest", now=now)[0]["seconds"]
        return seconds

    def processing(self) -> int:
        return self._count_processing()

    def _count_processing(
        self, *, ids: list[int] | None = None, account_id: UUID | None = None, pattern: str | None = None
    ) -> int:
        rows = self._db.fetch("count_processing", ids=ids, account_id=account_id, pattern=pattern)
        return int(rows[0]["tasks"])

    def holders(self) -> Counter[int]:
        return Counter({row["worker"]: row["tasks"] for row in self._db.fetch("holders")})

    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        return list(self._db.fetch("peek", status=status, account_id=account_id, limit=limit))

    def find(self, id: int) -> Mapping[str, Any] | None:
        rows = self._db.fetch("find_task", id=id)
        return rows[0] if rows else None

    def retry_failed(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        since: datetime | None = None,
        error_class: str | None = None,
    ) -> int:
        with self._db.transaction() as conn:
            rows = put_back(
                conn,
                "retry_failed",
                ids=None if ids is None else list(ids),
                account_id=account_id,
                since=since,
                error_class=error_class,
            )
            fetch(conn, "wake", queues=sorted({row["queue"] for row in rows}), always=False)
        emit("task.retry_failed", tasks=len(rows))
        return len(rows)

    def cancel(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        queue: str | None = None,
        reason: str = "",
    ) -> Cancelled:
        which: dict[str, Any] = {
            "ids": None if ids is None else list(ids),
            "account_id": account_id,
            "pattern": None if queue is None else like(queue),
        }
        tasks = sum(1 for _ in self._sweep("cancel_tasks", **which, reason=reason))
        going_on = self._count_processing(**which)
        emit("task.cancel", level="warning", tasks=tasks, processing=going_on, reason=reason)
        return Cancelled(tasks, going_on)

    def forget(self, account_id: UUID, within: Connection) -> None:
        fetch(within, "forget_tasks", account_id=account_id)

    def reroute(self, route: Route) -> int:
        moved, targets = 0, set[str]()
        for row in self._db.fetch("routes"):
            try:
                target = route(row["entity_type"], row["account_id"])
            except NotFound:
                continue
            if target != row["queue"]:
                number = sum(1 for _ in self._sweep("reroute", **row, target=target))
                moved += number
                targets |= {target} if number else set()
        if targets:
            self._db.fetch("wake", queues=sorted(targets), always=False)
        emit("task.reroute", tasks=moved, queues=",".join(sorted(targets)))
        return moved

    def progress(self, run: UUID) -> dict[str, int]:
        counts: dict[str, int] = self._db.fetch("run_progress", run=run)[0]["counts"]
        return {name: counts[name] for name in COUNTED}

    def unfinished(self, runs: Sequence[UUID], waiting: Sequence[UUID] = ()) -> set[UUID]:
        rows = self._db.fetch("unfinished_of_runs", runs=list(runs), waiting=list(waiting))
        return {row["run_id"] for row in rows}

    def problems(self, run: UUID, limit: int = 50) -> list[Mapping[str, Any]]:
        return list(self._db.fetch("run_problems", run=run, limit=limit))

    def _sweep(self, name: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Rows of a query that changes a bounded number at once, in the order of ids, until there are no more."""
        mark = 0
        while rows := self._db.fetch(name, **params, mark=mark, limit=_AT_ONCE):
            yield from rows
            mark = max(row["id"] for row in rows)


def put_back(conn: Connection, name: str, **params: Any) -> list[dict[str, Any]]:
    """Run a transition back to pending; again, when a twin appeared between its look and its write."""
    while True:
        step: AbstractContextManager[object] = conn.transaction()
        try:
            with step:
                return fetch(conn, name, **params)
        except UniqueViolation:
            continue
