"""The limiter: what it grants, when, and that no schedule of requests breaks MoySklad's limits.

Nothing is waited for: the limiter's rows are moved in time instead, and sleeping is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Server
from worker.accounts import Account
from worker.db import Database, fetch
from worker.errors import RateLimited
from worker.limiter import (
    ACCOUNT_PARALLEL,
    BUDGET,
    FRESH_LAG,
    LAG,
    LONG,
    PARALLEL,
    WINDOW,
    Limiter,
)
from worker.queues import DatabaseQueue


@pytest.fixture(scope="module")
def db(server: Server, template: str) -> Iterator[Database]:
    """One database for this file; every test has accounts of its own."""
    url = server.create(template)
    database = Database(url, size=12, connect_timeout=30)
    yield database
    database.close()
    server.drop(url)


def account(weight: int = 1, id: UUID | None = None, token: str = "t") -> Account:
    """An account nobody has used."""
    return Account(id or uuid4(), "A", "child", "solution", weight, token)


@dataclass
class Sleeper:
    """Notes what it was asked to sleep, and lets something happen meanwhile."""

    meanwhile: Callable[[], None] = lambda: None
    slept: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.meanwhile()


def limiter(db: Database, sleep: Sleeper | None = None, **options: Any) -> Limiter:
    """A limiter that never really sleeps, on a clock that stands still."""
    return Limiter(db, **{"ttl": 335, "sleep": sleep or Sleeper(), "clock": lambda: 0.0, **options})


def ask(db: Database, who: Account, **options: Any) -> dict[str, Any]:
    """One call of limiter_acquire, with MoySklad's numbers unless told otherwise."""
    numbers = {"budget": BUDGET, "window": WINDOW, "lag": LAG, "parallel": PARALLEL, "ttl": 335.0, "worker": None}
    numbers |= {"account_parallel": ACCOUNT_PARALLEL, "longest": LONG, "units": who.weight}
    return db.fetch("acquire", **numbers | {"principal": who.principal, "account": who.id} | options)[0]


def grants(db: Database, who: Account) -> list[dict[str, Any]]:
    """The principal's grants, the oldest first."""
    with db.connection() as conn:
        sql = "select * from limiter_grants where principal = %s order by id"
        return conn.execute(sql, [who.principal]).fetchall()


def spend(db: Database, who: Account, units: int, leaves_in: float) -> None:
    """Units that leave the window in so many seconds."""
    with db.connection() as conn:
        conn.execute(
            "insert into limiter_grants (principal, account_id, units, starts_at, leaves_at, done_at) "
            "values (%s, %s, %s, now() - interval '1 hour', now() + %s * interval '1 second', now())",
            [who.principal, who.id, units, leaves_in],
        )


def age(db: Database, who: Account, seconds: float) -> None:
    """So many seconds pass for this principal."""
    params = {"p": who.principal, "age": timedelta(seconds=seconds)}
    with db.transaction() as conn:
        conn.execute(
            "update limiter_grants set starts_at = starts_at - %(age)s, leaves_at = leaves_at - %(age)s, "
            "done_at = done_at - %(age)s where principal = %(p)s",
            params,
        )
        conn.execute(
            "update limiter_principals set paused_until = paused_until - %(age)s, last_start = last_start - %(age)s "
            "where principal = %(p)s",
            params,
        )


# -- units ------------------------------------------------------------------------------------------------


def test_the_first_window_is_free(db: Database) -> None:
    """45 units are granted at once, one after the other; the next must wait for the window."""
    who = account(weight=9)
    hour = {"window": 3600.0, "longest": 1e6, "parallel": 100}

    first = [ask(db, who, **hour)["wait"] for _ in range(5)]
    sixth = ask(db, who, **hour)

    assert first == [0.0] * 5
    assert sixth["grant_id"] is not None
    assert 3000 < sixth["wait"] <= 3600 + LAG


