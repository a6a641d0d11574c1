"""What only the driver `redis` has to care for: two servers that must not disagree, restarts, a cluster's losses.

Deaths are at points between the steps of a transition: what the dead one did, it did; the rest never came.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from queue import Empty
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests import redis_servers
from tests.redis_servers import RedisServer
from tests.worker.test_queue import eventually
from worker.db import Connection, Database, fetch_one
from worker.errors import QueueAway
from worker.pauses import Pauses
from worker.queues import Ended, scripts
from worker.queues.redis import RedisQueue
from worker.settings import Settings
from worker.task import Batch, Complete, NewTask, Outcome, Retry, Snooze, SyncGoods, Task
from worker.wake import Wake

A, MAIN = UUID(int=1), UUID(int=99)


class Death(BaseException):
    """A kill -9, as far as the other side can tell."""


class Mortal(RedisQueue):
    """Dies before the step named in `dies`; says QueueAway instead where that is in `away`."""

    dies = ""
    away = ""

    def _point(self, name: str) -> None:
        if self.dies == name:
            raise Death
        if self.away == name:
            self.away = ""
            raise QueueAway("Redis is away: test")

    def _apply(self, worker: int, claims: Sequence[Any], now: datetime | None) -> Counter[str]:
        self._point("apply")
        return super()._apply(worker, claims, now)

    def _relay(self) -> None:
        self._point("relay")
        super()._relay()


def good(entity: str, account: UUID = A, **fields: Any) -> NewTask:
    """A task."""
    return NewTask(account, "product", "sync", SyncGoods(MAIN), entity_id=entity, **fields)


class Stand:
    """PostgreSQL, a Redis, and queues on both."""

    def __init__(self, db: Database, url: str) -> None:
        self.db, self.url = db, url
        self.queue = self.another()
        with db.connection() as conn:
            conn.execute("create table effects (worker bigint, task bigint)")

    def another(self) -> Mortal:
        """A queue as another process has it."""
        return Mortal(self.db, self.url, lambda *_: "default")

    def live(self) -> int:
        """A worker that is registered and holds no session: dead as soon as somebody looks."""
        with self.db.connection() as conn:
            row = fetch_one(
                conn, "register_worker",
                host="here", pid=1, name="", queues=["*"], listens=["%"], release="test", lease=-1,
            )  # fmt: skip
        assert row
        return int(row["id"])

    def claim(self, worker: int, queue: RedisQueue | None = None) -> list[Task]:
        """What it gets."""
        batch = (queue or self.queue).claim(["*"], worker, limit=100)
        return list(batch.tasks) if isinstance(batch, Batch) else []

    def settle(self, tasks: list[Task], outcome: Outcome, queue: RedisQueue | None = None) -> Counter[str]:
        """End them with an effect that names who had it."""

        def effect(conn: Connection, owned: set[int]) -> None:
            for id in owned:
                conn.execute("insert into effects values (%s, %s)", [tasks[0].worker, id])

        return (queue or self.queue).settle([Ended(task, outcome) for task in tasks], effect)

    def pauses(self) -> Pauses:
        """As the commands of another process have them."""
        return Pauses(self.db, self.another().pauses_changed)

    def enqueue_one(self, entity: str, account: UUID = A, **fields: Any) -> int:
        """Its number among the account's tasks."""
        self.queue.enqueue([good(entity, account, **fields)])
        one: Any = self.queue._scripts._one
        return int(one.get(f"queue:{{{account}}}:n"))

    def effects(self) -> list[int]:
        """Which tasks have left their effect, once for each time."""
        with self.db.connection() as conn:
            return sorted(row["task"] for row in conn.execute("select task from effects").fetchall())

    def standing(self) -> dict[str, int]:
        """Tasks by status."""
        counts: Counter[str] = Counter()
        for row in self.queue.stats():
            counts[row["status"]] += row["tasks"]
        return dict(counts)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    """This test's database."""
    db = Database(settings.DATABASE_URL.get_secret_value(), size=8)
    yield db
    db.close()


@pytest.fixture
def stand(db: Database, redis_server: RedisServer) -> Iterator[Stand]:
    """On an empty Redis."""
    redis_server.ask("FLUSHALL")
    stand = Stand(db, redis_server.url)
    yield stand
    stand.queue.close()


