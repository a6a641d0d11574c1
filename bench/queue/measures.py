"""Rates, one function each: it makes a database, measures once, and returns its samples by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from bench.queue import bare, ours
from bench.queue.child import together
from bench.queue.server import Server, dead_rows, pinned
from worker.demo.stage import cpu_seconds

Samples = dict[str, float]
_POLL = 0.002
LONGEST = 60.0
"""Seconds after which a drain is called over, whatever is left."""


class System(Protocol):
    """A queue to be measured: a module with these names. `work`, `one_by_one` and `bulk` run in a `Child`."""

    NAME: str
    TASKS: float
    """Share of the number of tasks that it is given; the slow ones get fewer."""
    __name__: str

    def setup(self, url: str) -> None:
        """Make what it needs in an empty database."""
        ...

    def fill(self, url: str, tasks: int) -> None:
        """Enqueue so many."""
        ...

    def left(self, url: str) -> bool:
        """Whether a task is not yet over."""
        ...


OURS: System = ours
BARE: System = bare


@dataclass(frozen=True, slots=True)
class Bench:
    """The server, and how much of everything."""

    server: Server
    tasks: int
    million: int
    """Rows of the large tables."""


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain: its rate, and over time how many tasks had been started."""

    rate: float
    tasks: int
    curve: list[tuple[float, int]]
    worker_us: float
    server_us: float
    commits: float
    wal_bytes: float

    def fifth(self, number: int) -> float:
        """Rate of that fifth of the tasks, 0 to 4."""
        low, high = (self.tasks * n / 5 for n in (number, number + 1))
        at = [next((t for t, n in self.curve if n >= edge), self.curve[-1][0]) for edge in (low, high)]
        return (high - low) / max(at[1] - at[0], 1e-9)


@contextmanager
def made(bench: Bench, system: System) -> Iterator[str]:
    """A database with the system's schema."""
    with bench.server.database() as url:
        system.setup(url)
        yield url


def drain(
    bench: Bench,
    system: System,
    url: str,
    tasks: int,
    *,
    workers: int = 1,
    whole: bool = True,
    enough: Callable[[], bool] = lambda: False,
    **keywords: Any,
) -> Drain:
    """Let workers loose on a filled database until `tasks` are started and, with `whole`, all is recorded."""
    bench.server.settle(url)
    curve: list[tuple[float, int]] = []
    with together(workers, system.__name__, "work", url=url, **keywords) as children:
        before, cpu = bench.server.cost(url), sum(cpu_seconds(child.pid) for child in children)
        began = time.monotonic()
        for child in children:
            child.go()
        look = began + 0.25
        while (started := sum(child.started for child in children)) < tasks:
            now = time.monotonic()
            curve.append((now - began, started))
            if now - began > LONGEST:
                break
            if now > look:
                if enough():
                    break
                for child in children:
                    child.alive()
                look = now + 0.25
            time.sleep(_POLL)
        while whole and started >= tasks and system.left(url):
            time.sleep(_POLL)
        seconds = time.monotonic() - began
        curve.append((seconds, started))
        cost = bench.server.cost(url) - before
        cpu = sum(cpu_seconds(child.pid) for child in children) - cpu
        for child in children:
            child.stop()
        commits = (bench.server.cost(url) - before).commits  # a session tells of them at its end
    each = max(started, 1)
    return Drain(
        started / seconds, started, curve, cpu / each * 1e6, cost.cpu_seconds / each * 1e6,
        commits / each, cost.wal_bytes / each,
    )  # fmt: skip


def plain(bench: Bench, system: System, workers: int) -> Samples:
    """A drain of an otherwise empty table by so many processes."""
    tasks = max(200, int(bench.tasks * system.TASKS))
    with made(bench, system) as url:
        system.fill(url, tasks)
        found = drain(bench, system, url, tasks, workers=workers)
    name = f"{system.NAME}.drain{workers}"
    return {
        name: found.rate,
        f"{name}.worker_us": found.worker_us,
        f"{name}.server_us": found.server_us,
        f"{name}.cpu_us": found.worker_us + found.server_us,
        f"{name}.commits": found.commits,
        f"{name}.wal_bytes": found.wal_bytes,
    }


