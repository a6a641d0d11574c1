"""Every finding of doctor is brought about by what it is about, and goes with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet

from tests.worker.test_cli import CHILD, MAIN, Call, env, known, shell
from worker.accounts import Accounts
from worker.app import App
from worker.doctor import Doctor, Finding, Limits, exit_code
from worker.queues.routing import route
from worker.settings import Settings
from worker.task import NewTask, SyncGoods

__all__ = ["env", "known", "shell"]


@pytest.fixture
def healthy(known: App) -> App:
    """Everything as it should be: a worker is alive, cron has ticked."""
    worker(known)
    tick(known)
    assert examine(known) == {}
    return known


def worker(app: App, **fields: Any) -> None:
    """A worker that is alive."""
    who = {"host": "h", "pid": 1, "name": "w", "queues": ["*"], "listens": ["%"], "release": "1", "lease": 600}
    app.db.fetch("register_worker", **(who | fields))


def tick(app: App) -> None:
    """Cron has called `schedule run` this minute."""
    app.db.fetch("tick", minute=datetime.now(UTC).replace(second=0, microsecond=0), host="h")


def task(app: App, **fields: Any) -> None:
    """One more task of CHILD that waits."""
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=str(uuid4()), **fields)])


def doctor(app: App, **options: Any) -> Doctor:
    """One who takes any dead row or short transaction for wrong, if told so."""
    clock: Callable[[], datetime] = options.pop("clock", lambda: datetime.now(UTC))
    to = options.pop("to", app.route)
    return Doctor(app.db, app.queue, app.accounts, app.monitor, to, limits=Limits(**options), clock=clock)


def examine(app: App, **options: Any) -> dict[str, Finding]:
    """The findings by what they are; each has a sentence and says what to do."""
    findings = doctor(app, **options).examine()
    assert all(len(finding.message) > 10 and len(finding.advice) > 10 for finding in findings)
    assert [finding.level for finding in findings] == sorted(finding.level for finding in findings)
    return {finding.what: finding for finding in findings}


def sql(app: App, statement: str) -> None:
    """Somebody at psql."""
    with app.db.connection() as conn:
        conn.execute(statement.encode())


def test_a_queue_that_nobody_listens_to(healthy: App) -> None:
    """An error naming the queue, until a worker listens to it."""
    sql(healthy, "update workers set queues = '{high}'")
    assert examine(healthy) == {}
    task(healthy)

    found = examine(healthy)

    assert set(found) == {"unheard"}
    assert "queue default" in found["unheard"].message
    assert exit_code(list(found.values())) == 2
    sql(healthy, "update workers set queues = '{def*}'")
    assert examine(healthy) == {}


def test_no_worker_is_alive(healthy: App) -> None:
    """A warning while nothing waits."""
    sql(healthy, "update workers set lease_until = now()")

    found = examine(healthy)

    assert set(found) == {"workers"}
    assert exit_code(list(found.values())) == 1


def test_a_paused_queue_and_a_parked_account(healthy: App) -> None:
    """Told with the reason; what waits there is no other finding."""
    task(healthy, scheduled_at=datetime.now(UTC) - timedelta(days=1))
    healthy.pauses.pause("def*", datetime.now(UTC) + timedelta(days=1), "stocktaking")
    assert set(examine(healthy)) == {"paused"}
    assert "stocktaking" in examine(healthy)["paused"].message
    healthy.pauses.resume("def*")
    assert set(examine(healthy)) == {"waiting"}

    healthy.accounts.park(CHILD, "HTTP 401")

    assert set(examine(healthy)) == {"parked"}
    assert "HTTP 401" in examine(healthy)["parked"].message


def test_a_task_that_waits_too_long(healthy: App) -> None:
    """From `wait` seconds on; how long, and where."""
    task(healthy, scheduled_at=datetime.now(UTC) - timedelta(seconds=600))
    assert examine(healthy) == {}

    found = examine(healthy, wait=500)

    assert set(found) == {"waiting"}
    assert "in queue default a due task has waited 60" in found["waiting"].message


def test_tasks_in_the_queue_of_another_topology(healthy: App) -> None:
    """Where they are and where they belong, until they are moved."""
    task(healthy)
    to = route("account", healthy.accounts.role_of)

    found = examine(healthy, to=to)

    assert set(found) == {"astray"}
    assert f"queue default that QUEUE_TOPOLOGY sends to account-child-{CHILD}" in found["astray"].message
    healthy.queue.reroute(to)
    assert examine(healthy, to=to) == {}


def test_a_schedule_that_stands_still(healthy: App) -> None:
    """An error from two minutes on, and when it has never run."""
    late = datetime.now(UTC) + timedelta(seconds=190)
    assert "ran last" in examine(healthy, clock=lambda: late)["tick"].message

    sql(healthy, "delete from schedule_ticks")

    assert "never" in examine(healthy)["tick"].message
    assert exit_code(list(examine(healthy).values())) == 2


def test_workers_of_mixed_releases(healthy: App) -> None:
    """Who runs what."""
    worker(healthy, name="w2", release="2")

    found = examine(healthy)

    assert set(found) == {"releases"}
    assert "1: w on h; 2: w2 on h" in found["releases"].message


def test_a_transaction_left_open(healthy: App) -> None:
    """Its session is named, with what ends it; a short one is none."""
    with healthy.db.connect() as other:
        other.execute("begin isolation level repeatable read")
        other.execute("select count(*) from sync_queue")
        pid = other.info.backend_pid
        assert examine(healthy) == {}

        found = examine(healthy, transaction=0)

    assert set(found) == {"transaction"}
    assert f"session {pid} (moysklad-worker idle in transaction)" in found["transaction"].message
    assert f"pg_terminate_backend({pid})" in found["transaction"].advice


def test_dead_rows(healthy: App) -> None:
    """More of them than live ones, beyond the limit, while something keeps VACUUM away."""
    for _ in range(50):
        task(healthy)
    with healthy.db.connect() as other:  # so that none is removed on the way
        other.execute("begin isolation level repeatable read")
        other.execute("select count(*) from sync_queue")
        for _ in range(3):
            sql(healthy, "update sync_queue set entity_id = entity_id || 'x'")
        end = time.monotonic() + 60
        while (found := examine(healthy, dead_rows=10)) == {}:  # the server counts a little later
            assert time.monotonic() < end
            time.sleep(0.2)

    assert set(found) == {"dead-rows"}
    assert "150 dead rows beside 50 live ones" in found["dead-rows"].message
    assert examine(healthy) == {}


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_clock_that_is_wrong(healthy: App, seconds: float) -> None:
    """Either way; by how much."""
    found = examine(healthy, clock=lambda: datetime.now(UTC) + timedelta(seconds=seconds), tick=1000)

    assert set(found) == {"skew"}
    assert any(f"differ by {about} s" in found["skew"].message for about in ("59.9", "60.0"))


def test_another_app_key(healthy: App) -> None:
    """Each account whose token cannot be read with it, without the token."""
    healthy.accounts = Accounts(healthy.db, Fernet.generate_key().decode())

    found = doctor(healthy).examine()

    assert [finding.what for finding in found] == ["token", "token"]
    assert exit_code(found) == 2


def test_the_command(healthy: App, shell: Call) -> None:
    """0 when all is well, 1 with warnings, 2 with errors; as text and as JSON."""
    well = shell("doctor")
    healthy.accounts.park(CHILD, "HTTP 401")
    warned, scripted = shell("doctor"), shell("doctor", "--json")
    sql(healthy, "delete from schedule_ticks")

    assert (well.code, well.out) == (0, "all is well\n")
    assert (warned.code, scripted.code, shell("doctor").code) == (1, 1, 2)
    assert warned.out.startswith("warning parked: account Child")
    assert [(row["level"], row["what"]) for row in scripted.json["findings"]] == [("warning", "parked")]
    assert scripted.json["code"] == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [({"APP_KEY": "short"}, "settings"), ({"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d"}, "database")],
)
def test_settings_and_a_server_that_is_away(
    shell: Call, env: Settings, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], what: str
) -> None:
    """What keeps every other command from working is a finding, without the password."""
    for name, value in change.items():
        monkeypatch.setenv(name, value)

    answer = shell("doctor", "--json")

    assert (answer.code, [row["what"] for row in answer.json["findings"]]) == (2, [what])
    assert "hunter2" not in answer.out


def test_a_schema_that_does_not_fit(healthy: App, shell: Call) -> None:
    """Told before anything is asked that needs it."""
    sql(healthy, "delete from schema_migrations where version = 5")

    answer = shell("doctor", "--json")

    assert (answer.code, [row["what"] for row in answer.json["findings"]]) == (2, ["schema"])
    assert [finding.what for finding in doctor(healthy).examine()] == ["schema"]
