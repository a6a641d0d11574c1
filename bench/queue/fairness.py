"""What fairness between accounts is worth, and what it costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from bench.queue import ours
from bench.queue.child import Child, Start, together
from bench.queue.measures import LONGEST, OURS, Bench, Samples, drain, made


def fairness(bench: Bench, *, batch: int | None = None, suffix: str = "") -> Samples:
    """900,000 tasks of one account before 100 each of 1,000 others, then one of one more; and one account alone."""
    options: dict[str, Any] = {"options": {"batch": batch}} if batch else {}
    fifo_tasks = bench.tasks
    with made(bench, OURS) as url:
        ours.enqueue(url, ours.tasks_of(1, fifo_tasks))
        fifo = drain(bench, OURS, url, fifo_tasks, **options).rate
    giant, others, last = ours.account(0), 1000, ours.account(5000)
    with made(bench, OURS) as url:
        ours.enqueue(url, ours.tasks_of(1, bench.million * 9 // 10))
        ours.enqueue(url, ours.tasks_of(others, bench.million // 10 // others, first=1))
        ours.enqueue(url, ours.tasks_of(1, 1, first=5000))
        bench.server.settle(url)
        with together(1, "bench.queue.ours", "work", url=url, trace="turns", **options) as (worker,):
            worker.go()
            turns = rounds(worker, others + 2, whole=3 if batch else 1)
            worker.stop()
    everybody = [giant, *(ours.account(1 + n) for n in range(others))]
    served, share, before = Counter[UUID](), Counter[UUID](), Counter[UUID]()
    for start in turns:
        served[start.account] += start.tasks
        share[start.account] += 1
        if not share[last]:
            before[start.account] += 1
    seconds = turns[-1].at - turns[0].at
    return {
        f"ours.fairness{suffix}.fifo": fifo,
        f"ours.fairness{suffix}.rate": sum(start.tasks for start in turns[:-1]) / seconds,
        f"ours.fairness{suffix}.jain": jain([served[id] for id in everybody]),
        f"ours.fairness{suffix}.jain_turns": jain([share[id] for id in everybody]),
        f"ours.fairness{suffix}.rounds": max(before.values(), default=0),
        f"ours.fairness{suffix}.giant_share": served[giant] / served.total(),
        f"ours.fairness{suffix}.accounts": len(share),
    }


def rounds(worker: Child, accounts: int, whole: int) -> list[Start]:
    """The turns until that many accounts had one and so many rounds are over, or a minute is."""
    until = time.monotonic() + LONGEST
    while True:
        turns = worker.starts()
        seen: set[UUID] = set()
        for n, start in enumerate(turns):
            seen.add(start.account)
            if len(seen) == accounts and n >= whole * (accounts - 1):
                return turns[: n + 1]
        if turns and time.monotonic() > until:
            return turns
        worker.alive()
        time.sleep(0.2)


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares))