def enqueue(bench: Bench, system: System, *, writers: int = 1, suffix: str = "", **keywords: Any) -> Samples:
    """Tasks a second, enqueued one by one."""
    tasks = max(200, int(bench.tasks * system.TASKS) // 10) // writers * writers
    if writers > 1:
        keywords["writers"] = writers
    with (
        made(bench, system) as url,
        together(1, system.__name__, "one_by_one", url=url, tasks=tasks, **keywords) as (child,),
    ):
        child.go()
        return {f"{system.NAME}.enqueue_one{suffix}": tasks / child.result()}


def bulk(bench: Bench, system: System, function: str = "bulk") -> Samples:
    """Tasks a second, enqueued 50,000 at once; `function` may be another way to do it."""
    tasks = max(200, int(50_000 * system.TASKS))
    with made(bench, system) as url, together(1, system.__name__, function, url=url, tasks=tasks) as (child,):
        child.go()
        return {f"{system.NAME}.enqueue_{function}": tasks / child.result()}


def pending(bench: Bench, scattered: bool = False) -> Samples:
    """With a million tasks pending: 1,000 accounts, three priorities, a worker on `*`.

    Scattered, an account's next tasks lie on as many pages, each of which PostgreSQL writes whole to the WAL when it
    is first changed after a checkpoint, whatever the claim.
    """
    with made(bench, OURS) as url:
        ours.enqueue(url, ours.tasks_of(1000, bench.million // 1000, priorities=3, scattered=scattered))
        found = drain(bench, OURS, url, min(bench.tasks, bench.million), whole=False)
    name = "ours.pending_1m_scattered" if scattered else "ours.pending_1m"
    return {
        name: found.rate,
        f"{name}.cpu_us": found.worker_us + found.server_us,
        f"{name}.wal_bytes": found.wal_bytes,
    }


def completed(bench: Bench) -> Samples:
    """With a history of a million."""
    with made(bench, OURS) as url:
        ours.fill_completed(url, bench.million)
        ours.fill(url, bench.tasks)
        found = drain(bench, OURS, url, bench.tasks)
    return {"ours.completed_1m": found.rate}


def sync(bench: Bench) -> Samples:
    """The driver `sync`: tasks that are done in the caller, at enqueue."""
    with (
        made(bench, OURS) as url,
        together(1, "bench.queue.ours", "in_caller", url=url, tasks=bench.tasks) as (child,),
    ):
        child.go()
        return {"ours.sync": bench.tasks / child.result()}


def wildcard(bench: Bench) -> Samples:
    """100 accounts' tasks in a queue each, a worker on `account-child-*`; and the same in one queue."""
    found = {}
    for name, topology, queues in (("single", "single", ["default"]), ("wildcard", "account", ["account-child-*"])):
        with made(bench, OURS) as url:
            ours.add_children(url, 100)
            ours.enqueue(url, ours.tasks_of(100, bench.tasks // 100), topology=topology)
            rate = drain(bench, OURS, url, bench.tasks, queues=queues, topology=topology).rate
        found[f"ours.wildcard.{name}"] = rate
    return found


def pin(bench: Bench, workers: int, dead: int = 400_000) -> Samples:
    """While a snapshot is held: rates of the first and the last fifth until so many dead rows; many accounts,
    three priorities."""
    tasks = dead // 2 + bench.tasks
    with made(bench, OURS) as url:
        ours.enqueue(url, ours.tasks_of(200, tasks // 200, priorities=3))
        with pinned(url):
            found = drain(
                bench, OURS, url, tasks // 200 * 200, workers=workers, whole=False,
                enough=lambda: dead_rows(url) >= dead,
            )  # fmt: skip
            reached = dead_rows(url)
    name = f"ours.pinned{workers}"
    return {
        f"{name}.first": found.fifth(0),
        f"{name}.last": found.fifth(4),
        f"{name}.kept": found.fifth(4) / found.fifth(0),
        f"{name}.dead": reached,
    }
