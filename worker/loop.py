"""Claim, execute, repeat: a worker process from its first claim to its exit code."""

from __future__ import annotations

import os
import queue as stdlib_queue
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from worker.db import AWAY
from worker.errors import QueueAway
from worker.executor import Executor
from worker.lease import Lease
from worker.memory import rss_mb
from worker.queues import Queue
from worker.task import Batch
from worker.telemetry import emit

EXIT_OK = 0
EXIT_MEMORY = 12
"""Laravel's code for `--memory` exceeded."""
EXIT_HUNG = 13
"""A batch could not be interrupted `GRACE` seconds after its time limit."""
GRACE = 10.0
TIDY = 60.0
"""Seconds between two looks at what dead workers have left; at once when the lease has seen one die."""
_CONTENDED = 0.05
_LOOKS = (0.0, 0.02, 0.2)
"""Seconds between the looks of a worker that has nothing to do, before it sleeps for good: what was enqueued while it
said that it sleeps woke nobody."""
_LOOK = 1.0
"""Seconds for which a worker that is told of each task trusts that there are no others."""
_STREAK = 3
"""Batches in a row after which a worker counts as busy, and is not woken."""


@dataclass(frozen=True, slots=True)
class Options:
    """Laravel's `queue:work`, with its names, meanings and defaults where it has them."""

    queues: Sequence[str] = ("*",)
    """Names in order of preference, `*` as wildcard."""
    sleep: float = 3
    """Seconds between looks while nothing is there; a new task ends the sleep at once."""
    tries: int = 3
    """Attempts before a task fails; 0 is no limit."""
    max_time: float = 0
    """Seconds after which the process ends itself, up to 10 % later at random; 0 is no limit."""
    timeout: float = 300
    """Seconds a batch may run; 0 is no limit."""
    batch: int = 500
    """Tasks claimed at once, of one kind and account."""
    max_tasks: int = 0
    """Tasks after which the process ends itself; 0 is no limit."""
    memory: int = 256
    """MB after which the process ends itself."""
    once: bool = False
    """One batch, or none if nothing is there, then exit."""
    stop_when_empty: bool = False
    """Work until nothing is there, then exit."""
    stop_when_empty_for: float = 0
    """Seconds with nothing there after which the process ends itself; 0 is no limit."""
    rest: float = 0
    """Seconds between two batches."""
    backoff: Sequence[float] = ()
    """Seconds before the first, second, ... retry, the last for all further ones; empty: 2, 4, 8 ... with jitter."""


