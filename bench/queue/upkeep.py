"""A worker over time: idle, killed, stopped, and ten million tasks through one table."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

from bench.queue import lives, ours
from bench.queue.child import ROOT, together
from bench.queue.measures import OURS, Bench, Samples, made
from bench.queue.pooler import PGBOUNCER, pooled
from bench.queue.server import sizes
from worker.demo.stage import cpu_seconds, peak_rss_mb
from worker.settings import Settings


@contextmanager
def real_worker(url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`moysklad-worker work` as Supervisor starts it, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="bench-worker-", ignore_cleanup_errors=True) as folder:
        made = ours.settings(url)
        env = {name: value for name, value in os.environ.items() if name not in Settings.names()}
        env |= {"DATABASE_URL": url, "APP_KEY": made.APP_KEY.get_secret_value(), "LOG_DIR": folder}
        if made.REDIS_URL:
            env |= {"REDIS_URL": made.REDIS_URL.get_secret_value(), "QUEUE_CONNECTION": "redis"}
        process = subprocess.Popen([sys.executable, "-m", "worker", "work", "--quiet", *options], cwd=ROOT, env=env)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def idle(bench: Bench, seconds: float = 60.0, stops: int = 10) -> Samples:
    """A real worker with nothing to do: processor, transactions, memory; and how fast the slowest such ends."""
    with made(bench, OURS) as url, bench.server.still(), real_worker(url) as process:
        time.sleep(5)
        before, cpu, began = bench.server.cost(url), cpu_seconds(process.pid), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        cost, cpu = bench.server.cost(url) - before, cpu_seconds(process.pid) - cpu
        memory = peak_rss_mb(process.pid)
        slowest = stop_seconds(process)
        for n in range(1, stops):
            with real_worker(url) as process:
                time.sleep(2 + n * 0.3)  # once all is imported, at any moment between two looks
                slowest = max(slowest, stop_seconds(process))
    return {
        "ours.idle.cpu_percent": cpu / passed * 100,
        "ours.idle.cpu_seconds_minute": cpu / passed * 60,
        "ours.idle.statements_s": cost.commits / passed,
        "ours.idle.rss_mb": memory,
        "ours.idle.stop_seconds": slowest,
    }


def stop_seconds(process: subprocess.Popen[bytes]) -> float:
    """From SIGTERM to the exit; `wait` with a timeout would look every 50 ms only."""
    began = time.monotonic()
    process.terminate()
    if process.wait():
        raise RuntimeError(f"the worker ended with {process.returncode}")
    return time.monotonic() - began


def rescue(bench: Bench, times: int = 8) -> Samples:
    """kill -9 of the workers that run ten tasks each of four accounts: seconds until all run elsewhere, at random
    moments; also behind a pooler, where one is installed."""
    ways: dict[str, Callable[[str], AbstractContextManager[str]]] = {"rescue": nullcontext}
    if PGBOUNCER:
        ways["rescue_pooled"] = pooled
    samples = {}
    for name, way in ways.items():
        found = []
        rng = random.Random(times)
        for seed in range(times):
            with made(bench, OURS) as direct, way(direct) as url:
                found.append(lives.rescue(url, pause=rng.uniform(0.5, 4.5), seed=seed))
        again = [number for one in found for number in one.again.values()]
        samples |= {
            f"ours.{name}.median_seconds": statistics.median(one.seconds for one in found),
            f"ours.{name}.max_seconds": max(one.seconds for one in found),
            f"ours.{name}.tasks_lost": sum(one.tasks for one in found) - len(again),
            f"ours.{name}.attempts_lost": sum(number != 1 for number in again),
        }
    return samples


def restarts(bench: Bench, number: int = 1000) -> Samples:
    """SIGTERM to workers with short tasks, so many times: seconds to their exit, and what they left."""
    with made(bench, OURS) as url:
        found = lives.restarts(url, number)
    return {
        "ours.restarts.median_seconds": statistics.median(found.stops),
        "ours.restarts.p99_seconds": sorted(found.stops)[int(len(found.stops) * 0.99)],
        "ours.restarts.max_seconds": max(found.stops),
        "ours.restarts.number": len(found.stops),
        "ours.restarts.left_processing": found.left,
        "ours.restarts.bad_exits": len(found.codes - {0}),
        "ours.restarts.attempts_lost": len(found.attempts - {1}),
        "ours.restarts.handed_back": found.interrupted,
    }


@dataclass(frozen=True, slots=True)
class Point:
    """Until now, or between two moments: seconds, tasks, and processor seconds of worker and server."""

    at: float
    tasks: int
    cpu: float

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.at

    @staticmethod
    def between(early: Point, late: Point) -> Point:
        """What happened from one to the other."""
        return Point(late.at - early.at, late.tasks - early.tasks, late.cpu - early.cpu)


def soak(bench: Bench, tasks: int, tell: Callable[[str], None], pairs: int = 4) -> Samples:
    """So many tasks through one table at full speed, pruned all the time: rates and sizes over time.

    The machine may change its own speed in so many minutes. So at the end a twentieth as many go through that
    table and through a new one, by turns.
    """
    stretch = max(tasks // 20, 250_000)
    ratios = []
    with made(bench, OURS) as url:
        points, size = through(bench, url, tasks, tell)
        for n in range(pairs):
            rates = {}
            for old in (True, False)[:: -1 if n % 2 else 1]:
                with nullcontext(url) if old else made(bench, OURS) as where:
                    parts = steps(through(bench, where, stretch, lambda _: None)[0])
                rates[old] = Point.between(parts[0][0], parts[-1][1]).rate
            ratios.append(rates[True] / rates[False])
            tell(f"{rates[True]:,.0f}/s through this table, {rates[False]:,.0f}/s through a new one")
    parts = steps(points)
    fifth = max(1, len(parts) // 5)
    first, last = (Point.between(part[0][0], part[-1][1]) for part in (parts[:fifth], parts[-fifth:]))
    half = len(size) // 2
    return {
        "ours.soak.first": first.rate,
        "ours.soak.last": last.rate,
        "ours.soak.kept": last.rate / first.rate,
        # Of tasks per second of processor, server and worker: what is kept whoever else uses the machine.
        "ours.soak.kept_cpu": (last.tasks / last.cpu) / (first.tasks / first.cpu),
        "ours.soak.to_new": statistics.median(ratios),
        "ours.soak.table_mb_half": max(s["table_mb"] for s in size[: half + 1]),
        "ours.soak.table_mb": max(s["table_mb"] for s in size),
        "ours.soak.index_mb_half": max(s["index_mb"] for s in size[: half + 1]),
        "ours.soak.index_mb": max(s["index_mb"] for s in size),
    }


def steps(points: list[Point]) -> list[tuple[Point, Point]]:
    """From each point to the next, without the first, when all begins, and the last, when little is left."""
    return list(pairwise(points))[1:-1]


def through(
    bench: Bench, url: str, tasks: int, tell: Callable[[str], None]
) -> tuple[list[Point], list[dict[str, float]]]:
    """So many tasks through that database's table by one worker; points from the beginning on, and sizes at each."""
    backlog = 100_000
    with (
        together(1, "bench.queue.ours", "work", url=url) as (worker,),
        together(
            1, "bench.queue.ours", "flow", url=url, tasks=tasks, backlog=backlog, consumer=str(worker.folder)
        ) as (flow,),
        together(1, "bench.queue.ours", "prune", url=url, keep_seconds=20) as (prune,),
    ):
        points = [Point(0.0, 0, 0.0)]
        size: list[dict[str, float]] = []
        began, spent = time.monotonic(), bench.server.cost(url).cpu_seconds
        for child in (flow, prune, worker):
            child.go()
        while points[-1].tasks < tasks:
            time.sleep(min(10.0, max(1.0, tasks / 1e6)))
            worker.alive()
            prune.alive()
            cpu = bench.server.cost(url).cpu_seconds - spent + cpu_seconds(worker.pid)
            points.append(Point(time.monotonic() - began, worker.started, cpu))
            size.append(sizes(url))
            before, now = points[-2:]
            rate = Point.between(before, now).rate
            tell(f"{now.at:7.0f} s {now.tasks:>10,} tasks {rate:>8,.0f}/s  {size[-1]}")
        for child in (worker, prune):
            child.stop()
    return points, size
