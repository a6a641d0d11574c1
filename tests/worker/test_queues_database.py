"""What only the driver `database` has to care for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest

from worker.app import App
from worker.db import Connection, Database, fetch, patiently
from worker.lease import Lease
from worker.queues import DatabaseQueue, Ended, database
from worker.queues.lanes import AGEING, Lane
from worker.task import Batch, Complete, Fail, NewTask, Priority, SyncGoods

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


def goods(*entities: str) -> list[NewTask]:
    """One task each."""
    return [NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=entity) for entity in entities]


def alone(queue: DatabaseQueue, db: Database, entities: list[str]) -> None:
    """Enqueue them in a transaction of the queue's own."""
    queue.enqueue(goods(*entities))


def within(queue: DatabaseQueue, db: Database, entities: list[str]) -> None:
    """In one of the caller's, which is repeated as a whole, as a settlement's is."""

    def work() -> None:
        with db.transaction() as conn:
            queue.enqueue(goods(*entities[:-1]), within=conn)
            queue.enqueue(goods(entities[-1]), within=conn)

    patiently(work)


def test_a_claim_does_not_wait_for_the_disk_and_an_end_does(app: App) -> None:
    """The setting holds for the claim's own commit, on a connection that then ends the task."""
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id="1")])
    with app.db.connection() as conn:
        with conn.transaction():
            claim = {"queue": "default", "rank": -Priority.BACKGROUND, "account": CHILD, "concurrency": None}
            taken = fetch(conn, "claim", **claim, worker=7, limit=9, mark=0, now=None)
            during = conn.execute("show synchronous_commit").fetchall()
        after = conn.execute("show synchronous_commit").fetchall()

    assert [row["entity_id"] for row in taken] == ["1"]
    assert during == [{"synchronous_commit": "off"}]
    assert after == [{"synchronous_commit": "on"}]


def test_who_stands_still_in_a_settlement_keeps_its_tasks_from_nobody(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its transaction; another may have the rows; the settlement is done anew, with what is left."""
    monkeypatch.setattr(database, "_STILL", "100ms")
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=str(n)) for n in range(2)])
    batch = app.queue.claim(["default"], 7, limit=2)
    assert batch is not None
    seen: list[set[int]] = []

    def effect(conn: Connection, owned: set[int]) -> None:
        seen.append(owned)
        if len(seen) == 1:  # frozen, until another worker has taken a task away
            with app.db.transaction() as other:
                other.execute("set local lock_timeout = '30s'")
                other.execute("update sync_queue set worker = 8 where id = %s", [batch.tasks[0].id])
        conn.execute("select")

    counts = patiently(lambda: app.queue.settle([Ended(task, Complete("done")) for task in batch.tasks], effect))

    assert seen == [{task.id for task in batch.tasks}, {batch.tasks[1].id}]
    assert counts == {"complete": 1, "lost": 1}


@pytest.mark.parametrize("enqueue", [alone, within])
@pytest.mark.parametrize("others", [0, 200], ids=["one statement", "COPY"])
def test_producers_with_the_same_tasks_in_another_order(app: App, enqueue: Callable[..., None], others: int) -> None:
    """PostgreSQL ends one of two that wait for each other: that one begins anew, and every task is there once."""
    queue = DatabaseQueue(app.db, lambda *_: "default")
    entities = ["second", *(str(n) for n in range(others)), "first"]
    errors: list[BaseException] = []

    def victim() -> None:
        try:
            enqueue(queue, app.db, entities)
        except BaseException as error:  # told below
            errors.append(error)

    def waits() -> list[Any]:
        return conn.execute("select from pg_locks where not granted").fetchall()

    with app.db.connect() as conn:
        conn.execute("set deadlock_timeout = '1min'")  # so it is the other that is ended, after the usual second
        with conn.transaction():
            queue.enqueue(goods("first"), within=conn)
            thread = threading.Thread(target=victim)
            thread.start()
            while not waits():
                time.sleep(0.005)
            queue.enqueue(goods("second"), within=conn)
    thread.join()

    assert errors == []
    with app.db.connection() as conn:
        found = conn.execute("select entity_id from sync_queue where status = 'pending'").fetchall()
        while not conn.execute(
            "select from pg_stat_database where datname = current_database() and deadlocks > 0"
        ).fetchall():
            time.sleep(0.05)  # the server counts with delay; without a deadlock this test would prove nothing
    assert sorted(row["entity_id"] for row in found) == sorted(entities)


def test_a_refused_single_task_is_told_by_its_type_and_the_next_goes_in(app: App) -> None:
    """The prepared statement of one task raises what psycopg would, with the server's state, and stays usable."""
    refused = NewTask(CHILD, "product", "sync", SyncGoods(MAIN, problem="\0"), entity_id="1")
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        app.queue.enqueue([refused])

    assert app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id="\t\\")]) == 1
    assert [row["entity_id"] for row in app.queue.peek("pending")] == ["\t\\"]


