"""Tasks in PostgreSQL's table `sync_queue`; the SQL and its reasons are in sql/queue.sql."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from worker.db import Connection, Database, fetch, fetch_one, query
from worker.queues.routing import Route, resolve
from worker.task import Batch, Complete, Fail, NewTask, Release, Retry, Snooze, Task, encode
from worker.telemetry import emit

LOCK_CLASS = 0x6D73
"""First key of the advisory lock a worker's session holds; the second is the worker's id."""

MAX_RESCUES = 20
"""Deaths a task may cause. By the twelfth `claim` has halved a batch of 500 down to it alone; the rest are
for the innocent, whose workers are killed by something else."""

_BULK = 100
_PRUNE_AT_ONCE = 10_000
_NOBODY = UUID(int=0)


class DatabaseQueue:
    """The driver `database`, see `contract.Queue`.

    `names_for` seconds the list of existing queues, which wildcards are matched with, is kept.
    """

    def __init__(
        self,
        db: Database,
        route: Route,
        *,
        names_for: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._route = route
        self._names_for = names_for
        self._clock = clock
        self._names: list[str] = []
        self._names_until = float("-inf")
        self._unanswered: set[int] = set()

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        rows = (self._row(task) for task in tasks)
        few = list(islice(rows, _BULK))
        if not few:
            return 0
        with nullcontext(within) if within else self._db.transaction() as conn:
            more = next(rows, None)
            if more is None:
                added, queues = self._insert(conn, few, now)
            else:
                added, queues = self._copy(conn, few, more, rows, now)
            fetch(conn, "wake", queues=sorted(queues))
        emit("task.enqueue", tasks=added, queues=",".join(sorted(queues)))
        return added

    def _insert(self, conn: Connection, rows: list[tuple[Any, ...]], now: datetime | None) -> tuple[int, set[str]]:
        unique = {row[1:5]: row for row in rows}.values()
        columns = dict(zip(_COLUMNS, zip(*unique, strict=True), strict=True))
        params = {name: list(values) for name, values in columns.items()}
        result = fetch(conn, "enqueue", **params, now=now)
        return sum(row["added"] for row in result), set(params["queue"])

    def _copy(
        self,
        conn: Connection,
        few: list[tuple[Any, ...]],
        more: tuple[Any, ...],
        rest: Iterable[tuple[Any, ...]],
        now: datetime | None,
    ) -> tuple[int, set[str]]:
        queues = set()
        conn.execute(query("create_incoming"))
        with conn.cursor() as cursor, cursor.copy(query("copy_incoming")) as copy:
            n = 0
            for part in (few, [more], rest):
                for row in part:
                    n += 1
                    queues.add(row[0])
                    copy.write_row((n, *row))
        result = fetch_one(conn, "enqueue_incoming", now=now)
        return (int(result["added"]) if result else 0), queues

    def _row(self, task: NewTask) -> tuple[Any, ...]:
        return (
            self._route(task.entity_type, task.account_id),
            task.account_id,
            task.entity_type,
            task.entity_id,
            task.operation,
            task.priority,
            Jsonb(encode(task.payload)),
            task.run_id,
            task.max_attempts,
            task.scheduled_at,
        )

    def claim(
        self,
        queues: Sequence[str],
        worker: int,
        *,
        limit: int = 1,
        after: UUID | None = None,
        now: datetime | None = None,
    ) -> Batch | None:
        if worker in self._unanswered:
            self._hand_back(worker)
        names = resolve(queues, self._known(queues))
        self._unanswered.add(worker)
        rows = names and self._db.fetch(
            "claim", queues=names, worker=worker, limit=limit, after=after or _NOBODY, now=now
        )
        self._unanswered.discard(worker)
        if not rows:
            self._names_until = float("-inf")  # perhaps in a queue that is new: the next look asks anew
            return None
        tasks = tuple(sorted((Task(**row) for row in rows), key=lambda task: (-task.priority, task.id)))
        emit(
            "task.claim",
            tasks=len(tasks),
            account=tasks[0].account_id,
            kind=f"{tasks[0].entity_type}/{tasks[0].operation}",
            waited=max(task.waited for task in tasks),
        )
        return Batch(tasks, self._clock())

    def _hand_back(self, worker: int) -> None:
        """Release what a claim took whose answer never came: the server was gone after its commit."""
        with self._db.transaction() as conn:
            _put_back(conn, "release", ids=[row["id"] for row in fetch(conn, "held", worker=worker)])
        self._unanswered.discard(worker)

    def _known(self, queues: Sequence[str]) -> list[str]:
        if any("*" in name for name in queues) and self._clock() >= self._names_until:
            self._names = [row["queue"] for row in self._db.fetch("queues")]
            self._names_until = self._clock() + self._names_for
        return self._names

    def owned(self, tasks: Sequence[Task], within: Connection) -> list[Task]:
        if not tasks:
            return []
        rows = fetch(
            within,
            "owned",
            ids=[task.id for task in tasks],
            attempts=[task.attempts for task in tasks],
            worker=tasks[0].worker,
        )
        ours = {row["id"] for row in rows}
        return [task for task in tasks if task.id in ours]

    def complete(self, ended: Sequence[tuple[Task, Complete]], within: Connection) -> None:
        fetch(
            within,
            "complete",
            ids=_ids(ended),
            result=[outcome.result for _, outcome in ended],
            note=[outcome.note for _, outcome in ended],
        )

    def retry(self, ended: Sequence[tuple[Task, Retry]], within: Connection, *, now: datetime | None = None) -> None:
        _put_back(
            within,
            "retry",
            ids=_ids(ended),
            delay=[outcome.delay for _, outcome in ended],
            error=[outcome.error for _, outcome in ended],
            now=now,
        )

    def snooze(
        self, ended: Sequence[tuple[Task, Snooze]], within: Connection, *, now: datetime | None = None
    ) -> None:
        _put_back(
            within,
            "snooze",
            ids=_ids(ended),
            wait=[outcome.wait for _, outcome in ended],
            reason=[outcome.reason for _, outcome in ended],
            now=now,
        )

    def fail(self, ended: Sequence[tuple[Task, Fail]], within: Connection) -> None:
        fetch(within, "fail", ids=_ids(ended), error=[outcome.error for _, outcome in ended])

    def release(self, ended: Sequence[tuple[Task, Release]], within: Connection) -> None:
        _put_back(within, "release", ids=_ids(ended))
        fetch(within, "wake", queues=sorted({task.queue for task, _ in ended}))

    def rescue(self, *, now: datetime | None = None) -> int:
        with self._db.transaction() as conn:
            dead = fetch(conn, "lock_dead_workers", lock_class=LOCK_CLASS, now=now)
            ids = [row["id"] for row in dead]
            rescued = _put_back(conn, "rescue", workers=ids, rescues=MAX_RESCUES, now=now)
            if dead:
                fetch(conn, "bury_workers", workers=ids)
            if rescued:
                fetch(conn, "wake", queues=sorted({row["queue"] for row in rescued}))
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
                    {"completed": completed_days, "failed": failed_days, "limit": _PRUNE_AT_ONCE, "now": now},
                ).rowcount
            total += gone
            if gone < _PRUNE_AT_ONCE:
                if total:
                    emit("task.prune", tasks=total)
                return total

    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        return self._db.fetch("stats", now=now)

    def oldest(self, *, now: datetime | None = None) -> float | None:
        seconds: float | None = self._db.fetch("oldest", now=now)[0]["seconds"]
        return seconds

    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        return list(self._db.fetch("peek", status=status, account_id=account_id, limit=limit))

    def retry_failed(self, *, ids: Sequence[int] | None = None, account_id: UUID | None = None) -> int:
        with self._db.transaction() as conn:
            rows = _put_back(conn, "retry_failed", ids=None if ids is None else list(ids), account_id=account_id)
            fetch(conn, "wake", queues=sorted({row["queue"] for row in rows}))
        emit("task.retry_failed", tasks=len(rows))
        return len(rows)


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


def _ids(ended: Sequence[tuple[Task, Any]]) -> list[int]:
    return [task.id for task, _ in ended]


def _put_back(conn: Connection, name: str, **params: Any) -> list[dict[str, Any]]:
    """Run a transition back to pending; again, when a twin appeared between its look and its write."""
    while True:
        step: AbstractContextManager[object] = conn.transaction()
        try:
            with step:
                return fetch(conn, name, **params)
        except UniqueViolation:
            continue
