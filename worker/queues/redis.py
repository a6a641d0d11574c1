"""Tasks in Redis or Valkey, by the scripts of queue.lua; what must never disagree with the effects is in PostgreSQL.

A claim that ends with an effect is settled in PostgreSQL, in the effect's own transaction, and then in Redis:
whatever dies in between, a rescue finds the settlement and goes on with it. Tasks enqueued in a transaction wait in
`queue_outbox` for its commit. Workers, parked accounts and paused queues are PostgreSQL's too.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, islice
from typing import Any
from uuid import UUID

from worker.db import AWAY, Connection, Database, fetch, query
from worker.errors import NotFound
from worker.queues.contract import COUNTED, VERBS, Cancelled, Effect, Ended
from worker.queues.database import MAX_RESCUES, lock_dead_workers
from worker.queues.directed import Directed
from worker.queues.lanes import Lane
from worker.queues.routing import Route, listens
from worker.queues.scripts import Scripts
from worker.task import Complete, Fail, NewTask, Outcome, Release, Retry, Snooze, Task, to_json
from worker.telemetry import emit

PLACES = 10**10
"""Ids of one account; a task's id is its account's number times this, plus its place."""
_AT_ONCE = 500
_OUTBOX_AT_ONCE = 2_000
_SWEEP = 10.0
"""Seconds between two looks for claims of workers nobody knows."""
_GATES = 1.0
"""Seconds between two looks at which accounts and queues are closed."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ROW = (
    "id", "queue", "entity_type", "entity_id", "operation", "priority", "status", "payload", "attempts",
    "max_attempts", "rescues", "run_id", "worker", "result", "error", "error_class", "history", "scheduled_at",
    "started_at", "completed_at", "created_at", "updated_at",
)  # fmt: skip
"""A record's fields, in the order of queue.lua."""
_ENTRY = ("at", "how", "attempt", "class", "error", "worker", "host", "started_at")


@dataclass(frozen=True, slots=True)
class Moved(Release):
    """It goes on elsewhere: how a mover ends what it has claimed."""


