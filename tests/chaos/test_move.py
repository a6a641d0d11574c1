"""`queue move`, to and fro, killed in the middle again and again, while workers of both sides work and die."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from bench.queue.zygote import Zygote
from tests.chaos.test_torture import PATIENCE, at_once
from tests.chaos.torture import Cell, Mark, attempts_of, cell
from tests.redis_servers import program
from worker.app import App
from worker.db import patiently
from worker.settings import Settings
from worker.task import NewTask, Payload

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

TASKS = 2_000
TORMENT = 12.0
SIDES = ("database", "redis")
BEHAVIOURS = ("plain", "plain", "slow", "flaky", "raising", "snoozing", "hopeless", "poison")


def new(number: int) -> NewTask:
    """Asked for once."""
    behaviour: Payload = Mark(BEHAVIOURS[number % len(BEHAVIOURS)])  # type: ignore[assignment]
    return NewTask(UUID(int=number % 6 + 1), "torture", "mark", behaviour, entity_id=str(number))


def move_about(place: Cell, movers: Zygote, over: threading.Event) -> None:
    """One mover after the other, each killed in the middle or left to end, this way and that."""
    rng = random.Random(place.seed + 7)
    while not over.wait(rng.uniform(0, 0.3)):
        source = rng.choice(SIDES)
        pid = movers.start(source, env=place.env, source=source)
        place.counts["moves"] += 1
        over.wait(rng.uniform(0.02, 0.8))
        movers.kill(pid)
        while pid in movers.alive():
            time.sleep(0.01)


def everything(app: App) -> list[dict[str, Any]]:
    """Every task of a side."""

    def peek() -> list[dict[str, Any]]:
        statuses = ("pending", "processing", "completed", "failed")
        return [dict(row) for status in statuses for row in app.queue.peek(status, limit=1_000_000)]

    return patiently(peek)


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] if n > 2 else []) for n in range(1, 11)])
def test_each_task_is_done_once_on_one_side_or_the_other(seed: int) -> None:
    """None is lost or doubled, and none forgets its attempts, whatever died where, servers included."""
    program()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="move-", ignore_cleanup_errors=True)))
        place = stack.enter_context(cell(seed, folder, "redis"))
        movers = stack.enter_context(Zygote("tests.chaos.torture", "mover", folder / "stderr"))
        place.drivers = SIDES
        apps = [stack.enter_context(App(Settings.from_env(place.env | {"QUEUE_CONNECTION": side}))) for side in SIDES]
        for n, app in enumerate(apps):
            app.queue.enqueue(new(number) for number in range(n, TASKS, len(apps)))
        with at_once(place.keep_alive):
            with at_once(
                place.killer, place.terminator, place.restarts, lambda over: move_about(place, movers, over)
            ):
                time.sleep(TORMENT)
            until = time.monotonic() + PATIENCE
            with apps[1].moving("database") as moving:
                left = moving.run("database", PATIENCE)
            while place.waiting() and time.monotonic() < until:
                time.sleep(0.2)
        rows = [everything(app) for app in apps]
        ledger = Counter(row["entity_id"] for row in place.ledger())
        told = (folder / "stderr").read_text(errors="replace")[-4000:]
        ends = Counter(code for _, code in (*place.zygote.ended(), *movers.ended()))

    assert {code for code in ends if code not in (0, -9)} == set(), told
    assert not left
    assert sorted(int(row["entity_id"]) for side in rows for row in side) == list(range(TASKS))
    wrong = []
    for row in (row for side in rows for row in side):
        behaviour = row["payload"].get("behaviour", "plain")
        failed = behaviour in ("hopeless", "poison")
        right = (row["status"], row["attempts"], ledger[row["entity_id"]]) == (
            "failed" if failed else "completed", attempts_of(behaviour), 0 if failed else 1)  # fmt: skip
        if not right:
            wrong.append((behaviour, row))
    assert wrong == []
    assert all(any(row["status"] == "completed" for row in side) for side in rows)
    assert place.counts["moves"] >= 5
    assert place.counts["restarts"] == 4
