"""`queue move`: what waits goes from PostgreSQL to Redis and back, whole, once, whatever dies in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.redis_servers import RedisServer
from tests.worker.test_cli import CHILD, MAIN, Call, env, known, shell
from tests.worker.test_queues_redis import Death, Mortal
from worker.app import App
from worker.db import Connection, Database, fetch_one
from worker.errors import QueueAway
from worker.queues import Ended, Queue
from worker.queues.move import DatabaseSide, Left, Move, RedisSide
from worker.runs import Runs
from worker.settings import Settings
from worker.task import Complete, NewTask, Retry, SyncGoods, Task

__all__ = ["env", "known", "shell"]

A, B = UUID(int=1), UUID(int=2)
SIDES = ("database", "redis")
CHANGES = ("id", "updated_at")
"""All of a task that is not kept."""


def good(entity: str, account: UUID = A, **fields: Any) -> NewTask:
    """A task."""
    return NewTask(account, "product", "sync", SyncGoods(MAIN), entity_id=entity, **fields)


class Dying(DatabaseSide):
    """Dies with the first portion it has in its hands, before or after it was committed."""

    dies = ""

    def arrive(self, conn: Connection, rows: Any) -> None:
        """Inside the transaction."""
        super().arrive(conn, rows)
        if self.dies == "arrive":
            raise Death

    def depart(self) -> Iterator[int]:
        """One transaction a portion."""
        for number in super().depart():
            if self.dies == "depart":
                raise Death
            yield number


class MortalSide(Mortal, RedisSide):
    """Dies as `Mortal` does."""


class Sides:
    """Queues on both servers, and what moves from one to the other; a new mover is a new process."""

    def __init__(self, db: Database, url: str) -> None:
        self.db, self.url = db, url
        self.database = Dying(db, lambda *_: "default")
        self.redis = MortalSide(db, url, lambda *_: "default")
        self.sessions: list[Connection] = []

    def queue(self, side: str) -> Queue:
        """The queue of a side."""
        return self.database if side == "database" else self.redis

    def worker(self) -> int:
        """A worker that lives until `bury`."""
        conn = self.db.connect()
        self.sessions.append(conn)
        row = fetch_one(
            conn, "register_worker",
            host="here", pid=1, name="", queues=["*"], listens=["%"], release="test", lease=600,
        )  # fmt: skip
        assert row
        conn.execute("select pg_advisory_lock(%s, %s)", [0x6D73, row["id"]])
        return int(row["id"])

    def bury(self) -> None:
        """All workers are dead."""
        with self.db.connection() as conn:
            conn.execute("update workers set lease_until = '-infinity'")

    def move(self, source: str, seconds: float = 0) -> tuple[int, Left]:
        """One pass, or until all is over; how many were moved, and what is left."""
        worker = self.worker()
        move = Move(self.db, self.database, self.redis, lambda: worker)
        left = move.run(source, seconds)
        return move.moved, left

    def claim(self, side: str, worker: int = 7) -> list[Task]:
        """What a worker gets."""
        batch = self.queue(side).claim(["*"], worker, limit=100, now=datetime.now(UTC))
        return list(batch.tasks) if batch else []

    def rows(self, side: str, status: str = "pending") -> list[Mapping[str, Any]]:
        """Tasks of a status there."""
        rows = [dict(row) for row in self.queue(side).peek(status, limit=10_000)]
        for row in rows:
            if side == "database":
                with self.db.connection() as conn:
                    row |= conn.execute("select rescues from sync_queue where id = %s", [row["id"]]).fetchone() or {}
        return sorted(rows, key=lambda row: (row["account_id"], row["entity_id"]))

    def where(self) -> dict[str, list[str]]:
        """Side → entities of the tasks that wait there."""
        return {side: [row["entity_id"] for row in self.rows(side)] for side in SIDES}


@pytest.fixture
def sides(settings: Settings, redis_server: RedisServer) -> Iterator[Sides]:
    """On an empty database and an empty Redis."""
    redis_server.ask("FLUSHALL")
    db = Database(settings.DATABASE_URL.get_secret_value(), size=8)
    sides = Sides(db, redis_server.url)
    yield sides
    for conn in sides.sessions:
        conn.close()
    sides.redis.close()
    db.close()


def other(side: str) -> str:
    """The other one."""
    return SIDES[1 - SIDES.index(side)]


@pytest.mark.parametrize("side", SIDES)
def test_all_of_a_task_is_kept(sides: Sides, side: str) -> None:
    """Rank, schedule, attempts, tries, run, errors, history, times: there and back again; what has ended stays."""
    queue, run = sides.queue(side), uuid4()
    queue.enqueue([good("done", B)])
    queue.complete([(task, Complete("done")) for task in sides.claim(side)])
    queue.enqueue([good("troubled", run_id=run, priority=10, max_attempts=9)])
    for n in range(2):
        (task,) = sides.claim(side)
        queue.retry([(task, Retry(f"error {n}: «ü»\n\"'\\", 0, "Slow"))])
    sides.claim(side, sides.worker())
    sides.bury()
    queue.rescue()
    later = datetime.now(UTC) + timedelta(days=3)
    queue.enqueue([good("later", scheduled_at=later, priority=5), good("plain", B), good("é\t'\\", B)])
    before = sides.rows(side)
    assert len(before) == 4
    (troubled,) = [row for row in before if row["entity_id"] == "troubled"]
    assert (troubled["attempts"], troubled["rescues"], len(troubled["history"])) == (2, 1, 3)

    assert sides.move(side) == (4, Left(0, 0, 0))

    assert sides.rows(side) == []
    assert [differences(*pair) for pair in zip(before, sides.rows(other(side)), strict=True)] == [{}] * 4
    assert sides.queue(other(side)).stats()
    assert sides.move(other(side)) == (4, Left(0, 0, 0))
    assert [differences(*pair) for pair in zip(before, sides.rows(side), strict=True)] == [{}] * 4
    assert [row["entity_id"] for row in sides.rows(side, "completed")] == ["done"]
    (again,) = [task for task in sides.claim(side) if task.entity_id == "troubled"]
    assert (again.attempts, again.max_attempts, again.priority, again.run_id) == (3, 9, 10, run)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are not as they were."""

    def plain(row: Mapping[str, Any]) -> dict[str, Any]:
        entries = [
            {name: datetime.fromisoformat(value) if name in ("at", "started_at") and value else value
             for name, value in entry.items()}
            for entry in row["history"] or []
        ]  # fmt: skip
        return {**row, "history": entries}

    old, new = plain(before), plain(after)
    return {name: (old[name], new[name]) for name in old if name not in CHANGES and old[name] != new[name]}


