"""What /metrics tells: the fleet's state, asked for at that moment, and what its processes have counted in all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.db import Database
from worker.errors import QueueAway
from worker.limiter import Limiter
from worker.monitor import STATUSES, Monitor
from worker.telemetry import COUNTED, emit

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GAUGES = {
    "accounts_parked": "Accounts of which nothing is claimed now.",
    "queues_paused": "Pauses of queues in force.",
    "breakers_open": "Accounts the breaker keeps from being asked.",
    "limiter_paused": "Principals that must not send now.",
    "limiter_waiting": "Requests that wait for their turn.",
    "limiter_requests": "Requests under way.",
    "runs_under_way": "Runs that are not finished.",
    "schedule_age_seconds": "Seconds since the minute `schedule run` last worked in.",
}


def exposition(db: Database, monitor: Monitor, limiter: Limiter) -> bytes:
    """Everything in Prometheus' text format. Queues of single accounts are one: labels do not grow with accounts."""
    registry = CollectorRegistry()
    registry.register(_Fixed([*_gauges(db, monitor, limiter), *_counted(db.fetch("counters"))]))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _gauges(db: Database, monitor: Monitor, limiter: Limiter) -> Iterator[Metric]:
    snapshot = monitor.snapshot(failures=0)
    tasks = GaugeMetricFamily("moysklad_worker_queue_tasks", "Tasks by queue and status.", labels=["queue", "status"])
    oldest = GaugeMetricFamily(
        "moysklad_worker_queue_oldest_seconds", "Seconds the oldest due pending task has waited.", labels=["queue"]
    )
    depth: dict[str, dict[str, int]] = {}
    ages: dict[str, float] = {}
    for row in snapshot["queues"]:
        name = _UUID.sub("*", row["queue"])
        counts = depth.setdefault(name, dict.fromkeys(STATUSES, 0))
        for status in STATUSES:
            counts[status] += row[status]
        ages[name] = max(ages.get(name, 0.0), row["oldest_seconds"] or 0.0)
    for name, counts in depth.items():
        for status, number in counts.items():
            tasks.add_metric([name, status], number)
        oldest.add_metric([name], ages[name])
    yield from (tasks, oldest)

    workers = GaugeMetricFamily("moysklad_worker_workers", "Live workers.", labels=["host", "release"])
    memory = GaugeMetricFamily("moysklad_worker_memory_bytes", "Memory of a host's live workers.", labels=["host"])
    alive: dict[tuple[str, str], int] = {}
    bytes_of: dict[str, int] = {}
    for worker in snapshot["workers"]:
        key = (worker["host"], worker["release"])
        alive[key] = alive.get(key, 0) + 1
        bytes_of[worker["host"]] = bytes_of.get(worker["host"], 0) + worker["rss_mb"] * 1_000_000
    for (host, release), number in alive.items():
        workers.add_metric([host, release], number)
    for host, number in bytes_of.items():
        memory.add_metric([host], number)
    yield from (workers, memory)

    unheard = GaugeMetricFamily(
        "moysklad_worker_queues_unheard", "Queues with pending tasks that no live worker listens to."
    )
    unheard.add_metric([], len(snapshot["unheard"]))
    yield unheard
    (row,) = db.fetch("gauges")
    numbers = row | _limits(db, limiter)
    for name, text in _GAUGES.items():
        if numbers.get(name) is not None:
            gauge = GaugeMetricFamily(f"moysklad_worker_{name}", text)
            gauge.add_metric([], numbers[name])
            yield gauge


def _limits(db: Database, limiter: Limiter) -> dict[str, int]:
    """The limiter's gauges; none while its Redis is away: everything else is told all the same."""
    try:
        standing = limiter.standing([row["id"] for row in db.fetch("accounts")])
    except QueueAway as error:
        emit("redis.wait", level="warning", reason=str(error))
        return {}
    return {f"limiter_{name}": number for name, number in asdict(standing).items()}


def _counted(rows: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    """The fleet's counters and histograms; those that this release does not know are left out."""
    kept = list(rows)
    for counter in COUNTED:
        metric = Metric(counter.name, counter.text, counter.type)
        own = re.compile(rf"{counter.name}(_total|_bucket|_sum|_count)")
        samples = [row for row in kept if own.fullmatch(row["name"])]
        for row in sorted(samples, key=_order):
            metric.add_sample(row["name"], row["labels"], row["value"])
        yield metric


def _order(row: dict[str, Any]) -> tuple[str, str, float]:
    """Buckets of one series together, in the order of their bounds."""
    labels = {name: value for name, value in row["labels"].items() if name != "le"}
    return json.dumps(labels, sort_keys=True), row["name"], float(row["labels"].get("le", 0))