class RedisQueue(Directed):
    """The driver `redis`, see `contract.Queue`."""

    in_redis = True

    def __init__(self, db: Database, url: str, route: Route, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self._db = db
        self._route = route
        self._scripts = Scripts(url)
        self._numbers: dict[UUID, int] = {}
        self._accounts: dict[int, UUID] = {}
        self._known = 0
        self._gates_at = float("-inf")
        self._parked: set[UUID] = set()
        self._concurrency: dict[UUID, int] = {}
        self._paused: list[str] = []
        self._hosts: dict[int, str] = {}
        self._settled: dict[int, set[int]] = {}
        self._sweep_at = float("-inf")
        self._wake: Callable[[str], None] = lambda _: None
        self._asleep = threading.Event()
        self._listener: threading.Thread | None = None
        self._ready = threading.Event()
        self._queues: Sequence[str] = ("*",)
        self._open_in: dict[UUID, UUID] = {}

    # Enqueue

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        tasks = iter(tasks)
        added, queues = 0, set[str]()
        first = list(islice(tasks, 2))
        if len(first) == 1 and within is None and now is None and self._enqueue_one(first[0]):
            return 1
        tasks = chain(first, tasks)
        while part := list(islice(tasks, 20 * _AT_ONCE)):
            rows: dict[UUID, dict[tuple[str, ...], list[Any]]] = {}
            for task in part:
                queue = self._route(task.entity_type, task.account_id)
                queues.add(queue)
                rows.setdefault(task.account_id, {})[task.entity_type, task.entity_id, task.operation] = [
                    queue, task.entity_type, task.entity_id, task.operation, task.priority, to_json(task.payload),
                    str(task.run_id) if task.run_id else "", task.max_attempts or 0,
                    _micro(at) if (at := task.scheduled_at or (now if within else None)) else 0,
                ]  # fmt: skip
            if within is not None:
                added += self._note(within, rows)
            else:
                self._number(rows)
                added += self._add({account: list(things.values()) for account, things in rows.items()}, now)
        if queues:
            emit("task.enqueue", tasks=added, queues=",".join(sorted(queues)))
        return added

    def _enqueue_one(self, task: NewTask) -> bool:
        """The quick way for a single task; False where a twin is pending."""
        account = task.account_id
        queue = self._route(task.entity_type, account)
        if account not in self._numbers:
            self._number([account])
        added = self._scripts.run(
            "enqueue_one", account, "", queue, task.entity_type, task.entity_id, task.operation, task.priority,
            to_json(task.payload), str(task.run_id) if task.run_id else "", task.max_attempts or 0,
            _micro(task.scheduled_at) if task.scheduled_at else 0, -task.priority, str(account),
        )  # fmt: skip
        if added:
            emit("task.enqueue", tasks=1, queues=queue)
        return bool(added)

    def _add(self, rows: Mapping[UUID, Sequence[list[Any]]], now: datetime | None) -> int:
        at = _time(now)
        calls = [
            ("enqueue", account, (at, json.dumps(each[n : n + _AT_ONCE], ensure_ascii=False), ""))
            for account, each in rows.items()
            for n in range(0, len(each), _AT_ONCE)
        ]
        return sum(self._scripts.run_all(calls))

    def _note(self, conn: Connection, rows: Mapping[UUID, Mapping[tuple[str, ...], list[Any]]]) -> int:
        """Have tasks wait for the commit of the caller's transaction; how many would be new as things stand."""
        keys = [(account, *thing) for account, things in rows.items() for thing in things]
        names = ("account_id", "entity_type", "entity_id", "operation")
        columns = dict(zip(names, map(list, zip(*keys, strict=True)), strict=True))
        known = {tuple(row[name] for name in names) for row in fetch(conn, "in_outbox", **columns)}
        for account, things in rows.items():
            there = json.loads(self._scripts.run("twins", account, "", json.dumps(list(things))))
            known |= {(account, *thing) for thing in there}
        with conn.cursor() as cursor, cursor.copy(query("copy_outbox")) as copy:
            for account, things in rows.items():
                for thing, row in things.items():
                    copy.write_row((account, *thing, row[6] or None, json.dumps(row, ensure_ascii=False)))
        self._db.after(conn, self._relay)
        return sum(key not in known for key in keys)

    def _relay(self) -> None:
        """Send to Redis what was committed; what is sent twice arrives once."""
        try:
            self._relay_all()
        except AWAY as error:
            emit("queue.relay", level="warning", reason=str(error))

    def _relay_all(self) -> None:
        while self._relay_some() == _OUTBOX_AT_ONCE:
            pass

    def _relay_some(self) -> int:
        with self._db.transaction() as conn:
            noted = fetch(conn, "take_outbox", limit=_OUTBOX_AT_ONCE)
            each: dict[UUID, dict[tuple[str, ...], tuple[int, list[Any]]]] = defaultdict(dict)
            merged: dict[UUID, list[int]] = defaultdict(list)
            for note in sorted(noted, key=lambda note: note["n"]):
                row = json.loads(note["task"])
                if before := each[note["account_id"]].get(tuple(row[1:4])):
                    _join(row, before[1])
                each[note["account_id"]][tuple(row[1:4])] = note["n"], row
                merged[note["account_id"]].append(note["n"])
            self._number(each)
            calls = []
            for account, things in each.items():
                rows = list(things.values())
                for n in range(0, len(rows), _AT_ONCE):
                    part = rows[n : n + _AT_ONCE]
                    numbers = json.dumps([str(number) for number, _ in part])
                    calls.append(("enqueue", account, ("", json.dumps([row for _, row in part]), numbers)))
            self._scripts.run_all(calls)
        if noted:
            self._scripts.run_all(
                [("forget", account, ("", json.dumps([str(n) for n in ns]))) for account, ns in merged.items()]
            )
        return len(noted)

    def _number(self, accounts: Iterable[UUID]) -> None:
        missing = [account for account in accounts if account not in self._numbers]
        if missing:
            self._learn(self._db.fetch("number_accounts", accounts=missing))

    def _learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self._numbers[row["account_id"]] = row["number"]
            self._accounts[row["number"]] = row["account_id"]

    # Claim

    def _look(self, queues: Sequence[str], now: datetime | None) -> list[dict[str, Any]]:
        self._read_gates(now)
        found = []
        accounts = [account for account in self._accounts.values() if account not in self._parked]
        order: dict[str, int | None] = {}
        for account, lanes in self._each("look", accounts, now):
            for name in lanes:
                rank, _, queue = name.partition(":")
                if queue not in order:
                    matching = [n for n, pattern in enumerate(queues, 1) if listens([pattern], queue)]
                    order[queue] = matching[0] if matching and not listens(self._paused, queue) else None
                number = order[queue]
                if number is not None:
                    found.append(
                        {"lane": number, "queue": queue, "rank": int(rank), "account_id": account,
                         "concurrency": self._concurrency.get(account)}
                    )  # fmt: skip
        return found

    def _read_gates(self, now: datetime | None) -> None:
        """Which accounts and queues are closed, and what accounts there are."""
        if now is None and self._clock() < self._gates_at + _GATES:
            return
        with self._db.connection() as conn:
            rows = fetch(conn, "gates", known=self._known, now=now)
            self._paused = [row["queue"] for row in fetch(conn, "pauses", now=now)]
        self._learn(rows)
        # A number drawn earlier may be committed later: look a little further back.
        self._known = max([self._known, *(row["number"] - 1_000 for row in rows)])
        self._parked = {row["account_id"] for row in rows if row["parked"]}
        self._concurrency = {row["account_id"]: row["concurrency"] for row in rows if row["concurrency"]}
        self._gates_at = self._clock()

    def _each(
        self, name: str, accounts: Sequence[UUID], now: datetime | None, *values: Any
    ) -> Iterator[tuple[UUID, Any]]:
        """Account after account, what a script that looks through many says of it."""
        answers = [json.loads(answer) for answer in self._scripts.each(name, accounts, _time(now), *values)]
        yield from zip(accounts, [of or [] for answer in answers for of in answer], strict=True)

    def _everybody(self) -> list[UUID]:
        """All accounts that ever had a task."""
        self._learn(self._db.fetch("gates", known=0, now=None))
        return list(self._accounts.values())

    def _take(self, lane: Lane, worker: int, limit: int, now: datetime | None) -> tuple[Task, ...]:
        if listens([row["queue"] for row in self._db.fetch("pauses", now=now)], lane.queue):
            return ()
        account, concurrency = lane.account_id, lane.concurrency
        if lane.announced:
            self._number([account])
            self._read_gates(now)
            if account in self._parked:
                return ()
            concurrency = self._concurrency.get(account)
        first = self._numbers[account] * PLACES
        taken = json.loads(
            self._scripts.run(
                "claim", account, _time(now), f"{lane.rank}:{lane.queue}", worker, limit, concurrency or ""
            )
        )
        return tuple([_task(first, account, worker, row) for row in taken])

    def _hand_back(self, worker: int, lane: Lane) -> None:
        claims = json.loads(self._scripts.run("holdings", lane.account_id, "", worker)) or []
        rows = json.dumps([[n, attempts, 1] for n, attempts in claims])
        self._scripts.run("settle", lane.account_id, "", worker, rows, json.dumps([["release"]]), "")

    # How claims end

    def settle(
        self, ended: Sequence[Ended], effect: Effect | None = None, *, now: datetime | None = None
    ) -> Counter[str]:
        counts: Counter[str] = Counter()
        if not ended:
            return counts
        live = ended if effect is None else self._settle_effect(ended, effect)
        counts += self._apply(ended[0].task.worker, [_claim(end) for end in live], now)
        if effect is not None:
            self._settled.setdefault(ended[0].task.worker, set()).update(end.task.id for end in live)
        counts["lost"] = len(ended) - counts.total()
        return counts

    def _settle_effect(self, ended: Sequence[Ended], effect: Effect) -> list[Ended]:
        """Write the ends beside their effect; those of them that stand, now or since a call that was cut off."""
        worker = ended[0].task.worker
        claims = {end.task.id: end for end in ended}
        before = self._settled.setdefault(worker, set())
        if not before.isdisjoint(claims):
            # The number of an attempt that did not count comes again. Its earlier end must be gone for sure, and only
            # now: the transaction below may have to be repeated without anybody knowing whether it was committed.
            self._db.fetch("forget_settlements", worker=worker, tasks=list(before))
            before.clear()
        with self._db.transaction() as conn:
            if before:
                fetch(conn, "forget_settlements", worker=worker, tasks=list(before))
            mine = {
                row["task"]
                for row in fetch(
                    conn,
                    "claim_settlements",
                    worker=worker,
                    tasks=list(claims),
                    attempts=[end.task.attempts for end in claims.values()],
                    accounts=[end.task.account_id for end in claims.values()],
                    outcomes=[json.dumps(_way(end.outcome)) for end in claims.values()],
                )
            }
            standing = set[int]()
            if len(mine) < len(claims):
                found = fetch(conn, "settlements", worker=worker)
                standing = {row["task"] for row in found if row["outcome"] is not None} & claims.keys() - mine
            owned = self._owned(worker, [claims[id] for id in mine])
            if lost := mine - owned:
                fetch(conn, "forget_settlements", worker=worker, tasks=list(lost))
            effect(conn, owned)
        before.clear()
        return [end for end in ended if end.task.id in owned | standing]

    def _owned(self, worker: int, ended: Sequence[Ended]) -> set[int]:
        owned = set[int]()
        self._number({end.task.account_id for end in ended})
        for account, claims in _by_account([_claim(end) for end in ended]).items():
            first = self._numbers[account] * PLACES
            rows = json.dumps([[id - first, attempts] for _, id, attempts, _ in claims])
            found = json.loads(self._scripts.run("owned", account, "", worker, rows)) or []
            owned |= {first + int(n) for n in found}
        return owned

    def _apply(self, worker: int, claims: Sequence[_Claim], now: datetime | None) -> Counter[str]:
        """End claims in Redis, those still the worker's; how many by which verb."""
        counts: Counter[str] = Counter()
        self._number({claim[0] for claim in claims})
        for account, those in _by_account(claims).items():
            first = self._numbers[account] * PLACES
            ways: dict[str, int] = {}
            rows = [[id - first, attempts, ways.setdefault(way, len(ways) + 1)] for _, id, attempts, way in those]
            troubled = any(not way.startswith(('["complete"', '["release"')) for way in ways)
            counts += Counter(
                json.loads(
                    self._scripts.run(
                        "settle", account, _time(now), worker, json.dumps(rows), f"[{','.join(ways)}]",
                        self._host(worker) if troubled else "",
                    )
                )
            )  # fmt: skip
        return counts

    def _host(self, worker: int) -> str:
        if worker not in self._hosts:
            rows = self._db.fetch("worker_host", worker=worker)
            self._hosts[worker] = rows[0]["host"] if rows else ""
        return self._hosts[worker]

    # Sleep

    def listen(self, queues: Sequence[str], wake: Callable[[str], None]) -> None:
        self._queues, self._wake = queues, wake

    def doze(self, worker: int) -> None:
        self._asleep.set()
        if self._listener is None or not self._listener.is_alive():
            self._ready.clear()
            self._listener = threading.Thread(target=self._hear, name="redis-wake", daemon=True)
            self._listener.start()
        self._ready.wait(1)

    def rouse(self, worker: int) -> None:
        self._asleep.clear()

    def _hear(self) -> None:
        """Thread: while the worker sleeps, wake it when something is enqueued that it listens to."""

        def heard(news: str) -> None:
            if listens(self._queues, news.partition("\t")[0]):
                self._wake(news)

        while self._asleep.is_set():
            try:
                self._scripts.listen(self._asleep, self._ready, heard)
            except Exception as error:  # polling goes on; whatever it is, a worker must not become deaf
                emit("redis.wait", level="warning", reason=str(error))
                time.sleep(0.5)

    def close(self) -> None:
        self._asleep.clear()
        self._scripts.close()

    # Rescue

    def rescue(self, *, now: datetime | None = None) -> int:
        self._relay()
        rescued, buried = 0, []
        with self._db.transaction() as conn:
            for row in lock_dead_workers(conn, now):
                number = self._rescue(row["id"], row["host"], now)
                if number is not None:
                    rescued += number
                    buried.append(row)
            if buried:
                fetch(conn, "bury_workers", workers=[row["id"] for row in buried])
        for row in buried:
            emit("worker.bury", level="warning", worker=row["id"], host=row["host"], pid=row["pid"])
        if now is not None or self._clock() >= self._sweep_at:
            rescued += self._sweep(now)
            self._sweep_at = self._clock() + _SWEEP
        if rescued:
            emit("task.rescue", level="warning", tasks=rescued)
        return rescued

    def _sweep(self, now: datetime | None) -> int:
        """The same for workers that nobody knows: they were given up while they still claimed."""
        holding = set(self.holders())
        settlers = {row["worker"] for row in self._db.fetch("unregistered_settlers")}
        known = {row["id"] for row in self._db.fetch("worker_ids")}
        return sum(self._rescue(worker, "", now) or 0 for worker in sorted((holding | settlers) - known))

    def _rescue(self, worker: int, host: str, now: datetime | None) -> int | None:
        """Take the claims of a dead worker back, or go on with how it has ended them; None while it is at that."""
        accounts = self._everybody()
        calls = [("holdings", account, ("", worker)) for account in accounts]
        held = {
            account: claims
            for account, answer in zip(accounts, self._scripts.run_all(calls), strict=True)
            if (claims := json.loads(answer))
        }
        flat = [
            (self._numbers[account] * PLACES + int(n), attempts, account)
            for account, claims in held.items()
            for n, attempts in claims
        ]
        with self._db.transaction() as conn:
            (step,) = fetch(
                conn,
                "rescue_settlements",
                worker=worker,
                tasks=[id for id, _, _ in flat],
                attempts=[attempts for _, attempts, _ in flat],
                accounts=[account for _, _, account in flat],
            )
        if not step["free"]:
            return None
        found = self._db.fetch("settlements", worker=worker)
        self._number({row["account_id"] for row in found})
        self._relay()
        if ends := [
            (row["account_id"], row["task"], row["attempts"], json.dumps(row["outcome"]))
            for row in found
            if row["outcome"] is not None
        ]:
            self._apply(worker, ends, now)
        rescued = 0
        for account, claims in held.items():
            rescued += self._scripts.run(
                "rescue", account, _time(now), worker, json.dumps([[int(n), attempts] for n, attempts in claims]),
                host, MAX_RESCUES,
            )  # fmt: skip
        # Not what a worker that lives on has written meanwhile: the next rescue goes on with that.
        if found:
            self._db.fetch("forget_settlements", worker=worker, tasks=[row["task"] for row in found])
        return rescued

    # Keeping

    def prune(self, *, completed_days: float, failed_days: float, now: datetime | None = None) -> int:
        at = now or datetime.now(UTC)
        before = [_micro(at - timedelta(days=days)) for days in (completed_days, failed_days)]
        total = 0
        for account in self._everybody():
            while gone := self._scripts.run("prune", account, "", *before):
                total += gone
        if total:
            emit("task.prune", tasks=total)
        return total

    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        found = [
            {"queue": queue, "account_id": account, "status": status, "tasks": tasks,
             "oldest_seconds": None if oldest == "" else float(oldest)}
            for account, rows in self._each("stats", self._everybody(), now)
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
        for _, found in self._each("holders", self._everybody(), None):
            counts.update(dict(zip(map(int, found[::2]), map(int, found[1::2]), strict=True)))
        return counts

    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        everybody = self._everybody()
        accounts = everybody if account_id is None else [account for account in everybody if account == account_id]
        rows: list[Mapping[str, Any]] = [
            self._whole(account, row)
            for account, found in self._each("peek", accounts, None, status, limit)
            for row in found
        ]
        return sorted(rows, key=lambda row: (row["updated_at"], row["id"]), reverse=True)[:limit]

    def find(self, id: int) -> Mapping[str, Any] | None:
        for account, numbers in self._locate([id]).items():
            for row in json.loads(self._scripts.run("find", account, "", json.dumps(numbers))) or []:
                return self._whole(account, row)
        return None

    def retry_failed(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        since: datetime | None = None,
        error_class: str | None = None,
    ) -> int:
        from_then = _micro(since) if since else "-inf"
        total = 0
        for account, wanted in self._meant(ids, account_id).items():
            failed = {int(n) for n in self._scripts.run("failed", account, "", from_then)}
            numbers = sorted(failed if wanted is None else failed & set(wanted), reverse=True)
            for n in range(0, len(numbers), _AT_ONCE):
                part = json.dumps(numbers[n : n + _AT_ONCE])
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
        for account, rows in self._each("processing", list(meant), None):
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
        for account in self._everybody():
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
        meant = dict.fromkeys(self._everybody()) if ids is None else dict(self._locate(ids))
        return {each: numbers for each, numbers in meant.items() if account in (None, each)}

    def _locate(self, ids: Sequence[int]) -> dict[UUID, list[int]]:
        """Where these tasks are."""
        if any(id // PLACES not in self._accounts for id in ids):
            self._everybody()
        found: dict[UUID, list[int]] = defaultdict(list)
        for id in ids:
            if id // PLACES in self._accounts:
                found[self._accounts[id // PLACES]].append(id % PLACES)
        return found

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
        for _, found in self._each("progress", self._everybody(), None, str(run), *fields):
            counts.update(dict(zip(COUNTED, found, strict=True)))
        return counts

    def unfinished(self, runs: Sequence[UUID], waiting: Sequence[UUID] = ()) -> set[UUID]:
        # PostgreSQL first: what leaves it is in Redis by then. Then the account where each run was last seen open,
        # then all; and PostgreSQL again, for what was moved there meanwhile.
        found = self._open_beside(runs, waiting)
        last = {run: self._open_in[run] for run in runs if run in self._open_in and run not in found}
        found |= self._open(list(last), list(set(last.values())), waiting)
        if rest := [run for run in runs if run not in found]:
            found |= self._open(rest, self._everybody(), waiting)
        if rest := [run for run in runs if run not in found]:
            found |= self._open_beside(rest, waiting)
        return found

    def _open_beside(self, runs: Sequence[UUID], waiting: Sequence[UUID]) -> set[UUID]:
        rows = self._db.fetch("open_beside_redis", runs=list(runs), waiting=list(waiting))
        return {row["run_id"] for row in rows}

    def _open(self, runs: Sequence[UUID], accounts: Sequence[UUID], waiting: Sequence[UUID]) -> set[UUID]:
        for run in runs:
            self._open_in.pop(run, None)
        for account, counts in self._each("open", accounts, None, json.dumps(list(map(str, runs)))):
            for run, (processing, pending) in zip(runs, counts, strict=True):
                if processing or (pending and account not in waiting):
                    self._open_in[run] = account
        return {run for run in runs if run in self._open_in}

    def problems(self, run: UUID, limit: int = 50) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = [
            self._whole(account, row)
            for account, found in self._each("problems", self._everybody(), None, str(run), limit)
            for row in found
        ]
        return sorted(rows, key=lambda row: (row["status"] == "failed", row["updated_at"]), reverse=True)[:limit]

    def _whole(self, account: UUID, values: Sequence[Any]) -> dict[str, Any]:
        """A record as the database driver shows it."""
        row = dict(zip(_ROW, values, strict=True))
        row |= {name: _moment(row[name]) for name in _ROW if name.endswith("_at")}
        row |= {name: row[name] or None for name in ("max_attempts", "worker", "result", "error", "error_class")}
        history = [dict(zip(_ENTRY, entry, strict=True)) for entry in row["history"] or []]
        for entry in history:
            for name in ("at", "started_at"):
                moment = _moment(entry[name])
                entry[name] = moment and moment.isoformat()
            entry["host"] = entry["host"] or None
            entry["worker"] = entry["worker"] or None
        return row | {
            "id": self._numbers[account] * PLACES + int(row["id"]),
            "account_id": account,
            "payload": json.loads(row["payload"]),
            "run_id": UUID(row["run_id"]) if row["run_id"] else None,
            "history": history or None,
        }


def _task(first: int, account: UUID, worker: int, row: Sequence[Any]) -> Task:
    """A task as the script `claim` tells it."""
    n, queue, entity_type, entity_id, operation, priority, payload, attempts, most, run, waited = row
    run_id = UUID(run) if run else None
    return Task(
        first + int(n), queue, account, entity_type, entity_id, operation, priority, payload, attempts, most or None,
        run_id, worker, waited,
    )  # fmt: skip


def _join(row: list[Any], before: Sequence[Any]) -> None:
    """Have what was asked for later take over what it has from its twin before it: as `enqueue` does."""
    row[4] = max(row[4], before[4])
    row[6] = row[6] or before[6]
    row[8] = min(row[8], before[8])
    row += before[9:] if len(row) == 9 else ()


_Claim = tuple[UUID, int, int, str]
"""Account, id, attempts, and how it ends, as JSON."""


def _claim(end: Ended) -> _Claim:
    return end.task.account_id, end.task.id, end.task.attempts, _json_way(end.outcome)


def _by_account(claims: Iterable[_Claim]) -> dict[UUID, list[_Claim]]:
    found: dict[UUID, list[_Claim]] = {}
    for claim in claims:
        found.setdefault(claim[0], []).append(claim)
    return found


@lru_cache(maxsize=1024)
def _json_way(outcome: Outcome) -> str:
    return json.dumps(_way(outcome), ensure_ascii=False)


def _way(outcome: Outcome) -> list[Any]:
    """An outcome as queue.lua takes it."""
    if isinstance(outcome, Moved):
        return ["move"]
    verb = VERBS[type(outcome)]
    match outcome:
        case Complete():
            return [verb, outcome.result, outcome.note or ""]
        case Fail():
            return [verb, outcome.error, outcome.error_class]
        case Retry():
            return [verb, outcome.error, outcome.error_class, outcome.delay]
        case Snooze():
            return [verb, outcome.reason, outcome.wait]
        case _:
            return [verb]


def _matches(pattern: str | None, queue: str) -> bool:
    return pattern is None or listens([pattern], queue)


def _micro(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _time(now: datetime | None) -> int | str:
    return "" if now is None else _micro(now)


def _moment(micro: str) -> datetime | None:
    return _EPOCH + int(micro) * _MICROSECOND if int(micro) else None
