"""What every queue driver must do; a new driver adds itself to the fixture `bench` and runs through all of it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from worker.accounts import Accounts
from worker.db import Connection, Database, fetch, fetch_one
from worker.errors import NotFound, Permanent
from worker.monitor import Monitor
from worker.pauses import Pauses
from worker.queues import DatabaseQueue, Effect, Ended, Queue
from worker.queues.database import LOCK_CLASS, MAX_RESCUES
from worker.queues.redis import RedisQueue
from worker.runs import Runs
from worker.settings import Settings
from worker.task import (
    Batch,
    Complete,
    Fail,
    NewTask,
    Outcome,
    Plan,
    Priority,
    Release,
    Retry,
    Snooze,
    SyncGoods,
    Task,
)

T0 = datetime(2030, 1, 1, tzinfo=UTC)
MAIN = UUID(int=99)
A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
STATUSES = ("pending", "processing", "completed", "failed")


def later(seconds: float) -> datetime:
    """So many seconds after T0."""
    return T0 + timedelta(seconds=seconds)


def good(entity: str, account: UUID = A, main: UUID = MAIN, **fields: Any) -> NewTask:
    """A task that sends one good to a child."""
    return NewTask(account, "product", "sync", SyncGoods(main), entity_id=entity, **fields)


def plan(account: UUID = A, **fields: Any) -> NewTask:
    """A task of another kind."""
    return NewTask(account, "catalogue", "plan", Plan(), **fields)


def names(batch: Batch | None) -> list[str]:
    """The entities of a batch, in its order."""
    return [task.entity_id for task in batch.tasks] if batch else []


@dataclass
class Bench:
    """A driver under test; `lanes` says which queue an account's tasks go to."""

    queue: Queue
    db: Database
    lanes: dict[UUID, str] = field(default_factory=dict)
    locks: bool = True
    """Whether a task can be locked by an open transaction: in Redis one script runs after the other."""
    sessions: dict[int, Connection] = field(default_factory=dict)

    def add(self, *tasks: NewTask, now: datetime = T0) -> int:
        """Enqueue at T0."""
        return self.queue.enqueue(tasks, now=now)

    def claim(
        self,
        *queues: str,
        worker: int = 1,
        limit: int = 100,
        now: datetime = T0,
    ) -> Batch | None:
        """Claim at T0, from every queue unless told which."""
        return self.queue.claim(queues or ("*",), worker, limit=limit, now=now)

    def claimed(self, *entities: str, worker: int = 1) -> list[Task]:
        """Enqueue and claim these."""
        self.add(*(good(entity) for entity in entities))
        batch = self.claim(worker=worker)
        assert names(batch) == list(entities)
        return list(batch.tasks) if batch else []

    def end(self, tasks: list[Task], outcome: Outcome, **times: Any) -> list[str]:
        """End claims as a worker does, with an effect; the entities that were still ours."""
        owned: set[int] = set()
        counts = self.queue.settle(
            [Ended(task, outcome) for task in tasks], lambda _, ids: owned.update(ids), **times
        )
        assert counts.total() - counts["lost"] == len(owned)
        assert self.queue.settle([Ended(task, outcome) for task in tasks])["lost"] == len(tasks)
        return [task.entity_id for task in tasks if task.id in owned]

    def rows(self, status: str | None = None, *fields: str) -> list[Any]:
        """Every task's fields (one alone: bare), by id."""
        found = [row for name in STATUSES if status in (None, name) for row in self.queue.peek(name, limit=10_000)]
        found.sort(key=lambda row: row["id"])
        if len(fields) == 1:
            return [row[fields[0]] for row in found]
        return [tuple(row[name] for name in fields) for row in found] if fields else found

    def live(self, lease: float = 30) -> int:
        """A worker that is alive: it is registered and its session holds its lock."""
        conn = self.db.connect()
        who = {
            "host": "here",
            "pid": 1,
            "name": "",
            "queues": ["*"],
            "listens": ["%"],
            "release": "test",
            "lease": lease,
        }
        row = fetch_one(conn, "register_worker", **who)
        assert row is not None
        fetch(conn, "hold_worker", lock_class=LOCK_CLASS, worker=row["id"])
        self.sessions[row["id"]] = conn
        return int(row["id"])


@pytest.fixture(params=["database", "redis", "redis-cluster"])
def bench(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Bench]:
    """Each driver, empty."""
    db = Database(settings.DATABASE_URL.get_secret_value(), size=8)
    lanes: dict[UUID, str] = {}

    def route(_: str, account: UUID) -> str:
        return lanes.get(account, "default")

    queue: Queue
    if request.param == "database":
        queue = DatabaseQueue(db, route)
    else:
        servers = request.getfixturevalue("redis_cluster" if request.param == "redis-cluster" else "redis_server")
        servers = servers if isinstance(servers, list) else [servers]
        for server in servers:
            server.ask("FLUSHALL")
        queue = RedisQueue(db, servers[0].url, route)
    bench = Bench(queue, db, lanes, locks=request.param == "database")
    yield bench
    for conn in bench.sessions.values():
        conn.close()
    queue.close()
    db.close()


def accounts(bench: Bench, settings: Settings, *ids: UUID) -> Accounts:
    """These accounts made known."""
    accounts = Accounts(bench.db, settings.APP_KEY.get_secret_value())
    for id in ids:
        accounts.add(id, str(id), "child", "solution", "token")
    return accounts


# Enqueue


@pytest.mark.parametrize("number", [1, 100, 101, 350])
def test_enqueue_keeps_number_and_order(bench: Bench, number: int) -> None:
    """One task or many, in one statement or by COPY: all are there, and come in the order given."""
    entities = [str(n) for n in range(number)]

    added = bench.add(*(good(entity) for entity in entities))

    assert added == number
    assert names(bench.claim(limit=1000)) == entities


def test_enqueue_of_nothing_does_nothing(bench: Bench) -> None:
    """No task, no row."""
    assert bench.add() == 0
    assert bench.rows() == []


