"""The transitions of queue.lua, run on one Redis or on the master of a cluster that has the account."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from typing import Any
from uuid import UUID

from hiredis import pack_command
from redis import Redis
from redis.cluster import RedisCluster
from redis.connection import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from worker.db import sections
from worker.errors import QueueAway
from worker.queues.lines import Ear, Line
from worker.telemetry import emit

WAKE = "queue:wake"
"""The channel on which queues are named that have something new."""

_ELSEWHERE = (MovedError, ReadOnlyError)
_AWAY = (
    ConnectionError, TimeoutError, OSError, BusyLoadingError, ClusterDownError, MasterDownError, AskError,
    TryAgainError, RedisClusterException, OutOfMemoryError, *_ELSEWHERE,
)  # fmt: skip
_PASSING = ("MISCONF ", "NOREPLICAS ")
"""What Redis's answer begins with when it takes no writes for now; it has written nothing then."""
_PAUSES = "queue:pauses"
"""A word, another one after each change of the paused queues. In a cluster one master has it, for all."""
_ALONE = ("enqueue_one", "claim_told", "word")
"""Scripts that do without the common part."""
_AT_ONCE = 200
"""Accounts that one script looks through."""
_WARM = 0.5
"""Seconds for which a connection is taken to be still open."""
_Call = tuple[str, Sequence[str], Sequence[Any]]
"""A script's name, its keys and its values."""
_OPTIONS: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": 10}


