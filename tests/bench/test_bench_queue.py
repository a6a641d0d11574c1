"""The bench of the queue: its arithmetic, and a small whole run with the line that others read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.queue.fairness import jain
from bench.queue.measures import Drain
from bench.queue.report import SHARED, Book, result

ROOT = Path(__file__).parents[2]


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is half as fast in one round changes no ratio."""
    book = Book()
    for number, speed in enumerate((1.0, 0.5, 2.0)):
        book.add(number, {"ours.drain1": 60 * speed, "bare.drain1": 100 * speed})

    found = result(book, [])

    assert found["ratio"] == {"drain1": 0.6}
    assert found["ours"]["drain1"] == 60
    assert found["bare"]["drain1"] == 100


def test_a_round_with_one_side_only_has_no_ratio() -> None:
    """Figures of different rounds are never compared."""
    book = Book()
    book.add(0, {"ours.drain1": 60})
    book.add(1, {"bare.drain1": 100})

    assert result(book, [])["ratio"] == {}


def test_percentiles_count_all_rounds_together() -> None:
    """p50 and p99 of everything that was measured, as a ratio to the limit's."""
    book = Book()
    book.add_delays("ours", [2.0] * 98)
    book.add_delays("ours", [9.0] * 2)
    book.add_delays("limit", [1.0] * 100)

    found = result(book, [])

    assert found["latency_ms"] == {"p50": 2.0, "p99": 9.0, "n": 100}
    assert found["ratio"] == {"latency_p50": 2.0, "latency_p99": 9.0}


@pytest.mark.parametrize(("shares", "index"), [([5, 5, 5, 5], 1.0), ([8, 0, 0, 0], 0.25), ([1, 3], 0.8)])
def test_jain(shares: list[float], index: float) -> None:
    """1 when all are served alike, 1/n when one has everything."""
    assert jain(shares) == pytest.approx(index)


def test_fifths() -> None:
    """A drain that slows down shows it: the first fifth of its tasks takes one second, the last one ten."""
    curve = [(0.0, 0), (1.0, 20), (2.0, 40), (4.0, 60), (8.0, 80), (18.0, 100)]
    drain = Drain(100 / 18, 100, curve, 0, 0, 0, 0)

    assert drain.fifth(0) == pytest.approx(20)
    assert drain.fifth(4) == pytest.approx(2)


@pytest.mark.timeout(180)
def test_a_small_run() -> None:
    """All of the issue's keys are in the last line, and what was measured is more than nothing."""
    command = [sys.executable, "-m", "bench.queue", "--rounds", "1", "--tasks", "2000", "--million", "3000",
               "--only", "drain1,enqueue_bulk,completed", "--json"]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert ran.returncode == 0, ran.stderr

    found = json.loads(ran.stdout.splitlines()[-1])

    assert {"ours", "bare", "peers", "ratio", "latency_ms", "idle"} <= found.keys()
    for system in ("ours", "bare"):
        assert found[system].keys() == set(SHARED)
        assert found[system]["drain1"] > 0
        assert found[system]["enqueue_bulk"] > 0
        assert found[system]["drain2"] is None
    assert found["ratio"].keys() >= {"drain1", "enqueue_bulk", "completed_1m"}
    assert found["idle"].keys() == {"cpu_percent", "statements_s", "rss_mb"}