@pytest.mark.parametrize("others", [0, 200])
def test_a_pending_twin_takes_over(bench: Bench, others: int) -> None:
    """The row keeps its place and takes the newer payload and run, the higher rank, the earlier time."""
    first, second = uuid4(), uuid4()
    bench.add(good("x", run_id=first, priority=5, scheduled_at=later(60)))

    fresh = [good(f"other {n}") for n in range(others)]
    added = bench.add(*fresh, good("x", main=B, run_id=second, priority=1, scheduled_at=later(30)))

    assert added == others
    row = bench.rows("pending")[0]
    actual = [row[name] for name in ("entity_id", "payload", "run_id", "priority", "scheduled_at")]
    assert actual == ["x", {"main": str(B)}, second, 5, later(30)]


def test_a_twin_without_run_keeps_the_run_and_raises_the_rank(bench: Bench) -> None:
    """A background request joins a run's task without taking it out of the run; a click lifts its rank."""
    run = uuid4()
    bench.add(good("x", run_id=run))

    bench.add(good("x", priority=Priority.USER, scheduled_at=later(600)))

    assert bench.rows(None, "run_id", "priority", "scheduled_at") == [(run, 10, T0)]


@pytest.mark.parametrize("others", [0, 200])
def test_the_greatest_and_the_least_numbers(bench: Bench, others: int) -> None:
    """What one driver can keep, each keeps, alone and in a bulk; what is beyond is refused before it is enqueued."""
    most = 2**31 - 1
    bench.add(*(good(f"other {n}") for n in range(others)))
    bench.add(good("least", priority=-most), *(good(f"one more {n}") for n in range(others)))
    bench.add(good("greatest", priority=most, max_attempts=most), *(good(f"and more {n}") for n in range(others)))

    tasks = [task for limit in (1, 10**4, 10**4) if (batch := bench.claim(limit=limit)) for task in batch.tasks]

    assert [(tasks[n].entity_id, tasks[n].priority, tasks[n].max_attempts) for n in (0, -1)] == [
        ("greatest", most, most), ("least", -most, None),
    ]  # fmt: skip
    assert len(tasks) == 2 + 3 * others


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("priority", 2**31, "2147483648"),
        ("priority", -(2**31), "-2147483648"),
        ("max_attempts", 2**31, "2147483648"),
        ("max_attempts", 0, "0"),
        ("entity_id", "x\0y", r"'x\x00y'"),
    ],
)
def test_what_not_every_driver_can_keep(name: str, value: Any, shown: str) -> None:
    """The error names it and its value; one driver cut the id short, another took it for its own separator."""
    with pytest.raises(Permanent, match=re.escape(f"{name} {shown} of product/sync")):
        NewTask(A, "product", "sync", SyncGoods(MAIN), **{"entity_id": "x", name: value})


@pytest.mark.parametrize("others", [0, 200])
def test_of_twins_in_one_call_the_last_wins(bench: Bench, others: int) -> None:
    """Duplicates inside one call make one row, with the last one's payload, whatever the size of the call."""
    fresh = [good(f"other {n}") for n in range(others)]

    added = bench.add(good("x", main=A), *fresh, good("x", main=B), good("x", main=C))

    assert added == others + 1
    assert [row["payload"] for row in bench.rows() if row["entity_id"] == "x"] == [{"main": str(C)}]


def test_what_differs_in_account_kind_or_entity_is_no_twin(bench: Bench) -> None:
    """Only the same thing to do for the same account coalesces."""
    assert bench.add(good("x"), good("y"), good("x", B), plan(), plan(B), plan(entity_id="x")) == 6


def test_enqueue_is_part_of_the_callers_transaction(bench: Bench) -> None:
    """Rolled back with it, small or large; two large ones fit into one transaction."""

    def broken() -> None:
        with bench.db.transaction() as conn:
            bench.queue.enqueue([good("x")], within=conn)
            bench.queue.enqueue((good(str(n)) for n in range(200)), within=conn)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    with bench.db.transaction() as conn:
        first = bench.queue.enqueue((good(str(n)) for n in range(200)), within=conn, now=T0)
        second = bench.queue.enqueue((good(str(n), main=B) for n in range(100, 300)), within=conn, now=T0)

    assert (first, second) == (200, 100)
    mains = [MAIN] * 100 + [B] * 200
    expected = [(str(n), {"main": str(main)}) for n, main in enumerate(mains)]
    assert bench.rows("pending", "entity_id", "payload") == expected


def test_a_request_during_the_work_makes_exactly_one_more(bench: Bench) -> None:
    """What is asked for while the same thing is being done is done once more, after it, not beside it."""
    (task,) = bench.claimed("x")

    added = [bench.add(good("x", main=A)), bench.add(good("x", main=B))]

    assert added == [1, 0]
    assert bench.claim(worker=2) is None
    bench.end([task], Complete("updated"))
    assert names(bench.claim(worker=2)) == ["x"]


# Claim


def test_claim_of_an_empty_queue(bench: Bench) -> None:
    """None, whether queues are named or matched."""
    assert bench.claim() is None
    assert bench.claim("default") is None


def test_claim_takes_one_account_and_one_kind(bench: Bench) -> None:
    """A batch is never mixed, however the tasks lie."""
    bench.add(good("1"), good("2", B), plan(), good("3"), good("4", B))

    batches = [bench.claim(), bench.claim(), bench.claim(), bench.claim()]

    assert [names(batch) for batch in batches] == [["1", "3"], ["2", "4"], [""], []]
    assert [batch.kind for batch in batches if batch] == [
        ("product", "sync"), ("product", "sync"), ("catalogue", "plan"),
    ]  # fmt: skip


def test_claim_says_whose_it_is(bench: Bench) -> None:
    """A claimed task names its worker, its attempt and everything that was enqueued."""
    run = uuid4()
    bench.add(good("x", priority=5, run_id=run, max_attempts=7))

    batch = bench.claim(worker=42)

    assert batch is not None
    task = batch.first
    actual = (task.worker, task.attempts, task.priority, task.run_id, task.max_attempts, task.queue)
    assert actual == (42, 1, 5, run, 7, "default")
    assert task.decode() == SyncGoods(MAIN)
    assert bench.rows(None, "status", "worker", "attempts") == [("processing", 42, 1)]


def test_claim_goes_by_rank_then_age(bench: Bench) -> None:
    """The higher rank first, inside a rank the older."""
    bench.add(good("1"), good("2", priority=5), good("3"), good("4", priority=10), good("5", priority=5))

    assert [names(bench.claim(limit=2)) for _ in range(4)] == [["4"], ["2", "5"], ["1", "3"], []]


