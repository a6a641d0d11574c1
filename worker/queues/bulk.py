"""Many tasks at once: COPY into PostgreSQL's table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from uuid import UUID

from worker.db import Connection, query
from worker.queues.routing import Route
from worker.task import NewTask, Payload, to_json

COPY_AT_ONCE = 50_000
"""Tasks held at once, sorted by account: each then goes beside the one before it in the indexes, mostly at their end,
which is worth more than the time in which the server waits for the first."""
_PORTION = 500
_NULL = r"\N"

by_account = attrgetter("account_id.int")
"""The order in which a bulk is copied; of one account's tasks that in which they came."""


def _text(value: str) -> str:
    """A value in COPY's text format."""
    if value.isalnum():
        return value
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


class Lines:
    """Tasks as lines of COPY's text format; what many have in common is written out once."""

    def __init__(self, route: Route, now: datetime | None, *, timed: bool) -> None:
        """`timed` tells when each is due. Left out it is now, which the server need not read 50,000 times then."""
        self._route, self._now, self._timed = route, now, timed
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
            if len(self._ends) < COPY_AT_ONCE:
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
        most = _NULL if task.max_attempts is None else task.max_attempts
        end = f"\t{task.operation}\t{task.priority}\t{_text(to_json(task.payload))}\t{task.run_id or _NULL}\t{most}"
        return f"{end}{self._time(task.scheduled_at) if self._timed else ''}\n"

    def _time(self, at: datetime | None) -> str:
        """One with a time waits for it, however short it is."""
        ready = at is None or (self._now is not None and at <= self._now)
        return f"\t{at or self._now or 'now'}\t{ready}"


def stream(conn: Connection, name: str, lines: Lines, tasks: Sequence[NewTask]) -> None:
    """COPY them; the server takes up the first while the next are being written out."""
    with conn.cursor() as cursor, cursor.copy(query(name)) as copy:
        for begin in range(0, len(tasks), _PORTION):
            copy.write("".join(map(lines, tasks[begin : begin + _PORTION])))
