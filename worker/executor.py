"""Run one claimed batch: time limit → handler → an outcome per task → recorded with its effects."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from worker.accounts import Accounts
from worker.db import AWAY, Database, patiently, refused
from worker.errors import (
    Interrupted,
    NotFound,
    Permanent,
    QueueAway,
    RateLimited,
    Retryable,
    Skipped,
    TaskError,
    TimedOut,
    Unauthorized,
)
from worker.queues import Effect, Ended, Queue
from worker.runs import Runs
from worker.task import Batch, Complete, Fail, Outcome, Release, Retry, Snooze, Task
from worker.telemetry import context, emit

if TYPE_CHECKING:
    from worker.moysklad import Client

MAX_DELAY = 900.0
"""Seconds; the longest wait before a retry."""
_DATABASE_WAIT = 1.0
_MAIN = threading.main_thread().ident


@dataclass(frozen=True, slots=True)
class Settlement:
    """A part of a batch that is over: how each task ends, and what is to be written together with that.

    `effect` runs in the transaction that ends the tasks, see `queues.Effect`.
    """

    ended: Sequence[Ended]
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may use."""

    db: Database
    queue: Queue
    accounts: Accounts
    client: Callable[[UUID], Client]
    stopping: Callable[[], bool]


Handler = Callable[[Context, Sequence[Task]], Iterator[Settlement]]
"""Works through the tasks of one batch, yielding each part as soon as it is over.

A typed error it raises (see `errors`) ends all tasks not yet settled.
"""