def test_rank_goes_before_the_turn(bench: Bench) -> None:
    """A user's task of the account served last goes before background work of another."""
    bench.add(good("0"), good("2", B))
    assert names(bench.claim()) == ["0"]
    bench.add(good("1", priority=10))

    assert names(bench.claim()) == ["1"]


def test_lanes_go_in_the_order_given(bench: Bench) -> None:
    """An earlier lane is emptied first, whatever the ranks in a later one; lanes not named are left alone."""
    bench.lanes.update({A: "low", B: "high", C: "other"})
    bench.add(good("1", A, priority=10), good("2", B), good("3", C))

    assert [names(bench.claim("high", "low")) for _ in range(3)] == [["2"], ["1"], []]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("account-*",), ["1", "2"]),
        (("*-b", "*"), ["2", "1", "3"]),
        (("account-b", "d*"), ["2", "3"]),
        (("b*",), []),
        (("account-?",), []),
    ],
)
def test_wildcards(bench: Bench, patterns: tuple[str, ...], expected: list[str]) -> None:
    """`*` stands for any characters, nothing else does; the order of the patterns is kept."""
    bench.lanes.update({A: "account-a", B: "account-b", C: "d"})
    bench.add(good("1", A), good("2", B), good("3", C))

    taken = [name for _ in range(4) for name in names(bench.claim(*patterns))]

    assert taken == expected


def test_a_queue_that_is_new_is_found_by_a_wildcard_at_once(bench: Bench) -> None:
    """A worker that was woken finds the task in its second look at the latest, though it looked just before."""
    bench.lanes.update({A: "a", B: "b"})
    assert bench.claim() is None
    bench.add(good("1", A))
    assert names(bench.claim()) == ["1"]
    bench.add(good("2", B))

    assert names(bench.claim() or bench.claim()) == ["2"]


def test_a_task_waits_for_its_time(bench: Bench) -> None:
    """Not claimed a second early, also not along with others of the batch."""
    bench.add(good("1", scheduled_at=later(10)), good("2"))

    assert [names(bench.claim(now=later(after))) for after in (0, 9, 10)] == [["2"], [], ["1"]]


def test_a_parked_account_is_skipped(bench: Bench, settings: Settings) -> None:
    """None of its tasks is claimed until its time has come; the others go on."""
    known = accounts(bench, settings, A, B)
    bench.add(good("1"), good("2"), good("3", B))
    known.park(A, "why", later(100))

    assert [names(bench.claim(now=later(after))) for after in (0, 99, 100)] == [["3"], [], ["1", "2"]]


def test_a_parked_account_hides_no_other_lane(bench: Bench, settings: Settings) -> None:
    """Where the first lane has a parked account only, the second one is served."""
    bench.lanes.update({A: "high", B: "low"})
    known = accounts(bench, settings, A, B)
    bench.add(good("1", A), good("2", B))
    known.park(A, "why", later(100))

    assert names(bench.claim("high", "low")) == ["2"]


def test_accounts_take_turns(bench: Bench) -> None:
    """A worker goes round all accounts that wait before it serves one again."""
    bench.add(*(good(str(n), account) for account in (A, B, C) for n in range(3)))
    served = []
    for _ in range(9):
        batch = bench.claim(limit=1)
        assert batch is not None
        served.append(batch.first.account_id)

    assert served == [A, B, C] * 3


def test_a_small_account_is_not_starved(bench: Bench) -> None:
    """One task of a second account comes second, however many the first has."""
    bench.add(*(good(str(n)) for n in range(300)))
    bench.add(good("small", B))

    first = bench.claim(limit=10)
    second = bench.claim(limit=10)

    assert len(names(first)) == 10
    assert names(second) == ["small"]


def test_a_twin_of_a_running_task_lets_others_pass(bench: Bench) -> None:
    """It waits alone: the rest of the account and kind is claimed."""
    bench.claimed("x")
    bench.add(good("x", priority=10), good("y"))

    assert names(bench.claim(worker=2)) == ["y"]


def test_claimers_at_once_never_get_the_same(bench: Bench) -> None:
    """Four workers empty a queue of six accounts: each task is claimed once, by one of them."""
    total = 600
    bench.add(*(good(str(n), UUID(int=n % 6 + 1), priority=n % 3) for n in range(total)))
    taken: list[list[int]] = [[] for _ in range(4)]

    def work(index: int) -> None:
        rng = random.Random(index)
        while bench.rows("pending", "id"):
            batch = bench.claim(worker=index + 1, limit=rng.randint(1, 20))
            if batch:
                assert len({(task.account_id, task.entity_type) for task in batch.tasks}) == 1
                taken[index] += [task.id for task in batch.tasks]

    at_once([lambda index=index: work(index) for index in range(4)])

    assert sorted(id for ids in taken for id in ids) == bench.rows("processing", "id")
    assert bench.rows(None, "attempts") == [1] * total


def test_a_claimer_does_not_wait_for_another(bench: Bench) -> None:
    """What a claim under way has locked is passed over, the rest of its account included or not."""
    if not bench.locks:
        pytest.skip("nothing is locked in Redis")
    bench.add(good("1"), good("2", B), good("3"))
    (first, _, _) = bench.rows("pending", "id")
    with bench.db.transaction() as conn:
        conn.execute("select from sync_queue where id = %s for update", [first])
        assert [names(bench.claim()) for _ in range(3)] == [["3"], ["2"], []]

    assert names(bench.claim()) == ["1"]


def test_one_thing_is_done_by_one_worker_at_a_time(bench: Bench) -> None:
    """Asked for again and again while three workers do it, retry it and hand it back: never twice at once, never
    lost, and the last time with the newest payload."""
    rounds = 60
    busy = threading.Lock()
    seen: list[UUID] = []
    over = threading.Event()

    def produce() -> None:
        for n in range(1, rounds + 1):
            bench.queue.enqueue([good("x", main=UUID(int=n))])
        over.set()

    def consume(index: int) -> None:
        rng = random.Random(index)
        while not (over.is_set() and not bench.rows("pending", "id") and not bench.rows("processing", "id")):
            batch = bench.queue.claim(["*"], index, limit=5)
            if batch is None:
                continue
            assert busy.acquire(blocking=False)
            payload = batch.first.decode()
            assert isinstance(payload, SyncGoods)
            outcome = rng.choice([Complete("done"), Retry("again"), Snooze(0, "later"), Release()])
            if isinstance(outcome, Complete):
                seen.append(payload.main)
            busy.release()
            assert bench.end(list(batch.tasks), outcome) == ["x"]

    at_once([produce, *(lambda index=index: consume(index) for index in (1, 2, 3))])

    assert seen[-1] == UUID(int=rounds)
    assert seen == sorted(seen)
    assert set(bench.rows(None, "status")) == {"completed"}