class Scripts:
    """Scripts by name. What cannot be reached raises QueueAway; then it is not known whether a script ran."""

    def __init__(self, url: str) -> None:
        self._url = url
        named = sections(files("worker.queues").joinpath("queue.lua").read_text("utf-8"))
        common = named.pop("common")
        texts = {name: body if name in _ALONE else f"{common}\n{body}" for name, body in named.items()}
        self._scripts = {name: (hashlib.sha1(text.encode()).hexdigest(), text) for name, text in texts.items()}
        self._lock = threading.Lock()
        self._one: Redis | None = None
        self._cluster: RedisCluster | None = None
        self._warm: defaultdict[ConnectionPool, list[tuple[Line, float]]] = defaultdict(list)

    def run(self, name: str, account: UUID, *values: Any) -> Any:
        """The script's answer for that account."""
        return self._ask((name, [key_of(account)], values))

    def run_while(self, word: str, name: str, account: UUID, *values: Any) -> Any:
        """The same as long as that is still the word about the paused queues; else None, and nothing is done. The
        script itself looks, but for a cluster, whose masters do not see each other's keys: there it is read first."""
        if self._connected():
            return self.run(name, account, *values, word) if self.word() == word else None
        return self._ask((name, [key_of(account), _PAUSES], (*values, word)))

    def word(self, new: str = "") -> str:
        """The word about the paused queues, empty if there was none yet; or make it this one."""
        answer = self._ask(("word", [_PAUSES], [new]))
        return str((answer or b"").decode())

    def run_all(self, calls: Sequence[tuple[str, UUID, Sequence[Any]]]) -> list[Any]:
        """The answers of (script, account, values), all sent before the first is read."""
        return self._all([(name, [key_of(account)], values) for name, account, values in calls])

    def each(self, name: str, accounts: Sequence[UUID], *values: Any) -> list[bytes]:
        """The answers, JSON lists with an element per account, of a script that looks through many accounts."""
        size = 1 if self._connected() else _AT_ONCE
        keys = [key_of(account) for account in accounts]
        return self._all([(name, keys[n : n + size], values) for n in range(0, len(keys), size)])

    def subscribe(self) -> Ear:
        """Hear of queues that have something new, from now on."""
        self._connected()
        try:
            return Ear(self._pool(WAKE), WAKE)
        except _AWAY as error:
            raise QueueAway(f"Redis is away: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for client in (self._one, self._cluster):
                if client is not None:
                    client.close()
            self._one = self._cluster = None
            self._warm.clear()

    def _connected(self) -> bool:
        """Be connected; whether it is a cluster."""
        if self._one is None:
            try:
                with self._lock:
                    if self._one is None:
                        one = Redis.from_url(self._url, retry=None, **_OPTIONS)
                        info = one.info("cluster")
                        if info["cluster_enabled"]:
                            self._cluster = RedisCluster.from_url(self._url, **_OPTIONS)
                        self._one = one
            except _AWAY as error:
                raise QueueAway(f"Redis is away: {error}") from error
        return self._cluster is not None

    def _ask(self, call: _Call) -> Any:
        """Its answer, by the short way where there is one server: a task may be waiting for it."""
        if not self._connected() and self._one is not None:
            (answer,) = self._send(self._one.connection_pool, [call])
            if not isinstance(answer, _ELSEWHERE):
                return _said(answer)
        (answer,) = self._all([call])
        return answer

    def _all(self, calls: Sequence[_Call]) -> list[Any]:
        self._connected()
        answers: list[Any] = [None] * len(calls)
        left = range(len(calls))
        for attempt in range(20):
            parts: dict[ConnectionPool, list[int]] = defaultdict(list)
            for n in left:
                parts[self._pool(calls[n][1][0])].append(n)
            for pool, numbers in parts.items():
                for n, answer in zip(numbers, self._send(pool, [calls[n] for n in numbers]), strict=True):
                    answers[n] = answer
            left = [n for n in left if isinstance(answers[n], _ELSEWHERE)]  # type: ignore[assignment]
            if not left:
                break
            self._refresh()
            time.sleep(0.01 * attempt)
        if any(isinstance(answer, _AWAY) for answer in answers):
            self._refresh()
        return [_said(answer) for answer in answers]

    def _command(self, call: _Call) -> tuple[Any, ...]:
        name, keys, values = call
        return "EVALSHA", self._scripts[name][0], len(keys), *keys, *values

    def _send(self, pool: ConnectionPool, calls: Sequence[_Call]) -> list[Any]:
        answers = self._told(pool, [self._command(call) for call in calls])
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            whole = [("EVAL", self._scripts[calls[n][0]][1], len(calls[n][1]), *calls[n][1], *calls[n][2])
                     for n in unknown]  # fmt: skip
            for n, answer in zip(unknown, self._told(pool, whole), strict=True):
                answers[n] = answer
        return answers

    def _told(self, pool: ConnectionPool, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What the server says to each, errors of its own included. Without the client's own repetitions, since most
        transitions may not be repeated blindly."""
        try:
            line = self._borrow(pool)
        except _AWAY as error:
            self._refresh()
            raise QueueAway(f"Redis is away: {error}") from error
        try:
            line.send(b"".join(map(pack_command, commands)))
            answers = [line.answer() for _ in commands]
        except BaseException as error:
            line.close()
            if isinstance(error, _AWAY):
                self._refresh()
                raise QueueAway(f"Redis is away: {error}") from error
            raise
        self._warm[pool].append((line, time.monotonic()))
        return answers

    def _borrow(self, pool: ConnectionPool) -> Line:
        """One that was in use a moment ago, else one of the pool's, which makes sure first that it is still open and
        takes as long for it as many a script."""
        warm = self._warm[pool]
        with suppress(IndexError):
            while True:
                line, used = warm.pop()
                if time.monotonic() < used + _WARM and line.connection.pid == os.getpid():
                    return line
                pool.release(line.connection)
        return Line(pool)

    def _pool(self, key: str) -> ConnectionPool:
        if self._cluster is None:
            assert self._one is not None
            return self._one.connection_pool
        try:
            node = self._cluster.nodes_manager.get_node_from_slot(key_slot(key.encode()))
            client = self._cluster.get_redis_connection(node)
        except _AWAY as error:
            self._refresh()
            raise QueueAway(f"Redis is away: {error}") from error
        return client.connection_pool

    def _refresh(self) -> None:
        """Ask a cluster anew who has what, and leave those who are no longer part of it."""
        if self._cluster is None:
            return
        try:
            self._cluster.nodes_manager.initialize()
        except _AWAY as error:
            emit("redis.wait", level="warning", reason=str(error))
            return
        clients = [node.redis_connection for node in self._cluster.nodes_manager.nodes_cache.values()]
        pools = {client.connection_pool for client in clients if client is not None}
        for pool in set(self._warm) - pools:
            # Another thread may be taking from it: each connection is either's.
            warm = self._warm.pop(pool, [])
            with suppress(IndexError):
                while True:
                    line, _ = warm.pop()
                    line.close()


@lru_cache(maxsize=4096)
def key_of(account: UUID) -> str:
    """What an account's keys begin with: the braces keep them in one slot of a cluster."""
    return f"queue:{{{account}}}"


def _said(answer: Any) -> Any:
    if isinstance(answer, _AWAY) or (isinstance(answer, ResponseError) and str(answer).startswith(_PASSING)):
        raise QueueAway(f"Redis is away: {answer}") from answer
    if isinstance(answer, RedisError):
        raise answer
    return answer
