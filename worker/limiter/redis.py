"""The limiter's state in Redis; the decisions are the scripts of limiter.lua."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, TypeVar
from uuid import UUID

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

from worker.db import patiently, sections
from worker.errors import QueueAway
from worker.limiter.contract import CATCH_UP, FORGOTTEN, PARALLEL, PATIENCE, Answer, Ask, Learned, Standing
from worker.telemetry import emit

LEASE = 6.0
"""Seconds after which a slot is free whose holder has died."""
_AWAY = (ConnectionError, TimeoutError, BusyLoadingError)
_POLL = 1.0
_AT_ONCE = 200
"""Accounts that one script looks through."""
_T = TypeVar("_T")


class RedisStore:
    """The store `redis`, see `contract.Store`."""

    def __init__(self, url: str, *, lease: float = LEASE) -> None:
        self._redis: Redis = Redis.from_url(url, socket_connect_timeout=5, socket_timeout=10)
        self._lease = lease
        named = sections(files("worker.limiter").joinpath("limiter.lua").read_text("utf-8"))
        common = named.pop("common")
        self._scripts = {name: self._redis.register_script(f"{common}\n{body}") for name, body in named.items()}
        self._held: dict[int, Ask] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._renewer: threading.Thread | None = None
        self.worker: int | None = None

    def ask(self, ask: Ask, *, reap: bool = False) -> Answer:
        granted, wait, reason = self._run(
            "ask", ask.account, ask.principal, ask.ticket, ask.units, int(ask.urgent), ask.lag, ask.longest,
            ask.budget, ask.window, ask.parallel, ask.account_parallel, _POLL, PATIENCE, CATCH_UP, self._lease,
        )  # fmt: skip
        if granted:
            self._hold(ask)
        return Answer(bool(granted), max(0.0, float(wait)), reason.decode() or None)

    def await_slot(self, ask: Ask, seconds: float) -> None:
        _patiently(lambda: self._redis.blpop([f"{_tag(ask.account)}:wake:{ask.ticket}"], timeout=seconds))

    def free(self, ask: Ask, limit: int | None, remaining: int | None) -> Learned:
        self._drop(ask)
        told = ("", "") if limit is None or remaining is None else (limit, remaining)
        weight, neighbour = self._run(
            "free", ask.account, ask.principal, ask.ticket, *told, ask.budget, ask.window, ask.lag
        )
        return Learned(weight or None, neighbour)

    def cancel(self, ask: Ask) -> None:
        self._drop(ask)
        self._run("cancel", ask.account, ask.principal, ask.ticket)

    def pause(self, account: UUID, principal: str, wait: float, steps: list[float]) -> float:
        return float(self._run("pause", account, principal, "", wait, FORGOTTEN, *steps))

    def shrink(self, account: UUID, principal: str, breath: float, steps: list[float]) -> float:
        return float(self._run("shrink", account, principal, "", PARALLEL, breath, FORGOTTEN, *steps))

    def standing(self, accounts: Sequence[UUID]) -> Standing:
        tags = list(map(_tag, accounts))
        try:
            counts = [self._scripts["standing"](tags[n : n + _AT_ONCE]) for n in range(0, len(tags), _AT_ONCE)]
        except _AWAY as error:
            raise QueueAway(f"Redis is away: {error}") from error
        return Standing(*map(sum, zip(*counts, strict=True)))

    def close(self) -> None:
        self._over.set()
        if self._renewer is not None:
            self._renewer.join(timeout=2)
        self._redis.close()

    def _run(self, name: str, account: UUID, principal: str, *values: Any) -> Any:
        return _patiently(lambda: self._once(name, account, principal, *values))

    def _once(self, name: str, account: UUID, principal: str, *values: Any) -> Any:
        tag = _tag(account)
        keys = [f"{tag}:{principal}", f"{tag}:busy", f"{tag}:slots", f"{tag}:wake:", f"{tag}:principals"]
        return self._scripts[name](keys=keys, args=[principal, *map(str, values)])

    def _hold(self, ask: Ask) -> None:
        with self._lock:
            self._held[ask.ticket] = ask
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="limiter", daemon=True)
                self._renewer.start()

    def _drop(self, ask: Ask) -> None:
        with self._lock:
            self._held.pop(ask.ticket, None)

    def _renew(self) -> None:
        """Thread: say every third of a lease that the grants held here are alive."""
        while not self._over.wait(self._lease / 3):
            held: dict[tuple[UUID, str], list[int]] = defaultdict(list)
            with self._lock:
                for ask in self._held.values():
                    held[ask.account, ask.principal].append(ask.ticket)
            for (account, principal), tickets in held.items():
                try:
                    self._once("renew", account, principal, ",".join(map(str, tickets)), self._lease)
                except _AWAY as error:
                    emit("redis.wait", level="warning", reason=str(error))


def _patiently(work: Callable[[], _T]) -> _T:
    return patiently(work, away=_AWAY, event="redis.wait")


def _tag(account: UUID) -> str:
    """What an account's keys begin with: the braces keep them in one slot of a cluster."""
    return f"limiter:{{{account}}}"
