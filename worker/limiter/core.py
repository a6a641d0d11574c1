"""The limiter as a client sees it: wait for the turn, hold it, tell what the answer said."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from uuid import UUID, uuid4

import backoff

from worker.accounts import Account
from worker.errors import RateLimited
from worker.limiter.contract import BREATH, FRESH_LAG, LAG, LONG, WINDOW, Ask, Learned, Standing, Store
from worker.telemetry import emit

_LOOK = 0.5
"""Seconds somebody waits for its turn between two looks, up to twice that: requests that end early bring it forward.
Not all at the same moments, as the even pace would have it."""
_REAP = 1.0
"""Seconds somebody waits for a slot between two looks for dead holders."""


@dataclass(slots=True)
class Turn:
    """One request's turn; it is now."""

    limit: int | None = None
    remaining: int | None = None

    def observe(self, limit: int | None, remaining: int | None) -> None:
        """What the answer's X-RateLimit-Limit and -Remaining said."""
        self.limit, self.remaining = limit, remaining


class Limiter:
    """Grants requests; state and clock are the store's, shared by every process on every host."""

    def __init__(
        self,
        store: Store,
        *,
        sleep: Callable[[float], None] = time.sleep,
        today: Callable[[], date] = date.today,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.store = store
        self._sleep = sleep
        self._today = today
        self._clock = clock
        self._rng = rng or random.Random()
        self._known: dict[str, Learned] = {}

    @property
    def worker(self) -> int | None:
        """Whose death frees the slots; set once the worker is registered."""
        return self.store.worker

    @worker.setter
    def worker(self, worker: int | None) -> None:
        """Set it."""
        self.store.worker = worker

    @contextmanager
    def acquire(
        self, account: Account, *, fresh: bool = False, urgent: bool = False, longest: float = LONG
    ) -> Iterator[Turn]:
        """Wait for the turn of one request of this account, then hold its slot and units; send at once.

        `fresh` says that its connection has yet to be made, so that it may arrive later; who is `urgent` goes
        before who is not. Raises RateLimited with the wait when that is longer than `longest` seconds.
        """
        units = account.units(self._today())
        lag = FRESH_LAG if fresh else LAG
        ask = Ask(uuid4().int >> 66, account.principal, account.id, units, urgent, lag, longest)
        try:
            self._wait(ask)
        except BaseException:
            self.store.cancel(ask)
            raise
        turn = Turn()
        try:
            yield turn
        finally:
            self._learn(account, self.store.free(ask, turn.limit, turn.remaining))

    def pause(self, account: Account, wait: float) -> float:
        """After a 429: nobody sends for this principal for `wait` seconds, or longer; for how long from now."""
        wait = self.store.pause(account.id, account.principal, wait, self._steps())
        emit("limiter.pause", level="warning", account=account.id, wait=wait)
        return wait

    def shrink(self, account: Account) -> float:
        """After a 429 with 1073: fewer requests at once for a while; for how long nobody sends."""
        breath = BREATH * self._rng.uniform(1, 1.25)
        wait = self.store.shrink(account.id, account.principal, breath, self._steps())
        emit("limiter.shrink", level="warning", account=account.id, wait=wait)
        return wait

    def standing(self, accounts: Sequence[UUID]) -> Standing:
        """How these accounts stand, together. Raises one of AWAY."""
        return self.store.standing(accounts)

    def close(self) -> None:
        """Close what the store has opened by itself."""
        self.store.close()

    def _wait(self, ask: Ask) -> None:
        began = reaped = self._clock()
        late = False
        while True:
            asked = self._clock()
            reap = asked - reaped >= _REAP
            if reap:
                reaped = asked
            answer = self.store.ask(ask, reap=reap)
            now = self._clock()
            if answer.granted:
                if now - asked <= ask.lag / 2:
                    if asked > began:
                        emit("limiter.wait", level="debug", account=ask.account, waited=now - began)
                    return
                # It may arrive later than was promised. Ask again; from the second time on promise what can be kept.
                if late:
                    ask = replace(ask, lag=max(ask.lag, 4 * (now - asked)))
                late = True
            elif answer.reason == "parallel":
                left = ask.longest - (now - began)
                if left <= 0:
                    raise RateLimited(f"account {ask.account} has had no slot free for {ask.longest:.1f} s", WINDOW)
                self.store.await_slot(ask, min(answer.wait, left))
            elif answer.wait > ask.longest:
                raise RateLimited(
                    f"the limiter lets account {ask.account} send again in {answer.wait:.1f} s", answer.wait
                )
            else:
                self._sleep(min(answer.wait, _LOOK * self._rng.uniform(1, 2)))

    def _learn(self, account: Account, learned: Learned) -> None:
        known = self._known.get(account.principal, Learned())
        if learned.weight != known.weight:
            emit("limiter.learn", account=account.id, weight=learned.weight)
        if (learned.neighbour > 0) != (known.neighbour > 0):
            emit("limiter.neighbour", level="warning", account=account.id, units=learned.neighbour)
        if learned != known:
            self._known[account.principal] = learned

    def _steps(self) -> list[float]:
        """1, 2, 4, 8 seconds, each up to a quarter longer."""
        series = islice((step for step in backoff.expo(max_value=8) if step), 4)
        return [step * self._rng.uniform(1, 1.25) for step in series]