def at_once(works: list[Callable[[], None]]) -> None:
    """All of them in threads; the first error of any is the test's."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # told below
            errors.append(error)

    threads = [threading.Thread(target=run, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)


# How claims end


def test_complete(bench: Bench) -> None:
    """Done: it says what was done and why, and belongs to nobody."""
    tasks = bench.claimed("x")

    assert bench.end(tasks, Complete("skipped", "main no longer has it")) == ["x"]

    fields = ("status", "result", "error", "worker", "attempts")
    assert bench.rows(None, *fields) == [("completed", "skipped", "main no longer has it", None, 1)]
    assert bench.rows(None, "completed_at") != [None]


def test_retry(bench: Bench) -> None:
    """Pending again after its delay, the attempt counted, the reason kept until the next claim."""
    tasks = bench.claimed("x")

    bench.end(tasks, Retry("broken", 30), now=T0)

    fields = ("status", "result", "error", "worker", "attempts", "scheduled_at")
    assert bench.rows(None, *fields) == [("pending", None, "broken", None, 1, later(30))]
    assert bench.claim(now=later(29)) is None
    again = bench.claim(now=later(30))
    assert again is not None
    assert again.first.attempts == 2
    assert bench.rows(None, "error") == [None]


def test_snooze(bench: Bench) -> None:
    """The same without counting the attempt."""
    tasks = bench.claimed("x")

    bench.end(tasks, Snooze(30, "limited"), now=T0)

    fields = ("status", "error", "worker", "attempts", "scheduled_at")
    assert bench.rows(None, *fields) == [("pending", "limited", None, 0, later(30))]


def test_fail(bench: Bench) -> None:
    """Over, with its reason; never claimed again."""
    tasks = bench.claimed("x")

    bench.end(tasks, Fail("refused"))

    fields = ("status", "result", "error", "worker", "attempts")
    assert bench.rows(None, *fields) == [("failed", "failed", "refused", None, 1)]
    assert bench.claim(now=later(10**6)) is None


def test_release(bench: Bench) -> None:
    """As if never claimed: no attempt, no reason, its time and place kept."""
    tasks = bench.claimed("x", "y")

    bench.end(tasks[:1], Release())

    fields = ("entity_id", "status", "error", "worker", "attempts", "scheduled_at")
    assert bench.rows("pending", *fields) == [("x", "pending", None, None, 0, T0)]
    again = bench.claim(worker=2)
    assert again is not None
    assert (names(again), again.first.attempts) == (["x"], 1)


def test_each_ends_in_its_own_way(bench: Bench) -> None:
    """Outcomes of one transition differ per task and find their own task."""
    tasks = bench.claimed("1", "2", "3")
    ends = [Retry(f"error {n}", n) for n in range(3)]

    assert bench.queue.retry(list(zip(reversed(tasks), ends, strict=True)), now=T0) == 3

    assert bench.rows(None, "entity_id", "error", "scheduled_at") == [
        ("1", "error 2", later(2)),
        ("2", "error 1", later(1)),
        ("3", "error 0", later(0)),
    ]


@pytest.mark.parametrize("outcome", [Retry("broken", 5), Snooze(5, "later"), Release()])
def test_put_back_beside_a_pending_twin_coalesces(bench: Bench, outcome: Outcome) -> None:
    """The newer request does the work; the older one ends as coalesced, others are put back."""
    tasks = bench.claimed("x", "y")
    bench.add(good("x", main=B))

    bench.end(tasks, outcome)

    fields = ("entity_id", "status", "result", "payload", "worker")
    assert bench.rows(None, *fields) == [
        ("x", "completed", "coalesced", {"main": str(MAIN)}, None),
        ("y", "pending", None, {"main": str(MAIN)}, None),
        ("x", "pending", None, {"main": str(B)}, None),
    ]


def test_a_twin_enqueued_at_the_same_moment_coalesces(bench: Bench) -> None:
    """A request that commits while the claim is being put back neither breaks it nor doubles it."""
    tasks = bench.claimed("x")
    begun = threading.Event()
    rest = threading.Event()

    def request() -> None:
        with bench.db.transaction() as conn:
            bench.queue.enqueue([good("x", main=B)], within=conn)
            begun.set()
            rest.wait(0.3)

    def put_back() -> None:
        begun.wait(30)
        bench.end(tasks, Release())
        rest.set()

    at_once([request, put_back])

    joined = [("pending", {"main": str(B)})]  # in Redis it comes after the commit, and joins what was put back
    assert bench.rows(None, "status", "payload") == (
        [("completed", {"main": str(MAIN)}), *joined] if bench.locks else joined
    )


@pytest.mark.parametrize("outcome", [Complete("late"), Retry("late"), Snooze(0, "late"), Fail("late"), Release()])
def test_a_lost_claim_leaves_no_trace(bench: Bench, outcome: Outcome) -> None:
    """Given up for dead and replaced: what the first worker brings later is not written, whatever it is."""
    tasks = bench.claimed("x", worker=77)
    assert bench.queue.rescue(now=T0) == 1
    again = bench.claim(worker=78, now=later(1))
    assert names(again) == ["x"]

    assert bench.end(tasks, outcome) == []

    assert bench.rows(None, "status", "worker", "attempts") == [("processing", 78, 1)]


def test_a_claim_ended_once_is_not_ours_any_more(bench: Bench) -> None:
    """A second end of the same claim, or one of an earlier attempt, finds nothing."""
    tasks = bench.claimed("x")
    bench.end(tasks, Retry("broken", 0), now=T0)
    assert bench.end(tasks, Complete("late")) == []
    assert names(bench.claim(now=later(1))) == ["x"]

    assert bench.end(tasks, Complete("late")) == []

    assert bench.rows(None, "status", "attempts") == [("processing", 2)]


def test_settle_of_nothing(bench: Bench) -> None:
    """Nothing ends."""
    assert bench.queue.settle([]).total() == 0


@pytest.mark.parametrize("effect", [None, lambda *_: None])
def test_a_batch_ends_in_several_ways_at_once(bench: Bench, effect: Effect | None) -> None:
    """Each task by its own outcome; the counts tell how many went which way, and what was lost meanwhile."""
    tasks = bench.claimed("1", "2", "3", "4", "5", "6")
    assert bench.queue.complete([(tasks[5], Complete("done"))]) == 1
    outcomes = [Complete("done"), Retry("r", 1), Snooze(1, "s"), Fail("f"), Release(), Complete("late")]

    counts = bench.queue.settle([Ended(*pair) for pair in zip(tasks, outcomes, strict=True)], effect, now=T0)

    assert counts == {"complete": 1, "retry": 1, "snooze": 1, "fail": 1, "release": 1, "lost": 1}
    assert bench.rows(None, "status") == ["completed", "pending", "pending", "failed", "pending", "completed"]


def test_each_verb_ends_its_claims(bench: Bench) -> None:
    """The five ends by their names; a second time nothing is ours."""
    one, two, three, four, five = bench.claimed("1", "2", "3", "4", "5")

    def end() -> list[int]:
        return [
            bench.queue.complete([(one, Complete("done"))]),
            bench.queue.retry([(two, Retry("r"))], now=T0),
            bench.queue.snooze([(three, Snooze(0, "s"))], now=T0),
            bench.queue.fail([(four, Fail("f"))]),
            bench.queue.release([five]),
        ]

    assert [end(), end()] == [[1] * 5, [0] * 5]
    assert bench.rows(None, "status") == ["completed", "pending", "pending", "failed", "pending"]


def test_an_effect_that_breaks_ends_nothing(bench: Bench) -> None:
    """Outcome and effect are written together or not at all."""
    tasks = bench.claimed("x")

    def broken(conn: Connection, owned: set[int]) -> None:
        conn.execute("create table trace ()")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.queue.settle([Ended(tasks[0], Complete("done"))], broken)

    assert bench.rows(None, "status") == ["processing"]
    with bench.db.connection() as conn, pytest.raises(psycopg.errors.UndefinedTable):
        conn.execute("select from trace")


def test_claims_are_held_while_their_effect_is_written(bench: Bench) -> None:
    """While a worker writes its outcomes nobody takes the tasks away from it."""
    tasks = bench.claimed("x", worker=77)
    rescued: list[int] = []

    bench.queue.settle([Ended(tasks[0], Complete("done"))], lambda *_: rescued.append(bench.queue.rescue()))

    assert rescued == [0]
    assert bench.rows(None, "status") == ["completed"]


@pytest.mark.parametrize("outcome", [Complete("late"), Retry("late"), Snooze(0, "late"), Fail("late"), Release()])
def test_a_claim_taken_away_while_it_ends_leaves_no_trace(bench: Bench, outcome: Outcome) -> None:
    """The end waits for a rescue that has the row under way, and then finds that it is not its own any more."""
    (task,) = bench.claimed("x", worker=77)
    begun, counts = threading.Event(), list[int]()

    def rescue() -> None:
        if not bench.locks:
            bench.queue.rescue(now=T0)
            begun.set()
            return
        with bench.db.transaction() as conn:
            fetch(conn, "rescue", workers=[77], rescues=MAX_RESCUES, now=T0)
            begun.set()
            time.sleep(0.3)  # the end is waiting by then; were it not, it would find the same

    def end() -> None:
        begun.wait(30)
        counts.append(bench.queue.settle([Ended(task, outcome)])["lost"])

    at_once([rescue, end])

    assert counts == [1]
    assert bench.rows(None, "status", "worker", "attempts") == [("pending", None, 0)]


def test_a_lower_rank_is_served_now_and_then(bench: Bench) -> None:
    """However much waits above them, one claim in ten goes to the lower ranks, each in its turn."""
    bench.add(*(good(str(n), priority=10) for n in range(100)))
    bench.add(*(good(f"webhook {n}", priority=5) for n in range(3)))
    bench.add(*(good(f"background {n}") for n in range(3)))

    taken = [name for _ in range(40) for name in names(bench.claim(limit=1))]

    assert [(n, name) for n, name in enumerate(taken, 1) if not name.isdigit()] == [
        (10, "webhook 0"), (20, "background 0"), (30, "webhook 1"), (40, "background 1"),
    ]  # fmt: skip


def test_an_account_is_served_by_so_many_workers_at_most(bench: Bench, settings: Settings) -> None:
    """Where its number of workers is bounded, a further one passes it over until one of them is done."""
    accounts(bench, settings, A, B)
    with bench.db.connection() as conn:
        conn.execute("update accounts set concurrency = 2 where id = %s", [A])
    bench.add(*(good(str(n)) for n in range(5)), good("other", B))

    first = bench.claim(worker=1, limit=1)
    second = bench.claim(worker=2, limit=1)
    third = [names(bench.claim(worker=3, limit=1)) for _ in range(2)]
    again = bench.claim(worker=1, limit=1)
    assert first
    assert again
    bench.end([*first.tasks, *again.tasks], Complete("done"))

    assert [names(batch) for batch in (first, second, again)] == [["0"], ["1"], ["2"]]
    assert third == [["other"], []]
    assert names(bench.claim(worker=3, limit=1)) == ["3"]


def test_a_bound_on_workers_holds_against_claims_at_once(bench: Bench, settings: Settings) -> None:
    """Six workers ask at the same moment for an account that one may serve: one gets it."""
    accounts(bench, settings, A)
    with bench.db.connection() as conn:
        conn.execute("update accounts set concurrency = 1 where id = %s", [A])
    bench.add(*(good(str(n)) for n in range(60)))
    barrier = threading.Barrier(6)
    got: list[int] = []

    def work(worker: int) -> None:
        barrier.wait(30)
        got.append(len(names(bench.claim(worker=worker, limit=5))))

    at_once([lambda worker=worker: work(worker) for worker in range(1, 7)])

    assert sorted(got) == [0, 0, 0, 0, 0, 5]


def test_a_paused_queue_is_skipped(bench: Bench) -> None:
    """Nothing of a queue that a paused pattern matches is claimed before its time; others go on."""
    bench.lanes.update({A: "account-a", B: "b"})
    bench.add(good("1", A), good("2", B))
    with bench.db.connection() as conn:
        conn.execute(
            "insert into paused_queues (pattern, name, until) values ('account-%%', 'account-*', %s)", [later(100)]
        )

    assert [names(bench.claim(now=later(after))) for after in (0, 99, 100)] == [["2"], [], ["1"]]


def test_a_task_remembers_its_troubles(bench: Bench) -> None:
    """Each attempt that went wrong: how it ended, by which error, on which worker; the last fifty of them."""
    worker = bench.live()
    bench.add(good("x"))
    for n in range(52):
        batch = bench.claim(worker=worker, now=later(n))
        assert batch is not None
        bench.queue.retry([(batch.first, Retry(f"error {n}", 0, "Retryable"))], now=later(n))
    bench.claim(worker=worker, now=later(60))
    bench.sessions[worker].close()
    assert eventually(bench.queue.rescue) == 1
    batch = bench.claim(worker=9, now=datetime.now(UTC) + timedelta(seconds=60))
    assert batch is not None
    bench.queue.fail([(batch.first, Fail("refused", "Rejected"))])

    (row,) = bench.rows("failed")

    fields = ("how", "attempt", "class", "error", "worker", "host")
    told = [tuple(entry[name] for name in fields) for entry in row["history"]]
    assert len(told) == 50
    assert told[0] == ("retry", 5, "Retryable", "error 4", worker, "here")
    assert told[-2:] == [
        ("rescue", 53, "WorkerDied", f"worker {worker} died while it ran", worker, "here"),
        ("fail", 53, "Rejected", "refused", 9, None),
    ]
    assert row["error_class"] == "Rejected"


# Rescue


def test_a_live_workers_claims_are_kept(bench: Bench) -> None:
    """Nothing is taken from a worker whose lease runs and whose session stands."""
    bench.claimed("x", worker=bench.live())

    assert bench.queue.rescue() == 0
    assert bench.rows(None, "status") == ["processing"]


def test_a_lease_that_is_over_gives_the_claims_back(bench: Bench) -> None:
    """The session still stands, as of a host that hangs; what counts is that nothing was heard."""
    worker = bench.live(lease=30)
    bench.claimed("x", "y", worker=worker)
    soon = datetime.now(UTC) + timedelta(seconds=20)
    late = datetime.now(UTC) + timedelta(seconds=60)

    assert [bench.queue.rescue(now=soon), bench.queue.rescue(now=late)] == [0, 2]

    expected = ("pending", 0, f"worker {worker} died while it ran, 1 in all", None)
    assert bench.rows(None, "status", "attempts", "error", "worker") == [expected, expected]
    assert bench.db.fetch("workers") == []


def test_a_session_that_is_gone_gives_the_claims_back_at_once(bench: Bench) -> None:
    """A killed process loses its session's lock; its lease need not run out."""
    worker = bench.live(lease=3000)
    bench.claimed("x", worker=worker)

    bench.sessions[worker].close()

    assert eventually(bench.queue.rescue) == 1
    assert bench.rows(None, "status", "attempts") == [("pending", 0)]


