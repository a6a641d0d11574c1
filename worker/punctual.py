"""Connections that keep a deadline over a whole request: upload, headers and body, however it drips."""

from __future__ import annotations

import http.client
import io
from collections.abc import Callable
from functools import partial
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import PoolManager


class _Punctual(io.RawIOBase):
    """What a socket receives; every wait is bounded by what is left, so that no drip lasts for ever.

    A timeout of the socket would begin anew with each byte.
    """

    def __init__(self, sock: Any, left: Callable[[], float]) -> None:
        self._sock, self._left = sock, left
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_bounded(self._left()))
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PunctualResponse(http.client.HTTPResponse):
    def __init__(self, left: Callable[[], float], sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Punctual(sock, left))


class PunctualAdapter(HTTPAdapter):
    """Connections whose requests and answers are over when `left()` is 0, from the first byte sent on."""

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """As HTTPAdapter's, with punctual connections."""
        super().init_poolmanager(*args, **options)
        self._make_punctual(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """As HTTPAdapter's, with punctual connections."""
        manager = super().proxy_manager_for(proxy, **options)
        self._make_punctual(manager)
        return manager

    def _make_punctual(self, manager: PoolManager) -> None:
        known = PoolManager().pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: _punctual_pool(pool, self._left) for scheme, pool in known.items()}


def _punctual_pool(pool: Any, left: Callable[[], float]) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        response_class = staticmethod(partial(_PunctualResponse, left))

        def send(self, data: Any) -> None:
            if self.sock is not None:
                self.sock.settimeout(_bounded(left()))
            super().send(data)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


def _bounded(left: float) -> float:
    """As a socket's timeout, where 0 would mean not to wait at all."""
    if left <= 0:
        raise TimeoutError("the time for this request is over")
    return left
