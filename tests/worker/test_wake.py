"""What ends a sleep: news of other threads and of signals, and a socket that the sleeper reads itself."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from worker.wake import Wake

LONG = 60.0


class Line:
    """A socket watched by `wake`: each byte that comes is news."""

    def __init__(self, wake: Wake) -> None:
        self.there, self.here = socket.socketpair()
        self.unwatch = wake.watch(self.here.fileno(), self.hear)

    def hear(self) -> list[str]:
        """What has come; of a dot nothing."""
        return [letter for letter in self.here.recv(100).decode() if letter != "."]


@pytest.fixture(params=[False, True], ids=["plain", "watching"])
def wake(request: pytest.FixtureRequest) -> Iterator[Wake]:
    """One that watches a silent socket, or none."""
    wake = Wake()
    lines = [Line(wake)] if request.param else []
    yield wake
    lines.clear()


def test_news_come_in_order(wake: Wake) -> None:
    """Those that are there come at once."""
    wake.put("a")
    wake.put("b")

    assert [wake.get(timeout=LONG), wake.get_nowait()] == ["a", "b"]
    with pytest.raises(queue.Empty):
        wake.get_nowait()


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_nothing_comes(wake: Wake, timeout: float) -> None:
    """After its time the sleep is over."""
    began = time.monotonic()

    with pytest.raises(queue.Empty):
        wake.get(timeout=timeout)

    assert time.monotonic() - began >= timeout


def test_another_thread_wakes(wake: Wake) -> None:
    """Whatever the sleeper waits for."""
    threading.Timer(0.05, wake.put, ["a"]).start()

    assert wake.get(timeout=LONG) == "a"


def test_a_signal_wakes(wake: Wake) -> None:
    """Its handler puts news."""
    before = signal.signal(signal.SIGUSR1, lambda *_: wake.put("signal"))
    try:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        assert wake.get(timeout=LONG) == "signal"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_news_that_nobody_takes_are_bounded(wake: Wake) -> None:
    """A batch may run for minutes, while thousands are enqueued; who heard of some looks at all."""
    for n in range(5000):
        wake.put(str(n))

    assert [wake.get(timeout=0) for _ in range(1000)] == [str(n) for n in range(1000)]
    with pytest.raises(queue.Empty):
        wake.get(timeout=0)


def test_a_socket_wakes() -> None:
    """Also one that is readable already, of a sleep without time; several news of one reading all come."""
    wake = Wake()
    line = Line(wake)
    line.there.send(b"ab")
    assert [wake.get(timeout=0), wake.get_nowait()] == ["a", "b"]

    threading.Timer(0.05, line.there.send, [b"c"]).start()
    assert wake.get(timeout=LONG) == "c"


def test_a_socket_that_tells_nothing_new() -> None:
    """The sleep goes on until its end."""
    wake = Wake()
    line = Line(wake)
    line.there.send(b".")
    began = time.monotonic()

    with pytest.raises(queue.Empty):
        wake.get(timeout=0.1)

    assert time.monotonic() - began >= 0.1


def test_a_socket_that_is_watched_no_more() -> None:
    """It wakes nobody, and another may be watched instead, under the same number."""
    wake = Wake()
    line = Line(wake)
    line.unwatch()
    line.there.send(b"a")
    with pytest.raises(queue.Empty):
        wake.get(timeout=0.05)
    line.here.close()

    other = Line(wake)
    other.there.send(b"b")

    assert wake.get(timeout=LONG) == "b"


def test_unwatched_while_it_is_read() -> None:
    """As when it has come to its end: what is told then is told, and nothing else is waited for."""
    wake = Wake()
    line = Line(wake)

    def hear() -> list[str]:
        line.unwatch()
        return ["gone"]

    line.unwatch()
    line.unwatch = wake.watch(line.here.fileno(), hear)
    line.there.close()

    assert wake.get(timeout=LONG) == "gone"
    with pytest.raises(queue.Empty):
        wake.get(timeout=0.05)
