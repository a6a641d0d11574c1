"""Claims that know where to go: one look a second at which lanes there are, then one directed claim after another."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from worker.queues.contract import Queue
from worker.queues.lanes import Lane, Lanes
from worker.task import Batch, Task
from worker.telemetry import emit

_LOOK = 1.0
"""Seconds between two looks at which lanes there are, while they last."""
_LOOK_SHARE = 20
"""... or so many times what a look takes, if that is longer."""
_MISSES = 3
"""Lanes found empty in a row before looking anew."""


@dataclass
class _Seat:
    """What a worker remembers from claim to claim."""

    queues: tuple[str, ...] = ()
    lanes: Lanes = field(default_factory=Lanes)
    look_at: float = float("-inf")
    unanswered: Lane | None = None
    announced: Lane | None = None


class Directed(Queue):
    """A driver whose claim is directed at a lane."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seats: dict[int, _Seat] = {}

    @abstractmethod
    def _look(self, queues: Sequence[str], now: datetime | None) -> Iterable[Lane]:
        """The lanes that may be claimed from."""

    @abstractmethod
    def _take(self, lane: Lane, worker: int, limit: int, now: datetime | None) -> tuple[Task, ...]:
        """The lane's next tasks; none when there are none, or others have them all."""

    @abstractmethod
    def _hand_back(self, worker: int, lane: Lane) -> None:
        """Release what a claim from the lane took whose answer never came: the server was gone after it."""

    def announce(self, worker: int, news: str) -> None:
        """`news` is a lane, and perhaps the task, as `enqueue_one` in queue.sql and queue.lua writes it. Anything
        else tells nothing."""
        queue, *rest = news.split("\t")
        if len(rest) >= 2:
            rank, account, *task = rest
            lane = Lane(0, queue, int(rank), UUID(account), announced=True, task=int(task[0]) if task else 0)
            self._seats.setdefault(worker, _Seat()).announced = lane

    def claim(
        self, queues: Sequence[str], worker: int, *, limit: int = 1, now: datetime | None = None
    ) -> Batch | None:
        seat = self._seats.setdefault(worker, _Seat())
        if seat.unanswered:
            self._hand_back(worker, seat.unanswered)
            seat.unanswered = None
        announced, seat.announced = seat.announced, None
        if announced and now is None and not seat.lanes:
            tasks = self._attempt(seat, announced, worker, limit, now)
            if tasks:
                return self._batch(tasks, announced=True)
        fresh = now is not None or not seat.lanes or self._clock() >= seat.look_at or seat.queues != tuple(queues)
        if fresh:
            self._see(seat, queues, now)
        misses = 0
        while True:
            if not fresh and (misses == _MISSES or not seat.lanes):
                self._see(seat, queues, now)
                fresh = True
            lane = seat.lanes.next()
            if lane is None:
                return None
            tasks = self._attempt(seat, lane, worker, limit, now)
            if tasks:
                break
            seat.lanes.drop(lane)
            misses += 1
        seat.lanes.serve(lane)
        return self._batch(tasks)

    def _attempt(self, seat: _Seat, lane: Lane, worker: int, limit: int, now: datetime | None) -> tuple[Task, ...]:
        seat.unanswered = lane
        tasks = self._take(lane, worker, limit, now)
        seat.unanswered = None
        return tasks

    def _batch(self, tasks: tuple[Task, ...], *, announced: bool = False) -> Batch:
        first = tasks[0]
        emit(
            "task.claim",
            tasks=len(tasks),
            account=first.account_id,
            kind=f"{first.entity_type}/{first.operation}",
            run=first.run_id,
            attempt=first.attempts,
            waited=max(task.waited for task in tasks),
        )
        return Batch(tasks, self._clock(), announced)

    def _see(self, seat: _Seat, queues: Sequence[str], now: datetime | None) -> None:
        began = self._clock()
        seat.lanes.see(self._look(queues, now))
        seat.queues = tuple(queues)
        ended = self._clock()
        seat.look_at = ended + max(_LOOK, _LOOK_SHARE * (ended - began))
