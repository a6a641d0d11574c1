"""MoySklad's numbers, and what a store of the limiter's state must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

BUDGET = 45
"""Units one principal may use in a window: md/_restrictions.md."""
WINDOW = 3.0
"""Seconds of the window."""
PARALLEL = 5
"""Requests of one principal under way at once."""
ACCOUNT_PARALLEL = 20
"""Requests of one account under way at once, whatever the tokens."""
LONG = 10.0
"""Seconds; a longer wait is not slept here but becomes RateLimited, so that the worker does other work."""
LAG = 0.05
"""Seconds after which a request sent over an open connection has arrived at MoySklad at the latest."""
FRESH_LAG = 1.0
"""The same where the connection has to be made first."""
PATIENCE = 2.0
"""Seconds after its time has come for which a place in the queue is kept for who does not ask again."""
CATCH_UP = 0.3
"""Seconds of being behind the even pace that may be made up for."""
FORGOTTEN = 15.0
"""Seconds after a pause in which another 429 makes the next one longer."""
BREATH = 0.25
"""Seconds nobody sends after the first answer 1073."""
RECOVER = 10.0
"""Seconds after which one slot taken away by a 1073 comes back."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that wants to be sent."""

    ticket: int
    """Its place in the queue, and later its grant; unique."""
    principal: str
    account: UUID
    units: int
    urgent: bool = False
    lag: float = LAG
    longest: float = LONG
    budget: int = BUDGET
    window: float = WINDOW
    parallel: int = PARALLEL
    account_parallel: int = ACCOUNT_PARALLEL


@dataclass(frozen=True, slots=True)
class Answer:
    """Granted: send at once. Else ask again after `wait` seconds, unless that is longer than `Ask.longest`:
    then the ticket is gone. `reason` is window, paused or parallel.
    """

    granted: bool
    wait: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """What the answers' headers have taught of a principal: the weight, if another than configured, and the units of
    a window others use with the same token."""

    weight: int | None = None
    neighbour: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand: principals that must not send now, requests that wait for their turn, requests under way."""

    paused: int = 0
    waiting: int = 0
    requests: int = 0


class Store(Protocol):
    """State of all principals, shared by all processes; each method is one transition on the store's clock.

    A method may be repeated after its answer was lost.
    """

    worker: int | None
    """Whose death frees the slots, where the store goes by that."""

    def ask(self, ask: Ask, *, reap: bool = False) -> Answer:
        """The one decision; `reap` has it look for dead holders of slots, when it has to wait for one."""

    def await_slot(self, ask: Ask, seconds: float) -> None:
        """Wait until a slot may be free for this ticket, so long at the most."""

    def free(self, ask: Ask, limit: int | None, remaining: int | None) -> Learned:
        """The request is over; what its answer's headers say, if there was an answer."""

    def cancel(self, ask: Ask) -> None:
        """The request will not be sent."""

    def pause(self, account: UUID, principal: str, wait: float, steps: list[float]) -> float:
        """Nobody sends for `wait` seconds or this principal's next step, whichever is longer; how long from now."""

    def shrink(self, account: UUID, principal: str, breath: float, steps: list[float]) -> float:
        """One slot less for a while; for how long nobody sends."""

    def standing(self, accounts: Sequence[UUID]) -> Standing:
        """How these accounts stand, together. Raises one of AWAY instead of waiting until the store is back."""

    def close(self) -> None:
        """Close what the store has opened by itself."""
