"""How PostgreSQL answers the queue's statements on a large table: by the intended index, at a bounded cost.

Every statement the driver sends is explained, with the parameters it was sent with, just before it is sent. So on a
table never analyzed, analyzed while it was empty (the worst: the planner takes it for small) and vacuumed; each as a
generic plan, which PostgreSQL goes over to after five executions, and as a custom one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus

from tests.conftest import Server
from worker import db
from worker.db import Database
from worker.queues import DatabaseQueue, Ended, rows
from worker.task import Complete, Fail, NewTask, Release, Retry, Snooze, SyncGoods, Task

MAIN = UUID(int=99)
BATCH = 100
PER_TASK, BASE = 33, 300
"""Blocks a statement may touch: so many for each of BATCH tasks, and so many for itself. Reading the table takes more
than the sum: the fixture looks."""
FILL = """
insert into sync_queue (queue, account_id, entity_type, entity_id, operation, priority, payload, status, ready,
                        scheduled_at, completed_at, worker, attempts, result)
select 'default', ('00000000-0000-0000-0000-' || lpad(to_hex(n % 50 + 1), 12, '0'))::uuid, 'product',
       gen_random_uuid()::text, 'sync', 1, '{"main": "00000000-0000-0000-0000-000000000063"}', status,
       n % 10 <> 9 or status <> 'pending', now() + case when n % 10 = 9 then interval '1 day' else '-1 minute' end,
       case when status in ('completed', 'failed') then now() - n * interval '1 second' end,
       case when status = 'processing' then 1 end, (status <> 'pending')::integer,
       case when status = 'completed' then 'updated' end
from (select n, case when n % 200 = 0 then 'processing' when n % 20 < 9 then 'pending'
                     when n % 20 < 18 then 'completed' else 'failed' end as status
      from generate_series(1, 200000) n) t