@dataclass
class Tally:
    """How many tasks ended how."""

    counts: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Tasks that succeeded."""
        return self.counts["complete"]

    @property
    def failed(self) -> int:
        """Tasks that are over without success."""
        return self.counts["fail"]


class Executor:
    """Runs batches, one after the other, in the main thread."""

    def __init__(
        self,
        db: Database,
        queue: Queue,
        accounts: Accounts,
        runs: Runs,
        handlers: Callable[[], Mapping[tuple[str, str], Handler]],
        client: Callable[[UUID, float], Client],
        *,
        timeout: float,
        tries: int,
        stopping: Callable[[], bool],
        backoff: Sequence[float] = (),
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`handlers()` is asked with each batch, so that what they need is imported with the first one;
        `client(account, deadline)` makes the client of an account; `timeout` 0 means no limit.

        `backoff` are the seconds before each retry, the last for all further ones; empty: exponential with jitter.
        """
        self._db, self._queue, self._accounts, self._runs = db, queue, accounts, runs
        self._handlers, self._client = handlers, client
        self._timeout, self._tries, self._stopping = timeout, tries, stopping
        self._backoff = backoff
        self._rng = rng or random.Random()
        self._clock = clock
        self.deadline = float("inf")
        """When the running handler's time is over, on `clock`; read by the watchdog. Recording has none: it waits
        for PostgreSQL."""
        self.keeps_alarm = False
        """Whether `alarm` handles SIGALRM all the time: else it is put in place for each step."""
        self._inside = self._armed = self._hurry = False
        self._alarm_before: Any = None
        self._began = 0.0

    def execute(self, batch: Batch) -> Tally:
        """Run the batch to its end, recording every task's outcome; never raises for a task's fault."""
        tally = Tally()
        first = batch.first
        with context(account=first.account_id, kind=f"{first.entity_type}/{first.operation}", run=first.run_id):
            began = self._began = self._clock()
            self._work(batch, tally, began + self._timeout if self._timeout else float("inf"))
            emit("batch.end", tasks=len(batch.tasks), seconds=self._clock() - began, **dict[str, Any](tally.counts))
        self._finish_runs(batch)
        return tally

    def _work(self, batch: Batch, tally: Tally, until: float) -> None:
        left = {task.id: task for task in batch.tasks}
        ctx = Context(
            self._db,
            self._queue,
            self._accounts,
            lambda account: self._client(account, until),
            self._stopping,
        )
        work: Iterator[Settlement] | None = None
        while left:
            try:
                if self._stopping():
                    raise Interrupted("the worker is stopping")
                try:
                    self._enter(until)
                    if work is None:
                        work = self._handler(batch)(ctx, batch.tasks)
                    settlement = next(work, None)
                finally:
                    self._leave()
                if settlement is None:
                    raise Retryable("the handler ended without an outcome for this task")
            except (Exception, Interrupted) as error:
                settlement = self._ending(error, list(left.values()))
            try:
                self._settle(self._bounded(settlement), tally)
            except Exception as error:
                if isinstance(error, AWAY) and not refused(error):
                    raise
                settlement = self._ending(error, [ended.task for ended in settlement.ended])
                self._settle(settlement, tally)
            for ended in settlement.ended:
                left.pop(ended.task.id, None)

    def interrupt(self) -> None:
        """Have the running batch handed back at once. For signal handlers: may raise Interrupted."""
        self._hurry = True
        if self._inside:
            self._inside = False
            raise Interrupted("told to stop at once")

    def alarm(self, *_: object) -> None:
        """The handler of SIGALRM: the running step has taken all its time. May raise TimedOut."""
        if self._inside:
            self._inside = False
            raise TimedOut("time is over")

    def _enter(self, until: float) -> None:
        """From here to `_leave` a step may be interrupted, and is when its time is over; only the main thread can be.
        Not a context manager: these are slow, while a task waits, and may be left without their end by a signal."""
        seconds = until - self._clock()
        if seconds <= 0:
            raise TimedOut("no time left")
        self._inside = True
        self.deadline = until
        if seconds != float("inf") and threading.get_ident() == _MAIN:
            if not self.keeps_alarm:
                self._alarm_before = signal.signal(signal.SIGALRM, self.alarm)
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _leave(self) -> None:
        self._inside = False
        self.deadline = float("inf")
        if self._armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._armed = False
        if self._alarm_before is not None:
            signal.signal(signal.SIGALRM, self._alarm_before)
            self._alarm_before = None

    def _handler(self, batch: Batch) -> Handler:
        handler = self._handlers().get(batch.kind)
        if handler is None:
            raise Permanent(f"this release does not know tasks of kind {'/'.join(batch.kind)}")
        return handler

    def _ending(self, error: BaseException, tasks: Sequence[Task]) -> Settlement:
        """The same end for all these tasks of one account, which is closed when it cannot send now."""
        account, give_up = tasks[0].account_id, lambda: self._hurry
        match error:
            case RateLimited():
                patiently(lambda: self._accounts.pause(account, error.wait, str(error)), give_up=give_up)
            case Unauthorized():
                patiently(lambda: self._accounts.park(account, str(error)), give_up=give_up)
            case _ if refused(error) or not isinstance(error, (TaskError, Interrupted, NotFound, *AWAY)):
                emit("task.crash", level="error", error=error, task=tasks[0].id, tasks=len(tasks))
        return Settlement([Ended(task, self.classify(error, task)) for task in tasks])

    def classify(self, error: BaseException, task: Task) -> Outcome:
        """The one place where an error becomes an outcome."""
        match error:
            case RateLimited():
                return Snooze(error.wait, str(error))
            case Unauthorized():
                return Snooze(0, str(error))
            case Skipped():
                return Complete("skipped", str(error))
            case Permanent() | NotFound():
                return Fail(str(error), type(error).__name__)
            case TimedOut():
                return self._again(
                    task, Retry(f"ran longer than its time limit of {self._timeout:g} s", 0, "TimedOut")
                )
            case Interrupted():
                return Release()
            case Retryable():
                return self._again(task, Retry(str(error), 0, type(error).__name__))
            case QueueAway():
                return Snooze(_DATABASE_WAIT, str(error))
            case _ if isinstance(error, AWAY) and not refused(error):
                return Snooze(_DATABASE_WAIT, f"PostgreSQL was away: {error}")
            case _:
                return self._again(task, Retry(f"{type(error).__name__}: {error}", 0, type(error).__name__))

    def _bounded(self, settlement: Settlement) -> Settlement:
        """The same with each retry given its delay, or made a failure after the last try."""
        ended = [
            Ended(e.task, self._again(e.task, e.outcome)) if isinstance(e.outcome, Retry) else e
            for e in settlement.ended
        ]
        return Settlement(ended, settlement.effect)

    def _again(self, task: Task, retry: Retry) -> Outcome:
        tries = task.max_attempts or self._tries
        if tries and task.attempts >= tries:
            return Fail(f"gave up after {task.attempts} tries: {retry.error}", retry.error_class)
        if self._backoff:
            delay = self._backoff[min(task.attempts, len(self._backoff)) - 1]
        else:
            delay = min(2.0 ** min(task.attempts, 10), MAX_DELAY) * self._rng.uniform(0.5, 1.5)
        return Retry(retry.error, delay, retry.error_class)

    def _settle(self, settlement: Settlement, tally: Tally) -> None:
        """Record outcomes and effects together, waiting out a PostgreSQL that is away."""
        counts = patiently(
            lambda: self._queue.settle(settlement.ended, settlement.effect), give_up=lambda: self._hurry
        )
        tally.counts += counts
        tasks = [ended.task for ended in settlement.ended]
        fields: dict[str, Any] = {
            "attempt": max((task.attempts for task in tasks), default=0),
            "waited": max((task.waited for task in tasks), default=0.0),
            "seconds": self._clock() - self._began,
        }
        for name, number in counts.items():
            if number:
                level = "info" if name in ("complete", "release") else "warning"
                emit(f"task.{name}", level=level, tasks=number, **fields, **_reason(settlement, name))

    def _finish_runs(self, batch: Batch) -> None:
        runs = {task.run_id for task in batch.tasks if task.run_id}
        if not runs:
            return
        patiently(lambda: self._runs.finish(runs), give_up=lambda: self._hurry)


def _reason(settlement: Settlement, name: str) -> dict[str, Any]:
    """Why, for the log: the first reason of that outcome."""
    attribute = {"retry": "error", "snooze": "reason", "fail": "error"}.get(name)
    for ended in settlement.ended:
        if attribute and hasattr(ended.outcome, attribute):
            return {"reason": str(getattr(ended.outcome, attribute))[:300]}
    return {}