def test_units_come_back_in_the_order_in_which_they_leave(db: Database) -> None:
    """A request waits until enough of the earliest have left, and no longer."""
    who = account(weight=10)
    for units, leaves_in in ((20, 9000.0), (15, 100.0), (10, 500.0)):
        spend(db, who, units, leaves_in)

    first = ask(db, who, longest=1e6)
    second = ask(db, who, longest=1e6, units=11)

    assert 0 < first["wait"] <= 100
    assert 100 < second["wait"] <= 100 + WINDOW + LAG


def test_a_small_request_does_not_slip_in_before_a_large_one(db: Database) -> None:
    """Starts never go back in time: what fits now would be too much when the earlier one's turn has come."""
    who = account(weight=45)
    spend(db, who, 40, 2000)
    hour = {"window": 3600.0, "longest": 1e6}

    first = ask(db, who, **hour)
    second = ask(db, who, **hour, units=5)

    assert 1900 < first["wait"] <= 2000
    assert 2000 + 3500 < second["wait"] <= 2000 + 3600 + LAG


def test_a_request_that_is_over_leaves_sooner(db: Database) -> None:
    """Its units count until 3 s after its end, or after it has arrived at the latest, whichever is sooner."""
    who = account()

    with limiter(db).acquire(who, fresh=True):
        [under_way] = grants(db, who)
    [over] = grants(db, who)

    assert under_way["done_at"] is None
    assert under_way["leaves_at"] - under_way["starts_at"] == timedelta(seconds=WINDOW + FRESH_LAG)
    assert over["leaves_at"] == min(under_way["leaves_at"], over["leaves_at"])
    assert over["leaves_at"] - over["done_at"] <= timedelta(seconds=WINDOW, microseconds=1000)


def test_a_connection_that_is_open_needs_less_room(db: Database) -> None:
    """Over it the request arrives at once."""
    who = account()

    with limiter(db).acquire(who):
        [row] = grants(db, who)

    assert row["leaves_at"] - row["starts_at"] == timedelta(seconds=WINDOW + LAG)


def test_units_are_those_of_the_day_and_the_token(db: Database) -> None:
    """A user's token costs more from December on, a weight set by hand is used as it is."""
    by_auth = Account(uuid4(), "A", "child", "user", None, "t")
    by_hand = account(weight=7)

    for day in (date(2026, 11, 30), date(2026, 12, 1)):
        with limiter(db, today=lambda day=day: day).acquire(by_auth):
            pass
    with limiter(db).acquire(by_hand):
        pass

    assert [row["units"] for row in grants(db, by_auth)] == [3, 4]
    assert [row["units"] for row in grants(db, by_hand)] == [7]


def test_two_tokens_of_one_account_have_a_window_each(db: Database) -> None:
    """MoySklad counts by token."""
    old = account(weight=45)
    new = account(weight=45, id=old.id, token="new")

    assert [ask(db, who)["wait"] for who in (old, new)] == [0.0, 0.0]


# -- waiting ----------------------------------------------------------------------------------------------


def test_a_short_wait_is_slept(db: Database) -> None:
    """Up to ten seconds, then the request is sent."""
    who, sleep = account(), Sleeper()
    spend(db, who, BUDGET, 9)
    sent = []

    with limiter(db, sleep).acquire(who):
        sent.append(True)

    assert sent == [True]
    assert len(sleep.slept) == 1
    assert 0 < sleep.slept[0] <= 9


def test_a_long_wait_is_told_and_holds_nothing(db: Database) -> None:
    """RateLimited carries the wait; no slot and no units are kept for who goes away."""
    who, sleep = account(), Sleeper()
    spend(db, who, BUDGET, 500)

    with pytest.raises(RateLimited) as caught, limiter(db, sleep).acquire(who):
        pytest.fail("granted")

    assert 400 < caught.value.wait <= 500
    assert str(caught.value) == f"the limiter lets account {who.id} send again in {caught.value.wait:.1f} s"
    assert sleep.slept == []
    assert len(grants(db, who)) == 1


