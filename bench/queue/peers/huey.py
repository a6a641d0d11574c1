"""huey on Redis: its consumer with the default of one thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import huey
import redis

from bench.queue.child import Stand
from bench.queue.pulse import pulse
from bench.queue.writers import timed

NAME = "huey"
TASKS = 0.3


def _queue(do: Callable[[float], None] = lambda _: None) -> tuple[huey.RedisHuey, Any]:
    queue = huey.RedisHuey("bench", url=os.environ["REDIS_URL"])

    @queue.task(name="noop")
    def noop(sent: float) -> None:
        do(sent)

    return queue, noop


def setup(url: str) -> None:
    """An empty Redis."""
    redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()


def fill(url: str, tasks: int) -> None:
    """Enqueued one by one: it has no bulk."""
    _, noop = _queue()
    for _ in range(tasks):
        noop(0.0)


def left(url: str) -> bool:
    """Not told: a drain is over once all have been started."""
    return False


def work(stand: Stand, url: str, trace: str = "") -> None:
    """Its consumer, until killed."""
    queue, _ = _queue((lambda sent: stand.trace(1, sent=sent)) if trace else (lambda _: stand.count()))
    consumer = queue.create_consumer()
    stand.gate()
    consumer.run()


def one_by_one(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of so many calls."""
    _, noop = _queue()
    noop(0.0)
    return timed(stand, lambda: [noop(0.0) for _ in range(tasks)])


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """The same."""
    return timed(stand, lambda: fill(url, tasks))


def pulses(stand: Stand, url: str, rate: float, seconds: float, seed: int) -> int:
    """Enqueue at that rate."""
    _, noop = _queue()
    return pulse(stand, noop, rate, seconds, seed)
