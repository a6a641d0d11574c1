"""One batch, from its handler to what is written: outcomes, bounds, interruption, effects."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from worker import errors
from worker.app import App
from worker.db import Connection
from worker.executor import MAX_DELAY, Context, Executor, Handler, Settlement, Tally
from worker.loop import Options
from worker.queues import Ended
from worker.task import (
    Batch,
    Complete,
    Fail,
    NewTask,
    Outcome,
    Plan,
    Release,
    Retry,
    Snooze,
    SyncGoods,
    Task,
)

ACCOUNT = UUID(int=1)
KIND = ("product", "sync")


class Middle(random.Random):
    """Jitter without chance: always the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@dataclass
class Stand:
    """An app, an account with tasks, and executors for handlers of the test's own."""

    app: App
    stopping: bool = False
    written: list[str] = field(default_factory=list)

    def executor(self, handler: Handler | None, *, timeout: float = 0, tries: int = 3, **options: Any) -> Executor:
        """An executor that knows one kind of task."""

        def no_client(account: UUID, deadline: float) -> Any:
            raise AssertionError("no request belongs to this test")

        return Executor(
            self.app.db,
            self.app.queue,
            self.app.accounts,
            self.app.runs,
            lambda: {KIND: handler} if handler else {},
            options.pop("client", no_client),
            timeout=timeout,
            tries=tries,
            stopping=lambda: self.stopping,
            **{"rng": Middle(), **options},
        )

    def batch(self, number: int = 3, worker: int = 1, now: datetime | None = None, **fields: Any) -> Batch:
        """Tasks "0", "1", ... claimed."""
        self.app.queue.enqueue(
            [NewTask(ACCOUNT, *KIND, SyncGoods(ACCOUNT), entity_id=str(n), **fields) for n in range(number)]
        )
        batch = self.app.queue.claim(["*"], worker, limit=1000, now=now)
        assert batch is not None
        return batch

    def run(self, handler: Handler, number: int = 3, **options: Any) -> Tally:
        """One batch through a new executor."""
        return self.executor(handler, **options).execute(self.batch(number))

    def rows(self, *fields: str) -> list[Any]:
        """Every task's fields (one alone: bare), by id."""
        found = [
            row
            for status in ("pending", "processing", "completed", "failed")
            for row in self.app.queue.peek(status, limit=1000)
        ]
        found.sort(key=lambda row: row["id"])
        return [row[fields[0]] if len(fields) == 1 else tuple(row[name] for name in fields) for row in found]

    def parked(self) -> tuple[Any, Any]:
        """(until, why) the account is closed."""
        (row,) = self.app.db.fetch("account", id=ACCOUNT)
        return row["parked_until"], row["parked_reason"]


@pytest.fixture
def stand(app: App) -> Stand:
    """One child account, nothing to do yet."""
    app.accounts.add(ACCOUNT, "child", "child", "solution", "token")
    return Stand(app)


def raising(error: Exception) -> Handler:
    """A handler that gets nowhere."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        raise error
        yield

    return handler


def one_by_one(outcome: Callable[[Task], Outcome] = lambda _: Complete("done")) -> Handler:
    """A handler that settles each task by itself."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        for task in tasks:
            yield Settlement([Ended(task, outcome(task))])

    return handler


