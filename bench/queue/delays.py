"""How long a task waits for a sleeping worker, from before its enqueue to its start."""

from __future__ import annotations

import time
from typing import Any

from bench.queue import ours
from bench.queue.child import Child
from bench.queue.measures import OURS, Bench, System, made


def delays(bench: Bench, system: System, url: str, seconds: float, seed: int, **keywords: Any) -> list[float]:
    """Milliseconds from before the enqueue to the start, at 20 tasks a second, on a sleeping worker."""
    bench.server.settle(url)
    queues = {"queues": ["high"]} if keywords else {}
    with (
        Child(system.__name__, "work", url=url, trace="delays", **keywords, **queues) as worker,
        Child(system.__name__, "pulses", url=url, rate=20, seconds=seconds, seed=seed, **keywords) as sender,
    ):
        worker.ready()
        worker.go()
        sender.ready()
        time.sleep(1)
        sender.go()
        number = sender.result()
        until = time.monotonic() + 10
        while worker.started < number + 1 and time.monotonic() < until:
            time.sleep(0.01)
        found = [(start.at - start.sent) * 1000 for start in worker.starts()[1:]]
        worker.stop()
    if len(found) < number:
        raise RuntimeError(f"{system.NAME}: of {number} tasks only {len(found)} were started alone")
    return found


def latency(bench: Bench, system: System, seconds: float, seed: int) -> list[float]:
    """With nothing else to do."""
    with made(bench, system) as url:
        return delays(bench, system, url, seconds, seed)


def latency_behind(bench: Bench, seconds: float, seed: int) -> list[float]:
    """Of ours, with a million tasks in a queue the worker does not listen to."""
    with made(bench, OURS) as url:
        ours.enqueue(url, ours.tasks_of(1000, bench.million // 1000), topology="priority")
        return delays(bench, OURS, url, seconds, seed, topology="priority")