def test_only_the_dead_are_rescued_from(bench: Bench) -> None:
    """One of two workers dies: the other keeps what it holds."""
    dead, alive = bench.live(), bench.live()
    bench.add(good("1"), good("2", B))
    bench.claim(worker=dead)
    bench.claim(worker=alive)

    bench.sessions[dead].close()

    assert eventually(bench.queue.rescue) == 1
    assert bench.rows(None, "status", "worker") == [("pending", None), ("processing", alive)]


def test_rescuers_at_once_take_each_claim_once(bench: Bench) -> None:
    """Four hosts notice the same death: every task is put back by one of them, and counts one death."""
    bench.claimed(*(str(n) for n in range(100)), worker=77)
    found: list[int] = []

    at_once([lambda: found.append(bench.queue.rescue())] * 4)

    assert sum(found) == 100
    assert set(bench.rows(None, "status", "error")) == {("pending", "worker 77 died while it ran, 1 in all")}


def test_rescue_beside_a_pending_twin_coalesces(bench: Bench) -> None:
    """The newer request does the dead worker's work."""
    bench.claimed("x", worker=77)
    bench.add(good("x", main=B))

    assert bench.queue.rescue() == 1

    assert bench.rows(None, "status", "result") == [("completed", "coalesced"), ("pending", None)]


