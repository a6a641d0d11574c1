"""Tasks in PostgreSQL's table `sync_queue`; the SQL and its reasons are in sql/queue.sql."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from itertools import chain, islice
from typing import Any
from uuid import UUID

from psycopg.errors import DeadlockDetected, UniqueViolation
from psycopg.rows import tuple_row

from worker.db import Connection, Database, fetch, fetch_one, query
from worker.errors import NotFound
from worker.queues.contract import COUNTED, VERBS, Cancelled, Effect, Ended
from worker.queues.directed import Directed
from worker.queues.lanes import Lane
from worker.queues.routing import Route, like
from worker.task import NewTask, Outcome, Payload, Task, to_json
from worker.telemetry import emit

LOCK_CLASS = 0x6D73
"""First key of the advisory lock a worker's session holds; the second is the worker's id."""

MAX_RESCUES = 20
"""Deaths a task may cause. By the twelfth `claim` has halved a batch of 500 down to it alone; the rest are
for the innocent, whose workers are killed by something else."""

_BULK = 100
_COPY_AT_ONCE = 50_000
"""Tasks held at once, sorted by account: each then goes beside the one before it in the indexes."""
_COPY_PORTION = 500
_STILL = "60s"
"""For how long a settlement's transaction may stand still between two statements, holding its tasks."""
NULL = r"\N"
_TASK_FIELDS = len(Task.__dataclass_fields__)
_READERS: tuple[Callable[[str], Any], ...] = (
    int, str, UUID, str, str, str, int, str, int, int, UUID, int, float,
    int, int, int,
)  # fmt: skip
"""What makes of a claim's columns, as text, a task's fields; and what it tells of the lane."""
_AT_ONCE = 10_000
"""Rows that one statement of a sweep through the table changes."""