def test_a_pause_holds_for_all(db: Database) -> None:
    """After one worker's 429 nobody sends for this principal before it is over; others do."""
    who, other = account(), account()
    one, two = limiter(db), limiter(db)

    one.pause(who, 500)

    with pytest.raises(RateLimited) as caught, two.acquire(who):
        pytest.fail("granted")
    assert 400 < caught.value.wait <= 500
    assert ask(db, who)["reason"] == "paused"
    assert ask(db, other)["wait"] == 0.0


def test_a_pause_holds_longer_than_the_window(db: Database) -> None:
    """Units that come back meanwhile do not end it."""
    who = account()
    spend(db, who, BUDGET, 1000)
    limiter(db).pause(who, 2000)

    assert 1900 < ask(db, who, longest=1e6)["wait"] <= 2000


def test_a_shorter_pause_does_not_shorten_a_longer(db: Database) -> None:
    """Of several pauses the longest counts."""
    who = account()
    limiter(db).pause(who, 500)

    limiter(db).pause(who, 1)

    assert ask(db, who)["wait"] > 400


def test_after_the_pause_it_goes_on(db: Database) -> None:
    """A pause that is over costs nothing."""
    who = account()
    limiter(db).pause(who, 500)

    age(db, who, 501)

    assert ask(db, who)["wait"] == 0.0


def test_sent_later_than_its_turn_stays_longer(db: Database) -> None:
    """A process that was asleep for a second has its units stay in the window for that second more."""
    who = account()
    times = iter([100.0, 101.0])

    with limiter(db, clock=lambda: next(times)).acquire(who):
        [row] = grants(db, who)

    assert row["leaves_at"] - row["starts_at"] == timedelta(seconds=WINDOW + LAG + 1)


# -- slots ------------------------------------------------------------------------------------------------


def test_the_sixth_at_once_waits_for_a_slot(db: Database) -> None:
    """Five are under way; the sixth asks again until one of them is over."""
    who = account()
    held = [ask(db, who)["grant_id"] for _ in range(PARALLEL)]

    def free_one() -> None:
        if len(sleep.slept) == 3:
            db.fetch("free", grant=held[0], window=WINDOW)

    sleep = Sleeper(free_one)

    with limiter(db, sleep).acquire(who):
        under_way = [row for row in grants(db, who) if row["done_at"] is None]

    assert len(under_way) == PARALLEL
    assert sleep.slept == [0.02] * 3


def test_twenty_at_once_in_an_account(db: Database) -> None:
    """Five tokens of one account have twenty slots, not twenty-five."""
    id = uuid4()
    tokens = [account(id=id, token=str(number)) for number in range(5)]

    answers = [ask(db, who)["reason"] for who in tokens for _ in range(PARALLEL)]

    assert answers == [None] * ACCOUNT_PARALLEL + ["parallel"] * 5


def test_tokens_that_ask_at_the_same_moment_share_the_accounts_slots(db: Database) -> None:
    """Also those whose turns are decided at once by different processes."""
    for _ in range(5):
        id = uuid4()
        tokens = [account(id=id, token=str(number)) for number in range(8)]
        together = threading.Barrier(len(tokens))

        def one(who: Account, together: threading.Barrier = together) -> Any:
            together.wait(30)
            return ask(db, who, account_parallel=3)["reason"]

        with ThreadPoolExecutor(len(tokens)) as pool:
            answers = list(pool.map(one, tokens))

        assert answers.count(None) == 3


def test_an_error_inside_frees_the_slot(db: Database) -> None:
    """Whatever ends the request ends its grant."""
    who = account()

    with pytest.raises(ZeroDivisionError), limiter(db).acquire(who):
        raise ZeroDivisionError

    assert [row["done_at"] is None for row in grants(db, who)] == [False]


