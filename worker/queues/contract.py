"""What every queue driver does: nine transitions, `stats` and `peek`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from worker.db import Connection
from worker.queues.routing import Route
from worker.task import Batch, Complete, Fail, NewTask, Outcome, Release, Retry, Snooze, Task
from worker.wake import Wake

Effect = Callable[[Connection, set[int]], None]
"""`effect(connection, owned)` writes what belongs to the ends of tasks; `owned` are the ids still ours, the only
ones that may leave a trace."""

VERBS: dict[type[Outcome], str] = {
    Complete: "complete",
    Retry: "retry",
    Snooze: "snooze",
    Fail: "fail",
    Release: "release",
}
"""The transition of each outcome, as it is called everywhere."""


COUNTED = ("pending", "processing", "completed", "failed", "created", "updated", "unchanged", "skipped")
"""What the progress of a run tells: tasks by status, then by result."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One claim and how it ends."""

    task: Task
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What `cancel` did: so many tasks are over, and so many that it would have met are being processed and go on."""

    tasks: int
    processing: int


class Queue(ABC):
    """Where tasks live. Every method is one transition, named as in the log, the metrics and the SQL.

    `now` replaces the server's clock in tests.
    """

    in_redis = False
    """Whether it sees tasks in Redis; tasks in PostgreSQL all do."""

    @abstractmethod
    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        """Add tasks; how many are new. The others coalesced into a pending twin.

        `within` is a transaction of the caller's: the tasks are there if and when it commits.
        """

    @abstractmethod
    def claim(
        self, queues: Sequence[str], worker: int, *, limit: int = 1, now: datetime | None = None
    ) -> Batch | None:
        """Take up to `limit` due tasks of one kind, account and rank; None when there are none.

        `queues` are names in order of preference, `*` standing for any characters. Inside one of them the
        higher rank goes first, except that one claim in AGEING serves a lower one; inside a rank accounts
        take turns; inside an account the oldest goes first.
        """

    @abstractmethod
    def settle(
        self, ended: Sequence[Ended], effect: Effect | None = None, *, now: datetime | None = None
    ) -> Counter[str]:
        """End claims of one worker, each in its own way, together with what `effect` writes: all of it or nothing.

        How many ended by which verb; `lost` are those that were not ours any more, which are left alone.
        """

    def complete(self, ended: Sequence[tuple[Task, Complete]]) -> int:
        """End claims with success; how many were still ours."""
        return self._settle(ended)

    def retry(self, ended: Sequence[tuple[Task, Retry]], *, now: datetime | None = None) -> int:
        """Put claims back for a later attempt, `delay` seconds from now; how many were still ours."""
        return self._settle(ended, now)

    def snooze(self, ended: Sequence[tuple[Task, Snooze]], *, now: datetime | None = None) -> int:
        """Put claims back for later without counting the attempt; how many were still ours."""
        return self._settle(ended, now)

    def fail(self, ended: Sequence[tuple[Task, Fail]]) -> int:
        """End claims without success; how many were still ours."""
        return self._settle(ended)

    def release(self, tasks: Sequence[Task]) -> int:
        """Hand claims back as if never taken; how many were still ours."""
        return self._settle([(task, Release()) for task in tasks])

    def _settle(self, ended: Sequence[tuple[Task, Outcome]], now: datetime | None = None) -> int:
        counts = self.settle([Ended(task, outcome) for task, outcome in ended], now=now)
        return len(ended) - counts["lost"]

    def announce(self, worker: int, news: str) -> None:  # noqa: B027 - a driver may do without
        """Tell what woke this worker, so that its next claim may go straight there."""

    def listen(self, queues: Sequence[str], wake: Wake) -> None:  # noqa: B027
        """Have `wake` tell what is enqueued there while the worker dozes. A driver that is heard of through the
        lease's connection need not do anything."""

    def pauses_changed(self) -> None:  # noqa: B027
        """Told after each pause and resume: a driver that remembers them has every process read them anew, before its
        next claim; where Redis cannot be reached, with its next look, a second later."""

    @abstractmethod
    def doze(self, worker: int) -> None:
        """Say that this worker is about to sleep: from now on who enqueues wakes it. Look once more after it."""

    @abstractmethod
    def rouse(self, worker: int) -> None:
        """Say that this worker is busy and need not be woken."""

    @abstractmethod
    def rescue(self, *, now: datetime | None = None) -> int:
        """Take back what dead workers held; how many tasks that were."""

    @abstractmethod
    def prune(self, *, completed_days: float, failed_days: float, now: datetime | None = None) -> int:
        """Delete ended tasks older than that; how many went."""

    @abstractmethod
    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        """Rows of queue, account_id, status, tasks, oldest_seconds (of the oldest due pending one)."""

    @abstractmethod
    def oldest(self, *, now: datetime | None = None) -> float | None:
        """Seconds the oldest due pending task has waited; None when none is due. Cheap."""

    @abstractmethod
    def processing(self) -> int:
        """How many tasks are being processed. Cheap."""

    @abstractmethod
    def holders(self) -> Counter[int]:
        """How many tasks each worker holds."""

    @abstractmethod
    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        """The newest tasks of a status, whole."""

    @abstractmethod
    def find(self, id: int) -> Mapping[str, Any] | None:
        """One task, whole as in `peek`; its `history` has every attempt that ended badly: at, how, attempt, class,
        error, worker, host, started_at."""

    @abstractmethod
    def retry_failed(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        since: datetime | None = None,
        error_class: str | None = None,
    ) -> int:
        """Give failed tasks that meet all of it a new set of attempts; how many were put back.

        `since` is when they failed at the earliest. Cancelled ones go on only when named by id or by the error
        class `Cancelled`. Of twins the newest goes on, and none whose twin is pending.
        """

    @abstractmethod
    def cancel(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        queue: str | None = None,
        reason: str = "",
    ) -> Cancelled:
        """End pending tasks that meet all of it (`queue` with `*` as wildcard) as failed, with the result
        `cancelled`, the error class `Cancelled` and the reason. In parts, while workers go on."""

    @abstractmethod
    def forget(self, account_id: UUID, within: Connection) -> None:
        """Delete what waits for an account that is removed in this transaction of the caller's."""

    @abstractmethod
    def reroute(self, route: Route) -> int:
        """Move pending tasks to the queue that `route` says; how many were elsewhere.

        In parts, while workers go on. What is being processed keeps its queue, also when it is put back: ask again
        until nothing moves. Tasks whose account is not known stay.
        """

    @abstractmethod
    def progress(self, run: UUID) -> dict[str, int]:
        """How many of the run's tasks stand where, by the names of COUNTED."""

    @abstractmethod
    def unfinished(self, runs: Sequence[UUID], waiting: Sequence[UUID] = ()) -> set[UUID]:
        """Those of the runs with a task that is being processed, or pending for an account not among `waiting`."""

    @abstractmethod
    def problems(self, run: UUID, limit: int = 50) -> list[Mapping[str, Any]]:
        """Tasks of the run that failed, wait for another try or were skipped, failed ones and newest first."""

    def close(self) -> None:  # noqa: B027
        """Close what the driver has opened by itself."""