@pytest.mark.parametrize("side", SIDES)
def test_the_order_is_kept(sides: Sides, side: str) -> None:
    """Inside a rank the oldest goes first, there too, after portions of any size."""
    sides.queue(side).enqueue(good(f"{n:04}") for n in range(2_500))

    assert sides.move(side)[0] == 2_500

    found: list[str] = []
    while tasks := sides.claim(other(side)):
        found += [task.entity_id for task in tasks]
        sides.queue(other(side)).complete([(task, Complete("done")) for task in tasks])
    assert found == [f"{n:04}" for n in range(2_500)]


@pytest.mark.parametrize("side", SIDES)
def test_what_is_not_due_waits_for_its_time(sides: Sides, side: str) -> None:
    """Moved, it is claimed no sooner."""
    at = datetime.now(UTC) + timedelta(hours=1)
    sides.queue(side).enqueue([good("later", scheduled_at=at)])
    sides.move(side)
    there = sides.queue(other(side))

    assert there.claim(["*"], 7, now=at - timedelta(seconds=1)) is None

    assert there.claim(["*"], 7, now=at + timedelta(seconds=1))


@pytest.mark.parametrize("side", SIDES)
def test_what_waits_for_its_twin_stays_until_that_is_over(sides: Sides, side: str) -> None:
    """No two workers write one object at once: what is being processed, and what waits for it, is moved later."""
    sides.queue(side).enqueue([good("x")])
    (task,) = sides.claim(side, sides.worker())
    sides.queue(side).enqueue([good("x"), good("y")])

    assert sides.move(side) == (1, Left(1, 1, 0))

    assert sides.where() == {side: ["x"], other(side): ["y"]}
    sides.queue(side).complete([(task, Complete("done"))])
    assert sides.move(side) == (1, Left(0, 0, 0))
    assert sides.where() == {side: [], other(side): ["x", "y"]}


@pytest.mark.parametrize("side", SIDES)
def test_it_goes_on_until_what_is_processed_has_come_back(sides: Sides, side: str) -> None:
    """A retry of the old side's worker is moved as well."""
    sides.queue(side).enqueue([good("x")])
    (task,) = sides.claim(side, sides.worker())
    worker, told = sides.worker(), list[Left]()
    move = Move(sides.db, sides.database, sides.redis, lambda: worker)

    def tell(left: Left) -> None:
        told.append(left)
        if left.processing:
            sides.queue(side).retry([(task, Retry("again", 600))])

    assert not move.run(side, 60, tell=tell)

    assert told == [Left(0, 1, 0), Left(0, 0, 0)]
    assert [(row["attempts"], row["error"]) for row in sides.rows(other(side))] == [(1, "again")]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("newer", [True, False])