def test_interrupted_while_it_waits_frees_the_slot(db: Database) -> None:
    """A process told to stop does not keep the slot it has waited for."""
    who = account()
    spend(db, who, BUDGET, 9)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), limiter(db, Sleeper(stop)).acquire(who):
        pytest.fail("sent")

    assert [row for row in grants(db, who) if row["done_at"] is None] == []


def test_a_dead_workers_slots_are_free_with_its_burial(db: Database) -> None:
    """Its requests end with it: others need not wait for their time to live."""
    who = account()
    with db.connection() as conn:
        dead = fetch(conn, "register_worker", host="h", pid=1, name="", queues=["*"], release="r", lease=-1)[0]["id"]
    for _ in range(PARALLEL):
        ask(db, who, worker=dead)
    assert ask(db, who)["reason"] == "parallel"

    DatabaseQueue(db, lambda *_: "default").rescue()

    assert ask(db, who)["reason"] is None
    assert ask(db, who)["grant_id"] is not None


def test_a_long_request_holds_its_slot(db: Database) -> None:
    """Also when its units have left the window long ago: MoySklad still works on it."""
    who = account()
    for _ in range(PARALLEL):
        ask(db, who)

    age(db, who, 300)

    assert ask(db, who)["reason"] == "parallel"


def test_a_request_nobody_ended_ends_by_itself(db: Database) -> None:
    """After its time to live it holds no slot, of its principal or of its account."""
    who = account()
    other = account(id=who.id, token="other")
    for _ in range(PARALLEL):
        ask(db, who)
    assert ask(db, who)["reason"] == "parallel"
    assert ask(db, other, account_parallel=PARALLEL)["reason"] == "parallel"

    age(db, who, 336)

    assert ask(db, other, account_parallel=PARALLEL)["reason"] is None
    assert ask(db, who)["reason"] is None


def test_threads_contending_for_one_principal(db: Database) -> None:
    """Eight at once: never more than five under way, and all get their turn."""
    who, lock = account(), threading.Lock()
    running, most, done = 0, 0, 0

    def one(_: int) -> None:
        nonlocal running, most, done
        with Limiter(db, ttl=335).acquire(who):
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.01)
            with lock:
                running -= 1
                done += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(40)))

    assert done == 40
    assert 1 <= most <= PARALLEL
    assert [row for row in grants(db, who) if row["done_at"] is None] == []


def test_what_nobody_uses_is_forgotten(db: Database) -> None:
    """Rows of tokens unused for a day go; those in use stay."""
    unused, used = account(), account()
    for who in (unused, used):
        with limiter(db).acquire(who):
            pass
    age(db, unused, 25 * 3600)

    db.fetch("forget_principals")
    db.fetch("forget_principals")

    with db.connection() as conn:
        left = {row["principal"] for row in conn.execute("select principal from limiter_principals").fetchall()}
    assert unused.principal not in left
    assert used.principal in left
    assert (len(grants(db, unused)), len(grants(db, used))) == (0, 1)


# -- any schedule -----------------------------------------------------------------------------------------


@dataclass
class Granted:
    """What the model knows of a grant; moments are of the schedule's own time."""

    id: int
    who: int
    units: int
    worker: int
    starts: datetime
    leaves: datetime
    over: bool = False


