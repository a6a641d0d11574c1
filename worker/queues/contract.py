"""What every queue driver does: nine transitions, `stats` and `peek`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from worker.db import Connection
from worker.task import Batch, Complete, Fail, NewTask, Outcome, Release, Retry, Snooze, Task


@dataclass(frozen=True, slots=True)
class Ended:
    """One claim and how it ends."""

    task: Task
    outcome: Outcome


class Queue(Protocol):
    """Where tasks live. Every method is one transition, named as in the log, the metrics and the SQL.

    `within` is a transaction of the caller's that the transition becomes part of; `now` replaces the
    server's clock in tests.
    """

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        """Add tasks; how many are new. The others coalesced into a pending twin."""
        ...

    def claim(
        self,
        queues: Sequence[str],
        worker: int,
        *,
        limit: int = 1,
        after: UUID | None = None,
        now: datetime | None = None,
    ) -> Batch | None:
        """Take up to `limit` due tasks of one kind and account; None when there are none.

        `queues` are names in order of preference, `*` standing for any characters. `after` is the account
        served last.
        """
        ...

    def owned(self, tasks: Sequence[Task], within: Connection) -> list[Task]:
        """Those of the claims that are still this worker's, locked until the transaction ends."""
        ...

    def complete(self, ended: Sequence[tuple[Task, Complete]], within: Connection) -> None:
        """End claims with success."""
        ...

    def retry(self, ended: Sequence[tuple[Task, Retry]], within: Connection, *, now: datetime | None = None) -> None:
        """Put claims back for a later attempt, `delay` seconds from now."""
        ...

    def snooze(
        self, ended: Sequence[tuple[Task, Snooze]], within: Connection, *, now: datetime | None = None
    ) -> None:
        """Put claims back for later without counting the attempt."""
        ...

    def fail(self, ended: Sequence[tuple[Task, Fail]], within: Connection) -> None:
        """End claims without success."""
        ...

    def release(self, ended: Sequence[tuple[Task, Release]], within: Connection) -> None:
        """Hand claims back as if never taken."""
        ...

    def rescue(self, *, now: datetime | None = None) -> int:
        """Take back what dead workers held; how many tasks that were."""
        ...

    def prune(self, *, completed_days: float, failed_days: float, now: datetime | None = None) -> int:
        """Delete ended tasks older than that; how many went."""
        ...

    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        """Rows of queue, account_id, status, tasks, oldest_seconds (of the oldest due pending one)."""
        ...

    def oldest(self, *, now: datetime | None = None) -> float | None:
        """Seconds the oldest due pending task has waited; None when none is due. Cheap."""
        ...

    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        """The newest tasks of a status, whole."""
        ...

    def retry_failed(self, *, ids: Sequence[int] | None = None, account_id: UUID | None = None) -> int:
        """Give failed tasks a new set of attempts; how many were put back."""
        ...