def test_a_twin_over_there_is_joined(sides: Sides, side: str, newer: bool) -> None:
    """One task remains, of the higher rank and the earlier time; its payload and run are those asked for later."""
    here, there = sides.queue(side), sides.queue(other(side))
    runs = {"here": uuid4(), "there": uuid4()}
    soon, late = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) + timedelta(hours=2)
    asked: dict[str, Callable[[], object]] = {
        "here": lambda: here.enqueue(
            [NewTask(A, "product", "sync", SyncGoods(UUID(int=5)), entity_id="x", priority=10, scheduled_at=late,
                     run_id=runs["here"])]),
        "there": lambda: there.enqueue(
            [NewTask(A, "product", "sync", SyncGoods(UUID(int=6)), entity_id="x", priority=1, scheduled_at=soon,
                     run_id=runs["there"])]),
    }  # fmt: skip
    for name in ("there", "here") if newer else ("here", "there"):
        asked[name]()

    assert sides.move(side) == (1, Left(0, 0, 0))

    (row,) = sides.rows(other(side))
    wins = "here" if newer else "there"
    assert (row["priority"], row["scheduled_at"]) == (10, soon)
    assert (row["run_id"], row["payload"]["main"]) == (runs[wins], str(UUID(int=5 if newer else 6)))


def test_dead_on_the_way_to_redis(sides: Sides) -> None:
    """Gone from the table and not yet in Redis: another call, or any worker's tidy, has it arrive, once."""
    sides.database.enqueue(good(str(n)) for n in range(3))
    sides.database.dies = "depart"
    with pytest.raises(Death):
        sides.move("database")
    sides.database.dies = ""
    assert sides.where() == {"database": [], "redis": []}
    assert Move(sides.db, sides.database, sides.redis, lambda: 0).left("database") == Left(0, 0, 3)

    assert sides.move("database") == (0, Left(0, 0, 0))

    assert sides.where() == {"database": [], "redis": ["0", "1", "2"]}
    assert [row["attempts"] for row in sides.rows("redis")] == [0, 0, 0]


def test_dead_with_tasks_of_redis_in_its_hands(sides: Sides) -> None:
    """Before the commit: nothing is in PostgreSQL, and they go back as they were, no death is counted."""
    at = datetime.now(UTC) + timedelta(hours=1)
    sides.redis.enqueue([good("now"), good("later", scheduled_at=at)])
    before = sides.rows("redis")
    sides.database.dies = "arrive"
    with pytest.raises(Death):
        sides.move("redis")
    assert sides.where() == {"database": [], "redis": []}
    sides.bury()

    sides.redis.rescue()

    after = [{**row, "started_at": None} for row in sides.rows("redis")]
    assert [{**row, "updated_at": None} for row in after] == [{**row, "updated_at": None} for row in before]
    assert [task.entity_id for task in sides.claim("redis")] == ["now"]


def test_dead_between_postgresql_and_redis(sides: Sides) -> None:
    """After the commit they are in PostgreSQL, and another call takes them out of Redis without moving them again."""
    sides.redis.enqueue(good(str(n)) for n in range(3))
    sides.redis.dies = "apply"
    with pytest.raises(Death):
        sides.move("redis")
    sides.redis.dies = ""
    assert sides.where() == {"database": ["0", "1", "2"], "redis": []}
    for task in sides.claim("database"):
        sides.database.complete([(task, Complete("done"))])
    sides.bury()

    assert sides.move("redis") == (0, Left(0, 0, 0))

    assert sides.where() == {"database": [], "redis": []}
    assert len(sides.rows("database", "completed")) == 3
    assert sides.redis.stats() == []


def test_redis_away_in_the_middle(sides: Sides) -> None:
    """It is waited for, and the same call goes on: the answer that never came is found out."""
    sides.redis.enqueue(good(str(n)) for n in range(3))
    sides.redis.away = "apply"

    moved, left = sides.move("redis", 60)

    assert (left, sides.where()) == (Left(0, 0, 0), {"database": ["0", "1", "2"], "redis": []})
    assert moved == 0  # they were over there when the call went on


def test_a_mover_given_up_for_dead_moves_nothing(sides: Sides) -> None:
    """Others have put its tasks back meanwhile: its transaction finds that, and leaves nothing in PostgreSQL."""
    sides.redis.enqueue([good("x")])
    worker = sides.worker()

    class Slow(Dying):
        def arrive(self, conn: Connection, rows: Any) -> None:
            assert rows == []
            super().arrive(conn, rows)

    redis = MortalSide(sides.db, sides.url, lambda *_: "default")
    redis._shards.everybody()
    taken = redis._scripts.run
    rescuer = sides.redis

    def slowly(name: str, *values: Any) -> Any:
        answer = taken(name, *values)
        if name == "depart":
            sides.bury()
            rescuer.rescue()
        return answer

    redis._scripts.run = slowly  # type: ignore[method-assign]
    assert list(redis.depart(worker, Slow(sides.db, lambda *_: "default").arrive)) == [0]
    redis.close()

    assert sides.where() == {"database": [], "redis": ["x"]}


