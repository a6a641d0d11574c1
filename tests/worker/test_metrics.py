"""GET /metrics: the fleet's state when asked, and what its processes have counted, also those that are gone."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import redis_servers
from tests.conftest import Family
from tests.worker.test_api import TOKEN, client_of, env_of
from worker.accounts import FOREVER
from worker.app import App
from worker.counters import Counts
from worker.limiter import Ask
from worker.settings import Settings
from worker.telemetry import BATCH_SECONDS, TASKS, emit

A = UUID(int=1)
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(app: App) -> Series:
    """(name, labels) → value, as Prometheus reads it."""
    answer = client_of(app, token=TOKEN).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    """One of them."""
    return series[f"moysklad_worker_{name}", tuple(sorted(labels.items()))]


def has(series: Series, name: str) -> list[dict[str, Any]]:
    """The labels of all series of a name."""
    return [dict(labels) for key, labels in series if key == f"moysklad_worker_{name}"]


def test_state_and_counters_of_a_sync(family: Family) -> None:
    """What waits, then what was done by a worker that has ended: transitions by verb, durations and waits by kind."""
    app = family.app
    app.start_sync(family.main, requested_by="test")
    before = scrape(app)
    assert value(before, "queue_tasks", queue="default", status="pending") == 1
    assert value(before, "queues_unheard") == 1
    assert value(before, "runs_under_way") == 1

    family.work()

    after = scrape(app)
    assert value(after, "queue_tasks", queue="default", status="completed") == 123
    assert value(after, "runs_under_way") == 0
    done = value(after, "tasks_total", verb="complete", kind="product/sync")
    assert (
        done - before.get(("moysklad_worker_tasks_total", (("kind", "product/sync"), ("verb", "complete"))), 0) == 120
    )
    assert value(after, "batch_seconds_count", kind="product/sync") >= 2
    assert value(after, "queue_wait_seconds_bucket", kind="product/sync", le="+Inf") >= 2


def test_paused_parked_and_broken(family: Family) -> None:
    """What is held back is a number for an alarm."""
    app = family.app
    app.accounts.park(family.children[0], "HTTP 401")
    app.pauses.pause("default", FOREVER, "why")

    series = scrape(app)

    assert (value(series, "accounts_parked"), value(series, "queues_paused")) == (1, 1)
    assert value(series, "breakers_open") == value(series, "limiter_paused") == 0


@pytest.mark.parametrize("store", ["database", "redis"])
def test_the_limiter_wherever_it_is(settings: Settings, store: str) -> None:
    """One request under way, one that waits, and a token that must not send; nothing of it while Redis is away."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_servers.one())
        values = env_of(settings) | {"LIMITER_STORE": store, "REDIS_URL": server.url}
        app = stack.enter_context(App(Settings.from_env(values)))
        app.accounts.add(A, "A", "child", "solution", "token")
        account = app.accounts.get(A)
        names = ("limiter_paused", "limiter_waiting", "limiter_requests")

        def gauges() -> list[float]:
            series = scrape(app)
            return [value(series, name) for name in names if has(series, name)]

        with app.limiter.acquire(account):
            waiting = Ask(1, account.principal, A, units=45)
            assert not app.limiter.store.ask(waiting).granted
            assert gauges() == [0, 1, 1]
            app.limiter.pause(account, 60)
            assert gauges() == [1, 1, 1]
            app.limiter.store.cancel(waiting)
        assert gauges() == [1, 0, 0]

        if store == "redis":
            server.kill()
            series = scrape(app)
            assert value(series, "accounts_parked") == 0
            assert not any(has(series, name) for name in names)


def test_each_process_adds_what_it_counted_once(app: App) -> None:
    """Two processes' counts are a sum; what was added is not added again."""
    first, second = Counts(), Counts()
    with app.db.connection() as conn:
        first.add(conn)
        start = app.db.fetch("counters")
        first.add(conn)
        assert app.db.fetch("counters") == start
        emit("task.complete", tasks=7, kind="product/sync")
        first.add(conn)
        second.add(conn)

    def total(rows: list[dict[str, Any]]) -> float:
        labels = {"verb": "complete", "kind": "product/sync"}
        return sum(
            row["value"] for row in rows if row["name"] == "moysklad_worker_tasks_total" and row["labels"] == labels
        )

    before = total(start)
    assert total(app.db.fetch("counters")) == (before + 7) + (before + 7)


def test_beat_after_beat_counts_of_every_sort_are_added(app: App) -> None:
    """Numbers of tasks, seconds, and how often a bound was kept: the second time they have grown as the first."""
    counts = Counts()
    with app.db.connection() as conn:
        for beat in (1, 2):
            BATCH_SECONDS.add(0.2, "beat/beat")
            TASKS.add(3, "complete", "beat/beat")
            counts.add(conn)

            found = {(row["name"], row["labels"].get("le")): row["value"]
                     for row in app.db.fetch("counters") if row["labels"].get("kind") == "beat/beat"}  # fmt: skip
            assert ("moysklad_worker_batch_seconds_bucket", "0.1") not in found
            assert found["moysklad_worker_batch_seconds_bucket", "0.5"] == beat
            assert found["moysklad_worker_batch_seconds_sum", None] == pytest.approx(0.2 * beat)
            assert found["moysklad_worker_tasks_total", None] == 3 * beat


def test_a_long_count_is_shared(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks while a count that took long is young sees that one; a short count is made anew each time."""
    counts: list[float] = []

    def stats(seconds: float) -> list[dict[str, Any]]:
        time.sleep(seconds)
        counts.append(seconds)
        return []

    monkeypatch.setattr(app.queue, "stats", lambda: stats(0))
    app.monitor.snapshot()
    app.monitor.snapshot()
    monkeypatch.setattr(app.queue, "stats", lambda: stats(0.3))
    app.monitor.snapshot()
    app.monitor.snapshot()

    assert counts == [0, 0, 0.3]


def test_labels_do_not_grow_with_accounts(app: App) -> None:
    """A thousand accounts with a queue of their own are one series per status."""
    with app.db.connection() as conn:
        for n in range(50):
            conn.execute(
                "insert into sync_queue (queue, account_id, entity_type, operation) values (%s, %s, 'a', 'b')",
                [f"account-child-{UUID(int=n)}", UUID(int=n)],
            )

    series = scrape(app)

    assert value(series, "queue_tasks", queue="account-child-*", status="pending") == 50
    assert {labels["queue"] for labels in has(series, "queue_tasks")} == {"account-child-*"}