def test_what_was_committed_before_a_death_is_how_the_task_ended(stand: Stand) -> None:
    """Dead between PostgreSQL's commit and Redis: a rescue ends the tasks as committed; nobody does them again."""
    worker = stand.live()
    stand.queue.enqueue([good("x"), good("y")])
    tasks = stand.claim(worker)
    stand.queue.dies = "apply"
    with pytest.raises(Death):
        stand.settle(tasks, Complete("updated"))
    assert stand.standing() == {"processing": 2}

    assert stand.another().rescue() == 0

    assert stand.standing() == {"completed": 2}
    assert stand.effects() == sorted(task.id for task in tasks)
    assert stand.db.fetch("settlements", worker=worker) == []


def test_a_retry_committed_before_a_death_is_a_retry(stand: Stand) -> None:
    """Whatever the outcome: its delay, its error and the attempt are as committed, no death is counted."""
    worker = stand.live()
    stand.queue.enqueue([good("x")])
    tasks = stand.claim(worker)
    stand.queue.dies = "apply"
    with pytest.raises(Death):
        stand.settle(tasks, Retry("broken", 500, "Retryable"))

    stand.another().rescue()

    (row,) = stand.queue.peek("pending")
    assert (row["attempts"], row["error"], row["error_class"], row["rescues"]) == (1, "broken", "Retryable", 0)


def test_a_death_before_the_commit_leaves_no_effect(stand: Stand) -> None:
    """The task goes to another worker, and has one effect in the end."""
    worker = stand.live()
    stand.queue.enqueue([good("x")])
    tasks = stand.claim(worker)

    def effect(conn: Connection, owned: set[int]) -> None:
        conn.execute("insert into effects values (1, 1)")
        raise Death

    with pytest.raises(Death):
        stand.queue.settle([Ended(tasks[0], Complete("updated"))], effect)
    other = stand.another()
    assert other.rescue() == 1
    again = stand.claim(7, other)

    assert stand.settle(again, Complete("updated"), other)["complete"] == 1

    assert stand.effects() == [tasks[0].id]
    assert stand.standing() == {"completed": 1}


def test_a_worker_given_up_for_dead_has_no_effect(stand: Stand) -> None:
    """It lives on and ends what was rescued from it: nothing is written, in neither server."""
    worker = stand.live()
    stand.queue.enqueue([good("x")])
    tasks = stand.claim(worker)
    assert stand.another().rescue() == 1

    assert stand.settle(tasks, Complete("updated")) == {"lost": 1}

    assert stand.effects() == []
    assert stand.standing() == {"pending": 1}


def test_an_end_that_redis_did_not_hear_of_is_told_again(stand: Stand) -> None:
    """Redis is away between commit and end; the worker repeats the whole, and its effect is not."""
    stand.queue.enqueue([good("x")])
    tasks = stand.claim(7)
    stand.queue.away = "apply"
    with pytest.raises(QueueAway):
        stand.settle(tasks, Complete("updated"))

    assert stand.settle(tasks, Complete("updated")) == {"complete": 1, "lost": 0}

    assert stand.effects() == [tasks[0].id]
    assert stand.standing() == {"completed": 1}


def test_an_end_that_was_not_forgotten_is_not_taken_for_the_next(stand: Stand) -> None:
    """A snoozed task comes again as the same attempt of the same worker, a transaction having failed meanwhile."""
    stand.queue.enqueue([good("x"), good("y", UUID(int=2))])
    first, second = stand.claim(7), stand.claim(7)
    stand.settle(first, Snooze(0, "not yet"))

    def fail(conn: Connection, owned: set[int]) -> None:
        raise QueueAway("PostgreSQL was away: test")

    with pytest.raises(QueueAway):
        stand.queue.settle([Ended(second[0], Complete("updated"))], fail)
    (again,) = stand.claim(7)
    assert (again.id, again.attempts) == (first[0].id, first[0].attempts)

    assert stand.settle([again], Complete("updated"))["complete"] == 1

    assert stand.effects() == [again.id, again.id]


