"""The driver `sync`: tasks run at enqueue, in the caller. For development; nothing is kept."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any
from uuid import UUID

from worker.db import Connection, Database
from worker.errors import Permanent
from worker.queues.contract import COUNTED, VERBS, Cancelled, Effect, Ended, Queue
from worker.queues.routing import Route
from worker.task import Batch, Complete, Fail, NewTask, Retry, Snooze, Task, to_json
from worker.telemetry import emit

_BATCH = 500
_TOLD = 5
"""Failures that the error names; the others are counted."""

Key = tuple[UUID, str, str, str]
Execute = Callable[[Batch], object]


class _Caller(threading.local):
    """What one thread's enqueue has under way."""

    def __init__(self) -> None:
        self.running = False
        self.pending: dict[Key, Task] = {}
        self.problems: list[str] = []


class SyncQueue(Queue):
    """See `contract.Queue`. The same coalescing, outcomes, retries and events as in the durable drivers, without
    their waiting: a retry follows at once, a task is not early, and what is to be snoozed is a failure.

    What a handler enqueues runs after its own batch; what is enqueued `within` a transaction, after its commit. All
    being done, `enqueue` raises Permanent if anything failed.
    """

    def __init__(self, db: Database, route: Route, executor: Callable[[], Execute]) -> None:
        """`executor()` makes what runs a batch and settles it here."""
        self._db = db
        self._route = route
        self._executor = executor
        self._caller = _Caller()
        self._ids = count(1)

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        made = [self._task(task) for task in tasks]
        keys = {_key(task) for task in made}
        if within is not None:
            self._db.after(within, lambda: self._run(made))
            return len(keys)
        added = len(keys - self._caller.pending.keys())
        self._run(made)
        return added

    def _task(self, task: NewTask) -> Task:
        return Task(
            next(self._ids),
            self._route(task.entity_type, task.account_id),
            task.account_id,
            task.entity_type,
            task.entity_id,
            task.operation,
            task.priority,
            to_json(task.payload),
            0,
            task.max_attempts,
            task.run_id,
            0,
            0.0,
        )

    def _run(self, tasks: Sequence[Task]) -> None:
        caller = self._caller
        caller.pending.update((_key(task), task) for task in tasks)
        if tasks:
            emit("task.enqueue", tasks=len(tasks), queues=",".join(sorted({task.queue for task in tasks})))
        if caller.running:
            return
        caller.running, caller.problems = True, []
        try:
            execute = self._executor()
            while caller.pending:
                tasks, caller.pending = list(caller.pending.values()), {}
                for batch in _batches(tasks):
                    execute(batch)
        finally:
            caller.running, caller.pending = False, {}
        if problems := caller.problems:
            more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
            raise Permanent(f"{len(problems)} tasks failed: {'; '.join(problems[:_TOLD])}{more}")

    def claim(
        self, queues: Sequence[str], worker: int, *, limit: int = 1, now: datetime | None = None
    ) -> Batch | None:
        return None

    def settle(
        self, ended: Sequence[Ended], effect: Effect | None = None, *, now: datetime | None = None
    ) -> Counter[str]:
        if effect is not None:
            with self._db.transaction() as conn:
                effect(conn, {end.task.id for end in ended})
        for end in ended:
            match end.outcome:
                case Complete():
                    pass
                case Retry():
                    self._caller.pending.setdefault(_key(end.task), end.task)
                case Fail(error):
                    self._caller.problems.append(f"{_name(end.task)}: {error}")
                case Snooze(wait, reason):
                    self._caller.problems.append(f"{_name(end.task)}: not before {wait:g} s: {reason}")
                case _:
                    self._caller.problems.append(f"{_name(end.task)}: interrupted")
        return Counter(VERBS[type(end.outcome)] for end in ended)

    def doze(self, worker: int) -> None:
        pass

    def rouse(self, worker: int) -> None:
        pass

    def rescue(self, *, now: datetime | None = None) -> int:
        return 0

    def prune(self, *, completed_days: float, failed_days: float, now: datetime | None = None) -> int:
        return 0

    def stats(self, *, now: datetime | None = None) -> list[dict[str, Any]]:
        return []

    def progress(self, run: UUID) -> dict[str, int]:
        return dict.fromkeys(COUNTED, 0)

    def unfinished(self, runs: Sequence[UUID], waiting: Sequence[UUID] = ()) -> set[UUID]:
        return set()

    def problems(self, run: UUID, limit: int = 50) -> list[Mapping[str, Any]]:
        return []

    def oldest(self, *, now: datetime | None = None) -> float | None:
        return None

    def processing(self) -> int:
        return 0

    def holders(self) -> Counter[int]:
        return Counter()

    def peek(self, status: str, *, account_id: UUID | None = None, limit: int = 20) -> list[Mapping[str, Any]]:
        return []

    def find(self, id: int) -> Mapping[str, Any] | None:
        return None

    def retry_failed(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        since: datetime | None = None,
        error_class: str | None = None,
    ) -> int:
        return 0

    def cancel(
        self,
        *,
        ids: Sequence[int] | None = None,
        account_id: UUID | None = None,
        queue: str | None = None,
        reason: str = "",
    ) -> Cancelled:
        return Cancelled(0, 0)

    def forget(self, account_id: UUID, within: Connection) -> None:
        pass

    def reroute(self, route: Route) -> int:
        return 0


def _key(task: Task) -> Key:
    return task.account_id, task.entity_type, task.entity_id, task.operation


def _name(task: Task) -> str:
    return f"{task.entity_type}/{task.operation} {task.entity_id} of {task.account_id}"


def _batches(tasks: Sequence[Task]) -> Iterable[Batch]:
    """Tasks of one account and kind each, higher ranks first, in their order; each counts an attempt."""
    groups: dict[tuple[int, UUID, str, str], list[Task]] = {}
    for task in tasks:
        group = (-task.priority, task.account_id, task.entity_type, task.operation)
        groups.setdefault(group, []).append(task)
    for _, group_tasks in sorted(groups.items(), key=lambda item: item[0][0]):
        for begin in range(0, len(group_tasks), _BATCH):
            yield Batch(tuple(_attempted(task) for task in group_tasks[begin : begin + _BATCH]))


def _attempted(task: Task) -> Task:
    return Task(
        task.id, task.queue, task.account_id, task.entity_type, task.entity_id, task.operation, task.priority,
        task.payload, task.attempts + 1, task.max_attempts, task.run_id, task.worker, task.waited,
    )  # fmt: skip