class Loop:
    """One worker process."""

    def __init__(
        self,
        queue: Queue,
        executor: Callable[[Callable[[], bool]], Executor],
        lease: Callable[..., Lease],
        options: Options,
        *,
        tidy: Callable[[], None] = lambda: None,
        on_register: Callable[[int], None] = lambda _: None,
        warm: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`executor(stopping)` and `lease(counters=, watch=, restart=)` make the parts that look back at the loop.

        `tidy()` takes up what dead workers have left; it is called when a worker has died, and every minute.
        `warm()` is called once, after the first batch, when all that tasks need has been imported.
        """
        self._queue = queue
        self._options = options
        self._clock = clock
        self._rng = rng or random.Random()
        self._tidy = tidy
        self._on_register = on_register
        self._warm: Callable[[], None] | None = warm
        self._signals = 0
        self._restart = False
        self.done = self.failed = 0
        self._executor = executor(lambda: self._signals > 0)
        self._lease = lease(counters=self._counters, watch=self._watch, restart=self._on_restart)

    def run(self) -> int:
        """Work until told to stop or a limit is reached; the exit code."""
        options = self._options
        began = self._clock()
        over = began + options.max_time * self._rng.uniform(1, 1.1) if options.max_time else float("inf")
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self._on_signal,
            signal.SIGINT: self._on_signal,
            signal.SIGALRM: self._executor.alarm,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._executor.keeps_alarm = True
        try:
            if not self._lease.start(give_up=lambda: self._signals > 0):
                return EXIT_OK
            self._queue.listen(options.queues, self._lease.wake)
            emit("worker.start", queues=",".join(options.queues), pid=os.getpid())
            reason, code = self._work(began, over)
            emit("worker.stop", reason=reason, done=self.done, failed=self.failed)
            return code
        finally:
            self._lease.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _work(self, began: float, over: float) -> tuple[str, int]:
        options = self._options
        empty = streak = 0
        asleep = 0  # the id under which this worker has said that it sleeps; it gets another when it was given up
        tidy_at = float("-inf")
        grown = False
        empty_since = began
        heard = 0
        look_at = began
        while True:
            if self._signals:
                return "signal", EXIT_OK
            if self._restart:
                return "restart", EXIT_OK
            now = self._clock()
            if now >= over:
                return "max-time", EXIT_OK
            if options.max_tasks and self.done + self.failed >= options.max_tasks:
                return "max-tasks", EXIT_OK
            if grown:
                return "memory", EXIT_MEMORY
            self._on_register(self._lease.worker)
            try:
                if now >= tidy_at or self._lease.dead:
                    self._lease.dead = False
                    self._tidy()
                    tidy_at = now + TIDY
                batch = self._queue.claim(options.queues, self._lease.worker, limit=self._limit())
                if batch:
                    tally = self._executor.execute(batch)
                    self.done += tally.done
                    self.failed += tally.failed
                    if self._warm:
                        self._warm()
                        self._warm = None
                    grown = rss_mb() >= options.memory  # not looked up while a task waits to be claimed
                elif asleep != self._lease.worker and self._lease.hears:
                    asleep = self._lease.worker
                    self._queue.doze(asleep)
                if asleep and streak > _STREAK:
                    self._queue.rouse(asleep)
                    asleep = 0
            except AWAY as error:
                if isinstance(error, QueueAway):
                    emit("redis.wait", level="warning", reason=str(error))
                else:
                    emit("database.wait", level="warning", reason=str(error).strip())
                asleep = 0
                self._sleep(self._rng.uniform(0.1, 1))
                continue
            if batch:
                empty = 0
                streak += 1
                if options.once:
                    return "once", EXIT_OK
                if options.rest:
                    self._rest(options.rest)
                empty_since = self._clock()
                told = asleep == self._lease.worker and heard == 1 and empty_since < look_at
                if not (told and self._is_all(batch)):
                    heard = 0
                    continue
                empty = len(_LOOKS)
            else:
                look_at = self._clock() + _LOOK
            empty += 1
            streak = 0
            idle_over = empty_since + options.stop_when_empty_for if options.stop_when_empty_for else float("inf")
            if self._clock() >= idle_over:
                return "empty", EXIT_OK
            if options.once or options.stop_when_empty:
                if empty > 1:
                    return "empty", EXIT_OK
                # A claim under way at the same rows may be about to commit.
                time.sleep(self._rng.uniform(0, _CONTENDED))
            elif empty <= len(_LOOKS):
                heard = self._sleep(_LOOKS[empty - 1])
                if heard:
                    empty = 0
            else:
                until = min(self._clock() + options.sleep * self._rng.uniform(0.9, 1.1), over, tidy_at, idle_over)
                heard = self._sleep(max(0, until - self._clock()))
                empty = len(_LOOKS)

    def _is_all(self, batch: Batch) -> bool:
        """Whether a worker that was told of one lane, while it is told of all, need not look for more after this."""
        options = self._options
        bounded = options.max_tasks or options.once or options.stop_when_empty
        return batch.announced and len(batch.tasks) < options.batch and not bounded

    def _limit(self) -> int:
        options = self._options
        if not options.max_tasks:
            return options.batch
        return max(1, min(options.batch, options.max_tasks - self.done - self.failed))

    def _sleep(self, seconds: float) -> int:
        """Sleep so long, or until woken; how many news that were."""
        heard = 0
        try:
            news = self._lease.wake.get(timeout=seconds)
            heard = 1
            self._queue.announce(self._lease.worker, news)
            while True:
                self._lease.wake.get_nowait()
                heard += 1
        except stdlib_queue.Empty:
            return heard

    def _rest(self, seconds: float) -> None:
        """Sleep so long, whatever is enqueued; told to stop, no longer."""
        end = self._clock() + seconds
        while not self._signals and not self._restart and (left := end - self._clock()) > 0:
            self._sleep(left)

    def _on_restart(self) -> None:
        """Called from the lease's thread: end after the whole batch."""
        self._restart = True
        self._lease.wake.put("restart")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first asks to finish the part under way and hand the rest back, a second one hands all back at once."""
        self._signals += 1
        self._lease.wake.put("signal")
        if self._signals > 1:
            self._executor.interrupt()

    def _counters(self) -> dict[str, int]:
        return {"done": self.done, "failed": self.failed}

    def _watch(self) -> None:
        """Called every second from the lease's thread: replace a process whose batch cannot be interrupted."""
        if self._clock() > self._executor.deadline + GRACE:
            emit("worker.hung", level="error", pid=os.getpid(), seconds=GRACE)
            os._exit(EXIT_HUNG)
