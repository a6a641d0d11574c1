"""Runs: who joins whose, when one is over, and what it then tells."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from worker.app import App
from worker.db import Connection
from worker.errors import Conflict, NotFound
from worker.links import LinkSettings
from worker.queues import Ended
from worker.task import Complete, Fail, NewTask, Outcome, SyncGoods, Task

MAIN, FIRST, SECOND = UUID(int=1), UUID(int=2), UUID(int=3)
NONE = dict.fromkeys(
    ("pending", "processing", "completed", "failed", "created", "updated", "unchanged", "skipped"), 0
)


@pytest.fixture
def shop(app: App) -> App:
    """A main account with two children."""
    app.accounts.add(MAIN, "Main", "main", "solution", "a")
    for n, child in enumerate((FIRST, SECOND)):
        app.accounts.add(child, f"Child {n}", "child", "solution", "b")
        app.accounts.link(MAIN, child)
    return app


def press(shop: App, account: UUID = FIRST) -> UUID:
    """A press of the button that begins a run."""
    run, new = shop.start_sync(account, requested_by="test")
    assert new
    return run


def claim_all(shop: App) -> list[Task]:
    """Every task that can be claimed."""
    tasks: list[Task] = []
    while batch := shop.queue.claim(["*"], 1, limit=100):
        tasks += batch.tasks
    return tasks


def end(shop: App, tasks: list[Task], outcome: Outcome, then: list[NewTask] | None = None) -> None:
    """End claims, enqueueing what follows in the same transaction."""

    def effect(conn: Connection, _: set[int]) -> None:
        shop.queue.enqueue(then or [], within=conn)

    shop.queue.settle([Ended(task, outcome) for task in tasks], effect)


def good(run: UUID, account: UUID = FIRST) -> NewTask:
    """Some good's task of that run."""
    return NewTask(account, "product", "sync", SyncGoods(MAIN), entity_id=str(uuid4()), run_id=run)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do them in threads that begin together; what they gave."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)

    def run(n: int) -> None:
        barrier.wait()
        try:
            results[n] = works[n]()
        except BaseException as error:  # looked at by the test
            results[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


# Joining


def test_a_press_joins_what_covers_it(shop: App) -> None:
    """The same account's run, and its main's; not its sibling's, and not one that is over."""
    first = press(shop)

    assert shop.start_sync(FIRST, requested_by="again") == (first, False)
    second = press(shop, SECOND)
    whole = press(shop, MAIN)
    assert len({first, second, whole}) == 3
    end(shop, claim_all(shop), Complete("read"))
    shop.runs.finish_all()
    assert press(shop) != first


def test_a_childs_press_joins_its_mains_run(shop: App) -> None:
    """main is under way: its children are covered."""
    whole = press(shop, MAIN)

    assert shop.start_sync(SECOND, requested_by="again") == (whole, False)


def test_presses_at_once_make_one_run(shop: App) -> None:
    """However many come together, one is new, all name it, and there is one task."""
    started = at_once(*[lambda: shop.start_sync(MAIN, requested_by="test")] * 4)

    assert sorted(new for _, new in started) == [False, False, False, True]
    assert len({run for run, _ in started}) == 1
    assert [row["tasks"] for row in shop.queue.stats()] == [1]


def test_what_cannot_begin(shop: App) -> None:
    """An account without a link, or an unknown one, leaves no run behind."""
    shop.accounts.add(UUID(int=4), "Alone", "child", "solution", "c")
    shop.accounts.add(UUID(int=5), "Childless", "main", "solution", "c")

    for account, error in ((UUID(int=4), Conflict), (UUID(int=5), Conflict), (UUID(int=6), NotFound)):
        with pytest.raises(error):
            shop.start_sync(account, requested_by="test")
    assert shop.runs.newest() == []
    with pytest.raises(NotFound):
        shop.runs.get(uuid4())


# Ending


def test_a_run_is_over_with_its_last_task(shop: App) -> None:
    """What follows in the same transaction keeps it going; then its counts are told and kept."""
    run = press(shop)
    end(shop, claim_all(shop), Complete("read"), [good(run) for _ in range(5)])
    shop.runs.finish([run])
    assert shop.runs.get(run)["finished_at"] is None
    created, updated, skipped, failed, last = claim_all(shop)
    end(shop, [created], Complete("created"))
    end(shop, [updated], Complete("updated"))
    end(shop, [skipped], Complete("skipped", "why"))
    end(shop, [failed], Fail("because"))
    shop.runs.finish([run])
    before = shop.runs.get(run)
    end(shop, [last], Complete("unchanged"))
    shop.runs.finish([run])

    assert (before["finished_at"], before["counts"]["processing"]) == (None, 1)
    assert shop.runs.get(run)["finished_at"] is not None
    assert shop.runs.get(run)["counts"] == NONE | {
        "completed": 5, "failed": 1, "created": 1, "updated": 1, "unchanged": 1, "skipped": 1,
    }  # fmt: skip
    assert {(row["status"], row["error"]) for row in shop.runs.problems(run)} == {
        ("failed", "because"), ("completed", "why"),
    }  # fmt: skip
    shop.queue.prune(completed_days=-1, failed_days=-1)
    assert shop.runs.get(run)["counts"]["completed"] == 5


def test_of_two_that_end_the_last_tasks_at_once_the_later_ends_the_run(shop: App) -> None:
    """Whatever the order of the two commits, the run is over after both, once, with both counted."""
    for _ in range(15):
        run = press(shop)
        end(shop, claim_all(shop), Complete("read"), [good(run), good(run)])
        tasks = claim_all(shop)

        def work(task: Task, run: UUID = run) -> None:
            end(shop, [task], Complete("created"))
            shop.runs.finish([run])

        assert at_once(*(lambda task=task: work(task) for task in tasks)) == [None, None]
        row = shop.runs.get(run)
        assert row["finished_at"] is not None
        assert row["counts"] == NONE | {"completed": 3, "created": 2}


def test_finish_is_told_once(shop: App) -> None:
    """Several finishers at once: one run.finish event."""
    run = press(shop)
    end(shop, claim_all(shop), Complete("read"))

    at_once(*[lambda: shop.runs.finish([run])] * 4)
    shop.runs.finish_all()

    log = (shop.settings.LOG_DIR / "worker.log").read_text("utf-8")
    assert log.count(f"run.finish run={run}") == 1


def test_what_a_dead_worker_could_not_end(shop: App) -> None:
    """`tidy` ends runs whose last task ended without anybody telling."""
    run = press(shop)
    end(shop, claim_all(shop), Complete("read"))

    shop.tidy()

    assert shop.runs.get(run)["finished_at"] is not None


def test_a_parked_account_does_not_keep_a_run_open(shop: App) -> None:
    """The others are done: the run is over, tells what is pending, and goes on with the new token."""
    run = press(shop, MAIN)
    end(shop, claim_all(shop), Complete("read"), [good(run), good(run, SECOND)])
    shop.accounts.park(SECOND, "HTTP 401")
    end(shop, claim_all(shop), Complete("created"))
    shop.tidy()
    over = shop.runs.get(run)
    shop.set_token(SECOND, "new")
    reopened = shop.runs.get(run)["finished_at"]
    end(shop, claim_all(shop), Complete("created"))
    shop.tidy()

    assert over["finished_at"] is not None
    assert over["counts"] == NONE | {"completed": 2, "created": 1, "pending": 1}
    assert reopened is None
    assert shop.runs.get(run)["counts"] == NONE | {"completed": 3, "created": 2}


def test_a_pause_keeps_a_run_open(shop: App) -> None:
    """A wait that ends by itself is no reason to call it over."""
    run = press(shop)
    end(shop, claim_all(shop), Complete("read"), [good(run)])
    shop.accounts.pause(FIRST, 60, "too fast")

    shop.tidy()

    assert shop.runs.get(run)["finished_at"] is None


def test_retried_failures_reopen_the_run(shop: App) -> None:
    """Under way once more until they are done; a press meanwhile joins it."""
    run = press(shop)
    end(shop, claim_all(shop), Complete("read"), [good(run)])
    end(shop, claim_all(shop), Fail("because"))
    shop.tidy()

    assert shop.retry_failed() == 1
    assert shop.runs.get(run)["finished_at"] is None
    assert shop.start_sync(FIRST, requested_by="test") == (run, False)
    end(shop, claim_all(shop), Complete("created"))
    shop.tidy()
    assert shop.runs.get(run)["counts"] == NONE | {"completed": 2, "created": 1}


def test_a_run_is_not_reopened_beside_a_newer_one(shop: App) -> None:
    """One run of an account is under way at most."""
    old = press(shop)
    end(shop, claim_all(shop), Complete("read"), [good(old)])
    end(shop, claim_all(shop), Fail("because"))
    shop.tidy()
    new = press(shop)

    shop.retry_failed()

    assert [row["id"] for row in shop.runs.newest() if row["finished_at"] is None] == [new]


# Planned


def test_due(shop: App) -> None:
    """By each link's own rhythm, counted from the last run that covered the child; never beside one."""
    shop.accounts.link(MAIN, FIRST, LinkSettings(every_minutes=10))
    now = datetime.now(UTC)
    assert shop.runs.due(now) == [(MAIN, FIRST)]
    run = press(shop, MAIN)
    assert shop.runs.due(now + timedelta(days=1)) == []
    end(shop, claim_all(shop), Complete("read"))
    shop.runs.finish([run])

    assert shop.runs.due(now + timedelta(minutes=5)) == []
    assert shop.runs.due(now + timedelta(minutes=11)) == [(MAIN, FIRST)]


def test_newest(shop: App) -> None:
    """The newest first, of one account or of all of a main's, no more than asked for."""
    ids = []
    for account in (FIRST, SECOND, FIRST):
        ids.append(press(shop, account))
        end(shop, claim_all(shop), Complete("read"))
        shop.tidy()

    assert [row["id"] for row in shop.runs.newest()] == ids[::-1]
    assert [row["id"] for row in shop.runs.newest(MAIN, limit=2)] == [ids[2], ids[1]]
    assert [row["id"] for row in shop.runs.newest(SECOND)] == [ids[1]]
