"""Deaths and restarts of real worker processes: what they held goes on elsewhere, and nothing is left behind.

The times are measured by `python -m bench.queue --only rescue,restarts`; here they only have to be far from the lease
of 30 s, after which a worker that nobody can see any more counts as dead.
"""

from __future__ import annotations

import pytest

from bench.queue import lives

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _in_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says."""
    monkeypatch.delenv("REDIS_URL", raising=False)


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
