"""Deaths and restarts of real worker processes: what they held goes on elsewhere, and nothing is left behind.

The times are measured by `python -m bench.queue --only rescue,restarts`; here they only have to be far from the lease
of 30 s, after which a worker that nobody can see any more counts as dead.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest

from bench.queue import lives
from tests.chaos.test_torture import DRIVERS
from tests.chaos.torture import Cell, Mark, cell
from tests.redis_servers import RedisServer, eventually
from worker.task import NewTask, Payload

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

TASKS = 60
SLOW = cast(Payload, Mark("slow"))


@pytest.fixture(params=["database", "redis"])
def database_url(request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where workers are known; their tasks live there or in Redis, whatever the environment says."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.ask("FLUSHALL")
        monkeypatch.setenv("REDIS_URL", server.url)
    return database_url


def test_killed_workers_batches_run_elsewhere(database_url: str) -> None:
    """kill -9 of four workers with ten tasks running each: all run on others long before a lease is over, once,
    and the attempt that was cut off does not count."""
    rescue = lives.rescue(database_url)

    assert rescue.tasks == 40
    assert set(rescue.again.values()) == {1}
    assert len(rescue.again) == 40
    assert rescue.seconds < 15  # half a lease; 2 on a quiet machine


def test_restarts_leave_nothing_in_work(database_url: str) -> None:
    """SIGTERM in the middle of short tasks, again and again: exit 0, no row left processing, no attempt counted that
    was not made, and all is done in the end."""
    restarts = lives.restarts(database_url, 24)

    assert restarts.codes == {0}
    assert restarts.left == 0
    assert restarts.attempts == {1}
    assert restarts.interrupted > 0
    assert max(restarts.stops) < 15  # 0.3 on a quiet machine
    assert restarts.completed > 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_worker_that_was_away_too_long_writes_nothing(driver: str, tmp_path: Path) -> None:
    """Its host stands still for longer than its lease, in the middle of a batch: another one does the tasks, their
    attempts are as before, and what the first then says of their end is fenced off."""
    with cell(1, tmp_path, driver) as place:
        place.app.queue.enqueue(
            NewTask(UUID(int=1), "torture", "mark", SLOW, entity_id=str(number)) for number in range(TASKS)
        )
        away = place.start(0)
        eventually(lambda: hold(place, away), wanted=bool)
        place.start(1)
        eventually(place.waiting, wanted=lambda number: number == 0)

        os.kill(away, signal.SIGCONT)

        log = tmp_path / "logs" / "worker.log"
        eventually(log.read_text, wanted=lambda text: " task.lost " in text)
        rows, ledger = place.rows(), place.ledger()
    assert {(row["status"], row["attempts"]) for row in rows} == {("completed", 1)}
    assert Counter(row["id"] for row in ledger) == Counter(row["id"] for row in rows)


def hold(place: Cell, pid: int) -> int:
    """Stop a worker in its tracks, with tasks in its hands and no transaction open; how many, or 0: it goes on."""
    os.kill(pid, signal.SIGSTOP)
    with place.app.db.connection() as conn:
        inside = conn.execute(
            "select from pg_stat_activity"
            " where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()"
        ).fetchall()
    held = 0 if inside else place.app.queue.processing()
    if not held:
        os.kill(pid, signal.SIGCONT)
    return held
