"""rq: its `Worker`, which forks a process for each job."""

from __future__ import annotations

import os

import redis
import rq

from bench.queue.child import Stand
from bench.queue.writers import timed

NAME = "rq"
TASKS = 0.004
_stand: Stand | None = None


def noop(n: int) -> None:
    """The job: inherits the stand by fork."""
    assert _stand is not None
    _stand.count()


def _queue() -> rq.Queue:
    return rq.Queue("default", connection=redis.Redis.from_url(os.environ["REDIS_URL"]))


def setup(url: str) -> None:
    """An empty Redis."""
    redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()


def fill(url: str, tasks: int) -> None:
    """`enqueue_many`, its bulk."""
    queue = _queue()
    queue.enqueue_many([rq.Queue.prepare_data(noop, (n,)) for n in range(tasks)])


def left(url: str) -> bool:
    """Not told: a drain is over once all have been started."""
    return False


def work(stand: Stand, url: str) -> None:
    """Its worker, until killed."""
    global _stand
    _stand = stand
    worker = rq.Worker([_queue()])
    stand.gate()
    worker.work(logging_level="ERROR")


def one_by_one(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of so many `enqueue`."""
    queue = _queue()
    queue.enqueue(noop, -1)
    return timed(stand, lambda: [queue.enqueue(noop, n) for n in range(tasks)])


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of one `enqueue_many`."""
    return timed(stand, lambda: fill(url, tasks))
