"""Tasks in PostgreSQL's table `sync_queue`; the SQL and its reasons are in sql/queue.sql."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from itertools import chain, islice
from typing import Any
from uuid import UUID

from psycopg.errors import DeadlockDetected, UniqueViolation
from psycopg.rows import tuple_row

from worker.db import Connection, Database, fetch, fetch_one, query
from worker.queues.bulk import COPY_AT_ONCE, Rows, stream
from worker.queues.contract import VERBS, Effect, Ended
from worker.queues.directed import Directed
from worker.queues.lanes import Lane
from worker.queues.routing import Route, like
from worker.queues.rows import DatabaseRecords, put_back
from worker.task import NewTask, Outcome, Task, to_json
from worker.telemetry import emit

LOCK_CLASS = 0x6D73
"""First key of the advisory lock a worker's session holds; the second is the worker's id."""

MAX_RESCUES = 20
"""Deaths a task may cause. By the twelfth `claim` has halved a batch of 500 down to it alone; the rest are
for the innocent, whose workers are killed by something else."""

_BULK = 100
_STILL = "60s"
"""For how long a settlement's transaction may stand still between two statements, holding its tasks."""
_TASK_FIELDS = len(Task.__dataclass_fields__)
_READERS: tuple[Callable[[str], Any], ...] = (
    int, str, UUID, str, str, str, int, str, int, int, UUID, int, float,
)  # fmt: skip
"""What makes of a claim's columns, as text, a task's fields."""


class DatabaseQueue(Directed, DatabaseRecords):
    """The driver `database`, see `contract.Queue`."""

    def __init__(self, db: Database, route: Route, *, clock: Callable[[], float] = time.monotonic) -> None:
        Directed.__init__(self, clock=clock)
        DatabaseRecords.__init__(self, db)
        self._route = route

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        given, tasks = tasks, iter(tasks)
        few = list(islice(tasks, _BULK + 1))
        if not few:
            return 0
        if len(few) == 1 and within is None and now is None:
            return self._insert_one(few[0])
        if len(few) <= _BULK:
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

    def _insert_one(self, task: NewTask) -> int:
        queue = self._route(task.entity_type, task.account_id)
        ((added, _),) = self._db.fetch_quick(
            "enqueue_one",
            queue=queue,
            account_id=task.account_id.hex,
            entity_type=task.entity_type,
            entity_id=task.entity_id,
            operation=task.operation,
            priority=str(task.priority),
            payload=to_json(task.payload),
            run_id=None if task.run_id is None else task.run_id.hex,
            max_attempts=_text_or_null(task.max_attempts),
            scheduled_at=_text_or_null(task.scheduled_at),
        )
        new = int(added or 0)
        emit("task.enqueue", tasks=new, queues=queue)
        return new

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
        with nullcontext(within) if within else self._db.transaction() as conn:
            began = now or fetch(conn, "transaction_began")[0]["now"]
            plain, timed = Rows(self._route), Rows(self._route, began)
            while part := list(islice(tasks, COPY_AT_ONCE)):
                try:
                    with conn.transaction():
                        if now is None and not any(task.scheduled_at for task in part):
                            stream(conn, "copy_tasks", plain, part)
                        else:
                            stream(conn, "copy_timed_tasks", timed, part)
                    added += len(part)
                except UniqueViolation:
                    conn.execute(query("create_incoming"))
                    stream(conn, "copy_incoming", timed, part)
                    row = fetch_one(conn, "enqueue_incoming")
                    added += int(row["added"]) if row else 0
            queues = plain.queues | timed.queues
            fetch(conn, "wake", queues=sorted(queues), always=within is not None)
        return added, queues

    def _look(self, queues: Sequence[str], now: datetime | None) -> list[Lane]:
        params: dict[str, Any] = {
            "patterns": [like(name) for name in queues],
            "names": [name for name in queues if "*" not in name],
            "wild": any("*" in name for name in queues),
            "now": now,
        }
        with self._db.connection() as conn:
            return [Lane(*row) for row in _tuples(conn, "discover", params)]

    def _take(self, lane: Lane, worker: int, limit: int, now: datetime | None) -> tuple[Task, ...]:
        if lane.announced:  # somebody has just enqueued a task, and may be waiting for it
            return self._take_told(lane, worker)
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

    def _take_told(self, lane: Lane, worker: int) -> tuple[Task, ...]:
        rows = self._db.fetch_quick("claim_told", task=str(lane.task), queue=lane.queue, worker=str(worker))
        return tuple([Task(*_read(row[:_TASK_FIELDS])) for row in rows])

    def _claim(self, lane: Lane, **params: Any) -> list[tuple[Any, ...]]:
        params |= {
            "queue": lane.queue,
            "rank": lane.rank,
            "account": lane.account_id,
            "concurrency": lane.concurrency,
        }
        if lane.concurrency is None:
            with self._db.connection() as conn:
                return _tuples(conn, "claim", params)
        with self._db.transaction() as conn:
            fetch(conn, "lock_account", account=lane.account_id)
            return _tuples(conn, "claim", params)

    def _hand_back(self, worker: int, lane: Lane) -> None:
        with self._db.transaction() as conn:
            rows = fetch(conn, "held", worker=worker)
            put_back(conn, "release", **_claims(worker, [(row["id"], row["attempts"]) for row in rows]))

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
        return len(put_back(conn, verb, **params, now=now))

    def doze(self, worker: int) -> None:
        self._db.fetch("doze", worker=worker)

    def rouse(self, worker: int) -> None:
        self._db.fetch("rouse", worker=worker)

    def rescue(self, *, now: datetime | None = None) -> int:
        with self._db.transaction() as conn:
            dead = lock_dead_workers(conn, now)
            ids = [row["id"] for row in dead]
            rescued = put_back(conn, "rescue", workers=ids, rescues=MAX_RESCUES, now=now)
            if dead:
                fetch(conn, "bury_workers", workers=ids)
            if rescued:
                fetch(conn, "wake", queues=sorted({row["queue"] for row in rescued}), always=False)
        for row in dead:
            emit("worker.bury", level="warning", worker=row["id"], host=row["host"], pid=row["pid"])
        if rescued:
            emit("task.rescue", level="warning", tasks=len(rescued))
        return len(rescued)


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


def _text_or_null(value: object) -> str | None:
    return None if value is None else str(value)


def lock_dead_workers(conn: Connection, now: datetime | None) -> list[dict[str, Any]]:
    """Dead workers (id, host, pid) that nobody else is burying, until the transaction ends."""
    dead = fetch(conn, "dead_workers", lock_class=LOCK_CLASS, now=now)
    return fetch(conn, "lock_workers", workers=[row["id"] for row in dead]) if dead else []
