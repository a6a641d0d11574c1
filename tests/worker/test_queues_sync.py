"""The driver `sync`: what is enqueued has been done when `enqueue` returns, or its error is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.conftest import EQUAL, Family, Vendor
from worker import sync
from worker.app import App
from worker.errors import ConfigError, Permanent, RateLimited, Retryable
from worker.executor import Context, Settlement
from worker.loop import Options
from worker.queues import Ended
from worker.settings import Settings
from worker.task import Complete, NewTask, Plan, SyncGoods, Task

MAIN, CHILD = UUID(int=1), UUID(int=2)


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    """The wired app with the driver `sync`."""
    with App(replace(settings, QUEUE_CONNECTION="sync")) as app:
        app.accounts.add(MAIN, "Main", "main", "solution", "token")
        app.accounts.add(CHILD, "Child", "child", "solution", "token")
        yield app


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(entity, attempt) of each task a handler was given; `handle` of them ends them well."""
    seen: list[tuple[str, int]] = []
    on(monkeypatch, seen, lambda ctx, tasks: None)
    return seen


def on(
    monkeypatch: pytest.MonkeyPatch, seen: list[tuple[str, int]], do: Callable[[Context, Sequence[Task]], Any]
) -> None:
    """Have goods be handled so, and then end well."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        seen.extend((task.entity_id, task.attempts) for task in tasks)
        do(ctx, tasks)
        yield Settlement([Ended(task, Complete("done")) for task in tasks])

    monkeypatch.setitem(sync.HANDLERS, ("product", "sync"), handler)


def good(entity: str, **fields: Any) -> NewTask:
    """A task for CHILD."""
    return NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=entity, **fields)


def test_tasks_run_at_enqueue(app: App, seen: list[tuple[str, int]]) -> None:
    """In their order, higher ranks first, of twins the last; they are done when it returns."""
    added = app.queue.enqueue([good("x"), good("y"), good("x"), good("z", priority=10)])

    assert added == 3
    assert seen == [("z", 1), ("x", 1), ("y", 1)]


def test_what_a_handler_enqueues_runs_after_its_batch(
    app: App, seen: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not inside it, and before the first enqueue returns."""

    def follow(ctx: Context, tasks: Sequence[Task]) -> None:
        if tasks[0].entity_id == "x":
            ctx.queue.enqueue([good("later"), good("later")])
            assert seen == [("x", 1), ("y", 1)]

    on(monkeypatch, seen, follow)

    app.queue.enqueue([good("x"), good("y")])

    assert seen == [("x", 1), ("y", 1), ("later", 1)]


def test_within_a_transaction_tasks_run_after_its_commit(app: App, seen: list[tuple[str, int]]) -> None:
    """Not before, so that they see what it wrote; never, when it is rolled back."""
    with app.db.transaction() as conn:
        assert app.queue.enqueue([good("x")], within=conn) == 1
        assert seen == []
    assert seen == [("x", 1)]

    def broken() -> None:
        with app.db.transaction() as conn:
            app.queue.enqueue([good("y")], within=conn)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    with app.db.transaction():
        pass

    assert seen == [("x", 1)]


def test_a_retry_follows_at_once_and_the_last_failure_surfaces(
    app: App, seen: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tries, as `work` has by default; the error tells which task and why; then the queue works on."""

    def fail(ctx: Context, tasks: Sequence[Task]) -> None:
        raise Retryable("HTTP 503")

    on(monkeypatch, seen, fail)

    with pytest.raises(Permanent, match=f"1 tasks failed: product/sync x of {CHILD}: gave up after 3 tries"):
        app.queue.enqueue([good("x")])

    assert seen == [("x", 1), ("x", 2), ("x", 3)]
    on(monkeypatch, seen, lambda ctx, tasks: None)
    app.queue.enqueue([good("y")])
    assert seen[-1] == ("y", 1)


def test_every_failure_is_told_or_counted(
    app: App, seen: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five by name, and how many more; what has to wait for the vendor is one as well."""

    def refuse(ctx: Context, tasks: Sequence[Task]) -> None:
        raise Permanent("no such unit") if len(tasks) > 1 else RateLimited("HTTP 429", wait=90)

    on(monkeypatch, seen, refuse)

    with pytest.raises(Permanent, match=r"^7 tasks failed: .* no such unit; and 2 more$"):
        app.queue.enqueue(good(str(n)) for n in range(7))
    with pytest.raises(Permanent, match="not before 90 s"):
        app.queue.enqueue([good("x")])


def test_there_is_no_worker(app: App) -> None:
    """Nothing waits for one, so that one is refused; cron's work and an operator's look find nothing."""
    with pytest.raises(ConfigError, match="QUEUE_CONNECTION=sync"):
        app.worker(Options())

    assert app.queue.claim(["*"], 1) is None
    assert app.queue.rescue() == app.queue.prune(completed_days=0, failed_days=0) == app.queue.processing() == 0
    assert app.monitor.snapshot()["queues"] == []


def test_an_unknown_kind_surfaces(app: App) -> None:
    """A failure like any other."""
    with pytest.raises(Permanent, match="catalogue/plan"):
        app.queue.enqueue([NewTask(CHILD, "catalogue", "plan", Plan())])


def test_the_whole_sync_in_the_caller(settings: Settings, simulator: Vendor) -> None:
    """Pressing the button does everything: main read, references made, goods sent; again, nothing is written."""
    with App(replace(settings, QUEUE_CONNECTION="sync")) as app:
        family = Family(app, simulator, uuid4())
        family.main = family.add("main", "Main")
        child = family.add("child", "Child")
        family.seed(30)

        run, new = app.start_sync(family.main, requested_by="test")

        assert new
        assert family.difference(child) == EQUAL
        assert app.runs.get(run)["finished_at"] is not None