def test_an_attempt_that_comes_again_and_is_told_twice_has_one_effect(stand: Stand) -> None:
    """Its end is committed, Redis is away, and the whole is repeated: the earlier end of that number is long gone."""
    stand.queue.enqueue([good("x")])
    stand.settle(stand.claim(7), Snooze(0, "not yet"))
    again = stand.claim(7)
    stand.queue.away = "apply"
    with pytest.raises(QueueAway):
        stand.settle(again, Complete("updated"))

    assert stand.settle(again, Complete("updated"))["complete"] == 1

    assert stand.effects() == [again[0].id, again[0].id]  # of the snooze and of the end


def test_a_rescue_leaves_an_end_that_is_written_meanwhile(stand: Stand) -> None:
    """Given up and alive, a worker claims on, commits an end and dies: the next rescue ends the task as committed."""
    worker = stand.live()
    stand.queue.enqueue([good("x"), good("y", UUID(int=2))])
    stand.claim(worker)

    class Slow(Mortal):
        def _relay(self) -> None:
            """The last step before the rescue goes on with the ends it has found."""
            super()._relay()
            if not stand.effects() and (tasks := stand.claim(worker)):
                stand.queue.dies = "apply"
                with pytest.raises(Death):
                    stand.settle(tasks, Complete("updated"))

    rescuer = Slow(stand.db, stand.url, lambda *_: "default")
    rescuer._shards.everybody()
    rescuer._rescue(worker, "", None)
    stand.another()._rescue(worker, "", None)

    assert stand.standing() == {"completed": 1, "pending": 1}
    assert len(stand.effects()) == 1


def test_a_producer_that_dies_after_its_commit_has_enqueued(stand: Stand) -> None:
    """What was committed arrives with the next worker's tidy; until then its run is not over."""
    run = uuid4()
    stand.queue.dies = "relay"

    def produce() -> None:
        with stand.db.transaction() as conn:
            stand.queue.enqueue([good("x", run_id=run)], within=conn)

    with pytest.raises(Death):
        produce()
    other = stand.another()
    assert other.unfinished([run]) == {run}
    assert other.progress(run)["pending"] == 1

    other.rescue()

    assert other.unfinished([run]) == {run}
    assert [task.entity_id for task in stand.claim(7, other)] == ["x"]


