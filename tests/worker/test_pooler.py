"""Behind a real PgBouncer in transaction mode, where each statement may meet another session of the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from bench.queue import lives
from bench.queue.pooler import PGBOUNCER, pooled
from worker.app import App
from worker.lease import Lease
from worker.settings import Settings
from worker.task import Complete, NewTask, SyncGoods

MAIN, CHILD = UUID(int=1), UUID(int=2)

pytestmark = pytest.mark.skipif(
    PGBOUNCER is None and not os.environ.get("CI"), reason="pgbouncer is not installed (apt-get install pgbouncer)"
)


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The same database through the pooler."""
    with pooled(database_url) as url:
        yield url


@pytest.fixture
def behind(settings: Settings, pooled_url: str) -> Iterator[App]:
    """Everything, wired to the pooler."""
    with App(Settings.from_env({**_env(settings), "DATABASE_URL": pooled_url})) as app:
        yield app


def _env(settings: Settings) -> dict[str, str]:
    return {
        "DATABASE_URL": settings.DATABASE_URL.get_secret_value(),
        "APP_KEY": settings.APP_KEY.get_secret_value(),
        "LOG_DIR": str(settings.LOG_DIR),
    }


def goods(*entities: str) -> list[NewTask]:
    """One task each."""
    return [NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=entity) for entity in entities]


def lease(app: App) -> Lease:
    """A worker's life on that app's database."""
    counters = {"done": 0, "failed": 0}
    return Lease(app.db, queues=["*"], name="w", release="r", seconds=300, counters=lambda: counters)


def test_every_way_to_enqueue_and_a_claim_go_through(behind: App) -> None:
    """Twenty times each, whichever sessions answer: no statement counts on what another has prepared."""
    with behind.db.connection() as one, behind.db.connection():  # so that others are used, too
        assert one.prepare_threshold is None
        for n in range(20):
            assert behind.queue.enqueue(goods(f"one {n}")) == 1
            assert behind.queue.enqueue(goods(f"few {n} a", f"few {n} b")) == 2
        assert behind.queue.enqueue(goods(*(f"bulk {n}" for n in range(200)))) == 200
        ended = 0
        while batch := behind.queue.claim(["*"], 7, limit=20):
            ended += behind.queue.complete([(task, Complete("done")) for task in batch.tasks])

    assert ended == 260


def test_a_worker_lives_by_its_lease_alone(behind: App) -> None:
    """It holds no session lock, and is not buried for that; silent for longer than the short lease it is, and its
    tasks go back with no attempt counted, within 11 seconds: the next worker to poll has them within 15."""
    behind.queue.enqueue(goods("1", "2"))
    held = lease(behind)
    assert held.start()
    try:
        batch = behind.queue.claim(["*"], held.worker, limit=2)
        assert batch is not None
        assert not held.hears
        assert behind.queue.rescue() == 0
        now = datetime.now(UTC)
        assert behind.queue.rescue(now=now + timedelta(seconds=11 - 1.8)) == 2
    finally:
        held.stop()

    assert [row["attempts"] for row in behind.queue.peek("pending")] == [0, 0]


@pytest.mark.timeout(180)
def test_killed_workers_batches_run_elsewhere(pooled_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of all workers with tasks running: nothing lost, no attempt counted, and all run on others when the
    short lease is over, not the usual one of 30 seconds."""
    monkeypatch.delenv("REDIS_URL", raising=False)

    rescue = lives.rescue(pooled_url, accounts=2)

    assert len(rescue.again) == rescue.tasks == 20
    assert set(rescue.again.values()) == {1}
    assert rescue.seconds < 28  # 15 on a quiet machine


def test_with_an_address_of_its_own_the_lease_is_direct(settings: Settings, pooled_url: str) -> None:
    """DATABASE_LISTEN_URL gives lock and NOTIFY back, while the statements go through the pooler."""
    direct = settings.DATABASE_URL.get_secret_value()
    env = {**_env(settings), "DATABASE_URL": pooled_url, "DATABASE_LISTEN_URL": direct}
    with App(Settings.from_env(env)) as app:
        held = lease(app)
        assert held.start()
        try:
            while held.wake.get(timeout=10) != "connected":
                pass
            app.queue.doze(held.worker)
            app.queue.enqueue(goods("1"))
            heard = held.wake.get(timeout=10)
            assert app.queue.rescue() == 0
        finally:
            held.stop()

    assert held.hears
    assert heard == f"default\t-1\t{CHILD}\t1"  # its lane, and the task, the first of this database