"""
KEY, CLAIM, COALESCE, BUSY, LATER, COMPLETED, FAILED = (
    "sync_queue_pkey", "sync_queue_claim", "sync_queue_coalesce", "sync_queue_busy", "sync_queue_later",
    "sync_queue_completed", "sync_queue_failed",
)  # fmt: skip
INTENDED: dict[str, set[str]] = {
    "enqueue": set(),  # the conflict is looked for by the insert itself
    "enqueue_incoming": set(),
    "discover": {CLAIM, LATER, KEY},
    "claim": {CLAIM, BUSY},
    "claim_told": {KEY, BUSY},
    "owned": {KEY},
    "complete": {KEY},
    "fail": {KEY},
    "retry": {KEY, COALESCE},
    "snooze": {KEY, COALESCE},
    "release": {KEY, COALESCE},
    "rescue": {KEY, COALESCE, BUSY},
    "prune": {COMPLETED, FAILED},
}
"""Statements, and the indexes of sync_queue that each may read."""


@dataclass
class Watch:
    """Explains the statements in INTENDED as they pass by."""

    mode: str
    plans: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def explain(self, conn: psycopg.Connection[Any], name: str, text: str, params: dict[str, Any]) -> None:
        """What it would do, undone."""
        names: list[str] = []

        def number(match: re.Match[str]) -> str:
            if match[1] not in names:
                names.append(match[1])
            return f"${names.index(match[1]) + 1}"

        prepared = re.sub(r"%\((\w+)\)s", number, text).replace("%%", "%")
        values = sql.SQL(", ").join(sql.Literal(params[each]) for each in names)
        call = sql.SQL("explain (analyze, buffers, format json) execute watched ({})" if names else
                       "explain (analyze, buffers, format json) execute watched").format(values)  # fmt: skip
        idle = conn.info.transaction_status == TransactionStatus.IDLE
        with psycopg.ClientCursor(conn, row_factory=psycopg.rows.tuple_row) as cursor:
            cursor.execute("begin" if idle else "savepoint watched")
            cursor.execute(f"set local plan_cache_mode = force_{self.mode}_plan")
            cursor.execute(f"prepare watched as {prepared}")  # type: ignore[arg-type]
            row = cursor.execute(call).fetchone()
            assert row is not None
            self.plans.setdefault(name, []).append(row[0][0]["Plan"])
            cursor.execute("deallocate watched")
            cursor.execute("rollback" if idle else "rollback to watched")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def blocks(plan: dict[str, Any]) -> int:
    """What it touched."""
    return sum(int(plan[f"Shared {what} Blocks"]) for what in ("Hit", "Read"))


@pytest.fixture(scope="module", params=["never analyzed", "analyzed while empty", "vacuumed"])
def large(request: pytest.FixtureRequest, server: Server, template: str) -> Iterator[str]:
    """A database with 200,000 tasks in all statuses."""
    url = server.create(template)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("alter table sync_queue set (autovacuum_enabled = false)")
        if request.param == "analyzed while empty":
            conn.execute("vacuum analyze")
        conn.execute(FILL)
        if request.param == "vacuumed":
            conn.execute("vacuum analyze")
        pages = conn.execute("select pg_relation_size('sync_queue') / 8192").fetchone()
        assert pages is not None
        assert pages[0] > BASE + PER_TASK * BATCH
    yield url
    server.drop(url)


def ended(tasks: tuple[Task, ...], number: int) -> list[Ended]:
    """That many in each of the five ways."""
    ways = (Complete("updated"), Retry("again", 5), Snooze(5, "wait"), Fail("broken"), Release())
    return [Ended(task, ways[n // number]) for n, task in enumerate(tasks)]


@pytest.mark.parametrize("mode", ["custom", "generic"])
def test_no_statement_reads_the_table(large: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a whole nor by an index that was not meant; and what it touches is bounded by the batch."""
    watch = Watch(mode)
    known = {text: name for name, text in db._queries().items()}
    execute = psycopg.Cursor.execute

    def watched(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
        name = known.get(query) if isinstance(query, str) else None
        if name in INTENDED:
            watch.explain(cursor.connection, name, query, params or {})
        return execute(cursor, query, params, **options)

    database = Database(large, size=2)
    queue = DatabaseQueue(database, lambda *_: "default")
    account = UUID(int=7)
    goods = [NewTask(account, "product", "sync", SyncGoods(MAIN), entity_id=f"{mode} {n}") for n in range(BATCH + 1)]
    monkeypatch.setattr(psycopg.Cursor, "execute", watched)
    try:
        queue.enqueue(goods[:BATCH])
        queue.enqueue(goods)  # by COPY, which meets the twins
        for patterns in (["default"], ["*"]):
            batch = queue.claim(patterns, 2, limit=BATCH)
            assert batch is not None
            assert len(batch.tasks) == BATCH
            queue.settle(ended(batch.tasks, BATCH // 5), lambda *_: None)
        with database.connection() as conn:
            (row,) = conn.execute(
                "select max(id) as id from sync_queue where status = 'pending' and ready"
            ).fetchall()
            assert len(db.fetch(conn, "claim_told", task=row["id"], queue="default", worker=2)) == 1
        queue.claim(["*"], 2, limit=BATCH)  # nobody has registered as worker 2, so it is dead
        assert queue.rescue() >= BATCH
        monkeypatch.setattr(rows, "_AT_ONCE", BATCH)
        with database.connection() as conn:
            (row,) = conn.execute(
                "select extract(epoch from now() - min(completed_at))::float8 as oldest from sync_queue"
            ).fetchall()
        kept = (row["oldest"] - 1000) / 86_400
        assert 4 * BATCH < queue.prune(completed_days=kept, failed_days=kept) < 1000
    finally:
        monkeypatch.undo()
        database.close()

    assert set(watch.plans) == set(INTENDED)
    wrong = []
    for name, plans in watch.plans.items():
        for plan in plans:
            scans = [node for node in nodes(plan) if node.get("Relation Name") == "sync_queue"]
            read = {node["Node Type"] for node in scans if node["Node Type"] == "Seq Scan"}
            used = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
            used = {index for index in used if index.startswith("sync_queue")}
            tasks = 1000 + BATCH if name == "rescue" else BATCH  # it takes all there is
            odd = used - INTENDED[name]
            if read or odd or blocks(plan) > BASE + PER_TASK * tasks:
                wrong.append((name, read, odd, blocks(plan)))
    assert wrong == []