def test_ids_of_a_bulk_may_hold_what_copy_reads_as_its_own(app: App) -> None:
    """Tabs, backslashes and line ends of an id arrive as they are."""
    ids = ["\t", "\\", "\\N", "a\nb", "\r", "", "\xff\xff", "фляга 🧪" * 50, "x" * 300, *map(str, range(200))]
    tasks = [NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=id) for id in ids]

    assert app.queue.enqueue(tasks) == len(ids)
    assert {row["entity_id"] for row in app.queue.peek("pending", limit=1000)} == set(ids)


@pytest.mark.parametrize("later", [False, True])
def test_a_bulk_keeps_the_order_of_each_account(app: App, later: bool) -> None:
    """Written account by account, with and without a time; what has a time waits for it."""
    accounts = [UUID(int=n) for n in (9, 2, 7)]
    tasks = [
        NewTask(accounts[n % 3], "product", "sync", SyncGoods(MAIN), entity_id=str(n), run_id=UUID(int=n % 2))
        for n in range(9_000)
    ]
    if later:
        tasks[4_000] = replace(tasks[4_000], scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    assert app.queue.enqueue(iter(tasks)) == len(tasks)

    found: dict[UUID, list[tuple[str, UUID | None]]] = {account: [] for account in accounts}
    while batch := app.queue.claim(["*"], 1, limit=1000):
        found[batch.first.account_id] += [(task.entity_id, task.run_id) for task in batch.tasks]
    due = [task for task in tasks if task.scheduled_at is None]
    assert len(due) == 9_000 - later
    for account, those in found.items():
        assert those == [(task.entity_id, task.run_id) for task in due if task.account_id == account]


def test_what_is_enqueued_alone_and_in_bulk_is_claimed_in_that_order(app: App) -> None:
    """The bulk's ids come from blocks (migration 0015), whole ones."""
    given = [
        goods("a"),
        goods(*(f"b{n}" for n in range(101))),
        goods("c", "d"),
        goods(*(f"e{n}" for n in range(160))),
    ]
    for tasks in given:
        assert app.queue.enqueue(tasks) == len(tasks)

    found = []
    while batch := app.queue.claim(["*"], 1, limit=1000):
        found += [task.entity_id for task in batch.tasks]
    assert found == [task.entity_id for tasks in given for task in tasks]


def test_a_bulk_arrives_as_it_is_told(app: App) -> None:
    """Every column, as one by one; whether it is time is seen by the server's clock."""
    soon = datetime.now(UTC).replace(microsecond=123_457) + timedelta(days=400)
    whole = NewTask(CHILD, "product", "sync", SyncGoods(MAIN, True, "ящик"), "1", 10, UUID(int=7), 3, soon)
    past = replace(whole, entity_id="2", run_id=None, max_attempts=None, scheduled_at=soon - timedelta(days=10_000))
    plain = NewTask(CHILD, "product", "sync", SyncGoods(MAIN), "3", -5)
    columns = "queue, entity_type, operation, priority, payload, run_id, max_attempts, scheduled_at, ready, status"

    def rows() -> list[Any]:
        with app.db.connection() as conn:
            return conn.execute(
                f"delete from sync_queue where entity_id <= '3' returning entity_id, {columns}"
            ).fetchall()

    def by_entity(found: list[Any]) -> dict[str, Any]:
        return {row.pop("entity_id"): row for row in found}

    app.queue.enqueue([whole, past, plain])
    few = by_entity(rows())
    app.queue.enqueue([whole, past, plain, *goods(*(f"b{n}" for n in range(200)))])
    bulk = by_entity(rows())

    assert abs(bulk["3"].pop("scheduled_at") - few["3"].pop("scheduled_at")) < timedelta(minutes=5)
    assert bulk == few
    assert [bulk[id]["ready"] for id in "123"] == [False, True, True]


def test_a_single_task_after_a_rolled_back_transaction(app: App) -> None:
    """psycopg drops what a session has prepared with a rollback: the next enqueue on it prepares its own anew."""
    db = Database(app.db.url, size=1)
    queue = DatabaseQueue(db, lambda *_: "default")
    with db._quick:  # another thread is at the connection that is kept for this and sees no transaction
        queue.enqueue(goods("before"))
        for _ in range(2):
            with suppress(ZeroDivisionError), db.transaction() as conn:
                for _ in range(9):
                    conn.execute("select 1")  # from the sixth time on prepared, so that there is something to forget
                raise ZeroDivisionError
            queue.enqueue(goods("after"))

    assert queue.claim(["default"], 1, limit=9) is not None
    db.close()


def test_many_threads_enqueue_single_tasks_beside_transactions(app: App) -> None:
    """The connection kept for them takes none from the pool, and each task goes in, whoever has that connection."""
    db = Database(app.db.url, size=1, connect_timeout=2)
    queue = DatabaseQueue(db, lambda *_: "default")

    def enqueue(thread: int) -> None:
        for n in range(50):
            while not queue.enqueue(goods(f"{thread} {n}")):
                pass

    queue.enqueue(goods("0"))
    with db.transaction() as conn:
        assert conn is not db._kept
        queue.enqueue(goods("1"))
        assert conn is not db._kept
    with db.connection() as conn:
        assert db._kept is None  # who does one after the other has one connection
    threads = [threading.Thread(target=enqueue, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert app.queue.stats()[0]["tasks"] == 202
    db.close()


def test_a_kept_connection_that_broke_is_replaced(app: App) -> None:
    """Who is at it when it breaks is told; the next has another one."""
    db = Database(app.db.url, size=1)
    queue = DatabaseQueue(db, lambda *_: "default")
    queue.enqueue(goods("1"))
    assert db._kept is not None
    with app.db.connection() as conn:
        conn.execute("select pg_terminate_backend(%s, 5000)", [db._kept.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        queue.enqueue(goods("2"))

    assert queue.enqueue(goods("2")) == 1
    db.close()


def test_only_who_sleeps_and_lives_is_told(app: App) -> None:
    """A NOTIFY slows down all producers: there is none while nobody sleeps, nor when the lease of all who do is over.
    A heartbeat of a sleeper, of whatever release, brings it back."""
    with app.db.connect() as ear, app.db.connection() as conn:
        ear.execute("listen sync_queue")
        told: list[str] = []

        def enqueue(entity: str) -> bool:
            app.queue.enqueue(goods(entity))
            before = len(told)
            told.extend(note.payload for note in ear.notifies(timeout=0.3, stop_after=1))
            return len(told) > before

        assert not enqueue("nobody is there")
        rows = conn.execute(
            "insert into workers (host, pid, name, queues, listens, release, lease_until)"
            " values ('h', 1, 'n', '{default}', '{default}', 'r', now() + interval '1 hour') returning id"
        ).fetchall()
        worker = rows[0]["id"]
        assert not enqueue("it is busy")
        app.queue.doze(worker)
        assert enqueue("it sleeps")
        app.queue.rouse(worker)
        assert not enqueue("it is busy again")
        app.queue.doze(worker)
        conn.execute("select setval('asleep_until', extract(epoch from now())::bigint - 1)")
        assert not enqueue("nobody has beaten since long ago")
        conn.execute("update workers set lease_until = now() + interval '30 seconds'")
        assert enqueue("its heart beats")
        conn.execute(
            "insert into workers (host, pid, name, queues, listens, release, lease_until, asleep)"
            " values ('h', 2, 'n', '{other}', '{other}', 'r', now() + interval '1 second', true)"
        )
        conn.execute("update workers set asleep = false where id = %s", [worker])
        assert not enqueue("who sleeps wants others")
        conn.execute("update workers set asleep = true where id = %s", [worker])
        assert enqueue("a shorter lease has not shortened it")


def news_of(db: Database, entity: str, *, queue: str = "default") -> str:
    """What a sleeping worker is told of this task."""
    with db.connection() as conn:
        rows = conn.execute("select id from sync_queue where entity_id = %s order by id", [entity]).fetchall()
    return f"{queue}\t-1\t{CHILD}\t{rows[-1]['id']}"


def test_a_told_task_is_the_one_that_was_enqueued(app: App) -> None:
    """A worker that says it sleeps is told, by NOTIFY, what `announce` takes; the claim then needs no look, nor its
    commit the disk, and it takes that task alone."""
    with app.db.connect() as ear:
        ear.execute("listen sync_queue")
        with app.db.connection() as conn:
            conn.execute(
                "insert into workers (host, pid, name, queues, release, lease_until, asleep)"
                " values ('h', 1, 'n', '{*}', 'r', now() + interval '1 hour', true)"
            )
        app.queue.enqueue(goods("other"))
        app.queue.enqueue(goods("told"))
        notes = [note.payload for note in ear.notifies(timeout=5, stop_after=2)]
    assert notes == [news_of(app.db, "other"), news_of(app.db, "told")]

    queue = DatabaseQueue(app.db, lambda *_: "default")
    queue._look = lambda *_: pytest.fail("it looked")  # type: ignore[assignment,method-assign]
    queue.announce(7, notes[1])
    batch = queue.claim(["*"], 7, limit=9)
    assert batch is not None
    assert ([task.entity_id for task in batch.tasks], batch.announced) == (["told"], True)
    assert (batch.first.attempts, batch.first.worker, batch.first.payload) == (1, 7, f'{{"main": "{MAIN}"}}')
    with app.db.transaction() as conn:
        row = fetch(conn, "claim_told", task=news_of(app.db, "other").split("\t")[3], queue="default", worker=7)
        assert len(row) == 1
        assert conn.execute("show synchronous_commit").fetchall() == [{"synchronous_commit": "off"}]


@pytest.mark.parametrize("closed", ["parked", "paused", "at its ceiling", "beside its twin"])
def test_news_of_a_task_open_nothing_closed(app: App, closed: str) -> None:
    """A worker that was told of the new task takes it without a look; but not from an account that is parked or has a
    ceiling that is reached, nor from a paused queue, nor one whose twin is being processed."""
    queue = DatabaseQueue(app.db, lambda *_: "default")
    app.accounts.add(CHILD, "child", "child", "solution", "token")
    with app.db.connection() as conn:
        if closed == "parked":
            app.accounts.park(CHILD, "for the test")
        elif closed == "paused":
            app.pauses.pause("def*", datetime.now(UTC) + timedelta(hours=1), "for the test")
        elif closed == "beside its twin":
            queue.enqueue(goods("1"))
            assert queue.claim(["*"], 8, limit=1)
        else:
            conn.execute("update accounts set concurrency = 1")
            queue.enqueue(goods("first"))
            assert queue.claim(["*"], 8, limit=1)
    queue.enqueue(goods("1"))
    queue.announce(7, news_of(app.db, "1"))
    assert queue.claim(["*"], 7, limit=9) is None

    with app.db.connection() as conn:
        conn.execute("update accounts set parked_until = null, concurrency = null")
        conn.execute("delete from paused_queues")
        conn.execute("update sync_queue set status = 'completed' where status = 'processing'")
    queue.announce(7, news_of(app.db, "1"))
    queue._look = lambda *_: pytest.fail("it looked")  # type: ignore[assignment,method-assign]
    batch = queue.claim(["*"], 7, limit=9)
    assert batch is not None
    assert [task.entity_id for task in batch.tasks] == ["1"]


@pytest.mark.parametrize("stale", ["taken", "later", "routed elsewhere", "pruned", "of an older release", "held"])
def test_news_that_is_stale_leads_to_a_look(app: App, stale: str) -> None:
    """What it tells of is not there to be taken any more, or not named: then the worker looks for what there is. It
    does not wait for a row that a transaction holds."""
    queue = DatabaseQueue(app.db, lambda *_: "default")
    queue.enqueue(goods("told"))
    news = news_of(app.db, "told")
    with app.db.connect() as other, other.transaction():
        if stale == "taken":
            assert queue.claim(["*"], 8, limit=1)
        elif stale == "later":
            with app.db.connection() as conn:
                conn.execute("update sync_queue set ready = false, scheduled_at = now() + interval '1 hour'")
        elif stale == "routed elsewhere":
            with app.db.connection() as conn:
                conn.execute("update sync_queue set queue = 'elsewhere'")
        elif stale == "pruned":
            with app.db.connection() as conn:
                conn.execute("delete from sync_queue")
        elif stale == "of an older release":
            news = news.rpartition("\t")[0]
        else:
            other.execute("select from sync_queue for update")
        queue.enqueue(goods("there"))
        queue.announce(7, news)
        batch = queue.claim(["default"], 7, limit=1)
        assert batch is not None
        first = "told" if stale == "of an older release" else "there"
        assert (batch.first.entity_id, batch.announced) == (first, False)


def test_a_task_that_is_retried_meanwhile_is_not_pruned(app: App) -> None:
    """Pruning waits for the row of a failed task that a transaction has just made pending again: that task stays, and
    what failed beside it goes."""
    app.queue.enqueue(goods("retried", "old"))
    batch = app.queue.claim(["*"], 7, limit=2)
    assert batch is not None
    app.queue.settle([Ended(task, Fail("refused")) for task in batch.tasks])
    ids = {row["entity_id"]: row["id"] for row in app.queue.peek("failed")}
    gone: list[int] = []
    thread = threading.Thread(target=lambda: gone.append(app.queue.prune(completed_days=0, failed_days=0)))

    with app.db.connect() as watch, app.db.connect() as conn, conn.transaction():
        everything = dict.fromkeys(("account_id", "since", "error_class"))
        assert len(fetch(conn, "retry_failed", ids=[ids["retried"]], **everything)) == 1
        thread.start()
        while not watch.execute("select from pg_locks where not granted").fetchall():
            time.sleep(0.005)
    thread.join()

    assert gone == [1]
    assert [row["entity_id"] for row in app.queue.peek("pending")] == ["retried"]
    assert app.queue.peek("failed") == []


def test_a_low_rank_waits_a_bounded_time(app: App) -> None:
    """While the highest rank never ends, one claim in AGEING serves a lower one, each of those in its turn."""
    queue = DatabaseQueue(app.db, lambda *_: "default")
    for rank in (Priority.USER, Priority.WEBHOOK, Priority.BACKGROUND):
        queue.enqueue(
            NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=f"{rank} {n}", priority=rank)
            for n in range(60)
        )

    served = []
    for _ in range(4 * AGEING):
        batch = queue.claim(["*"], 7, limit=1)
        assert batch is not None
        served.append(batch.first.priority)

    lower = [(n, rank) for n, rank in enumerate(served, 1) if rank != Priority.USER]
    assert [n for n, _ in lower] == [AGEING, 2 * AGEING, 3 * AGEING, 4 * AGEING]
    assert {rank for _, rank in lower} == {Priority.WEBHOOK, Priority.BACKGROUND}


def test_no_more_workers_than_an_account_allows(app: App) -> None:
    """Of eight that claim at once, and again and again, two hold tasks of an account whose ceiling is two; each of
    those may claim more; another account is nobody's to wait for; when one has ended, a third comes in."""
    queue = DatabaseQueue(app.db, lambda *_: "default")
    other = UUID(int=3)
    for id in (CHILD, other):
        app.accounts.add(id, str(id), "child", "solution", "token")
    app.accounts.set_concurrency(CHILD, 2)
    queue.enqueue(goods(*map(str, range(100))))
    holding: dict[int, list[Batch]] = {}
    start = threading.Barrier(8)

    def claim(worker: int) -> None:
        mine = DatabaseQueue(app.db, lambda *_: "default")
        start.wait(30)
        holding[worker] = [batch for _ in range(3) if (batch := mine.claim(["*"], worker, limit=2))]

    threads = [threading.Thread(target=claim, args=[worker]) for worker in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holders = [worker for worker, batches in holding.items() if batches]
    assert len(holders) == 2
    assert all(len(holding[worker]) == 3 for worker in holders)

    assert queue.claim(["*"], 99) is None
    queue.enqueue([NewTask(other, "product", "sync", SyncGoods(MAIN))])
    beside = queue.claim(["*"], 99)
    assert beside is not None
    assert beside.first.account_id == other
    queue.complete([(task, Complete("done")) for batch in holding[holders[0]] for task in batch.tasks])
    third = queue.claim(["*"], 100)
    assert third is not None
    assert third.first.account_id == CHILD


def test_a_paused_queue_is_left_alone_until_its_time(app: App) -> None:
    """Also by a worker that knew its lanes before the pause; other queues go on; when the time is over, it does."""
    queue = DatabaseQueue(app.db, lambda _, account: "one" if account == CHILD else "two")
    queue.enqueue(goods("1", "2", "3"))
    queue.enqueue([NewTask(MAIN, "product", "sync", SyncGoods(MAIN))])
    assert queue.claim(["one", "two"], 7, limit=1)
    until = datetime.now(UTC) + timedelta(hours=1)
    app.pauses.pause("on*", until, "stocktaking")

    batch = queue.claim(["one", "two"], 7, limit=1)
    assert batch is not None
    assert batch.first.queue == "two"
    assert queue.claim(["one", "two"], 7) is None
    later = queue.claim(["one", "two"], 7, limit=9, now=until + timedelta(seconds=1))
    assert later is not None
    assert [task.entity_id for task in later.tasks] == ["2", "3"]


def test_a_death_that_is_told_can_be_rescued_from(app: App) -> None:
    """At once, also while who has told of it looks again: a rescue passes over what is locked."""
    with app.db.connection() as conn:
        row = conn.execute(
            "insert into workers (host, pid, name, queues, release, lease_until)"
            " values ('h', 1, 'dead', '{*}', 'r', now()) returning id"
        ).fetchone()
    assert row is not None
    app.queue.enqueue(goods("1", "2", "3"))
    assert app.queue.claim(["*"], row["id"], limit=3)
    held = Lease(
        app.db, queues=["*"], name="w", release="r", seconds=1, counters=lambda: {"done": 0, "failed": 0},
        count=lambda _: time.sleep(0.3),  # with each heartbeat, which such a lease has with each look
    )  # fmt: skip
    assert held.start()
    try:
        while held.wake.get(timeout=60) != "dead":
            pass
        assert app.queue.rescue() == 3
    finally:
        held.stop()


def test_news_amid_a_statement_of_the_lease_is_heard(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while the lease looks for the dead leaves its connection with nothing to read; it is heard."""
    news = iter(["one", "two", "three"])
    sent: list[str] = []

    def late(conn: Connection, name: str, /, **params: Any) -> list[dict[str, Any]]:
        if name == "dead_workers" and (text := next(news, None)):
            with app.db.connection() as other:
                other.execute("select pg_notify('sync_queue', %s), pg_notify('sync_queue', 'else')", [text])
            conn.execute("select pg_sleep(0.1)")
            sent.append(text)
        return fetch(conn, name, **params)

    monkeypatch.setattr("worker.lease.fetch", late)
    held = Lease(
        app.db, queues=["one", "t*"], name="w", release="r", seconds=30, counters=lambda: {"done": 0, "failed": 0}
    )
    assert held.start()
    try:
        heard = [held.wake.get(timeout=30) for _ in range(4)]
    finally:
        held.stop()
    assert heard == ["connected", "one", "two", "three"]
    assert sent == heard[1:]


@pytest.mark.parametrize(
    "statement",
    [
        "update sync_queue set status = 'cancelled' where id = (select max(id) from sync_queue)",
        "update sync_queue set status = '', updated_at = now()",
    ],
)
def test_a_status_nobody_knows_is_refused(app: App, statement: LiteralString) -> None:
    """By hand one may write anything; what no worker would ever find again is refused, by name."""
    app.accounts.add(CHILD, "child", "child", "solution", "token")
    app.queue.enqueue(goods("1", "2"))
    with app.db.connection() as conn, pytest.raises(psycopg.errors.InvalidTextRepresentation, match="task_status"):
        conn.execute(statement)
    assert [row["status"] for row in app.queue.peek("pending")] == ["pending", "pending"]