def test_what_kills_its_worker_ends_up_alone_and_fails(bench: Bench) -> None:
    """From the third death on half as many are claimed each time; the last deaths cost nobody else anything."""
    bench.add(*(good(str(n)) for n in range(64)))
    sizes = []
    for death in range(MAX_RESCUES):
        sizes.append(len(names(bench.claim(worker=1000 + death, limit=64, now=later(death)))))
        bench.queue.rescue(now=later(death))

    assert sizes == [64, 64, 64, 32, 16, 8, 4, 2, *[1] * (MAX_RESCUES - 8)]
    assert bench.rows("failed", "entity_id", "attempts") == [("0", 0)]
    assert "20 in all" in bench.rows("failed", "error")[0]
    rest = bench.claim(worker=1, limit=64, now=later(MAX_RESCUES))
    assert names(rest)[0] == "1"


# Keeping


def test_prune(bench: Bench) -> None:
    """Ended tasks go after their own keeping time; open ones never."""
    for name, outcome in (("done", Complete("done")), ("failed", Fail("refused"))):
        bench.end(bench.claimed(name), outcome)
    bench.claimed("running")
    bench.add(good("waiting"))
    now = datetime.now(UTC)

    gone = [
        bench.queue.prune(completed_days=3, failed_days=90, now=now + timedelta(days=days)) for days in (2, 4, 89, 91)
    ]

    assert gone == [0, 1, 0, 1]
    assert bench.rows(None, "entity_id") == ["running", "waiting"]


