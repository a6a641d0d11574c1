"""What only the driver `database` has to care for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from worker.app import App
from worker.queues import DatabaseQueue
from worker.queues.lanes import Lane
from worker.task import NewTask, SyncGoods

MAIN, CHILD = UUID(int=1), UUID(int=2)


class Deaf(DatabaseQueue):
    """A queue whose answer to the next claim is lost: what the server did, it did."""

    deaf = False

    def _claim(self, lane: Lane, **params: Any) -> list[tuple[Any, ...]]:
        rows = super()._claim(lane, **params)
        if self.deaf:
            self.deaf = False
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return rows


def test_a_claim_whose_answer_was_lost_is_handed_back(app: App) -> None:
    """The worker lives on, so that nobody would rescue it: its own next claim gets the tasks, no attempt counted;
    what another worker holds stays with it."""
    queue = Deaf(app.db, lambda *_: "default")
    queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=str(n)) for n in range(4)])
    other = queue.claim(["default"], 8, limit=1)
    queue.deaf = True
    with pytest.raises(psycopg.OperationalError):
        queue.claim(["default"], 7, limit=2)
    stuck = [row["worker"] for row in app.queue.peek("processing")]

    batch = queue.claim(["default"], 7, limit=9)
    again = queue.claim(["default"], 7, limit=9)

    assert sorted(stuck) == [7, 7, 8]
    assert other is not None
    assert batch is not None
    assert [(task.entity_id, task.attempts) for task in batch.tasks] == [("1", 1), ("2", 1), ("3", 1)]
    assert again is None
    assert {row["worker"] for row in app.queue.peek("processing")} == {7, 8}
