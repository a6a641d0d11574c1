"""The limiter's state in PostgreSQL; the decisions are functions of migration 0004."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from worker.db import AWAY, Connection, Database, patiently
from worker.limiter.contract import CATCH_UP, FORGOTTEN, PARALLEL, PATIENCE, Answer, Ask, Learned, Standing
from worker.queues.database import LOCK_CLASS
from worker.telemetry import emit

_HEARD = 1.0
"""Seconds between two looks for a free slot of who listens."""
_DEAF = 0.015
"""The same where LISTEN does not work, as behind a pooler of transactions."""


class DatabaseStore:
    """The store `database`, see `contract.Store`."""

    def __init__(self, db: Database, *, ttl: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """`ttl` seconds after its start a request that nobody ended no longer holds its slot."""
        self._db = db
        self._ttl = ttl
        self._sleep = sleep
        self._deaf = False
        self._local = threading.local()
        self._ears: list[Connection] = []
        self.worker: int | None = None

    def ask(self, ask: Ask, *, reap: bool = False) -> Answer:
        granted, wait, reason = self._quick(
            "ask",
            ticket=ask.ticket,
            principal=ask.principal,
            account=ask.account,
            units=ask.units,
            urgent=ask.urgent,
            lag=ask.lag,
            longest=ask.longest,
            worker=self.worker,
            channel=getattr(self._local, "channel", None),
            reap=reap,
            lock_class=LOCK_CLASS,
            ttl=self._ttl,
            budget=ask.budget,
            window=ask.window,
            parallel=ask.parallel,
            account_parallel=ask.account_parallel,
            poll=_DEAF if self._deaf else _HEARD,
            patience=PATIENCE,
            catch_up=CATCH_UP,
        )
        return Answer(granted == b"t", max(0.0, float(wait or 0)), reason.decode() if reason else None)

    def await_slot(self, ask: Ask, seconds: float) -> None:
        ear: Connection | None = getattr(self._local, "ear", None)
        try:
            if ear is not None:
                for _ in ear.notifies(timeout=seconds, stop_after=1):
                    pass
            elif self._deaf:
                self._sleep(min(seconds, _DEAF))
            else:
                self._listen()  # and ask again: a slot may have come free before
        except AWAY as error:
            emit("limiter.deaf", level="warning", reason=str(error).strip())
            self._local.ear = self._local.channel = None
            self._sleep(min(seconds, _DEAF))

    def _quick(self, name: str, **params: object) -> list[bytes | None]:
        texts = {field: None if value is None else str(value) for field, value in params.items()}
        return patiently(lambda: self._db.fetch_quick(name, **texts)[0])

    def _listen(self) -> None:
        """Open this thread's own ear, and find out whether it hears."""
        ear, channel = self._db.connect(), f"limiter_{uuid4().hex}"
        ear.execute(f"listen {channel}".encode())
        self._db.fetch("hello", channel=channel)
        if any(True for _ in ear.notifies(timeout=0.5, stop_after=1)):
            self._local.ear, self._local.channel = ear, channel
            self._ears = [other for other in self._ears if not other.closed] + [ear]
        else:
            ear.close()
            self._deaf = True
            emit("limiter.deaf", level="warning", reason="LISTEN does not work here, a pooler perhaps")

    def free(self, ask: Ask, limit: int | None, remaining: int | None) -> Learned:
        given = {"ticket": ask.ticket, "limit": limit, "remaining": remaining}
        numbers = {"budget": ask.budget, "window": ask.window, "lag": ask.lag}
        weight, neighbour = self._quick("free", **given, **numbers)
        return Learned(int(weight) if weight else None, int(neighbour or 0))

    def cancel(self, ask: Ask) -> None:
        patiently(lambda: self._db.fetch("cancel", ticket=ask.ticket))

    def pause(self, account: UUID, principal: str, wait: float, steps: list[float]) -> float:
        given = {"principal": principal, "wait": wait, "steps": steps, "forgotten": FORGOTTEN}
        return float(patiently(lambda: self._db.fetch("pause_principal", **given))[0]["wait"])

    def shrink(self, account: UUID, principal: str, breath: float, steps: list[float]) -> float:
        given = {"principal": principal, "parallel": PARALLEL, "breath": breath}
        series = {"steps": steps, "forgotten": FORGOTTEN}
        return float(patiently(lambda: self._db.fetch("shrink_principal", **given, **series))[0]["wait"])

    def standing(self, accounts: Sequence[UUID]) -> Standing:
        return Standing(**self._db.fetch("standing", accounts=list(accounts))[0])

    def close(self) -> None:
        for ear in self._ears:
            ear.close()
