"""The whole system under fire: real processes, killed and cut off while they work; children still equal main."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from worker.demo.show import press
from worker.demo.stage import Stage

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

CLEAN = {"missing": 0, "extra": 0, "different": 0, "duplicates": 0, "failed": 0, "responses_429": 0}


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do `work(over)` in a thread until the block ends; its error is the test's."""
    over = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work(over)
        except BaseException as error:  # told below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    assert errors == []


def completed(stage: Stage) -> int:
    """Tasks that are done."""
    with psycopg.connect(stage.postgres.url(), autocommit=True) as conn:
        row = conn.execute("select count(*) from sync_queue where status = 'completed'").fetchone()
    return int(row[0]) if row else 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_workers_killed_every_second(seed: int) -> None:
    """kill -9 of a random worker every second: nothing lost, doubled, wrong or failed, and no 429.

    Batches are small, so that work goes on while workers die. Where the machine is so slow that a worker gets nothing
    done in a second, it is given longer: a task that kills its workers time and again is failed for it, rightly.
    """
    rng = random.Random(seed)
    killed: list[int] = []
    with Stage(
        products=1000,
        children=3,
        latency_ms=20,
        work_options="--sleep 1 --tries 3 --batch 100",
        env={"EFFECT_SECONDS": 3},  # a unit whose creator was killed is not created again before
    ) as stage:

        def kill(over: threading.Event) -> None:
            before = -1
            while not over.wait(1.0):
                pids, done = stage.worker_pids(), completed(stage)
                if pids and done > before:
                    before = done
                    victim = rng.choice(pids)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        killed.append(victim)

        with meanwhile(kill):
            report = press(stage)

    assert {name: report[name] for name in CLEAN} == CLEAN
    assert len(killed) >= 3
    assert report["max_units_3s"] <= 45
    assert report["max_parallel"] <= 5


def test_postgresql_stopped_for_five_seconds() -> None:
    """Workers wait, come back and finish; what was sent and could not be recorded is created once."""
    with Stage(products=1000, children=3, latency_ms=200, work_options="--sleep 1 --tries 3 --batch 200") as stage:

        def outage(over: threading.Event) -> None:
            while stage.control("GET", "ledger")["writes"] < 12:
                if over.wait(0.05):
                    raise AssertionError("the run was over before PostgreSQL could be stopped")
            stage.postgres.stop()
            time.sleep(5)
            stage.postgres.start()

        with meanwhile(outage):
            report = press(stage)

    assert {name: report[name] for name in CLEAN} == CLEAN
    assert report["seconds"] > 5