class DatabaseQueue(Directed):
    """The driver `database`, see `contract.Queue`."""

    def __init__(self, db: Database, route: Route, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self._db = db
        self._route = route

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        given, tasks = tasks, iter(tasks)
        few = list(islice(tasks, _BULK + 1))
        if not few:
            return 0
        if len(few) == 1 and within is None and now is None:
            added, queues = self._insert_one(few[0])
        elif len(few) <= _BULK:
            added, queues = self._insert(few, within, now)
        else:
            try:
                added, queues = self._copy(chain(few, tasks), within, now)
            except DeadlockDetected:
                # As in `_insert`; what cannot be gone through anew is the caller's, too.
                if within or not isinstance(given, Collection):
                    raise
                return self.enqueue(given, now=now)
        emit("task.enqueue", tasks=added, queues=",".join(sorted(queues)))
        return added

    def _insert_one(self, task: NewTask) -> tuple[int, set[str]]:
        queue = self._route(task.entity_type, task.account_id)
        ((added, _),) = self._db.fetch_quick(
            "enqueue_one",
            queue=queue,
            account_id=str(task.account_id),
            entity_type=task.entity_type,
            entity_id=task.entity_id,
            operation=task.operation,
            priority=str(task.priority),
            payload=to_json(task.payload),
            run_id=_text_or_null(task.run_id),
            max_attempts=_text_or_null(task.max_attempts),
            scheduled_at=_text_or_null(task.scheduled_at),
        )
        return int(added or 0), {queue}

    def _insert(
        self, tasks: Sequence[NewTask], within: Connection | None, now: datetime | None
    ) -> tuple[int, set[str]]:
        unique = {(task.account_id, task.entity_type, task.entity_id, task.operation): task for task in tasks}
        rows = [
            (
                self._route(task.entity_type, task.account_id),
                task.account_id,
                task.entity_type,
                task.entity_id,
                task.operation,
                task.priority,
                to_json(task.payload),
                task.run_id,
                task.max_attempts,
                task.scheduled_at,
            )
            for task in unique.values()
        ]
        params: dict[str, Any] = {
            name: list(column) for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
        }
        while True:
            try:
                with nullcontext(within) if within else self._db.connection() as conn:
                    row = fetch_one(conn, "enqueue", **params, now=now, always=within is not None)
            except DeadlockDetected:
                # Another producer has the same tasks in another order. Inside the caller's transaction: the caller's.
                if within:
                    raise
            else:
                return (int(row["added"]) if row else 0), set(params["queue"])

    def _copy(
        self, tasks: Iterator[NewTask], within: Connection | None, now: datetime | None
    ) -> tuple[int, set[str]]:
        added = 0
        lines = _Lines(self._route, now)
        with nullcontext(within) if within else self._db.transaction() as conn:
            while part := sorted(islice(tasks, _COPY_AT_ONCE), key=_account):
                try:
                    with conn.transaction():
                        _stream(conn, "copy_tasks", lines, part)
                    added += len(part)
                except UniqueViolation:
                    conn.execute(query("create_incoming"))
                    _stream(conn, "copy_incoming", lines, part)
                    row = fetch_one(conn, "enqueue_incoming")
                    added += int(row["added"]) if row else 0
            fetch(conn, "wake", queues=sorted(lines.queues), always=within is not None)
        return added, lines.queues

    def _look(self, queues: Sequence[str], now: datetime | None) -> list[dict[str, Any]]:
        return self._db.fetch(
            "discover",
            patterns=[like(name) for name in queues],
            names=[name for name in queues if "*" not in name],
            wild=any("*" in name for name in queues),
            now=now,
        )

    def _take(self, lane: Lane, worker: int, limit: int, now: datetime | None) -> tuple[Task, ...]:
        mark = lane.mark
        while True:
            rows = self._claim(lane, worker=worker, limit=limit, mark=mark, now=now)
            seen, last, left_out = rows[0][_TASK_FIELDS:]
            if rows[0][0] is not None:
                lane.mark = last if left_out is None else left_out - 1
                return tuple([Task(*row[:_TASK_FIELDS]) for row in rows])
            if seen < limit:
                return ()
            mark = last

    def _claim(self, lane: Lane, **params: Any) -> list[tuple[Any, ...]]:
        params |= {
            "queue": lane.queue,
            "rank": lane.rank,
            "account": lane.account_id,
            "concurrency": lane.concurrency,
            "announced": lane.announced,
        }
        if lane.announced:  # somebody has just enqueued a task, and may be waiting for it
            texts = {name: _text_or_null(value) for name, value in params.items()}
            return [_read(row) for row in self._db.fetch_quick("claim", **texts)]
        if lane.concurrency is None:
            with self._db.connection() as conn:
                return _tuples(conn, "claim", params)
        with self._db.transaction() as conn:
            fetch(conn, "lock_account", account=lane.account_id)
            return _tuples(conn, "claim", params)

    def _hand_back(self, worker: int, lane: Lane) -> None:
        with self._db.transaction() as conn:
            rows = fetch(conn, "held", worker=worker)
            _put_back(conn, "release", **_claims(worker, [(row["id"], row["attempts"]) for row in rows]))

    def settle(
        self, ended: Sequence[Ended], effect: Effect | None = None, *, now: datetime | None = None
    ) -> Counter[str]:
        counts: Counter[str] = Counter()
        if not ended:
            return counts
        groups: dict[str, list[Ended]] = {}
        for end in ended:
            groups.setdefault(VERBS[type(end.outcome)], []).append(end)
        if effect is None and groups.keys() == {"complete"}:
            with self._db.connection() as conn:  # the common case: one statement, one round trip
                counts["complete"] = self._end(conn, "complete", ended, now)
        else:
            with self._db.transaction() as conn:
                if effect is not None:
                    effect(conn, self._owned(conn, ended))
                for verb, group in groups.items():
                    counts[verb] = self._end(conn, verb, group, now)
                if counts["release"]:
                    fetch(conn, "wake", queues=sorted({end.task.queue for end in ended}), always=False)
        counts["lost"] = len(ended) - counts.total()
        return counts

    def _owned(self, conn: Connection, ended: Sequence[Ended]) -> set[int]:
        """Those of the claims that are still this worker's, locked until the transaction ends."""
        claims = _claims(ended[0].task.worker, _keys(ended))
        return {row["id"] for row in fetch(conn, "owned", **claims, patience=_STILL)}

    def _end(self, conn: Connection, verb: str, ended: Sequence[Ended], now: datetime | None) -> int:
        params = _claims(ended[0].task.worker, _keys(ended)) | _ways([end.outcome for end in ended], _FIELDS[verb])
        if verb in ("complete", "fail"):
            return len(fetch(conn, verb, **params))
        return len(_put_back(conn, verb, **params, now=now))

    def doze(self, worker: int) -> None:
        self._db.fetch("doze", worker=worker)

    def rouse(self, worker: int) -> None:
        self._db.fetch("rouse", worker=worker)

    def rescue(self, *, now: datetime | None = None) -> int:
        with self._db.transaction() as conn:
            dead = lock_dead_workers(conn, now)
            ids = [row["id"] for row in dead]
            rescued = _put_back(conn, "rescue", workers=ids, rescues=MAX_RESCUES, now=now)
            if dead:
                fetch(conn, "bury_workers", workers=ids)
            if rescued:
                fetch(conn, "wake", queues=sorted({row["queue"] for row in rescued}), always=False)
        for row in dead:
            emit("worker.bury", level="warning", worker=row["id"], host=row["host"], pid=row["pid"])
        if rescued:
            emit("task.rescue", level="warning", tasks=len(rescued))
        return len(rescued)

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
            rows = _put_back(
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


_COLUMNS = (
    "queue",
    "account_id",
    "entity_type",
    "entity_id",
    "operation",
    "priority",
    "payload",
    "run_id",
    "max_attempts",
    "scheduled_at",
)


_FIELDS: dict[str, tuple[str, ...]] = {
    "complete": ("result", "note"),
    "retry": ("delay", "error", "error_class"),
    "snooze": ("wait", "reason"),
    "fail": ("error", "error_class"),
    "release": (),
}
"""What the SQL of a verb takes from each outcome."""


def _keys(ended: Sequence[Ended]) -> list[tuple[int, int]]:
    return [(end.task.id, end.task.attempts) for end in ended]


def _claims(worker: int, keys: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The claims (id, attempts) as the SQL takes them; what is not theirs any more is fenced off there."""
    return {
        "ids": _integers(id for id, _ in keys),
        "attempts": _integers(attempts for _, attempts in keys),
        "worker": worker,
    }


def _ways(outcomes: Sequence[Outcome], names: Sequence[str]) -> dict[str, Any]:
    """Outcomes as the SQL takes them: each that occurs once, and for each task which one."""
    numbers: dict[Outcome, int] = {}
    way = [numbers.setdefault(outcome, len(numbers) + 1) for outcome in outcomes]
    columns: dict[str, Any] = {name: [getattr(outcome, name) for outcome in numbers] for name in names}
    return columns | {"way": _integers(way)}


def _integers(values: Iterable[int]) -> str:
    """An array in PostgreSQL's text format: a list of hundreds of numbers costs psycopg much more."""
    return f"{{{','.join(map(str, values))}}}"


def _tuples(conn: Connection, name: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """`fetch` for many rows."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query(name), params).fetchall()


def _read(row: Sequence[bytes | None]) -> tuple[Any, ...]:
    return tuple([None if value is None else read(value.decode()) for read, value in zip(_READERS, row, strict=True)])


def _account(task: NewTask) -> int:
    return task.account_id.int


def _text_or_null(value: object) -> str | None:
    return None if value is None else str(value)


def _text(value: str) -> str:
    """A value in COPY's text format."""
    if value.isalnum():
        return value
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


class _Lines:
    """Tasks as lines of COPY's text format; what many have in common is written out once."""

    def __init__(self, route: Route, now: datetime | None) -> None:
        self._route, self._now = route, now
        self._begins: dict[tuple[UUID, str], str] = {}
        self._ends: dict[tuple[str, int, Payload, UUID | None, int | None, datetime | None], str] = {}
        self.queues: set[str] = set()
        """Where they go."""

    def __call__(self, task: NewTask) -> str:
        begin = self._begins.get((task.account_id, task.entity_type))
        if begin is None:
            begin = self._begin(task)
        key = (task.operation, task.priority, task.payload, task.run_id, task.max_attempts, task.scheduled_at)
        end = self._ends.get(key)
        if end is None:
            end = self._end(task)
            if len(self._ends) < _COPY_AT_ONCE:
                self._ends[key] = end
        id = task.entity_id
        return f"{begin}{id if id.isalnum() else _text(id)}{end}"

    def _begin(self, task: NewTask) -> str:
        queue = self._route(task.entity_type, task.account_id)
        self.queues.add(queue)
        begin = f"{_text(queue)}\t{task.account_id}\t{task.entity_type}\t"
        self._begins[task.account_id, task.entity_type] = begin
        return begin

    def _end(self, task: NewTask) -> str:
        """One with a time waits for it, however short it is."""
        at = task.scheduled_at
        ready = at is None or (self._now is not None and at <= self._now)
        return (
            f"\t{task.operation}\t{task.priority}\t{_text(to_json(task.payload))}\t{task.run_id or NULL}"
            f"\t{NULL if task.max_attempts is None else task.max_attempts}\t{at or self._now or 'now'}\t{ready}\n"
        )


def _stream(conn: Connection, name: str, line: Callable[[NewTask], str], tasks: Sequence[NewTask]) -> None:
    """COPY them; the server takes up the first while the next are being written out."""
    with conn.cursor() as cursor, cursor.copy(query(name)) as copy:
        for begin in range(0, len(tasks), _COPY_PORTION):
            copy.write("".join(map(line, tasks[begin : begin + _COPY_PORTION])))


def lock_dead_workers(conn: Connection, now: datetime | None) -> list[dict[str, Any]]:
    """Dead workers (id, host, pid) that nobody else is burying, until the transaction ends."""
    dead = fetch(conn, "dead_workers", lock_class=LOCK_CLASS, now=now)
    return fetch(conn, "lock_workers", workers=[row["id"] for row in dead]) if dead else []


def _put_back(conn: Connection, name: str, **params: Any) -> list[dict[str, Any]]:
    """Run a transition back to pending; again, when a twin appeared between its look and its write."""
    while True:
        step: AbstractContextManager[object] = conn.transaction()
        try:
            with step:
                return fetch(conn, name, **params)
        except UniqueViolation:
            continue
