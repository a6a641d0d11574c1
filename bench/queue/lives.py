"""Lives and deaths of workers: what kill -9 and SIGTERM cost, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg

from bench.queue import ours
from bench.queue.zygote import Zygote
from worker import sync, telemetry
from worker.app import App
from worker.db import patiently
from worker.executor import Context, Handler, Settlement
from worker.loop import Options
from worker.queues import Ended
from worker.task import Complete, Task

_PATIENCE = 60.0
PART = 20
"""Tasks of a batch that end together."""


@dataclass(frozen=True, slots=True)
class Run:
    """A batch, or what was left of it, as a worker began it."""

    at: float
    pid: int
    attempts: dict[int, int]
    """Of each task, by its id."""


def life(url: str, trace: str, hold: float, seed: int) -> int:
    """A worker's whole life; its handler takes `hold` seconds for every part of a batch."""
    file = os.open(trace, os.O_WRONLY | os.O_APPEND)

    def handle(_: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        begun = [time.monotonic(), os.getpid(), {task.id: task.attempts for task in tasks}]
        os.write(file, json.dumps(begun).encode() + b"\n")
        for n in range(0, len(tasks), PART):
            time.sleep(hold)
            yield Settlement([Ended(task, Complete("done")) for task in tasks[n : n + PART]])

    for entity in (ours.HIGH, ours.LOW):
        sync.HANDLERS[entity, "noop"] = cast(Handler, handle)
    settings = ours.settings(url, logs=Path(trace).parent)
    telemetry.configure(settings, console=False)
    with App(settings) as app:
        patiently(app.require_schema)
        return app.worker(Options(), rng=random.Random(seed)).run()


class Fleet:
    """Workers forked from one zygote, on one database."""

    def __init__(self, url: str, folder: Path, hold: float, seed: int = 1) -> None:
        self.url, self._hold, self._rng = url, hold, random.Random(seed)
        self._trace = folder / "trace"
        self._trace.touch()
        self.errors = folder / "stderr"
        self.zygote = Zygote("bench.queue.lives", "life", self.errors)

    def start(self, number: int) -> list[int]:
        """So many more; their process ids once all have registered."""
        before = self._registered()
        keywords: dict[str, Any] = {"url": self.url, "trace": str(self._trace), "hold": self._hold}
        pids = [self.zygote.start("worker", seed=self._rng.randrange(1 << 30), **keywords) for _ in range(number)]
        _until(lambda: len(self._registered() - before) >= number, "the workers' registration", self.errors)
        return pids

    def _registered(self) -> set[int]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            return {int(row[0]) for row in conn.execute("select id from workers").fetchall()}

    def runs(self) -> list[Run]:
        """All that was begun so far."""
        found = []
        for line in self._trace.read_bytes().split(b"\n")[:-1]:
            at, pid, attempts = json.loads(line)
            found.append(Run(at, pid, {int(id): number for id, number in attempts.items()}))
        return found


@dataclass(frozen=True, slots=True)
class Rescue:
    """What became of batches whose workers were killed."""

    seconds: float
    """From the kill until the last of their tasks ran elsewhere."""
    tasks: int
    again: dict[int, int]
    """Number of the attempt that each ran in then."""


def rescue(url: str, *, accounts: int = 4, tasks: int = 10, pause: float = 1.0, seed: int = 1) -> Rescue:
    """Kill all workers at once while they run so many tasks of so many accounts; as many idle ones are there.

    Claims made at the same moment share an account's tasks, and a worker has one batch at a time: hence twice as many
    workers as accounts.
    """
    workers = 2 * accounts
    with tempfile.TemporaryDirectory(prefix="bench-lives-", ignore_cleanup_errors=True) as folder:
        fleet = Fleet(url, Path(folder), hold=300, seed=seed)
        with fleet.zygote:
            victims = fleet.start(workers)
            ours.enqueue(url, ours.tasks_of(accounts, tasks))
            wanted = accounts * tasks
            _until(lambda: _running(fleet, victims) >= wanted, "the tasks' start", fleet.errors)
            heirs = fleet.start(workers)
            time.sleep(pause)
            began = time.monotonic()
            for pid in victims:
                fleet.zygote.kill(pid)
            _until(lambda: _running(fleet, heirs) >= wanted, "the tasks' second start", fleet.errors)
            runs = [run for run in fleet.runs() if run.pid in heirs]
    again = {id: number for run in runs for id, number in run.attempts.items()}
    return Rescue(max(run.at for run in runs) - began, wanted, again)


def _running(fleet: Fleet, pids: list[int]) -> int:
    return len({id for run in fleet.runs() if run.pid in pids for id in run.attempts})


@dataclass(frozen=True, slots=True)
class Restarts:
    """What SIGTERM did, again and again, to workers with short tasks."""

    stops: list[float]
    """Seconds from the signal to the exit."""
    codes: set[int]
    left: int
    """Tasks that were still `processing` when all had ended, over all rounds."""
    completed: int
    interrupted: int
    """Tasks begun more than once: handed back by a worker that stopped."""
    attempts: set[int]
    """Attempts that completed tasks have counted."""


def restarts(url: str, number: int, *, workers: int = 4, seed: int = 1) -> Restarts:
    """Stop and start so many workers, all at once, at a random moment of their work."""
    rng = random.Random(seed)
    stops: list[float] = []
    left = 0
    with (
        tempfile.TemporaryDirectory(prefix="bench-lives-", ignore_cleanup_errors=True) as folder,
        App(ours.settings(url, logs=Path(folder))) as app,
    ):
        fleet = Fleet(url, Path(folder), hold=0.002, seed=seed)
        with fleet.zygote:
            while len(stops) < number:
                if not ours.left(url) or len(stops) % 100 == 0:
                    first = len(stops) * 10
                    ours.enqueue(url, ours.tasks_of(ours.ACCOUNTS, 2000, first=first))
                pids = fleet.start(workers)
                time.sleep(rng.uniform(0, 0.15))
                began = time.monotonic()
                for pid in pids:
                    os.kill(pid, 15)
                waiting = set(pids)
                while waiting and time.monotonic() < began + _PATIENCE:
                    gone = waiting - fleet.zygote.alive().keys()
                    stops += [time.monotonic() - began] * len(gone)
                    waiting -= gone
                    time.sleep(0.002)
                left += app.queue.processing()
            codes = {code for _, code in fleet.zygote.ended()}
            begun: dict[int, int] = {}
            for run in fleet.runs():
                for id in run.attempts:
                    begun[id] = begun.get(id, 0) + 1
        done = app.queue.peek("completed", limit=1_000_000)
    again = sum(times > 1 for times in begun.values())
    return Restarts(stops, codes, left, len(done), again, {row["attempts"] for row in done})


def _until(look: Any, what: str, errors: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while not look():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen\n{errors.read_text(errors='replace')[-3000:]}")
        time.sleep(0.005)