def test_retry_failed(bench: Bench) -> None:
    """All, an account's or those named: pending with new attempts, at once."""
    for n, account in enumerate((A, A, B)):
        bench.add(good(str(n), account))
        batch = bench.claim()
        assert batch is not None
        bench.end(list(batch.tasks), Fail("refused"))
    ids = bench.rows("failed", "id")

    assert bench.queue.retry_failed(ids=[ids[1]]) == 1
    assert bench.rows("pending", "entity_id", "attempts", "result") == [("1", 0, None)]
    assert bench.queue.retry_failed(account_id=B) == 1
    assert bench.queue.retry_failed(ids=[]) == 0
    assert bench.queue.retry_failed() == 1
    assert bench.rows("pending", "entity_id") == ["0", "1", "2"]


def test_retry_failed_makes_no_twins(bench: Bench) -> None:
    """What is pending already stays one; of several that failed at the same thing the newest is tried."""
    bench.end(bench.claimed("x"), Fail("first"))
    bench.end(bench.claimed("y"), Fail("first"))
    bench.end(bench.claimed("y"), Fail("second"))
    bench.add(good("x"))

    assert bench.queue.retry_failed() == 1

    assert bench.rows(None, "entity_id", "status") == [
        ("x", "failed"), ("y", "failed"), ("y", "pending"), ("x", "pending"),
    ]  # fmt: skip


def test_a_run_of_retried_tasks_can_be_reopened(bench: Bench) -> None:
    """Retried tasks are still their run's, which is under way once more; of two of one account, the newer."""
    runs = Runs(bench.db, bench.queue)
    ids = []
    for entity in ("x", "y"):
        with bench.db.transaction() as conn:
            id, _ = runs.start(conn, account=A, main=MAIN, mains=[MAIN], requested_by="test")
        bench.add(good(entity, run_id=id))
        batch = bench.claim()
        assert batch is not None
        bench.end(list(batch.tasks), Fail("refused"))
        runs.finish([id])
        ids.append(id)

    assert bench.queue.retry_failed() == 2
    runs.reopen()

    assert [runs.get(id)["finished_at"] is None for id in ids] == [False, True]
    assert runs.get(ids[1])["counts"]["pending"] == 1


def test_stats(bench: Bench) -> None:
    """Tasks by queue, account and status, with the age of the oldest that is due."""
    bench.lanes[B] = "other"
    bench.claimed("1")
    bench.add(good("2"), good("3"), good("4", scheduled_at=later(1000)), now=later(10))
    bench.add(good("5", B, scheduled_at=later(1000)))

    stats = bench.queue.stats(now=later(70))

    fields = ("queue", "account_id", "status", "tasks", "oldest_seconds")
    assert [tuple(row[name] for name in fields) for row in stats] == [
        ("default", A, "pending", 3, 60.0),
        ("default", A, "processing", 1, None),
        ("other", B, "pending", 1, None),
    ]


def test_oldest(bench: Bench) -> None:
    """The age of the oldest due pending task of all; none where none is due."""
    assert bench.queue.oldest(now=T0) is None
    bench.claimed("running")
    bench.add(good("1", scheduled_at=later(30)), good("2", B, scheduled_at=later(40)))

    assert [bench.queue.oldest(now=later(seconds)) for seconds in (29, 30, 70)] == [None, 0.0, 40.0]


def test_peek(bench: Bench) -> None:
    """The newest first, of one status, perhaps of one account, so many at most."""
    for n in range(4):
        bench.add(good(str(n), B if n == 3 else A))

    assert [row["entity_id"] for row in bench.queue.peek("pending")] == ["3", "2", "1", "0"]
    assert [row["entity_id"] for row in bench.queue.peek("pending", limit=2)] == ["3", "2"]
    assert [row["entity_id"] for row in bench.queue.peek("pending", account_id=A, limit=2)] == ["2", "1"]
    assert bench.queue.peek("failed") == []


