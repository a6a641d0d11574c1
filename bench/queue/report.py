"""From samples to what is printed: medians of all rounds, ratios of figures taken in the same round."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

SHARED = ("drain1", "drain2", "enqueue_one", "enqueue_bulk")
RATIOS = {
    # Of processor time a task: what the rates would be if nobody else used the machine.
    "drain1_cpu": ("bare.drain1.cpu_us", "ours.drain1.cpu_us"),
    "drain2_cpu": ("bare.drain2.cpu_us", "ours.drain2.cpu_us"),
    "enqueue_one_16": ("ours.enqueue_one_16", "bare.enqueue_one_16"),
    "enqueue_one_16_no_notify": ("ours.enqueue_one_16", "bare.enqueue_one_16_no_notify"),
    "enqueue_one_no_notify": ("ours.enqueue_one", "bare.enqueue_one_no_notify"),
    "enqueue_bulk_to_own_copy": ("ours.enqueue_bulk", "ours.enqueue_copy"),
    "drain2_to_drain1": ("ours.drain2", "ours.drain1"),
    "pending_1m": ("ours.pending_1m", "ours.drain1"),
    "pending_1m_scattered": ("ours.pending_1m_scattered", "ours.drain1"),
    "completed_1m": ("ours.completed_1m", "ours.drain1"),
    "wildcard": ("ours.wildcard.wildcard", "ours.wildcard.single"),
    "pinned": ("ours.pinned1.last", "ours.pinned1.first"),
    "pinned_2": ("ours.pinned2.last", "ours.pinned2.first"),
    "fairness": ("ours.fairness.rate", "ours.fairness.fifo"),
    "fairness_batch_10": ("ours.fairness_batch_10.rate", "ours.fairness_batch_10.fifo"),
}


class Book:
    """All samples: of each name one a round."""

    def __init__(self) -> None:
        self._rounds: dict[str, dict[int, float]] = defaultdict(dict)
        self._delays: dict[str, list[float]] = defaultdict(list)

    def add(self, number: int, samples: dict[str, float]) -> None:
        """The samples of a round."""
        for name, value in samples.items():
            self._rounds[name][number] = value

    def add_delays(self, name: str, delays: Iterable[float]) -> None:
        """Latencies; those of all rounds count together."""
        self._delays[name] += delays

    def median(self, name: str) -> float | None:
        """Over the rounds."""
        values = self._rounds.get(name)
        return statistics.median(values.values()) if values else None

    def ratio(self, above: str, below: str) -> float | None:
        """Median of the ratios within one round."""
        both = self._rounds.get(above, {}).keys() & self._rounds.get(below, {}).keys()
        found = [self._rounds[above][n] / self._rounds[below][n] for n in both if self._rounds[below][n]]
        return round(statistics.median(found), 3) if found else None

    def names(self) -> list[str]:
        """All that was measured."""
        return list(self._rounds)

    def percentiles(self, name: str) -> dict[str, float] | None:
        """p50 and p99 of the latencies."""
        found = sorted(self._delays.get(name, []))
        if not found:
            return None
        return {"p50": round(_at(found, 0.5), 2), "p99": round(_at(found, 0.99), 2), "n": len(found)}


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def result(book: Book, peers: Sequence[str]) -> dict[str, Any]:
    """The last line of `--json`."""

    def shared(system: str) -> dict[str, Any]:
        return {name: _round(book.median(f"{system}.{name}")) for name in SHARED}

    ratio = {name: book.ratio(f"ours.{name}", f"bare.{name}") for name in SHARED}
    ratio |= {name: book.ratio(*pair) for name, pair in RATIOS.items()}
    mine, limit, behind = (book.percentiles(name) for name in ("ours", "limit", "behind"))
    for name, found in (("latency", mine), ("latency_behind", behind)):
        for point in ("p50", "p99"):
            if found and limit:
                ratio[f"{name}_{point}"] = round(found[point] / limit[point], 3)
    idle = {name: book.median(f"ours.idle.{name}") for name in ("cpu_percent", "statements_s", "rss_mb")}
    return {
        "ours": shared("ours"),
        "bare": shared("bare"),
        "peers": {name: shared(name) for name in peers},
        "ratio": {name: value for name, value in ratio.items() if value is not None},
        "ratio_to_peers": {
            peer: {name: book.ratio(f"ours.{name}", f"{peer}.{name}") for name in SHARED} for peer in peers
        },
        "latency_ms": mine,
        "latency_ms_limit": limit,
        "latency_ms_behind_1m": behind,
        "idle": {name: value if value is None else round(value, 2) for name, value in idle.items()},
        "all": {name: _round(book.median(name)) for name in book.names()},
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value) if abs(value) >= 100 else round(value, 3)
