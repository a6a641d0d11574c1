"""Move what waits from PostgreSQL to Redis, or back, while workers of both go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from worker.db import Connection, Database, fetch, patiently
from worker.queues.contract import Ended
from worker.queues.database import DatabaseQueue
from worker.queues.redis import RedisQueue
from worker.queues.settlements import Moved
from worker.task import Task
from worker.telemetry import emit

_LOOK = 0.5
_FROM_DATABASE, _FROM_REDIS = 1_000, 500
"""Tasks in one portion."""
Row = Mapping[str, Any]
"""A task as `peek` has it."""


class DatabaseSide(DatabaseQueue):
    """Tasks in PostgreSQL that come and go."""

    def depart(self) -> Iterator[int]:
        """Take what waits to the outbox that leads to Redis, in portions; how many at a time."""
        mark = 0
        while True:
            (row,) = self._db.fetch("depart", mark=mark, limit=_FROM_DATABASE)
            if not row["tasks"]:
                return
            yield row["tasks"]
            mark = row["mark"]

    def arrive(self, conn: Connection, rows: Sequence[Row]) -> None:
        """Take in, with the caller's transaction, what waited elsewhere."""
        fetch(conn, "arrive", rows=json.dumps([{**row, "n": n} for n, row in enumerate(rows)], default=str))

    def open_tasks(self) -> dict[str, int]:
        """How many are pending, and how many processing."""
        return self._db.fetch("open_tasks")[0]


class RedisSide(RedisQueue):
    """Tasks in Redis that come and go."""

    def relay(self) -> None:
        """Take in what the outbox has. Raises one of AWAY."""
        self._relay_all()

    def depart(self, worker: int, arrive: Callable[[Connection, Sequence[Row]], None]) -> Iterator[int]:
        """Hand what waits over to `arrive`, in portions, as a worker of the caller's; how many at a time.

        As with any claim that has an effect: what has arrived is gone from here, whatever dies in between, and what
        has not goes back as it was. Repeated after an error it begins with that.
        """
        self._rescue(worker, "", None)
        for account in self._shards.everybody():
            numbers = sorted(n for page in self._pages(account) for n, _, _ in page)
            for n in range(0, len(numbers), _FROM_REDIS):
                part = json.dumps(numbers[n : n + _FROM_REDIS])
                taken = json.loads(self._scripts.run("depart", account, "", worker, part)) or []
                rows: dict[int, Row] = {row["id"]: row for row in (self._whole(account, values) for values in taken)}

                def effect(conn: Connection, owned: set[int], rows: Mapping[int, Row] = rows) -> None:
                    arrive(conn, [rows[id] for id in sorted(owned)])

                if counts := self.settle([Ended(_claim(row, worker), Moved()) for row in rows.values()], effect):
                    yield counts["move"]

    def open_tasks(self) -> dict[str, int]:
        """How many are pending, and how many processing."""
        counts = {"pending": 0, "processing": 0}
        for row in self.stats():
            if row["status"] in counts:
                counts[row["status"]] += row["tasks"]
        return counts

    def leave(self, runs: Sequence[UUID]) -> None:
        """Say of these runs that none of their tasks is open here any more, and how many have ended here."""
        for run in runs:
            self._db.fetch("left_redis", id=run, counts=Jsonb(dict(self._progress_here(run))))


def _claim(row: Row, worker: int) -> Task:
    """What waited, as its mover holds it."""
    return Task(
        row["id"], row["queue"], row["account_id"], row["entity_type"], row["entity_id"], row["operation"],
        row["priority"], json.dumps(row["payload"]), row["attempts"] + 1, row["max_attempts"], row["run_id"], worker,
        0.0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Left:
    """What is still where it was: what waits, what is being processed and may wait again, what is in between."""

    waiting: int
    processing: int
    on_the_way: int

    def __bool__(self) -> bool:
        return self.waiting + self.processing + self.on_the_way > 0


class Move:
    """A task is in one place at any time, so that whatever dies, another call goes on.

    To Redis: a transaction takes it from the table to the outbox, from where it arrives once. From Redis: it is
    claimed by `mover`, a worker that lives as long as this does, and settled like any claim, its effect being the row
    in the table.
    """

    def __init__(self, db: Database, database: DatabaseSide, redis: RedisSide, mover: Callable[[], int]) -> None:
        self._db, self._database, self._redis, self._mover = db, database, redis, mover
        self.moved = 0
        """So many until now."""

    def left(self, source: str) -> Left:
        """What is not there yet."""
        on_the_way = self._db.fetch("count_outbox")[0]["tasks"]
        counts = (self._database if source == "database" else self._redis).open_tasks()
        return Left(counts["pending"], counts["processing"], on_the_way)

    def run(self, source: str, seconds: float, *, tell: Callable[[Left], None] = lambda _: None) -> Left:
        """Move until nothing is left, or so many seconds are over; what is left then.

        What is being processed is waited for, since it may be put back. Servers that are away are waited for, too.
        """
        until = time.monotonic() + seconds
        step = self._to_redis if source == "database" else self._to_database
        told: Left | None = None
        while True:
            before = self.moved
            left = patiently(lambda: step() or self.left(source), give_up=lambda: time.monotonic() >= until)
            if self.moved > before:
                emit("task.move", tasks=self.moved - before, source=source)
            if left != told:
                tell(left)
                told = left
            if not left or time.monotonic() >= until:
                return left
            if self.moved == before:
                time.sleep(_LOOK)

    def _to_redis(self) -> None:
        self._database.rescue()
        self._count(self._database.depart())
        self._redis.relay()

    def _to_database(self) -> None:
        runs = [row["id"] for row in self._db.fetch("runs_in_redis")]
        self._redis.rescue()
        self._count(self._redis.depart(self._mover(), self._database.arrive))
        if not self.left("redis"):
            self._redis.leave(runs)

    def _count(self, portions: Iterable[int]) -> None:
        for number in portions:
            self.moved += number