def eventually(look: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer; the last one when none comes in time."""
    until = time.monotonic() + seconds
    for _ in count():
        answer = look()
        if answer or time.monotonic() > until:
            return answer
        time.sleep(0.01)
    return None


def test_holders(bench: Bench) -> None:
    """Which worker has how many tasks under way, of all accounts."""
    first, second = bench.live(), bench.live()
    bench.claimed("1", "2", worker=first)
    bench.add(good("3", B), good("4", C), good("waiting", scheduled_at=later(60)))
    bench.claim(worker=first)
    bench.claim(worker=second)

    assert bench.queue.holders() == {first: 3, second: 1}
    workers = Monitor(bench.db, bench.queue, Pauses(bench.db, bench.queue.pauses_changed)).snapshot()["workers"]
    assert [(row["id"], row["processing"]) for row in workers] == [(first, 3), (second, 1)]


# What an operator does


def test_what_waits_for_a_removed_account_goes(bench: Bench) -> None:
    """Due, not due, and enqueued in a transaction; what is being processed ends by itself, others are left alone."""
    (task,) = bench.claimed("claimed")
    bench.add(good("waiting"), good("later", scheduled_at=later(60)), good("other's", B))

    with bench.db.transaction() as conn:
        bench.queue.enqueue([good("on its way")], within=conn, now=T0)
        bench.queue.forget(A, conn)

    assert bench.rows("pending", "entity_id") == ["other's"]
    assert bench.queue.complete([(task, Complete("done"))]) == 1
    assert [row["tasks"] for row in bench.queue.stats(now=T0)] == [1, 1]
    bench.add(good("waiting"))
    assert sorted(bench.rows("pending", "entity_id")) == ["other's", "waiting"]


def failed(bench: Bench, *tasks: NewTask, error_class: str = "Permanent") -> None:
    """Enqueue these, claim them and end them without success."""
    bench.add(*tasks)
    while batch := bench.claim():
        bench.queue.fail([(task, Fail("broken", error_class)) for task in batch.tasks])


def test_retry_failed_by_error_class_and_time(bench: Bench) -> None:
    """Only what failed for that reason, or since that moment, goes on; all that is asked must hold."""
    failed(bench, good("x"), error_class="Permanent")
    failed(bench, good("y"), good("z", B), error_class="TimedOut")
    tomorrow = datetime.now(UTC) + timedelta(days=1)

    assert bench.queue.retry_failed(since=tomorrow) == 0
    assert bench.queue.retry_failed(error_class="TimedOut", account_id=A) == 1
    assert bench.rows("pending", "entity_id") == ["y"]
    assert bench.queue.retry_failed(since=tomorrow - timedelta(days=2)) == 2


def test_cancel_by_id_account_and_queue(bench: Bench) -> None:
    """Pending tasks that meet all of it end as cancelled with the reason in their history; the others wait on."""
    bench.lanes[B] = "slow-b"
    bench.add(good("x"), good("y"), good("z", B), good("later", B, scheduled_at=later(60)))
    ids = bench.rows("pending", "id")

    assert bench.queue.cancel(ids=[ids[0]], account_id=B).tasks == 0
    assert bench.queue.cancel(ids=[]).tasks == 0
    assert bench.queue.cancel(ids=[ids[0]], reason="wrong").tasks == 1
    assert bench.queue.cancel(queue="slow-*", reason="wrong").tasks == 2

    assert bench.rows("pending", "entity_id") == ["y"]
    assert bench.rows("failed", "result", "error", "error_class") == [("cancelled", "wrong", "Cancelled")] * 3
    assert [entry["how"] for entry in bench.rows("failed", "history")[0]] == ["cancel"]
    assert names(bench.claim(now=later(120))) == ["y"]


def test_cancel_leaves_what_is_being_processed(bench: Bench) -> None:
    """A claimed task goes on, and cancel says how many do so."""
    tasks = bench.claimed("x", "y")
    bench.add(good("z"))

    cancelled = bench.queue.cancel(account_id=A, reason="stop")

    assert (cancelled.tasks, cancelled.processing) == (1, 2)
    assert bench.end(tasks, Complete("done")) == ["x", "y"]


def test_what_was_cancelled_comes_back_by_name_only(bench: Bench) -> None:
    """`retry all` does not undo an operator's word; its id or its error class does, and the task is due at once."""
    bench.add(good("x", scheduled_at=later(60)), good("y"))
    bench.queue.cancel()
    (x, y) = bench.rows("failed", "id")

    assert bench.queue.retry_failed() == 0
    assert bench.queue.retry_failed(ids=[x]) == 1
    assert bench.queue.retry_failed(error_class="Cancelled") == 1
    assert names(bench.claim(now=T0)) == ["x", "y"]
    assert [row["id"] for row in bench.rows("processing")] == [x, y]


def test_reroute_moves_what_waits(bench: Bench) -> None:
    """Tasks go where the route says now, in their order, due or not; what is being processed keeps its queue."""
    running = bench.claimed("running")
    bench.add(good("x"), good("y"), good("later", scheduled_at=later(60)), good("z", B))
    bench.lanes[A] = "account-a"

    def route(_: str, account: UUID) -> str:
        return bench.lanes.get(account, "default")

    assert bench.queue.reroute(route) == 3
    assert bench.queue.reroute(route) == 0
    assert names(bench.claim("account-a")) == ["x", "y"]
    assert names(bench.claim("default", worker=2)) == ["z"]
    assert bench.end(running, Complete("done")) == ["running"]
    assert names(bench.claim("account-a", now=later(60))) == ["later"]


def test_reroute_leaves_tasks_of_unknown_accounts(bench: Bench) -> None:
    """A route that knows the account of one task only moves that one."""
    bench.add(good("x"), good("y", B))

    def route(_: str, account: UUID) -> str:
        if account == A:
            raise NotFound("no such account")
        return "moved"

    assert bench.queue.reroute(route) == 1
    assert bench.rows("pending", "entity_id", "queue") == [("x", "default"), ("y", "moved")]


def test_reroute_while_workers_claim(bench: Bench) -> None:
    """Each task is claimed once, whether it was moved or taken before."""
    bench.add(*(good(str(n)) for n in range(500)))
    bench.lanes[A] = "moved"
    claimed: list[str] = []

    def work() -> None:
        while batch := bench.claim(worker=7, limit=20):
            claimed.extend(names(batch))
            bench.queue.complete([(task, Complete("done")) for task in batch.tasks])

    worker = threading.Thread(target=work)
    worker.start()
    bench.queue.reroute(lambda *_: "moved")
    worker.join()
    work()

    assert sorted(map(int, claimed)) == list(range(500))


def test_a_twin_goes_to_the_queue_of_the_newer_request(bench: Bench) -> None:
    """After a change of topology, coalescing moves the pending row; single or in bulk."""
    bench.add(*(good(str(n)) for n in range(101)))
    bench.lanes[A] = "new"

    bench.add(good("0"))
    assert bench.rows("pending", "queue").count("new") == 1
    bench.add(*(good(str(n)) for n in range(101)))

    assert set(bench.rows("pending", "queue")) == {"new"}


def test_find(bench: Bench) -> None:
    """A task by its id with every attempt that ended badly; None for an id that no task has."""
    (task,) = bench.claimed("x")
    bench.queue.retry([(task, Retry("first", 0, "Retryable"))], now=T0)
    failed_task = bench.claim()
    assert failed_task is not None
    bench.queue.fail([(failed_task.first, Fail("second", "Permanent"))])

    row = bench.queue.find(task.id)

    assert row is not None
    assert (row["status"], row["entity_id"]) == ("failed", "x")
    assert [(e["how"], e["attempt"], e["error"]) for e in row["history"]] == [
        ("retry", 1, "first"),
        ("fail", 2, "second"),
    ]
    assert bench.queue.find(0) is None


def test_a_pause_holds_for_the_very_next_claim(bench: Bench) -> None:
    """Also a worker that knows what waits takes nothing from a queue that was paused since; resumed, it goes on."""
    pauses = Pauses(bench.db, bench.queue.pauses_changed)
    bench.lanes[B] = "other"
    bench.queue.enqueue([*(good(str(n)) for n in range(4)), good("b", B)])
    assert names(bench.queue.claim(["default"], 1, limit=1)) == ["0"]

    pauses.pause("def*", datetime.now(UTC) + timedelta(hours=1), "maintenance")

    assert names(bench.queue.claim(["default"], 1, limit=1)) == []
    assert names(bench.queue.claim(["*"], 2, limit=1)) == ["b"]
    assert [(row["queue"], row["reason"]) for row in pauses.current()] == [("def*", "maintenance")]
    assert pauses.resume("def*")
    assert not pauses.resume("def*")
    assert names(bench.queue.claim(["default"], 1, limit=1)) == ["1"]
