"""dramatiq on Redis: one process with the eight threads of its command line."""

from __future__ import annotations

import os
import threading

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from bench.queue.child import Stand
from bench.queue.writers import timed

NAME = "dramatiq"
TASKS = 0.4


def _broker() -> RedisBroker:
    broker = RedisBroker(url=os.environ["REDIS_URL"])
    dramatiq.set_broker(broker)
    return broker


def _actor(stand: Stand | None) -> dramatiq.Actor[[int], None]:
    @dramatiq.actor
    def noop(n: int) -> None:
        assert stand is not None
        stand.count()

    return noop


def setup(url: str) -> None:
    """An empty Redis."""
    redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()


def fill(url: str, tasks: int) -> None:
    """Sent one by one: it has no bulk."""
    _broker()
    noop = _actor(None)
    for n in range(tasks):
        noop.send(n)


def left(url: str) -> bool:
    """Not told: a drain is over once all have been started."""
    return False


def work(stand: Stand, url: str) -> None:
    """Its worker, until killed."""
    broker = _broker()
    _actor(stand)
    worker = dramatiq.Worker(broker)
    stand.gate()
    worker.start()
    threading.Event().wait()


def one_by_one(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of so many `send`."""
    _broker()
    noop = _actor(None)
    noop.send(-1)
    return timed(stand, lambda: [noop.send(n) for n in range(tasks)])


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """The same."""
    return timed(stand, lambda: fill(url, tasks))
