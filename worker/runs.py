"""Runs: one press of the button, its progress and its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from worker.db import Connection, Database, fetch, fetch_one
from worker.errors import NotFound
from worker.queues import Queue
from worker.telemetry import emit

PRODUCTS = "products"


class Runs:
    """The runs known here; their counts come from their tasks until they are finished."""

    def __init__(self, db: Database, queue: Queue) -> None:
        self._db = db
        self._queue = queue

    def start(
        self, conn: Connection, *, account: UUID, main: UUID, mains: Collection[UUID], requested_by: str
    ) -> tuple[UUID, bool]:
        """A new run of `account`, or the one under way that covers it; and whether it is new."""
        while True:
            covering = fetch_one(conn, "run_under_way", account=account, mains=list(mains), kind=PRODUCTS)
            if covering:
                return covering["id"], False
            id = uuid4()
            if fetch(conn, "start_run", id=id, account=account, main=main, kind=PRODUCTS, requested_by=requested_by,
                     redis=self._queue.in_redis):  # fmt: skip
                emit("run.start", run=id, account=account, by=requested_by)
                return id, True

    def get(self, id: UUID) -> dict[str, Any]:
        """The run with `counts` of its tasks. Raises NotFound."""
        with self._db.connection() as conn:
            row = fetch_one(conn, "run", id=id)
        if row is None:
            raise NotFound(f"there is no run {id}; `runs` lists the newest")
        return row | {"counts": row["counts"] or self._progress(row)}

    def _progress(self, run: Mapping[str, Any]) -> dict[str, int]:
        counts = Counter(self._queue.progress(run["id"]))
        if not self._queue.in_redis:
            counts.update(run["in_redis"] or {})
        return dict(counts)

    def newest(self, account: UUID | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """The newest runs, of an account or of all."""
        return self._db.fetch("runs", account=account, limit=limit)

    def problems(self, id: UUID, limit: int = 50) -> list[Mapping[str, Any]]:
        """Tasks of the run that failed, wait for another try or were skipped, with their reasons."""
        return self._queue.problems(id, limit)

    def finish(self, ids: Collection[UUID]) -> None:
        """End those of the runs that have no open task left."""
        if not ids:
            return
        going_on = self._queue.unfinished(list(ids), self._waiting())
        for id in ids:
            if id in going_on:
                continue
            for run in self._db.fetch("run", id=id):
                counts = Jsonb(self._progress(run))
                for row in self._db.fetch("finish_run", id=id, counts=counts, redis=self._queue.in_redis):
                    emit("run.finish", run=id, account=row["account_id"], seconds=row["seconds"], **row["counts"])

    def _waiting(self) -> list[UUID]:
        return [row["id"] for row in self._db.fetch("waiting_accounts")]

    def finish_all(self) -> None:
        """The same for every unfinished run: what a killed worker could not do."""
        if ids := [row["id"] for row in self._db.fetch("open_runs")]:
            self.finish(ids)

    def reopen(self) -> None:
        """Have runs whose tasks were retried or un-parked be under way once more."""
        over = [row["id"] for row in self._db.fetch("latest_runs")]
        again = self._queue.unfinished(over, self._waiting()) if over else set()
        if not again:
            return
        try:
            rows = self._db.fetch("reopen_runs", ids=list(again))
        except UniqueViolation:  # somebody pressed the button meanwhile: the newer run goes on in its place
            return
        for row in rows:
            emit("run.reopen", run=row["id"])

    def due(self, now: datetime) -> list[tuple[UUID, UUID]]:
        """(main, child) of the links whose planned sync is due."""
        return [(row["main_id"], row["child_id"]) for row in self._db.fetch("due_links", now=now)]