@pytest.mark.parametrize("side", SIDES)
def test_a_run_goes_on_over_there(sides: Sides, side: str) -> None:
    """Workers of both sides end tasks of it; nobody ends it early, and its counts are of both."""
    runs = {name: Runs(sides.db, sides.queue(name)) for name in SIDES}
    with sides.db.transaction() as conn:
        run, _ = runs[side].start(conn, account=A, main=MAIN, mains=[MAIN], requested_by="test")
    here, there = sides.queue(side), sides.queue(other(side))
    here.enqueue(good(str(n), run_id=run) for n in range(3))
    task, *rest = sides.claim(side, sides.worker())
    here.complete([(task, Complete("created"))])
    here.release(rest)

    assert sides.move(side) == (2, Left(0, 0, 0))

    for each in runs.values():
        each.finish_all()
    assert runs[other(side)].get(run)["counts"] | {"pending": 2, "created": 1} == runs[other(side)].get(run)["counts"]
    assert runs[other(side)].get(run)["finished_at"] is None
    there.complete([(task, Complete("updated")) for task in sides.claim(other(side))])
    runs[side].finish_all()
    runs[other(side)].finish_all()
    found = runs[side].get(run)
    assert found["finished_at"]
    assert {name: n for name, n in found["counts"].items() if n} == {"completed": 3, "created": 1, "updated": 2}


def test_a_run_of_redis_is_not_ended_by_who_does_not_see_it(sides: Sides) -> None:
    """A worker of the old side looks after runs while the new side has begun one."""
    run_of = {name: Runs(sides.db, sides.queue(name)) for name in SIDES}
    with sides.db.transaction() as conn:
        run, _ = run_of["redis"].start(conn, account=A, main=MAIN, mains=[MAIN], requested_by="test")
        sides.redis.enqueue([good("x", run_id=run)], within=conn)

    run_of["database"].finish_all()

    assert run_of["redis"].get(run)["finished_at"] is None
    sides.redis.settle([Ended(task, Complete("updated")) for task in sides.claim("redis")])
    run_of["redis"].finish_all()
    assert run_of["database"].get(run)["counts"]["completed"] == 1


def test_on_the_command_line(
    known: App, shell: Call, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there, without touching it; moved; moved back; and what cannot be is refused."""
    redis_server.ask("FLUSHALL")
    known.queue.enqueue(good(str(n), CHILD) for n in range(3))
    there, back = ("queue", "move", "--from", "database", "--to", "redis"), ("--from", "redis", "--to", "database")

    assert "REDIS_URL is not set" in shell(*there).err
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    assert (shell("queue", "move", "--from", "redis", "--to", "redis").code) == 2
    dry = shell(*there, "--dry-run")
    assert (dry.code, dry.out) == (
        0, "3 tasks wait in database, 0 are being processed there, 0 are on their way\n")  # fmt: skip
    assert known.queue.peek("pending")
    moved = shell(*there)
    assert (moved.code, moved.out.splitlines()[-1]) == (0, "3 tasks were moved")
    assert shell("queue", "move", *back, "--json").json == {
        "from": "redis", "to": "database", "moved": 3, "waiting": 0, "processing": 0, "on_the_way": 0}  # fmt: skip
    assert len(known.queue.peek("pending")) == 3
    assert known.queue.claim(["*"], 7, limit=1)
    known.queue.holders()
    with known.db.connection() as conn:
        conn.execute("insert into workers (id, host, pid, name, queues, release, lease_until) overriding system value"
                     " values (7, 'h', 1, '', '{*}', 'r', now() + interval '1 hour')")  # fmt: skip
        held = known.db.connect()
        held.execute("select pg_advisory_lock(%s, 7)", [0x6D73])
    left = shell(*there, "--wait", 0)
    held.close()
    assert left.code == 1
    assert left.out.endswith("2 tasks were moved; ask again to go on\n")


def test_a_server_that_is_away_is_told(known: App, shell: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and nothing has changed."""
    known.queue.enqueue([good("x", CHILD)])
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")

    answer = shell("queue", "move", "--from", "redis", "--to", "database", "--wait", 0)

    assert answer.code != 0
    assert "Redis is away" in answer.err
    assert len(known.queue.peek("pending")) == 1
    assert QueueAway.__name__ not in answer.err
