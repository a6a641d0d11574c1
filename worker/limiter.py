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


class Limiter:
    """Grants requests; the state is in PostgreSQL and on its clock."""

    def __init__(
        self,
        db: Database,
        *,
        ttl: float,
        sleep: Callable[[float], None] = time.sleep,
        today: Callable[[], date] = date.today,
    ) -> None:
        """`ttl` seconds after its grant a request that nobody ended no longer counts."""
        self._db = db
        self._ttl = ttl
        self._sleep = sleep
        self._today = today
        self.worker: int | None = None
        """Whose death frees the slots; set once the worker is registered."""

    @contextmanager
    def acquire(self, account: Account) -> Iterator[None]:
        """Hold a slot and the units of one request of this account.

        Waits for them, in all at most LONG seconds. Raises RateLimited with the wait that is left.
        """
        grant = self._wait(account)
        try:
            yield
        finally:
            patiently(lambda: self._db.fetch("free", grant=grant))

    def pause(self, account: Account, wait: float) -> None:
        """Nobody sends for this principal before `wait` seconds have passed."""
        self._db.fetch("pause_principal", principal=account.principal, wait=wait)
        emit("limiter.pause", level="warning", account=account.id, wait=wait)

    def _wait(self, account: Account) -> int:
        waited = 0.0
        while True:
            row = patiently(lambda: self._try(account))
            if row["grant_id"] is not None:
                if waited:
                    emit("limiter.wait", level="debug", account=account.id, waited=waited)
                return int(row["grant_id"])
            wait = float(row["wait"])
            if waited + wait > LONG and row["reason"] != "parallel":
                raise RateLimited(f"the limiter lets account {account.id} send again in {wait:.1f} s", wait)
            self._sleep(wait)
            waited += wait

    def _try(self, account: Account) -> dict[str, Any]:
        return self._db.fetch(
            "acquire",
            principal=account.principal,
            account=account.id,
            units=account.units(self._today()),
            budget=BUDGET,
            window=WINDOW,
            parallel=PARALLEL,
            account_parallel=ACCOUNT_PARALLEL,
            worker=self.worker,
            ttl=self._ttl,
        )[0]
