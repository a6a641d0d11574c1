"""Units per window and parallel slots of each principal, shared by every process on every host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

from worker.accounts import Account
from worker.db import Database, patiently
from worker.errors import RateLimited
from worker.telemetry import emit

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


class Limiter:
    """Grants requests; the state is in PostgreSQL and on its clock."""

    def __init__(
        self,
        db: Database,
        *,
        ttl: float,
        sleep: Callable[[float], None] = time.sleep,
        today: Callable[[], date] = date.today,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ttl` seconds after its start a request that nobody ended no longer holds its slot."""
        self._db = db
        self._ttl = ttl
        self._sleep = sleep
        self._today = today
        self._clock = clock
        self.worker: int | None = None
        """Whose death frees the slots; set once the worker is registered."""

    @contextmanager
    def acquire(self, account: Account, *, fresh: bool = False) -> Iterator[None]:
        """Wait for the turn of one request of this account, then hold its slot and units.

        `fresh` says that its connection has yet to be made, so that it may arrive later. Raises
        RateLimited with the wait when its turn would come only after more than LONG seconds.
        """
        lag = FRESH_LAG if fresh else LAG
        grant, asked, wait = self._reserve(account, lag)
        try:
            if wait > 0:
                self._sleep(wait)
                emit("limiter.wait", level="debug", account=account.id, waited=wait)
            # The answer may have been under way for a while, and this process asleep for longer than it asked.
            late = self._clock() - asked - wait
            if late > lag / 2:
                patiently(lambda: self._db.fetch("postpone", grant=grant, late=late))
            yield
        finally:
            patiently(lambda: self._db.fetch("free", grant=grant, window=WINDOW))

    def pause(self, account: Account, wait: float) -> None:
        """Nobody sends for this principal before `wait` seconds have passed."""
        self._db.fetch("pause_principal", principal=account.principal, wait=wait)
        emit("limiter.pause", level="warning", account=account.id, wait=wait)

    def _reserve(self, account: Account, lag: float) -> tuple[int, float, float]:
        """A grant, when it was asked for, and for how long to wait from then on."""
        while True:
            asked = self._clock()
            row = patiently(lambda: self._try(account, lag))
            wait = max(0.0, float(row["wait"]))
            if row["grant_id"] is not None:
                return int(row["grant_id"]), asked, wait
            if row["reason"] != "parallel":
                raise RateLimited(f"the limiter lets account {account.id} send again in {wait:.1f} s", wait)
            self._sleep(wait)

    def _try(self, account: Account, lag: float) -> dict[str, Any]:
        return self._db.fetch(
            "acquire",
            principal=account.principal,
            account=account.id,
            units=account.units(self._today()),
            budget=BUDGET,
            window=WINDOW,
            lag=lag,
            parallel=PARALLEL,
            account_parallel=ACCOUNT_PARALLEL,
            longest=LONG,
            worker=self.worker,
            ttl=self._ttl,
        )[0]