def test_a_pause_that_comes_while_a_claim_is_under_way(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the claim reaches Redis, it holds for it, of a task that was announced too: nothing is taken."""
    pauses = stand.pauses()
    scripts = stand.queue._scripts
    run = scripts.run_while
    asked: list[str] = []

    def run_late(word: str, name: str, *values: Any) -> Any:
        asked.append(name)
        pauses.pause("def*", datetime.now(UTC) + timedelta(days=1), "stocktaking")
        return run(word, name, *values)

    stand.queue.enqueue([good("x")])
    stand.claim(7)
    stand.queue._seats.clear()
    with monkeypatch.context() as patched:
        patched.setattr(scripts, "run_while", run_late)
        stand.queue.announce(7, f"default\t-1\t{A}\t{stand.enqueue_one('y')}")
        assert stand.claim(7) == []
        assert asked == ["claim_told"]
    assert stand.standing() == {"pending": 1, "processing": 1}
    assert stand.claim(7) == []

    pauses.resume("def*")

    assert [(task.entity_id, task.attempts) for task in stand.claim(7)] == [("y", 1)]


def test_a_pause_of_which_redis_was_not_told(stand: Stand) -> None:
    """Its client died in between, or is of an older release: workers heed it with their next look."""
    stand.queue.enqueue([good("x")])
    stand.claim(7)
    Pauses(stand.db, lambda: None).pause("default", datetime.now(UTC) + timedelta(days=1), "stocktaking")
    stand.queue.enqueue([good("y")])
    stand.queue._gates_at = float("-inf")  # as after a second
    stand.queue._seats.clear()

    assert stand.claim(7) == []


def test_a_pause_while_redis_is_away(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds all the same, though workers see it a moment later: an operator may pause for that very reason."""

    def gone(*_: Any, **__: Any) -> Any:
        raise QueueAway("Redis is away: test")

    monkeypatch.setattr(stand.queue._scripts, "word", gone)
    stand.pauses().pause("default", datetime.now(UTC) + timedelta(days=1), "Redis is on fire")

    assert [row["reason"] for row in stand.pauses().current()] == ["Redis is on fire"]


@pytest.mark.parametrize("change", ["FLUSHALL", "lost answer"])
def test_pauses_are_read_anew_where_redis_may_have_missed_one(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """After a claim without an answer, and once Redis has forgotten the word."""
    stand.pauses().pause("other", datetime.now(UTC) + timedelta(days=1), "so that there is a word")
    stand.queue.enqueue([good("x")])
    stand.claim(7)
    told = Pauses(stand.db, lambda: None)

    def gone(_: Any) -> Any:
        raise ConnectionError("gone")

    if change == "FLUSHALL":
        one: Any = stand.queue._scripts._one
        one.flushall()
    else:
        with monkeypatch.context() as broken:
            broken.setattr("worker.queues.lines.Line.answer", gone)
            stand.queue.announce(7, f"default\t-1\t{A}\t1")
            with pytest.raises(QueueAway):
                stand.claim(7)
    told.pause("default", datetime.now(UTC) + timedelta(days=1), "stocktaking")
    number = stand.enqueue_one("y")
    stand.queue.announce(7, f"default\t-1\t{A}\t{number}")

    assert stand.claim(7) == []


@pytest.mark.parametrize(
    "case",
    ["as told", "in a run", "gone", "busy twin", "put back", "rerouted", "later", "account bound", "older one"],
)
def test_a_task_that_was_told_is_claimed_as_any(stand: Stand, case: str) -> None:
    """By a script of its own where it is simple, else by the lane's claim: counts and rows end as those of any."""
    account = UUID(int=2)
    run = uuid4() if case == "in a run" else None
    if case == "busy twin":
        stand.queue.enqueue([good("x", account)])
        assert len(stand.claim(8)) == 1
    if case == "older one":
        stand.enqueue_one("w", account)
    at = datetime.now(UTC) + timedelta(hours=1) if case == "later" else None
    number = stand.enqueue_one("x", account, run_id=run, scheduled_at=at)
    if case == "gone":
        assert len(stand.claim(8)) == 1
    if case == "put back":
        stand.queue.retry([(task, Retry("first", 0, "E")) for task in stand.claim(8)])
    if case == "rerouted":
        stand.queue.reroute(lambda *_: "elsewhere")
    if case == "account bound":
        stand.queue._read_gates(None)
        stand.queue._concurrency[account] = 1

    stand.queue._seats.clear()
    stand.queue.announce(7, f"default\t-1\t{account}\t{number}")
    tasks = stand.claim(7)

    taken = {"gone": [], "busy twin": [], "later": []}.get(case, ["x"])
    assert [task.entity_id for task in tasks] == taken
    for task in tasks:
        assert (task.attempts, task.worker, task.run_id) == (2 if case == "put back" else 1, 7, run)
        assert 0 <= task.waited < 60
        assert stand.queue.holders() == {7: 1}
    if run:
        assert stand.queue.progress(run)["processing"] == 1
    assert stand.queue.release(tasks) == len(tasks)
    if tasks:
        assert sorted(task.entity_id for task in stand.claim(9)) == (["w", "x"] if case == "older one" else ["x"])


@pytest.mark.parametrize("run", [None, uuid4()])
def test_both_claims_leave_the_same_behind(stand: Stand, run: UUID | None) -> None:
    """Of two accounts alike, one claimed by its lane and one as told, every index and every row is the same."""
    found = []
    for account, told in ((UUID(int=2), False), (UUID(int=3), True)):
        number = stand.enqueue_one("x", account, run_id=run, priority=3)
        stand.queue._seats.clear()
        if told:
            stand.queue.announce(7, f"default\t-3\t{account}\t{number}")
        (task,) = stand.claim(7)
        row = dict(stand.queue.find(task.id) or {})
        for moment in ("id", "account_id", "created_at", "updated_at", "started_at", "scheduled_at"):
            assert row.pop(moment)
        redis: Any = stand.queue._scripts._one
        keys = sorted(redis.scan_iter(f"queue:{{{account}}}:*"))
        indexes = {
            key.rpartition(b":")[2] if key.count(b":") == 2 else key.split(b":", 2)[2]:
            redis.hgetall(key) if redis.type(key) == b"hash" else redis.dump(key)
            for key in keys if not key.endswith(b":tasks")
        }  # fmt: skip
        found.append((row, indexes, replace(task, id=0, account_id=A, waited=0)))

    assert found[0] == found[1]
    assert found[0][0]["status"] == "processing"
    assert b"busy" in found[0][1]


def test_a_dozing_worker_hears_for_itself(stand: Stand) -> None:
    """Of what it listens to, with the task's number; roused it hears no more, dozing again it does."""
    wake = Wake()
    stand.queue.listen(["def*"], wake)
    with pytest.raises(Empty):
        wake.get(timeout=0)
    for _ in range(2):
        stand.queue.doze(7)
        number = stand.enqueue_one("x")
        assert wake.get(timeout=60) == f"default\t-1\t{A}\t{number}"
        other = RedisQueue(stand.db, stand.url, lambda *_: "elsewhere")
        other.enqueue([good("y")])
        stand.queue.rouse(7)
        stand.enqueue_one("z")
        with pytest.raises(Empty):
            wake.get(timeout=0.05)
        stand.queue._scripts._one.flushdb()  # type: ignore[union-attr]


def test_a_subscription_that_ends_is_made_anew(stand: Stand, redis_server: RedisServer) -> None:
    """The worker is woken, and hears again from its next look on."""
    wake = Wake()
    stand.queue.listen(["*"], wake)
    stand.queue.doze(7)
    redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub")

    stand.queue.announce(7, wake.get(timeout=60))
    stand.enqueue_one("before the look")
    assert [task.entity_id for task in stand.claim(7)] == ["before the look"]
    assert stand.claim(7) == []
    number = stand.enqueue_one("x")

    assert wake.get(timeout=60) == f"default\t-1\t{A}\t{number}"


@pytest.mark.parametrize("away", ["PostgreSQL", "Redis"])
def test_a_server_goes_while_a_claim_is_under_way(stand: Stand, monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    """Whichever it is, no task is lost, none has an attempt more, and every connection is there for the next."""
    stand.queue.enqueue(good(str(n)) for n in range(3))
    scripts, pool = stand.queue._scripts, stand.db._pool

    def gone(*_: Any, **__: Any) -> Any:
        raise QueueAway(f"{away} was away: test")

    with monkeypatch.context() as broken:
        broken.setattr(stand.db, "fetch", gone) if away == "PostgreSQL" else broken.setattr(
            "worker.queues.lines.Line.answer", gone
        )
        with pytest.raises(QueueAway):
            stand.queue.claim(["*"], 7, limit=2)

    assert eventually(
        lambda: [(task.entity_id, task.attempts) for task in stand.claim(7)] == [(str(n), 1) for n in range(3)]
    )
    assert sum(map(len, scripts._warm.values())) == 1
    stand.db._give_back(0)
    assert pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"]


def test_what_redis_got_twice_is_there_once(stand: Stand) -> None:
    """A death between Redis and the outbox's commit: sent again, even what is already done is not done again."""
    stand.queue.dies = "relay"
    with pytest.raises(Death), stand.db.transaction() as conn:
        stand.queue.enqueue([good("x")], within=conn)
    other = stand.another()
    with stand.db.connection() as conn:
        (note,) = conn.execute("select n, account_id, task from queue_outbox").fetchall()
    other._shards.number([note["account_id"]])
    other._scripts.run("enqueue", A, "", f"[{note['task']}]", f'["{note["n"]}"]')
    tasks = stand.claim(7, other)
    stand.settle(tasks, Complete("updated"), other)

    other.rescue()

    assert stand.standing() == {"completed": 1}
    with stand.db.connection() as conn:
        assert conn.execute("select from queue_outbox").fetchall() == []


@pytest.mark.parametrize(("setting", "value", "back"), [("maxmemory", 1, 0), ("min-replicas-to-write", 1, 0)])
def test_a_redis_that_takes_no_writes_is_waited_for(
    stand: Stand, redis_server: RedisServer, setting: str, value: int, back: int
) -> None:
    """Its memory is full, or it may not write: nothing new comes in; an end that is committed is told in the end."""
    stand.queue.enqueue([good("x")])
    tasks = stand.claim(7)
    redis_server.ask("CONFIG", "SET", setting, value)
    try:
        with pytest.raises(QueueAway):
            stand.queue.enqueue([good("y")])
        with suppress(QueueAway):  # an end frees memory: it goes through where only that is short
            stand.settle(tasks, Complete("updated"))
    finally:
        redis_server.ask("CONFIG", "SET", setting, back)

    stand.settle(tasks, Complete("updated"))

    assert stand.effects() == [tasks[0].id]
    assert stand.standing() == {"completed": 1}


def test_a_redis_that_hangs_is_given_up(
    stand: Stand, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps the time limit of a connection that is in use; what had arrived is done once it goes on."""
    monkeypatch.setitem(scripts._OPTIONS, "socket_timeout", 1)
    stand.enqueue_one("x")
    process = redis_server.ask("INFO", "server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(QueueAway):
            stand.queue.enqueue([good("y")])
    finally:
        os.kill(process, signal.SIGCONT)

    stand.queue.enqueue([good("y")])

    assert stand.standing() == {"pending": 2}


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_redis_comes_back_with_everything(db: Database, fsync: str) -> None:
    """Killed and started again on its append-only file: each task as it was, and work goes on."""
    with redis_servers.one("--appendonly", "yes", "--appendfsync", fsync) as server:
        stand = Stand(db, server.url)
        stand.queue.enqueue(good(str(n)) for n in range(50))
        batch = stand.queue.claim(["*"], 7, limit=10)
        assert batch
        stand.settle(list(batch.tasks[:5]), Complete("updated"))
        before = [stand.queue.peek(status) for status in ("pending", "processing", "completed")]

        # With `everysec` a write may wait in the process for an fsync under way.
        redis_servers.eventually(server.ask, "INFO", "persistence", wanted=lambda info: not info["aof_buffer_length"])
        server.kill()
        with pytest.raises(QueueAway):
            stand.queue.claim(["*"], 8)
        server.start()

        assert [stand.queue.peek(status) for status in ("pending", "processing", "completed")] == before
        assert stand.settle(list(batch.tasks[5:]), Complete("updated"))["complete"] == 5
        assert len(stand.claim(8)) == 40
        stand.queue.close()


def test_a_cluster_goes_on_without_a_master(db: Database) -> None:
    """Its replica takes over: what it had heard of is there, and the accounts of the others were never away."""
    with redis_servers.cluster(3, replicas=1) as servers, ExitStack() as closing:
        stand = Stand(db, servers[1].url)
        closing.callback(stand.queue.close)
        accounts = [UUID(int=n) for n in range(1, 31)]
        stand.queue.enqueue(good("x", account) for account in accounts)
        for server in servers[:3]:
            server.ask("WAIT", 1, 5000)

        servers[0].kill()

        taken: set[UUID] = set()

        def work() -> bool:
            try:
                for task in stand.claim(7):
                    taken.add(task.account_id)
                    stand.queue.complete([(task, Complete("done"))])
            except QueueAway:
                time.sleep(0.1)
            return len(taken) == len(accounts)

        assert eventually(work)
        assert taken == set(accounts)


def test_nothing_is_left_open_to_who_has_left_the_cluster(db: Database) -> None:
    """Its slots are another's, who then hears of its tasks; its own count of clients is the witness."""
    with redis_servers.cluster(3) as servers, ExitStack() as closing:
        stand = Stand(db, servers[0].url)
        closing.callback(stand.queue.close)
        *others, leaving = servers
        accounts = [UUID(int=n) for n in range(1, 31)]
        stand.queue.enqueue(good("x", account) for account in accounts)

        def clients() -> int:
            """Besides who asks."""
            return len(leaving.ask("CLIENT", "LIST", "TYPE", "normal").splitlines()) - 1

        assert clients() == 1
        leaving.ask("FLUSHALL")
        slots = 2 * (16384 // 3), 16383
        for server in servers:
            server.ask("CLUSTER", "DELSLOTSRANGE", *slots)
        others[0].ask("CLUSTER", "ADDSLOTSRANGE", *slots)
        others[0].ask("CLUSTER", "BUMPEPOCH")
        for server in servers:
            redis_servers.eventually(
                server.ask, "CLUSTER", "INFO", wanted=lambda info: "cluster_slots_ok:16384" in str(info)
            )

        stand.queue.enqueue(good("y", account) for account in accounts)

        redis_servers.eventually(clients, wanted=lambda number: number == 0)
        assert sum(row["entity_id"] == "y" for row in stand.queue.peek("pending", limit=100)) == len(accounts)
