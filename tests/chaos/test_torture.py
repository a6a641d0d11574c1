"""The queue under torture: eight workers, all that can go wrong at once, and then the books must balance.

What is done, by a seed: kill -9 of workers at random, the server crashed and restarted, a stream of terminated
backends, every connection taken, transactions left idle on locked tasks, one worker's clock an hour off.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.torture import BEHAVIOURS, Cell, attempts_of, cell

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

TASKS = 3000
TORMENT = 12.0
"""Seconds."""
PATIENCE = 120.0
"""Seconds that all must be over in once nobody is tormented any more; on a quiet machine it takes five."""
SEEDS = range(1, 21)


@contextmanager
def at_once(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do these in a thread each until the block ends; an error of one is the test's."""
    over = threading.Event()
    errors: list[BaseException] = []

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(over)
        except BaseException as error:  # told below
            errors.append(error)

    threads = [threading.Thread(target=run, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


def balance(rows: list[dict[str, Any]], ledger: list[dict[str, Any]], behaviour: Callable[[str], str]) -> None:
    """Every task is over, for a reason, with exactly the effect it should have had, under its last claim."""
    assert Counter(row["status"] for row in rows if row["status"] not in ("completed", "failed")) == {}
    effects = Counter(row["id"] for row in ledger)
    assert {id: number for id, number in effects.items() if number > 1} == {}
    claims = {row["id"]: row["attempts"] for row in ledger}
    wrong = []
    for row in rows:
        kind, id = behaviour(row["entity_id"]), row["id"]
        if row["result"] == "coalesced":  # the same was asked for again meanwhile; that row does the work
            right = id not in claims
        elif kind in ("poison", "hopeless"):
            right = row["status"] == "failed" and bool(row["error"]) and id not in claims
        else:
            right = row["status"] == "completed" and claims.get(id) == row["attempts"]
        if right and row["result"] != "coalesced":
            right = row["attempts"] == attempts_of(kind)
        if not right:
            wrong.append(
                {name: row[name] for name in ("id", "status", "result", "attempts", "error")} | {"kind": kind}
            )
    assert wrong == []
    assert set(claims) <= {row["id"] for row in rows}


def torture(seed: int, driver: str) -> Cell:
    """Torment a cell, let it come to rest, and look at its books."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True)))
        place = stack.enter_context(cell(seed, folder, driver))
        with at_once(place.keep_alive):
            with at_once(
                place.killer, place.terminator, place.hog, place.idler, place.restarts,
                lambda over: place.produce(TASKS, over),
            ):  # fmt: skip
                time.sleep(TORMENT)
            until = time.monotonic() + PATIENCE
            while place.waiting() and time.monotonic() < until:
                time.sleep(0.2)
        rows, ledger = place.rows(), place.ledger()
        ends = Counter(code for _, code in place.zygote.ended())
        told = (folder / "stderr").read_text(errors="replace")[-4000:]
    payloads = {row["entity_id"]: row["payload"].get("behaviour", "plain") for row in rows}
    assert {code for code in ends if code not in (0, -9)} == set(), told
    assert set(payloads) == {str(n) for n in range(TASKS)}
    assert set(payloads.values()) == set(BEHAVIOURS)
    balance(rows, ledger, payloads.__getitem__)
    return place


DRIVERS = [
    pytest.param("database", id="database"),
    pytest.param(
        "redis",
        id="redis",
        marks=pytest.mark.skipif(
            shutil.which("redis-server") is None,
            reason="needs the redis driver and a redis-server",
        ),
    ),
]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] if n > 3 else []) for n in SEEDS])
def test_nothing_is_lost_or_done_twice(seed: int, driver: str) -> None:
    """Every task ends once, for a reason; its effect is there once; no attempt is lost, and no process crashes."""
    counts = torture(seed, driver).counts

    assert counts["kills"] >= 5
    assert counts["restarts"] == (2 if driver == "database" else 4)
    assert counts["terminated"] >= 10
    assert counts["exhausted"] >= 1
    assert counts["idle"] >= 1
