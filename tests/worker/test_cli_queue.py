"""The commands of `queue`: what they do to the queue, what they answer and refuse."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.worker.test_cli import CHILD, MAIN, Call, ended, env, known, shell
from worker.app import App
from worker.errors import NotFound
from worker.task import Complete, NewTask, SyncGoods

__all__ = ["env", "known", "shell"]


def wait(app: App, number: int = 1, **fields: Any) -> list[int]:
    """So many tasks of CHILD that wait; their ids."""
    app.queue.enqueue(
        NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=str(uuid4()), **fields) for _ in range(number)
    )
    return sorted(row["id"] for row in app.queue.peek("pending", limit=1000))


def statuses(app: App) -> dict[str, int]:
    """How many tasks stand where."""
    return {name: number for name, number in app.monitor.snapshot()["totals"].items() if number}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["retry"], "say which tasks"),
        (["retry", "some"], "task ids are numbers, not 'some'"),
        (["cancel"], "`queue cancel all`"),
        (["cancel", "some"], "task ids are numbers"),
        (["pause"], "name a queue, or an account"),
        (["pause", "x", "--account", CHILD], "one of both"),
        (["resume"], "name a queue, or an account"),
        (["peek", "lost"], "'lost' is not one of"),
        (["history", "first"], "Invalid value for 'ID'"),
    ],
)
def test_usage(known: App, shell: Call, words: list[object], told: str) -> None:
    """What does not say what is meant ends with code 2, and changes nothing."""
    ended(known, "failed")
    wait(known)

    answer = shell("queue", *words)

    assert answer.code == 2
    assert told in answer.out + answer.err
    assert statuses(known) == {"pending": 1, "failed": 1}


def test_retry_is_one_command_under_two_names(known: App, shell: Call) -> None:
    """`retry` and `queue retry` choose by id, account, time and class of error."""
    first, second = ended(known, "failed"), ended(known, "failed")
    tomorrow = f"{datetime.now() + timedelta(days=1):%Y-%m-%d}"
    yesterday = f"{datetime.now() - timedelta(days=1):%Y-%m-%d %H:%M:%S}"

    assert shell("retry", "--since", tomorrow).out == "0 failed tasks are pending again\n"
    assert shell("retry", "--error-class", "TimedOut").out == "0 failed tasks are pending again\n"
    assert shell("queue", "retry", first, "--since", yesterday).out == "1 failed tasks are pending again\n"
    assert shell("queue", "retry", "all").out == "1 failed tasks are pending again\n"
    assert {row["id"] for row in known.queue.peek("pending")} == {first, second}


def test_cancel(known: App, shell: Call) -> None:
    """By id, queue and all; it says what goes on, and ends runs that waited for nothing else."""
    first, *_ = wait(known, 3)
    run, _ = known.start_sync(CHILD, requested_by="test")

    assert shell("queue", "cancel", first).out.startswith("1 pending tasks are cancelled, 0 are")
    assert shell("queue", "cancel", "--queue", "other-*").out.startswith("0 pending")
    batch = known.queue.claim(["*"], 1)
    assert batch
    answer = shell("queue", "cancel", "all", "--reason", "wrong price list")

    assert answer.out.endswith("1 are being processed and go on\n")
    assert known.queue.settle([]).total() == 0
    assert {row["error"] for row in known.queue.peek("failed")} == {"cancelled by hand", "wrong price list"}
    known.queue.complete([(batch.first, Complete("done"))])
    known.runs.finish_all()
    assert known.runs.get(run)["finished_at"] is not None


def test_pause_and_resume_a_queue(known: App, shell: Call) -> None:
    """Nothing of it is claimed meanwhile; the monitor shows until when and why."""
    wait(known)
    shell("queue", "pause", "def*", "--reason", "stocktaking", "--until", "2999-01-01")

    assert known.queue.claim(["*"], 1) is None
    seen = shell("monitor", "--once").out
    assert all(word in seen for word in ("queue def*", "2999", "stocktaking"))
    (paused,) = shell("queue", "stats", "--json").json["paused"]
    assert (paused["queue"], paused["reason"]) == ("def*", "stocktaking")
    refused = shell("queue", "resume", "default")
    assert (refused.code, "paused are: def*" in refused.err) == (1, True)
    assert shell("queue", "resume", "def*").out == "queue def* goes on\n"
    assert known.queue.claim(["*"], 1)


def test_pause_and_resume_an_account(known: App, shell: Call) -> None:
    """It is parked with the reason, and goes on; an unknown one is refused."""
    wait(known)

    assert shell("queue", "pause", "--account", CHILD, "--reason", "holidays").code == 0

    assert known.queue.claim(["*"], 1) is None
    assert "holidays" in shell("monitor", "--once").out
    assert shell("queue", "resume", "--account", CHILD).code == 0
    assert known.queue.claim(["*"], 1)
    assert shell("queue", "pause", "--account", uuid4()).code == 1


def test_drain_waits_until_nothing_is_processed(known: App, shell: Call) -> None:
    """Exit 1 while something is; asked again it waits on, and then 0. Nothing is claimed until resumed."""
    worker = int(known.db.fetch(
        "register_worker", host="h", pid=1, name="", queues=["*"], listens=["%"], release="r", lease=60
    )[0]["id"])  # fmt: skip
    held = known.db.connect()
    held.execute("select pg_try_advisory_lock(%s, %s)", [0x6D73, worker])
    wait(known, 2)
    batch = known.queue.claim(["*"], worker, limit=1)
    assert batch

    late = shell("queue", "drain", "--wait", "0.5")
    ending = threading.Timer(0.5, lambda: known.queue.complete([(batch.first, Complete("done"))]))
    ending.start()
    done = shell("queue", "drain", "--wait", "60")
    ending.join()

    assert (late.code, done.code) == (1, 0)
    assert "1 tasks are being processed" in late.out
    assert "not drained" in late.out
    assert statuses(known) == {"pending": 1, "completed": 1}
    assert known.queue.claim(["*"], worker) is None
    assert shell("queue", "resume", "*").code == 0
    assert known.queue.claim(["*"], worker)
    held.close()


def test_reroute_after_a_change_of_topology(known: App, shell: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits moves to the queues of QUEUE_TOPOLOGY."""
    wait(known, 2)
    monkeypatch.setenv("QUEUE_TOPOLOGY", "account")

    assert shell("queue", "reroute").out == "2 tasks were moved\n"

    assert {row["queue"] for row in known.queue.peek("pending")} == {f"account-child-{CHILD}"}


