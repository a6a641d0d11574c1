"""Queues that an operator has paused: none of their tasks is claimed for a while. Accounts are parked instead."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from worker.db import Database
from worker.queues.routing import like
from worker.telemetry import emit

EVERYTHING = "*"
"""The pattern of every queue there is: what `drain` pauses."""


class Pauses:
    """The pauses in force, kept in PostgreSQL for every driver; a claim that begins after one honours it."""

    def __init__(self, db: Database, changed: Callable[[], None]) -> None:
        """`changed` is called after each pause and resume, see `Queue.pauses_changed`."""
        self._db = db
        self._changed = changed

    def pause(self, queue: str, until: datetime, reason: str) -> None:
        """Claim nothing from queues of that name (`*` as wildcard) before `until`; a second word replaces one."""
        self._db.fetch("pause", pattern=like(queue), name=queue, until=until, reason=reason)
        emit("queue.pause", level="warning", queue=queue, until=until.isoformat(), reason=reason)
        self._changed()

    def resume(self, queue: str) -> bool:
        """End the pause that was given that very name; whether there was one."""
        rows = self._db.fetch("resume", name=queue)
        if rows:
            emit("queue.resume", queue=queue)
            self._changed()
        return bool(rows)

    def current(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        """Rows of queue, pattern (of LIKE), until, reason, created_at, by name."""
        return self._db.fetch("pauses", now=now)
