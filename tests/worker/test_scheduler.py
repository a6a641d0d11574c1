"""What cron calls each minute: one host does it, planned syncs begin in time, what is old goes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from worker import scheduler
from worker.app import App
from worker.db import fetch
from worker.errors import Conflict
from worker.links import LinkSettings
from worker.task import NewTask, Priority, SyncGoods

NOON = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def tick(app: App, now: datetime, start_sync: Any = None) -> dict[str, Any] | None:
    """What one call at that moment does."""
    return scheduler.run(app.db, app.queue, app.runs, app.settings, start_sync or app.start_sync, now)


def started(app: App, now: datetime) -> int:
    """How many runs such a call begins."""
    done = tick(app, now)
    assert done is not None
    return len(done["started"])


def family(app: App, *every_minutes: int) -> tuple[UUID, list[UUID]]:
    """A main account and a child for each number of minutes."""
    main, *children = [uuid4() for _ in range(len(every_minutes) + 1)]
    app.accounts.add(main, "Main", "main", "solution", "t")
    for child, minutes in zip(children, every_minutes, strict=True):
        app.accounts.add(child, "Child", "child", "solution", "t")
        app.accounts.link(main, child, LinkSettings(every_minutes=minutes))
    return main, children


def finish(app: App, began: datetime) -> None:
    """All runs under way began then and are over."""
    with app.db.connection() as conn:
        conn.execute("update runs set created_at = %s, finished_at = %s where finished_at is null", [began, began])


def test_the_same_minute_twice(app: App) -> None:
    """The second call of a minute does none of its work, the next minute's does."""
    first = tick(app, NOON + timedelta(seconds=1))
    second = tick(app, NOON + timedelta(seconds=59))
    third = tick(app, NOON + MINUTE)

    assert first == {"minute": "2026-11-24T12:00:00+00:00", "rescued": 0, "pruned": 0, "started": []}
    assert second is None
    assert third is not None
    assert third["minute"] == "2026-11-24T12:01:00+00:00"


def test_planned_syncs_begin_in_time(app: App) -> None:
    """Every 5 minutes is at 0, 5 and 10; on request only is never; a running one is not begun again."""
    main, [often, _, _] = family(app, 5, 0, 60)

    assert started(app, NOON) == 2
    assert started(app, NOON + MINUTE) == 0
    # cron is never on the second, and a run begins a moment after its minute
    finish(app, NOON + timedelta(seconds=2.5))
    assert started(app, NOON + 4 * MINUTE + timedelta(seconds=59)) == 0
    assert started(app, NOON + 5 * MINUTE + timedelta(seconds=0.5)) == 1
    finish(app, NOON + 5 * MINUTE + timedelta(seconds=1.5))
    assert started(app, NOON + 10 * MINUTE + timedelta(seconds=0.1)) == 1

    newest = app.runs.newest()[0]
    assert (newest["account_id"], newest["main_id"], newest["requested_by"]) == (often, main, "schedule")
    tasks = app.queue.peek("pending", limit=10)
    assert {task["priority"] for task in tasks} == {Priority.BACKGROUND}


def test_a_sync_by_hand_counts_too(app: App) -> None:
    """The interval runs from the last sync of the child or of its whole family."""
    main, [child] = family(app, 30)
    app.start_sync(main, requested_by="hand")
    finish(app, NOON)

    assert started(app, NOON + 29 * MINUTE) == 0
    assert started(app, NOON + 30 * MINUTE) == 1
    assert app.runs.newest()[0]["account_id"] == child


def test_one_that_cannot_begin_does_not_stop_the_others(app: App) -> None:
    """It is told with its reason; the others begin."""
    _, children = family(app, 5, 5)
    refused, asked = sorted(children)[0], []

    def start_sync(child: UUID, **options: Any) -> tuple[UUID, bool]:
        asked.append(child)
        if child == refused:
            raise Conflict("not today")
        return app.start_sync(child, **options)

    done = tick(app, NOON, start_sync)

    assert done is not None
    assert len(done["started"]) == 1
    assert sorted(asked) == sorted(children)
    log = (app.settings.LOG_DIR / "worker.log").read_text("utf-8")
    assert f"WARNING schedule.reject child={refused} reason='not today'" in log


def test_old_tasks_go(app: App) -> None:
    """Completed ones after three days, failed ones after ninety, open ones never."""
    account = uuid4()
    ended = [("completed", 2), ("completed", 4), ("failed", 4), ("failed", 89), ("failed", 91), ("pending", 99)]
    for number, (status, days) in enumerate(ended):
        app.queue.enqueue([NewTask(account, "product", "sync", SyncGoods(account), entity_id=str(number))])
        with app.db.connection() as conn:
            moment = NOON - timedelta(days=days)
            conn.execute(
                "update sync_queue set status = %s, completed_at = %s, created_at = %s where entity_id = %s",
                [status, None if status == "pending" else moment, moment, str(number)],
            )

    done = tick(app, NOON)

    assert done is not None
    assert done["pruned"] == 2
    with app.db.connection() as conn:
        left = conn.execute("select status, entity_id from sync_queue order by id").fetchall()
    assert [(row["status"], int(row["entity_id"])) for row in left] == [
        ("completed", 0),
        ("failed", 2),
        ("failed", 3),
        ("pending", 5),
    ]


def test_a_dead_workers_tasks_go_back_on_every_host(app: App) -> None:
    """Rescue is done by every call, also by the second of a minute."""
    tick(app, NOON)
    account = uuid4()
    app.queue.enqueue([NewTask(account, "product", "sync", SyncGoods(account), entity_id="1")])
    with app.db.connection() as conn:
        who = {"host": "h", "pid": 1, "name": "", "queues": ["*"], "listens": ["%"], "release": "r", "lease": -1}
        dead = fetch(conn, "register_worker", **who)[0]["id"]
    assert app.queue.claim(["*"], dead) is not None

    assert tick(app, NOON + timedelta(seconds=1)) is None

    [task] = app.queue.peek("pending")
    assert (task["attempts"], task["error"]) == (0, f"worker {dead} died while it ran, 1 in all")


def test_runs_left_open_are_ended(app: App) -> None:
    """A run whose last task ended while nobody could end the run is ended by the next minute."""
    _, [child] = family(app, 0)
    run, _ = app.start_sync(child, requested_by="hand")
    with app.db.connection() as conn:
        conn.execute("update sync_queue set status = 'completed', completed_at = now(), result = 'planned'")

    tick(app, NOON)

    assert app.runs.get(run)["finished_at"] is not None


def test_old_minutes_are_forgotten(app: App) -> None:
    """The table of minutes does not grow: a day is kept."""
    tick(app, NOON - timedelta(days=1, minutes=1))
    tick(app, NOON - timedelta(hours=23))

    tick(app, NOON)

    with app.db.connection() as conn:
        assert len(conn.execute("select minute from schedule_ticks").fetchall()) == 2


def test_updates_nobody_learned_of_are_forgotten_after_a_day(app: App) -> None:
    """Not a create, which is looked for however old it is."""
    _, [child] = family(app, 60)
    with app.db.connection() as conn:
        for age, hash in (("2 days", "old"), ("1 hour", "young"), ("2 days", None)):
            conn.execute(
                "insert into intents (child_id, entity_type, main_entity_id, sent_at, hash)"
                " values (%s, 'product', %s, now() - %s::interval, %s)",
                [child, uuid4(), age, hash],
            )

    tick(app, NOON)

    with app.db.connection() as conn:
        left = {row["hash"] for row in conn.execute("select hash from intents").fetchall()}
    assert left == {"young", None}