def test_peek_stats_and_history(known: App, shell: Call) -> None:
    """What waits, how much, and what happened to one task; an id that is gone is refused with what to do."""
    (id,) = wait(known)
    batch = known.queue.claim(["*"], 1)
    assert batch
    with known.db.connection() as conn:
        conn.execute("delete from workers")
    known.queue.rescue()

    assert [row["id"] for row in shell("queue", "peek", "pending", "--json").json] == [id]
    assert str(id) in shell("queue", "peek").out
    assert "default" in shell("queue", "stats").out
    assert shell("queue", "stats", "--json").json["totals"]["pending"] == 1
    assert shell("queue", "history", id, "--json").json["history"][0]["how"] == "rescue"
    text = shell("queue", "history", id).out
    assert all(word in text for word in ("status: pending", "rescue", "WorkerDied", "died while it ran"))
    gone = shell("queue", "history", 0)
    assert (gone.code, "queue peek failed" in gone.err) == (1, True)


def test_concurrency_of_an_account(known: App, shell: Call) -> None:
    """A ceiling is set and taken away; the list shows it; an unknown account is refused."""
    wait(known, 2)

    assert shell("accounts", "set", CHILD, "--concurrency", 1).code == 0
    assert {row["concurrency"] for row in shell("accounts", "list", "--json").json} == {1, None}
    assert known.queue.claim(["*"], 1, limit=1)
    assert known.queue.claim(["*"], 2, limit=1, now=datetime.now(UTC) + timedelta(seconds=1)) is None
    assert shell("accounts", "set", CHILD, "--concurrency", 0).code == 0
    assert known.queue.claim(["*"], 2, limit=1, now=datetime.now(UTC) + timedelta(seconds=1))
    with pytest.raises(NotFound):
        known.accounts.set_concurrency(uuid4(), 1)


def test_answers_are_one_line_of_json(known: App, shell: Call) -> None:
    """For scripts: times and ids are text."""
    wait(known)

    (row,) = json.loads(shell("queue", "peek", "--json").out)

    assert row["account_id"] == str(CHILD)
    assert time.strptime(row["created_at"][:19], "%Y-%m-%d %H:%M:%S")