REJECTED = errors.Rejected(400, [{"error": "wrong", "code": 3006}])
AWAY = psycopg.OperationalError("gone")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.RateLimited("slow down", 7), Snooze(7, "slow down")),
        (errors.Unauthorized("401"), Snooze(0, "401")),
        (errors.Skipped("nothing to do"), Complete("skipped", "nothing to do")),
        (errors.Permanent("never"), Fail("never", "Permanent")),
        (REJECTED, Fail("wrong [3006]", "Rejected")),
        (errors.Gone(404, []), Fail("HTTP 404", "Gone")),
        (errors.TooLarge(413, []), Fail("HTTP 413", "TooLarge")),
        (errors.Ambiguous("two"), Fail("two", "Ambiguous")),
        (errors.TimedOut(), Retry("ran longer than its time limit of 60 s", 2, "TimedOut")),
        (errors.Interrupted(), Release()),
        (errors.Retryable("503"), Retry("503", 2, "Retryable")),
        (AWAY, Snooze(1, "PostgreSQL was away: gone")),
        (errors.QueueAway("Redis is away: gone"), Snooze(1, "Redis is away: gone")),
        (psycopg.InterfaceError("closed"), Snooze(1, "PostgreSQL was away: closed")),
        (psycopg.errors.QueryCanceled("too long"), Retry("QueryCanceled: too long", 2, "QueryCanceled")),
        (ValueError("odd"), Retry("ValueError: odd", 2, "ValueError")),
        (psycopg.errors.UniqueViolation("twice"), Retry("UniqueViolation: twice", 2, "UniqueViolation")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_outcomes(stand: Stand, error: Exception, outcome: Outcome) -> None:
    """The table of errors, each with the way a task ends by it."""
    executor = stand.executor(None, timeout=60)

    assert executor.classify(error, stand.batch(1).first) == outcome


@pytest.mark.parametrize(
    ("error", "status", "attempts", "result", "note"),
    [
        (errors.RateLimited("slow down", 7), "pending", 0, None, "slow down"),
        (errors.Unauthorized("401"), "pending", 0, None, "401"),
        (errors.Skipped("nothing"), "completed", 1, "skipped", "nothing"),
        (REJECTED, "failed", 1, "failed", "wrong [3006]"),
        (errors.Retryable("503"), "pending", 1, None, "503"),
        (errors.Interrupted(), "pending", 0, None, None),
        (AWAY, "pending", 0, None, "PostgreSQL was away: gone"),
        (ValueError("odd"), "pending", 1, None, "ValueError: odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_ends_every_task_not_settled(
    stand: Stand, error: Exception, status: str, attempts: int, result: str | None, note: str | None
) -> None:
    """The first is settled and stays so; the rest ends by the error, and none is left in work."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        yield Settlement([Ended(tasks[0], Complete("done"))])
        raise error

    stand.run(handler)

    rest = (status, attempts, result, note)
    assert stand.rows("status", "attempts", "result", "error") == [("completed", 1, "done", None), rest, rest]


def test_every_outcome_is_recorded_and_counted(stand: Stand) -> None:
    """One part may end its tasks in five ways; the tally tells how many ended how."""
    ends = [Complete("done"), Retry("again"), Snooze(9, "later"), Fail("no"), Release()]

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        yield Settlement([Ended(task, end) for task, end in zip(tasks, ends, strict=True)])

    tally = stand.run(handler, 5)

    assert stand.rows("status", "attempts") == [
        ("completed", 1), ("pending", 1), ("pending", 0), ("failed", 1), ("pending", 0),
    ]  # fmt: skip
    assert tally.counts == {"complete": 1, "retry": 1, "snooze": 1, "fail": 1, "release": 1}
    assert (tally.done, tally.failed) == (1, 1)


@pytest.mark.parametrize(("own", "tries", "expected"), [(None, 3, 3), (5, 3, 5), (1, 3, 1), (2, 0, 2)])
def test_retries_are_bounded(stand: Stand, own: int | None, tries: int, expected: int) -> None:
    """After the task's own number of attempts, else the worker's, it fails and says so."""
    executor = stand.executor(raising(errors.Retryable("503")), tries=tries)
    moment = datetime.now(UTC)
    for attempt in range(1, expected + 1):
        assert stand.rows("status") == (["pending"] if attempt > 1 else [])
        executor.execute(stand.batch(1, max_attempts=own, now=moment + timedelta(days=attempt)))

    assert stand.rows("status", "attempts", "error") == [
        ("failed", expected, f"gave up after {expected} tries: 503"),
    ]


def test_a_handlers_own_retry_is_bounded_alike(stand: Stand) -> None:
    """A retry among the outcomes gets the executor's delay and fails after the last try."""
    executor = stand.executor(one_by_one(lambda _: Retry("item")), tries=2)
    moment = datetime.now(UTC)
    for attempt in (1, 2):
        executor.execute(stand.batch(1, now=moment + timedelta(days=attempt)))

    assert stand.rows("status", "error") == [("failed", "gave up after 2 tries: item")]


def test_without_a_limit_it_is_tried_for_ever(stand: Stand) -> None:
    """--tries 0: no attempt is the last, and the delay stays within its bound however many there were."""
    executor = stand.executor(None, tries=0)
    task = stand.batch(1).first

    outcomes = [executor.classify(errors.Retryable("503"), again(task, n)) for n in (10, 100, 2000)]

    assert outcomes == [Retry("503", MAX_DELAY, "Retryable")] * 3


def again(task: Task, attempts: int) -> Task:
    """The same task at a later attempt."""
    values = {name: getattr(task, name) for name in Task.__slots__}
    return Task(**{**values, "attempts": attempts})


def test_backoff_as_given(stand: Stand) -> None:
    """--backoff: each retry waits as its list says, the last for all further ones, and without jitter."""
    executor = stand.executor(None, tries=0, backoff=(10, 60, 300))
    (task,) = stand.batch(1).tasks

    outcomes = [executor.classify(errors.Retryable("503"), again(task, n)) for n in (1, 2, 3, 4, 50)]

    assert [outcome.delay for outcome in outcomes if isinstance(outcome, Retry)] == [10, 60, 300, 300, 300]


def test_the_delay_grows_with_jitter(stand: Stand) -> None:
    """2, 4, 8, ... seconds, each between half and one and a half of that, never the same for all."""
    executor = stand.executor(None, tries=0, rng=random.Random(7))
    task = stand.batch(1).first

    for attempt in range(1, 15):
        middle = min(2**attempt, MAX_DELAY)
        outcomes = [executor.classify(errors.Retryable("503"), again(task, attempt)) for _ in range(50)]
        delays = [outcome.delay for outcome in outcomes if isinstance(outcome, Retry)]
        assert len(set(delays)) == 50
        assert middle / 2 <= min(delays) < max(delays) <= middle * 1.5


# Interruption


def sleeping() -> None:
    time.sleep(60)


def busy() -> None:
    while True:
        pass


def querying(ctx: Context) -> None:
    with ctx.db.transaction() as conn:
        conn.execute("select pg_sleep(60)")


@pytest.mark.parametrize("stuck", [sleeping, busy, querying])
def test_the_time_limit_interrupts(stand: Stand, stuck: Callable[..., None]) -> None:
    """A handler that sleeps, computes or waits for PostgreSQL is interrupted; what it had settled stays."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        yield Settlement([Ended(tasks[0], Complete("done"))])
        stuck(ctx) if stuck is querying else stuck()

    stand.run(handler, 2, timeout=0.3)

    assert stand.rows("status", "attempts", "error") == [
        ("completed", 1, None),
        ("pending", 1, "ran longer than its time limit of 0.3 s"),
    ]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_no_alarm_hits_what_comes_after(stand: Stand) -> None:
    """Limits that end anywhere in a batch, also between two statements: every task ends, no alarm outlives it."""

    def unexpected(*_: object) -> None:
        raise AssertionError("an alarm after the batch")

    before = signal.signal(signal.SIGALRM, unexpected)
    rng = random.Random(5)
    try:
        for n in range(60):
            executor = stand.executor(one_by_one(), timeout=rng.uniform(0.0005, 0.02), tries=0)
            executor.execute(stand.batch(5, now=datetime.now(UTC) + timedelta(days=n + 1)))
            assert "processing" not in stand.rows("status")
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_watchdog_looks_at_the_handler_only(stand: Stand) -> None:
    """While outcomes are recorded, which may wait for PostgreSQL, there is no time limit to be judged by."""
    deadlines: list[float] = []
    executor = stand.executor(None)

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        deadlines.append(executor.deadline)

        def effect(conn: Connection, owned: set[int]) -> None:
            deadlines.append(executor.deadline)

        yield Settlement([Ended(task, Complete("done")) for task in tasks], effect)

    executor = stand.executor(handler, timeout=60, clock=lambda: 100.0)
    executor.execute(stand.batch(1))

    assert [*deadlines, executor.deadline] == [160.0, float("inf"), float("inf")]


def test_the_client_is_told_the_end_of_the_batch(stand: Stand) -> None:
    """A client made for a handler knows until when it may wait."""
    given: list[tuple[UUID, float]] = []

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        ctx.client(tasks[0].account_id)
        yield Settlement([Ended(task, Complete("done")) for task in tasks])

    def client(account: UUID, deadline: float) -> Any:
        given.append((account, deadline))

    stand.run(handler, timeout=60, client=client, clock=lambda: 100.0)

    assert given == [(ACCOUNT, 160.0)]


def test_stopping_hands_back_what_has_not_begun(stand: Stand) -> None:
    """Told to stop before the batch, or in the middle: what is done is recorded, the rest as if never claimed."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        yield Settlement([Ended(tasks[0], Complete("done"))])
        stand.stopping = True
        yield Settlement([Ended(tasks[1], Complete("done"))])
        yield Settlement([Ended(tasks[2], Complete("done"))])

    stand.run(handler)

    assert stand.rows("status", "attempts") == [("completed", 1), ("completed", 1), ("pending", 0)]
    stand.run(handler)
    assert stand.rows("status", "attempts")[2] == ("pending", 0)


def test_interrupt_hands_back_at_once(stand: Stand) -> None:
    """A second signal in the middle of a request: the batch is handed back, the attempt not counted."""
    executor = stand.executor(None)

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        yield Settlement([Ended(tasks[0], Complete("done"))])
        os.kill(os.getpid(), signal.SIGUSR1)
        sleeping()

    executor = stand.executor(handler)
    before = signal.signal(signal.SIGUSR1, lambda *_: executor.interrupt())
    try:
        executor.execute(stand.batch())
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert stand.rows("status", "attempts") == [("completed", 1), ("pending", 0), ("pending", 0)]


def test_interrupt_at_any_moment(stand: Stand) -> None:
    """Wherever it comes, also while outcomes are being written: no error, and nothing left in work."""
    rng = random.Random(9)
    current: list[Executor] = []

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        for task in tasks:
            ctx.db.fetch("account", id=ACCOUNT)
            yield Settlement([Ended(task, Retry("again"))])

    before = signal.signal(signal.SIGUSR1, lambda *_: current[0].interrupt())
    try:
        for n in range(60):
            current[:] = [stand.executor(handler, tries=0)]
            batch = stand.batch(5, now=datetime.now(UTC) + timedelta(days=n + 1))
            timer = threading.Timer(rng.uniform(0, 0.02), os.kill, [os.getpid(), signal.SIGUSR1])
            timer.start()
            current[0].execute(batch)
            timer.join()
            assert set(stand.rows("status")) == {"pending"}
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_interrupt_outside_a_handler_raises_nothing(stand: Stand) -> None:
    """A signal between two batches is for the loop to see."""
    stand.executor(None).interrupt()


# Effects


def effect(stand: Stand, ids: list[set[int]], then: Callable[[], None] = lambda: None) -> Handler:
    """A handler whose one part leaves a trace in the database."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        def write(conn: Connection, owned: set[int]) -> None:
            ids.append(owned)
            conn.execute("insert into limiter_principals (principal) values ('trace')")
            then()

        yield Settlement([Ended(task, Complete("done")) for task in tasks], write)

    return handler


def traces(stand: Stand) -> int:
    """How many traces effects have left."""
    with stand.app.db.connection() as conn:
        return len(conn.execute("select from limiter_principals where principal = 'trace'").fetchall())


def test_an_effect_sees_only_what_is_still_ours(stand: Stand) -> None:
    """A task taken over by another worker meanwhile is not among the owned, and its outcome is not written."""
    batch = stand.batch()
    with stand.app.db.connection() as conn:
        conn.execute("update sync_queue set worker = 2 where id = %s", [batch.tasks[1].id])
    seen: list[set[int]] = []

    tally = stand.executor(effect(stand, seen)).execute(batch)

    assert seen == [{batch.tasks[0].id, batch.tasks[2].id}]
    assert stand.rows("status") == ["completed", "processing", "completed"]
    assert (tally.counts["lost"], tally.done) == (1, 2)


@pytest.mark.parametrize(
    "error", [psycopg.errors.QueryCanceled("too long"), ValueError("odd"), psycopg.errors.UniqueViolation("twice")]
)
def test_an_effect_that_raises_leaves_nothing_written(stand: Stand, error: Exception) -> None:
    """Neither its own trace nor an outcome; the tasks end by the error, and the worker goes on."""

    def then() -> None:
        raise error

    stand.run(effect(stand, [], then))

    assert traces(stand) == 0
    expected = ("pending", 1, f"{type(error).__name__}: {error}")
    assert stand.rows("status", "attempts", "error") == [expected] * 3


def test_the_parts_after_a_broken_effect_are_done(stand: Stand) -> None:
    """An effect that raises ends its own tasks only."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        def broken(conn: Connection, owned: set[int]) -> None:
            raise errors.Permanent("never")

        yield Settlement([Ended(tasks[0], Complete("done"))], broken)
        yield Settlement([Ended(tasks[1], Complete("done"))])

    stand.run(handler, 2)

    assert stand.rows("status", "error") == [("failed", "never"), ("completed", None)]


def test_recording_waits_out_a_database_that_is_away(stand: Stand) -> None:
    """The outcome is recorded once PostgreSQL is back; the effect runs anew, and leaves one trace."""
    tries: list[int] = []

    def then() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise psycopg.OperationalError("gone")

    stand.run(effect(stand, [], then), 1)

    assert (len(tries), traces(stand), stand.rows("status")) == (3, 1, ["completed"])


@pytest.mark.parametrize("error", [errors.Unauthorized("401"), errors.RateLimited("slow down", 7)])
def test_closing_the_account_waits_out_a_database_that_is_away(
    stand: Stand, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that comes while PostgreSQL is away neither breaks the worker nor strands the tasks in work."""
    tries: list[int] = []
    for name in ("park", "pause"):
        original = getattr(stand.app.accounts, name)

        def flaky(*given: Any, original: Callable[..., None] = original) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise psycopg.OperationalError("gone")
            original(*given)

        monkeypatch.setattr(stand.app.accounts, name, flaky)

    stand.run(raising(error))

    assert len(tries) == 3
    assert stand.rows("status", "attempts") == [("pending", 0)] * 3
    assert stand.parked()[1] == str(error)


# The rest


def test_an_unknown_kind_fails(stand: Stand) -> None:
    """A task of a newer release's kind fails and says why."""
    stand.executor(None).execute(stand.batch(1))

    assert stand.rows("status", "error") == [("failed", "this release does not know tasks of kind product/sync")]


def test_an_unknown_error_is_retried_then_fails(stand: Stand) -> None:
    """A bug costs its tasks their attempts, not the worker its life."""
    executor = stand.executor(raising(KeyError("name")), tries=2)
    moment = datetime.now(UTC)
    for day, status in ((1, "pending"), (2, "failed")):
        executor.execute(stand.batch(1, now=moment + timedelta(days=day)))
        assert stand.rows("status") == [status]

    assert stand.rows("error") == ["gave up after 2 tries: KeyError: 'name'"]


def test_a_refused_token_parks_the_account(stand: Stand) -> None:
    """Nothing of it is claimed until somebody gives it a new token; no attempt is counted."""
    stand.run(raising(errors.Unauthorized("401 refused")))

    until, reason = stand.parked()
    assert (until.year, reason) == (9999, "401 refused")
    assert stand.app.queue.claim(["*"], 1, now=datetime.now(UTC) + timedelta(days=365)) is None
    stand.app.accounts.set_token(ACCOUNT, "new")
    batch = stand.app.queue.claim(["*"], 1, limit=10)
    assert batch is not None
    assert [task.attempts for task in batch.tasks] == [1, 1, 1]


def test_a_long_wait_pauses_the_account(stand: Stand) -> None:
    """Nothing of it is claimed before the wait is over, also nothing that was not in the batch."""
    stand.run(raising(errors.RateLimited("slow down", 600)))
    stand.app.queue.enqueue([NewTask(ACCOUNT, "catalogue", "plan", Plan(), priority=10)])
    now = datetime.now(UTC)

    assert stand.app.queue.claim(["*"], 1, now=now + timedelta(seconds=500)) is None
    assert stand.app.queue.claim(["*"], 1, now=now + timedelta(seconds=700)) is not None
    assert stand.parked()[1] == "slow down"


def test_a_handler_that_ends_early(stand: Stand) -> None:
    """What it left without an outcome is tried again, and says so."""

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        yield Settlement([Ended(tasks[1], Complete("done"))])

    stand.run(handler)

    expected = ("pending", "the handler ended without an outcome for this task")
    assert stand.rows("status", "error") == [expected, ("completed", None), expected]


def test_a_run_ends_with_its_last_task(stand: Stand) -> None:
    """The run of a batch is ended by the batch that leaves it no open task, not before."""
    with stand.app.db.transaction() as conn:
        run, _ = stand.app.runs.start(conn, account=ACCOUNT, main=ACCOUNT, mains=[], requested_by="test")
    failing = stand.executor(one_by_one(lambda task: Fail("no") if task.entity_id == "0" else Retry("again")))
    failing.execute(stand.batch(2, run_id=run))
    assert stand.app.runs.get(run)["finished_at"] is None

    batch = stand.app.queue.claim(["*"], 1, limit=10, now=datetime.now(UTC) + timedelta(days=1))
    assert batch is not None
    stand.executor(one_by_one()).execute(batch)

    ended = stand.app.runs.get(run)
    assert ended["finished_at"] is not None
    assert {name: ended["counts"][name] for name in ("completed", "failed", "pending")} == {
        "completed": 1, "failed": 1, "pending": 0,
    }  # fmt: skip


def test_the_loop_hands_its_limits_to_the_executor(stand: Stand) -> None:
    """A worker's --tries reaches its tasks: with one try the first error is the last."""
    stand.app.queue.enqueue([NewTask(ACCOUNT, "catalogue", "plan", Plan(), entity_id="x")])
    stand.app.accounts.set_token(ACCOUNT, "token")

    stand.app.worker(Options(stop_when_empty=True, tries=1, memory=4096, timeout=0.0001)).run()

    assert stand.rows("status", "attempts") == [("failed", 1)]
