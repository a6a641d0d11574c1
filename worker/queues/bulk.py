"""Many tasks at once: COPY into PostgreSQL's table, in its binary format, which the server need not parse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from operator import attrgetter
from struct import Struct
from typing import Any

from worker.db import Connection, fetch, query
from worker.queues.routing import Route
from worker.task import NewTask, to_json

COPY_AT_ONCE = 50_000
"""Tasks held at once, sorted by account: each then goes beside the one before it in the indexes, mostly at their end.
Of one account's tasks the order is that in which they came."""
IDS_AT_ONCE = 32
"""Ids that the table's sequence gives at a time, see migration 0015."""
_PORTION = 500
_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_ID = Struct(">hiq").pack
"""The number of columns and the first of them."""
_END = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_JSONB = b"\x01"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

_common = attrgetter(
    "account_id", "entity_type", "operation", "priority", "payload", "run_id", "max_attempts", "scheduled_at"
)


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _number(value: int, size: int = 4) -> bytes:
    return _field(value.to_bytes(size, "big", signed=True))


class Rows:
    """Tasks as rows of COPY's binary format; what many have in common is written out once."""

    def __init__(self, route: Route, now: datetime | None = None) -> None:
        """With `now` rows tell when each task is due; without, all are at once, which the server need not read."""
        self._route, self._now = route, now
        self._columns = 10 if now is None else 12
        self._last: tuple[Any, ...] = ()
        self._around: tuple[bytes, bytes] = (b"", b"")
        self._known: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
        self.queues: set[str] = set()
        """Where they go."""

    def __call__(self, id: int, task: NewTask) -> bytes:
        common = _common(task)
        if common != self._last:  # mostly the same objects, which costs a tenth of what their hash does
            around = self._known.get(common)
            if around is None:
                around = self._write(task)
                if len(self._known) < COPY_AT_ONCE:
                    self._known[common] = around
            self._last, self._around = common, around
        begin, end = self._around
        entity = task.entity_id.encode()
        return b"".join((_ID(self._columns, 8, id), begin, len(entity).to_bytes(4, "big"), entity, end))

    def _write(self, task: NewTask) -> tuple[bytes, bytes]:
        """What stands before and behind the entity's id."""
        queue = self._route(task.entity_type, task.account_id)
        self.queues.add(queue)
        begin = map(_field, (queue.encode(), task.account_id.bytes, task.entity_type.encode()))
        end = (
            _field(task.operation.encode()),
            _number(task.priority),
            _field(_JSONB + to_json(task.payload).encode()),
            _NULL if task.run_id is None else _field(task.run_id.bytes),
            _NULL if task.max_attempts is None else _number(task.max_attempts),
            b"" if self._now is None else self._time(task.scheduled_at or self._now, self._now),
        )
        return b"".join(begin), b"".join(end)

    def _time(self, at: datetime, now: datetime) -> bytes:
        return _number((at - _EPOCH) // timedelta(microseconds=1), 8) + _number(at <= now, 1)


def _by_account(tasks: Iterable[NewTask]) -> Iterable[NewTask]:
    """Sorted by account, in the order of their ids; sorted() would cost half as much again."""
    accounts: dict[int, list[NewTask]] = {}
    for task in tasks:
        account = task.account_id.int
        mine = accounts.get(account)
        if mine is None:
            accounts[account] = mine = []
        mine.append(task)
    return chain.from_iterable(map(accounts.__getitem__, sorted(accounts)))


def stream(conn: Connection, name: str, rows: Rows, tasks: Sequence[NewTask]) -> None:
    """COPY them, sorted by account; the server takes up the first while the next are being written out."""
    blocks = fetch(conn, "reserve_ids", blocks=-(-len(tasks) // IDS_AT_ONCE))[0]["begins"]
    ids = chain.from_iterable(range(begin, begin + IDS_AT_ONCE) for begin in blocks)
    with conn.cursor() as cursor, cursor.copy(query(name)) as copy:
        copy.write(_BEGIN)
        made = map(rows, ids, _by_account(tasks))  # while the server opens the table and its indexes
        while portion := b"".join(islice(made, _PORTION)):
            copy.write(portion)
        copy.write(_END)
