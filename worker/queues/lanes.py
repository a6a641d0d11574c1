"""In which order a worker serves what waits: lane after lane, rank after rank, accounts by turns."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from uuid import UUID

AGEING = 10
"""One claim in so many serves a lower rank than the highest that waits, so that none waits for ever."""


@dataclass(slots=True)
class Lane:
    """One account's due tasks of one rank in one queue."""

    lane: int
    """Place, in the worker's list of queues, of the first pattern that matches this queue."""
    queue: str
    rank: int
    """The priority, negated: the lowest goes first."""
    account_id: UUID
    concurrency: int | None = None
    """How many workers may serve the account at once."""
    announced: bool = False
    """Heard of, not seen: the claim itself must see whether the account may be served."""
    task: int = 0
    """The task it was heard of with, if that was told."""
    mark: int = 0
    """The last task taken from it."""

    @property
    def turn(self) -> tuple[str, int]:
        """Its place in the round of its rank."""
        return self.queue, self.account_id.int


class Lanes:
    """What waits, as last seen, and whose turn it is; the turns are remembered from one look to the next."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[int, deque[Lane]]] = {}
        self._served: dict[Hashable, tuple[str, int]] = {}
        self._claims = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def see(self, found: Iterable[Lane]) -> None:
        """Replace what waits by what was found."""
        self._waiting = {}
        for lane in sorted(found, key=lambda lane: lane.turn):
            ranks = self._waiting.setdefault(lane.lane, {})
            ranks.setdefault(lane.rank, deque()).append(lane)
        for number, ranks in self._waiting.items():
            for rank, lanes in ranks.items():
                served = self._served.get((number, rank))
                if served is not None:
                    lanes.rotate(-bisect_right(lanes, served, key=lambda lane: lane.turn))

    def next(self) -> Lane | None:
        """The lane to claim from, which is to be served or dropped then; None when nothing waits."""
        if not self._waiting:
            return None
        self._claims += 1
        ranks = self._waiting[min(self._waiting)]
        order = sorted(ranks)
        lower = len(order) - 1
        # Of the lower ranks each in its turn, the lowest first.
        old = lower - self._claims // AGEING % lower if lower and self._claims % AGEING == 0 else 0
        return ranks[order[old]][0]

    def serve(self, lane: Lane) -> None:
        """It had its turn: it goes to the end of the round."""
        self._waiting[lane.lane][lane.rank].rotate(-1)
        self._served[lane.lane, lane.rank] = lane.turn

    def drop(self, lane: Lane) -> None:
        """Nothing waits there any more."""
        ranks = self._waiting[lane.lane]
        ranks[lane.rank].popleft()
        if not ranks[lane.rank]:
            del ranks[lane.rank]
        if not ranks:
            del self._waiting[lane.lane]
