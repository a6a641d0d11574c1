"""What ends a worker's sleep: news from other threads and signal handlers, or from a socket of the sleeper's own."""

from __future__ import annotations

import queue as stdlib_queue
import select
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

_MOST = 1_000
"""News kept. Who has heard of so many looks at everything anyway."""


class Wake:
    """News, first in, first out."""

    def __init__(self) -> None:
        self._news: stdlib_queue.SimpleQueue[str] = stdlib_queue.SimpleQueue()
        self._hear: Callable[[], Iterable[str]] | None = None
        self._bell, self._ring = socket.socketpair()
        self._ring.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)

    def put(self, news: str) -> None:
        """Wake the sleeper. From any thread, and from signal handlers."""
        if self._news.qsize() < _MOST:
            self._news.put(news)
        if self._hear is not None:
            with suppress(BlockingIOError):  # it rings already
                self._ring.send(b".")

    def watch(self, number: int, hear: Callable[[], Iterable[str]]) -> Callable[[], None]:
        """Have the sleeper itself read the socket of that number: once it is readable, `hear()` tells the news, if
        any. A thread that passes them on costs a task that waits a tenth of its delay. What is returned ends it."""
        self._hear = hear
        self._poll.register(number, select.POLLIN)

        def unwatch() -> None:
            self._hear = None
            self._poll.unregister(number)

        return unwatch

    def get(self, timeout: float) -> str:
        """The first of the news, waiting so many seconds at most. Raises queue.Empty then."""
        if self._hear is None:
            return self._news.get(timeout=timeout)
        left, until = timeout, time.monotonic() + timeout
        while self._news.empty() and left >= 0:
            self._listen(left)
            left = until - time.monotonic()
        return self._news.get_nowait()

    def get_nowait(self) -> str:
        """The first of the news. Raises queue.Empty where none have come."""
        return self._news.get_nowait()

    def _listen(self, seconds: float) -> None:
        for number, _ in self._poll.poll(seconds * 1000):
            if number == self._bell.fileno():
                self._bell.recv(_MOST)
            elif self._hear is not None:
                for news in self._hear():
                    self._news.put(news)