@dataclass
class Schedule:
    """Requests of two tokens of one account from two workers, while time passes as told."""

    db: Database
    accounts: list[Account]
    workers: list[int]
    passed: timedelta = timedelta()
    granted: list[Granted] = field(default_factory=list)

    def acquire(self, who: int, worker: int, units: int, fresh: bool) -> None:
        mine = [one for one in self.granted if one.who == who]
        busy = sum(not one.over for one in mine)
        row = ask(self.db, self.accounts[who], units=units, worker=self.workers[worker],
                  lag=FRESH_LAG if fresh else LAG, parallel=3, account_parallel=5)  # fmt: skip
        if row["grant_id"] is None:
            if row["reason"] == "parallel":
                assert busy >= 3 or sum(not one.over for one in self.granted) >= 5
            else:
                assert row["wait"] > LONG
            return
        assert busy < 3
        assert 0 <= row["wait"] <= LONG
        [kept] = [one for one in grants(self.db, self.accounts[who]) if one["id"] == row["grant_id"]]
        starts, leaves = kept["starts_at"] + self.passed, kept["leaves_at"] + self.passed
        if row["wait"] > 0:
            # Not without need: a moment before, something stood in the way.
            before = starts - timedelta(microseconds=2)
            used = sum(one.units for one in mine if one.leaves > before)
            last = max((one.starts for one in mine), default=before)
            spaced = last + timedelta(seconds=WINDOW * units / BUDGET)
            assert used + units > BUDGET or spaced > before or self._paused(who) > before
        self.granted.append(Granted(row["grant_id"], who, units, worker, starts, leaves))

    def _paused(self, who: int) -> datetime:
        with self.db.connection() as conn:
            row = conn.execute(
                "select greatest(paused_until, '2000-01-01') as until, last_start from limiter_principals "
                "where principal = %s", [self.accounts[who].principal],
            ).fetchone()  # fmt: skip
        return max(row["until"], datetime(2000, 1, 1, tzinfo=UTC)) + self.passed

    def free(self, which: int) -> None:
        open_ = [one for one in self.granted if not one.over]
        if open_:
            one = open_[which % len(open_)]
            self.db.fetch("free", grant=one.id, window=WINDOW)
            self._read(one)

    def crash(self, worker: int) -> None:
        self.db.fetch("bury_workers", workers=[self.workers[worker]])
        for one in self.granted:
            if one.worker == worker and not one.over:
                self._read(one)
        self.workers[worker] = register(self.db)

    def _read(self, one: Granted) -> None:
        one.over = True
        with self.db.connection() as conn:
            row = conn.execute("select leaves_at from limiter_grants where id = %s", [one.id]).fetchone()
        if row:  # else it left long ago
            one.leaves = row["leaves_at"] + self.passed

    def pause(self, who: int, seconds: float) -> None:
        limiter(self.db).pause(self.accounts[who], seconds)

    def age(self, milliseconds: int) -> None:
        for who in self.accounts:
            age(self.db, who, milliseconds / 1000)
        self.passed += timedelta(milliseconds=milliseconds)

    def holds(self) -> None:
        """No window of three seconds has room for more, wherever between start and arrival each was counted."""
        for who in range(len(self.accounts)):
            mine = [one for one in self.granted if one.who == who]
            for last in mine:
                together = sum(one.units for one in mine if one.starts <= last.starts < one.leaves)
                assert together <= BUDGET


def register(db: Database) -> int:
    """A worker."""
    row = db.fetch("register_worker", host="h", pid=1, name="", queues=["*"], release="r", lease=1000)[0]
    return int(row["id"])


ONE = st.integers(0, 1)
STEP = st.one_of(
    st.tuples(st.just("acquire"), ONE, ONE, st.sampled_from([1, 4, 9, 15, 45]), st.booleans()),
    st.tuples(st.just("acquire"), ONE, ONE, st.sampled_from([9, 15]), st.booleans()),
    st.tuples(st.just("free"), st.integers(0, 4)),
    st.tuples(st.just("age"), st.sampled_from([1, 50, 333, 1000, 2950, 3000, 3051, 7000])),
    st.tuples(st.just("crash"), ONE),
    st.tuples(st.just("pause"), ONE, st.sampled_from([0.5, 4.0, 30.0])),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(STEP, min_size=5, max_size=40))
def test_no_schedule_breaks_the_limits(db: Database, steps: list[tuple[Any, ...]]) -> None:
    """Whatever is asked for, ended, killed and paused in whatever order: ≤ 45 units, ≤ slots, no needless wait."""
    id = uuid4()
    schedule = Schedule(db, [account(id=id, token=token) for token in "ab"], [register(db), register(db)])

    for name, *values in steps:
        getattr(schedule, name)(*values)

    schedule.holds()
