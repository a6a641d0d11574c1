"""The limiter: what its two stores grant, when, and that no schedule of requests breaks MoySklad's limits.

Each test of a store runs against both. Nothing is waited for: what is kept is moved back in time instead. Redis is
a real server of the tests' own; without redis-server or valkey-server they are skipped, or fail where CI is set.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

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
    Answer,
    Ask,
    DatabaseStore,
    Learned,
    Limiter,
    Standing,
    Store,
)
from worker.limiter.contract import PATIENCE
from worker.limiter.redis import RedisStore
from worker.queues import DatabaseQueue

TTL = 335.0
STEPS = [1.0, 2.0, 4.0, 8.0]
_TICKETS = count(1)


def account(weight: int = 1, id: UUID | None = None, token: str = "t") -> Account:
    """An account nobody has used."""
    return Account(id or uuid4(), "A", "child", "solution", weight, token)


@dataclass(frozen=True)
class Grant:
    """What a store keeps of a granted request; moments in seconds since the epoch."""

    ticket: int
    units: int
    starts: float
    leaves: float
    under_way: bool


class Kit:
    """A store, and the hands that reach behind it."""

    store: Store

    def age(self, who: Account, seconds: float) -> None:
        """So many seconds pass for this account's principal."""
        raise NotImplementedError

    def grants(self, who: Account) -> list[Grant]:
        """The principal's grants, in order."""
        raise NotImplementedError

    def ask(self, who: Account, **options: Any) -> tuple[Ask, Answer]:
        """A new request; `reap` as in `Store.ask`, the rest as in `Ask`."""
        ask = Ask(**{"ticket": next(_TICKETS), "principal": who.principal, "account": who.id, "units": who.weight}
                  | options)  # fmt: skip
        return ask, self.store.ask(ask)

    def granted(self, who: Account, **options: Any) -> Ask:
        """A new request that must be granted at once."""
        ask, answer = self.ask(who, **options)
        assert answer == Answer(True)
        return ask

    def quick(self, who: Account) -> None:
        """This principal's requests have been short of late, and nothing is in its window."""
        for _ in range(12):
            self.store.free(self.granted(who, units=1), None, None)
        self.age(who, 60)


class DatabaseKit(Kit):
    """PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.store = DatabaseStore(db, ttl=TTL)

    def age(self, who: Account, seconds: float) -> None:
        params = {"p": who.principal, "age": timedelta(seconds=seconds)}
        moments = {
            "limiter_grants": ("starts_at", "leaves_at", "done_at"),
            "limiter_tickets": ("expires_at",),
            "limiter_principals": (
                "paused_until", "last_start", "pace", "struck_until", "shrunk_at", "neighbour_since"
            ),
        }  # fmt: skip
        with self.db.transaction() as conn:
            for table, columns in moments.items():
                change = ", ".join(f"{name} = {name} - %(age)s" for name in columns)
                conn.execute(f"update {table} set {change} where principal = %(p)s", params)

    def grants(self, who: Account) -> list[Grant]:
        with self.db.connection() as conn:
            rows = conn.execute(
                "select id, units, extract(epoch from starts_at)::float as starts, "
                "extract(epoch from leaves_at)::float as leaves, "
                "done_at is null or done_at > clock_timestamp() as under_way "
                "from limiter_grants where principal = %s order by starts_at, id",
                [who.principal],
            ).fetchall()
        return [Grant(*row.values()) for row in rows if row["units"]]


_AGE = """
local packed = redis.call('GET', KEYS[1])
if not packed then return end
local s, age = cmsgpack.unpack(packed), tonumber(ARGV[1])
for _, name in ipairs({'paused', 'pace', 'struck', 'shrunk_at', 'since'}) do s[name] = s[name] - age end
for _, g in ipairs(s.grants) do
    g.start, g.leaves = g.start - age, g.leaves - age
    if not g.over and ARGV[3] == '1' then
        g.alive = g.alive - age
        redis.call('ZINCRBY', KEYS[2], -age, ARGV[2] .. '|' .. g.id)
    end
end
for _, t in ipairs(s.tickets) do t.expires = t.expires - age end
redis.call('SET', KEYS[1], cmsgpack.pack(s))
"""
_GRANTS = """
local packed, rows = redis.call('GET', KEYS[1]), {}
local clock = redis.call('TIME')
for _, g in ipairs(packed and cmsgpack.unpack(packed).grants or {}) do
    rows[#rows + 1] = {g.id, g.units, string.format('%.6f', g.start), string.format('%.6f', g.leaves),
                       g.alive > tonumber(clock[1]) and 1 or 0}
end
return rows
"""


class RedisKit(Kit):
    """Redis. Held grants are kept alive, unless `age` is told that their holders are dead."""

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url)
        self.store = RedisStore(url)

    def age(self, who: Account, seconds: float, *, dead: bool = False) -> None:
        keys = [f"limiter:{{{who.id}}}:{who.principal}", f"limiter:{{{who.id}}}:busy"]
        self.redis.eval(_AGE, 2, *keys, str(seconds), who.principal, int(dead))

    def grants(self, who: Account) -> list[Grant]:
        rows = self.redis.eval(_GRANTS, 1, f"limiter:{{{who.id}}}:{who.principal}")
        found = [Grant(int(a), int(b), float(c), float(d), bool(e)) for a, b, c, d, e in rows]
        return sorted(found, key=lambda one: one.starts)


@pytest.fixture(scope="module")
def db(server: Server, template: str) -> Iterator[Database]:
    """One database for this file; every test has accounts of its own."""
    url = server.create(template)
    database = Database(url, size=12, connect_timeout=30)
    yield database
    database.close()
    server.drop(url)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A Redis of this file's own."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        message = "neither redis-server nor valkey-server is installed: the limiter's store `redis` is NOT tested"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="moysklad-redis-", ignore_cleanup_errors=True) as folder:
        socket = f"{folder}/redis.sock"
        arguments = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL) as process:
            while not Path(socket).exists():
                time.sleep(0.02)
            with Redis.from_url(f"unix://{socket}") as redis:
                while redis.info("server")["uptime_in_seconds"] < 4:  # before that it holds everybody back
                    time.sleep(0.1)
            yield f"unix://{socket}"
            process.terminate()


@pytest.fixture(scope="module", params=["database", "redis"])
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    """Each of the two stores."""
    if request.param == "database":
        made: Kit = DatabaseKit(request.getfixturevalue("db"))
    else:
        made = RedisKit(request.getfixturevalue("redis_url"))
    yield made
    made.store.close()


HOUR: dict[str, Any] = {"window": 3600.0, "longest": 1e6, "parallel": 100}
"""A window long enough that nothing leaves it while a test runs."""


# -- units ------------------------------------------------------------------------------------------------


def test_the_first_window_is_free(kit: Kit) -> None:
    """45 units are granted at once, one after the other; the next must wait for the window."""
    who = account(9)

    first = [kit.ask(who, **HOUR)[1].granted for _ in range(5)]
    _, sixth = kit.ask(who, **HOUR)

    assert first == [True] * 5
    assert (sixth.granted, sixth.reason) == (False, "window")
    assert 3590 < sixth.wait <= 3600 + LAG


def test_units_come_back_in_the_order_in_which_they_leave(kit: Kit) -> None:
    """A request waits until enough of the earliest have left, and no longer; who comes later waits for those too."""
    who = account()
    for units in (20, 15, 10):
        kit.store.free(kit.granted(who, units=units, **HOUR), None, None)
        kit.age(who, 1000)

    waits = [kit.ask(who, units=units, **HOUR)[1].wait for units in (20, 15, 10)]

    # The last one would fit after 2600 s, but starts are evenly spaced once the window is full.
    assert [round(wait, -2) for wait in waits] == [600, 600 + 15 * 3600 / 45, 2600]


def test_a_small_request_does_not_slip_in_before_a_large_one(kit: Kit) -> None:
    """What fits now would be too much when the earlier one's turn has come."""
    who = account()
    kit.granted(who, units=40, **HOUR)

    large, _ = kit.ask(who, units=45, **HOUR)
    small, answer = kit.ask(who, units=5, **HOUR)
    kit.age(who, 3601)

    assert answer.wait > 3600 + 3590
    assert kit.store.ask(small).granted is False
    assert kit.store.ask(large).granted is True


def test_a_request_that_is_over_leaves_sooner(kit: Kit) -> None:
    """Its units count until a window after its end, or after it has arrived at the latest, whichever is sooner."""
    who = account()
    ask = kit.granted(who, lag=FRESH_LAG, window=100.0)
    [under_way] = kit.grants(who)

    kit.store.free(ask, None, None)
    [over] = kit.grants(who)

    assert under_way.leaves - under_way.starts == pytest.approx(100 + FRESH_LAG, abs=1e-3)
    assert (under_way.under_way, over.under_way) == (True, False)
    assert over.leaves <= under_way.leaves
    assert over.leaves >= over.starts + 100


def test_after_the_first_window_turns_are_evenly_spaced(kit: Kit) -> None:
    """Also when a burst leaves the window all at once."""
    who = account(9)
    for _ in range(5):
        kit.granted(who, **HOUR)

    waits = [kit.ask(who, **HOUR)[1].wait for _ in range(5)]

    gaps = [later - sooner for sooner, later in pairwise(waits)]
    assert all(700 < gap < 740 for gap in gaps)


def test_two_tokens_of_one_account_have_a_window_each(kit: Kit) -> None:
    """MoySklad counts by token."""
    old = account(45)
    new = account(45, id=old.id, token="new")

    assert [kit.ask(who)[1].granted for who in (old, new)] == [True, True]


# -- order ------------------------------------------------------------------------------------------------


def test_who_is_urgent_goes_first(kit: Kit) -> None:
    """A webhook's request is not behind a bulk run that waits already."""
    who = account(45)
    kit.granted(who, **HOUR)
    bulk, before = kit.ask(who, **HOUR)

    urgent, answer = kit.ask(who, urgent=True, **HOUR)

    assert answer.wait == pytest.approx(before.wait, abs=10)
    assert kit.store.ask(bulk).wait > before.wait + 3500
    kit.age(who, 3601)
    assert kit.store.ask(bulk).granted is False
    assert kit.store.ask(urgent).granted is True


def test_who_does_not_come_back_is_not_waited_for(kit: Kit) -> None:
    """A killed process keeps its place for two seconds beyond its time."""
    who = account(45)
    kit.granted(who, **HOUR)
    kit.ask(who, **HOUR)
    later, answer = kit.ask(who, **HOUR)
    assert answer.wait > 7000

    kit.age(who, 3600 + LAG + PATIENCE + 1)

    assert kit.store.ask(later).granted is True


def test_granted_too_late_to_be_used(kit: Kit) -> None:
    """The same ticket asks again: granted anew, with the units of one request."""
    who = account(15)
    ask = kit.granted(who, **HOUR)

    again = kit.store.ask(replace(ask, lag=5.0))

    assert again.granted is True
    [kept] = kit.grants(who)
    assert (kept.units, kept.under_way) == (15, True)
    assert kept.leaves - kept.starts == pytest.approx(3605, abs=1e-3)
    assert [kit.ask(who, **HOUR)[1].granted for _ in range(3)] == [True, True, False]


def test_a_question_asked_twice(kit: Kit) -> None:
    """Who waits keeps its one place when the answer was lost."""
    who = account(45)
    kit.granted(who, **HOUR)
    ask, first = kit.ask(who, **HOUR)

    assert kit.store.ask(ask).wait == pytest.approx(first.wait, abs=10)


def test_a_long_wait_holds_nothing(kit: Kit) -> None:
    """Longer than one is ready to wait: no place is kept, no units."""
    who = account(45)
    kit.granted(who, **HOUR)

    refused = [kit.ask(who, **HOUR | {"longest": 10.0})[1].wait for _ in range(3)]

    assert all(3590 < wait <= 3600 + LAG for wait in refused)
    assert len(kit.grants(who)) == 1


def test_cancelled_while_it_waits_or_after(kit: Kit) -> None:
    """Its place and its units go to the next."""
    who = account(45)
    sent = kit.granted(who, **HOUR)
    waiting, _ = kit.ask(who, **HOUR)
    third, behind = kit.ask(who, **HOUR)
    assert behind.wait > 7000

    kit.store.cancel(waiting)
    assert kit.store.ask(third).wait <= 3600 + LAG
    kit.store.cancel(sent)

    kit.age(who, 3600)  # the pace, which was set when the window was full
    assert kit.store.ask(third).granted is True


# -- slots ------------------------------------------------------------------------------------------------


def test_five_at_once(kit: Kit) -> None:
    """And the sixth when one of them is over."""
    who = account()
    kit.quick(who)
    held = [kit.granted(who) for _ in range(PARALLEL)]
    sixth, answer = kit.ask(who)
    assert (answer.granted, answer.reason) == (False, "parallel")

    kit.store.free(held[2], None, None)

    assert kit.store.ask(sixth).granted is True


def test_slots_go_in_order(kit: Kit) -> None:
    """Who asks again first is not served first."""
    who = account()
    kit.quick(who)
    held = [kit.granted(who) for _ in range(PARALLEL)]
    first, second = kit.ask(who)[0], kit.ask(who)[0]

    kit.store.free(held[0], None, None)

    assert kit.store.ask(second).reason == "parallel"
    assert kit.store.ask(first).granted is True


def test_the_first_in_line_is_woken(kit: Kit) -> None:
    """A slot that comes free ends the wait at once, long before the next look."""
    who = account()
    kit.quick(who)
    held = [kit.granted(who) for _ in range(PARALLEL)]
    ask = Ask(next(_TICKETS), who.principal, who.id, 1)
    waits, done = threading.Event(), threading.Event()

    def wait() -> None:
        assert kit.store.ask(ask).reason == "parallel"
        kit.store.await_slot(ask, 0.01)  # the first time PostgreSQL's store opens its ear instead
        assert kit.store.ask(ask).reason == "parallel"
        waits.set()
        kit.store.await_slot(ask, 60)
        if kit.store.ask(ask).granted:
            done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(30)
    kit.store.free(held[0], None, None)

    assert done.wait(30)
    thread.join()


def test_bulk_leaves_a_slot_where_requests_are_long(kit: Kit) -> None:
    """Four uploads of half a minute do not keep a webhook out; of an unknown principal the same is expected."""
    who = account()
    four = [kit.ask(who)[1].granted for _ in range(4)]

    assert four == [True] * 4
    assert kit.ask(who)[1].reason == "parallel"
    assert kit.ask(who, urgent=True)[1].granted is True


def test_twenty_at_once_in_an_account(kit: Kit) -> None:
    """Five tokens of one account have twenty slots, not twenty-five."""
    id = uuid4()
    tokens = [account(id=id, token=str(number)) for number in range(5)]

    answers = [kit.ask(who, urgent=True)[1].reason for who in tokens for _ in range(PARALLEL)]

    assert answers == [None] * ACCOUNT_PARALLEL + ["parallel"] * 5


def test_tokens_that_ask_at_the_same_moment_share_the_accounts_slots(kit: Kit) -> None:
    """Also those whose turns are decided at once by different processes."""
    for _ in range(3):
        id = uuid4()
        tokens = [account(id=id, token=str(number)) for number in range(8)]
        together = threading.Barrier(len(tokens))

        def one(who: Account, together: threading.Barrier = together) -> bool:
            together.wait(30)
            return kit.ask(who, account_parallel=3)[1].granted

        with ThreadPoolExecutor(len(tokens)) as pool:
            answers = list(pool.map(one, tokens))

        assert answers.count(True) == 3


def test_a_dead_workers_slots_come_free(db: Database) -> None:
    """Its session's lock is gone: noticed by who waits, a second before MoySklad is counted on to know."""
    kit, who = DatabaseKit(db), account()
    kit.quick(who)
    kit.store.worker = register(db, lease=1000)
    for _ in range(PARALLEL):
        kit.granted(who)
    ask, answer = kit.ask(who)
    assert answer.reason == "parallel"

    assert kit.store.ask(ask, reap=True).reason == "parallel"
    kit.age(who, 1.1)

    assert kit.store.ask(ask).granted is True


def test_a_living_workers_slots_are_its_own(db: Database) -> None:
    """Its session holds its lock: nothing is taken from it, however long its requests take."""
    kit, who = DatabaseKit(db), account()
    kit.quick(who)
    with db.connect() as session:
        kit.store.worker = register(db, lease=1000)
        session.execute("select pg_advisory_lock(%s, %s)", [0x6D73, kit.store.worker])
        for _ in range(PARALLEL):
            kit.granted(who)
        kit.age(who, 100)
        ask, _ = kit.ask(who)

        kit.store.ask(ask, reap=True)
        kit.age(who, 1.1)

        assert kit.store.ask(ask).reason == "parallel"


def test_a_dead_workers_slots_are_free_with_its_burial(db: Database) -> None:
    """Others need not wait for their time to live."""
    kit, who = DatabaseKit(db), account()
    kit.quick(who)
    kit.store.worker = register(db, lease=-1)
    for _ in range(PARALLEL):
        kit.granted(who)
    ask, _ = kit.ask(who)

    DatabaseQueue(db, lambda *_: "default").rescue()
    kit.age(who, 1.1)

    assert kit.store.ask(ask).granted is True


def test_a_request_nobody_ended_ends_by_itself(db: Database) -> None:
    """Without a worker to go by it is over after its time to live."""
    kit, who = DatabaseKit(db), account()
    kit.quick(who)
    for _ in range(PARALLEL):
        kit.granted(who)
    kit.age(who, 300)
    assert kit.ask(who)[1].reason == "parallel"

    kit.age(who, 36)

    assert kit.ask(who)[1].granted is True


def test_redis_frees_the_slots_of_who_does_not_renew(redis_url: str) -> None:
    """A lease later; a living holder renews from a thread of its own."""
    kit, who = RedisKit(redis_url), account()
    kit.quick(who)
    for _ in range(PARALLEL):
        kit.granted(who)
    kit.age(who, 100)
    assert kit.ask(who)[1].reason == "parallel"

    kit.age(who, 7, dead=True)

    assert kit.ask(who)[1].granted is True
    kit.store.close()


def test_redis_renews_what_is_held(redis_url: str) -> None:
    """With a short lease a request of many leases keeps its slot."""
    store, who = RedisStore(redis_url, lease=0.6), account()
    ask = Ask(next(_TICKETS), who.principal, who.id, 1)
    assert store.ask(ask).granted
    key = f"limiter:{{{who.id}}}:busy"

    with Redis.from_url(redis_url) as redis:
        first = redis.zrange(key, 0, -1, withscores=True)[0][1]
        until = time.monotonic() + 30
        while (last := redis.zrange(key, 0, -1, withscores=True)[0][1]) < first + 1.2 and time.monotonic() < until:
            time.sleep(0.05)

    assert last >= first + 1.2
    store.free(ask, None, None)
    store.close()


def test_a_server_that_forgot_lets_the_window_pass(db: Database) -> None:
    """The ledger is lost with a crash of PostgreSQL, the principal's row is not: nobody sends for a window."""
    kit, who = DatabaseKit(db), account()
    kit.granted(who, window=3600.0)
    with db.connection() as conn:
        conn.execute("delete from limiter_grants where principal = %s", [who.principal])

    _, answer = kit.ask(who, **HOUR)

    assert answer.reason == "paused"
    assert 3590 < answer.wait <= 3601


def test_what_nobody_uses_is_forgotten(db: Database) -> None:
    """Rows of tokens unused for a day go; those in use stay."""
    kit, unused, used = DatabaseKit(db), account(), account()
    for who in (unused, used):
        kit.store.free(kit.granted(who), None, None)
    kit.age(unused, 25 * 3600)

    db.fetch("forget_principals")
    db.fetch("forget_principals")

    with db.connection() as conn:
        left = {row["principal"] for row in conn.execute("select principal from limiter_principals").fetchall()}
    assert unused.principal not in left
    assert used.principal in left
    assert (len(kit.grants(unused)), len(kit.grants(used))) == (0, 1)


# -- what is told of it ----------------------------------------------------------------------------------


def test_standing_tells_who_waits_who_sends_and_who_must_not(kit: Kit) -> None:
    """Of the accounts that are asked for, all tokens together; what is over is not told."""
    first, second, other = account(), account(token="u"), account()
    second = replace(second, id=first.id)
    for who in (first, second, other):
        kit.quick(who)
    accounts = [first.id, uuid4()]
    assert kit.store.standing(accounts) == kit.store.standing([]) == Standing()

    sent = [kit.granted(who) for who in (first, first, second, other)]
    waiting, answer = kit.ask(second, units=45)
    assert answer.reason == "window"
    kit.store.pause(second.id, second.principal, 500, STEPS)
    kit.store.pause(other.id, other.principal, 500, STEPS)

    assert kit.store.standing(accounts) == Standing(paused=1, waiting=1, requests=3)
    assert kit.store.standing([*accounts, other.id]) == Standing(paused=2, waiting=1, requests=4)

    for ask in sent[:3]:
        kit.store.free(ask, None, None)
    kit.store.cancel(waiting)
    kit.age(second, 501)

    assert kit.store.standing(accounts) == Standing()


# -- 429 --------------------------------------------------------------------------------------------------


def test_a_pause_holds_for_all(kit: Kit) -> None:
    """Also for who waits already; other principals go on."""
    who, other = account(45), account()
    kit.granted(who, **HOUR)
    waiting, _ = kit.ask(who, **HOUR)
    kit.age(who, 3601)

    kit.store.pause(who.id, who.principal, 500, STEPS)

    answer = kit.store.ask(waiting)
    assert (answer.granted, answer.reason) == (False, "paused")
    assert 490 < answer.wait <= 500 + 3600
    assert kit.ask(other)[1].granted is True


def test_a_shorter_pause_does_not_shorten_a_longer(kit: Kit) -> None:
    """Of several pauses the longest counts."""
    who = account()
    kit.store.pause(who.id, who.principal, 500, STEPS)

    assert kit.store.pause(who.id, who.principal, 1, STEPS) > 490
    assert kit.ask(who, **HOUR)[1].wait > 490


def test_pauses_grow_while_429_follows_429(kit: Kit) -> None:
    """1, 2, 4, 8 and 8 seconds; the five refused at one moment count once; a quiet time begins anew."""
    who = account()
    waits = []
    for _ in range(5):
        waits.append(kit.store.pause(who.id, who.principal, 0, STEPS))
        kit.store.pause(who.id, who.principal, 0, STEPS)
        kit.age(who, waits[-1] + 0.1)
    kit.age(who, 20)

    waits.append(kit.store.pause(who.id, who.principal, 0, STEPS))

    assert [round(wait, 2) for wait in waits] == [1, 2, 4, 8, 8, 1]


def test_never_earlier_than_the_header_says(kit: Kit) -> None:
    """The vendor's wait counts when it is longer than ours."""
    who = account()

    assert kit.store.pause(who.id, who.principal, 30, STEPS) == pytest.approx(30, abs=0.01)


def test_1073_shrinks_and_recovers(kit: Kit) -> None:
    """One slot less each time, one more every ten seconds; at the last one a pause."""
    who = account()

    def slots() -> int:
        granted = []
        while (got := kit.ask(who, urgent=True))[1].granted:
            granted.append(got[0])
        kit.store.cancel(got[0])
        for ask in granted:
            kit.store.free(ask, None, None)
        kit.age(who, 5)
        return len(granted)

    seen, breaths = [slots()], []
    for _ in range(4):
        breaths.append(kit.store.shrink(who.id, who.principal, 0.25, STEPS))
        kit.store.shrink(who.id, who.principal, 0.25, STEPS)  # of the same moment
        kit.age(who, 3)
        seen.append(slots())
    assert seen == [5, 4, 3, 2, 1]
    assert [round(breath, 2) for breath in breaths] == [0.25, 0.5, 1, 2]

    assert kit.store.shrink(who.id, who.principal, 0.25, STEPS) == pytest.approx(1, abs=0.01)
    kit.age(who, 21)
    assert slots() == 3


# -- learned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "remaining", "learned"), [(45, 44, 1), (22, 21, 2), (15, 14, None), (11, 10, 4)])
def test_the_weight_is_what_the_headers_say(kit: Kit, limit: int, remaining: int, learned: int | None) -> None:
    """Configured as 3: 45 of which one is used is a weight of 1, 22, 15 and 11 to be made are 2, 3 and 4."""
    who = account(3)

    answer = kit.store.free(kit.granted(who), limit, remaining)

    assert answer == Learned(learned, 0)
    kit.granted(who)
    assert kit.grants(who)[-1].units == (learned or 3)
    kit.granted(who, units=5)  # another weight was configured: what was learned is not of that
    assert kit.grants(who)[-1].units == 5


def test_headers_in_units_confirm_the_weight(kit: Kit) -> None:
    """45 with three used by the first request, six by the second: it is 3, and nobody else is there."""
    who = account(3)

    told = [kit.store.free(kit.granted(who), 45, remaining) for remaining in (42, 39)]

    assert told == [Learned(), Learned()]


def test_a_neighbour_is_noticed_and_left_its_share(kit: Kit) -> None:
    """Remaining is lower than our own requests make it: the rest is somebody else's, until it is seen no more."""
    who = account()
    kit.quick(who)

    learned = kit.store.free(kit.granted(who), 45, 24)
    ask, answer = kit.ask(who, units=25, window=WINDOW, longest=1e6)

    assert learned == Learned(None, 20)
    assert (answer.granted, answer.reason) == (False, "window")
    kit.store.cancel(ask)
    kit.age(who, 4 * WINDOW + 1)
    assert kit.ask(who, units=25)[1].granted is True


def test_somebody_always_gets_through(kit: Kit) -> None:
    """However much a neighbour takes, one request in a window is tried."""
    who = account(4)
    kit.quick(who)
    kit.store.free(kit.granted(who), 11, 0)
    kit.age(who, WINDOW + LAG)

    assert kit.ask(who)[1].granted is True


# -- the limiter over a store -----------------------------------------------------------------------------


@dataclass
class Script(Store):
    """A store that answers as told, and notes what it was asked."""

    answers: list[Answer]
    worker: int | None = None
    asked: list[Ask] = field(default_factory=list)
    done: list[tuple[str, Any]] = field(default_factory=list)
    learned: Learned = field(default_factory=Learned)

    def ask(self, ask: Ask, *, reap: bool = False) -> Answer:
        self.asked.append(ask)
        return self.answers.pop(0)

    def await_slot(self, ask: Ask, seconds: float) -> None:
        self.done.append(("await_slot", seconds))

    def free(self, ask: Ask, limit: int | None, remaining: int | None) -> Learned:
        self.done.append(("free", (limit, remaining)))
        return self.learned

    def cancel(self, ask: Ask) -> None:
        self.done.append(("cancel", ask.ticket))

    def pause(self, account: UUID, principal: str, wait: float, steps: list[float]) -> float:
        self.done.append(("pause", steps))
        return max(wait, steps[0])

    def shrink(self, account: UUID, principal: str, breath: float, steps: list[float]) -> float:
        self.done.append(("shrink", breath))
        return breath

    def close(self) -> None:
        self.done.append(("close", None))


GO = Answer(True)


def test_a_turn_carries_what_the_answer_said() -> None:
    """Granted at once: asked once, freed once with the headers."""
    store = Script([GO])

    with Limiter(store, clock=lambda: 0.0).acquire(account(), fresh=True, urgent=True) as turn:
        turn.observe(45, 44)

    [ask] = store.asked
    assert (ask.lag, ask.urgent, ask.longest) == (FRESH_LAG, True, LONG)
    assert store.done == [("free", (45, 44))]


def test_a_short_wait_is_slept_and_asked_again() -> None:
    """With the same ticket, at least once a second, and not all who wait at the same moments."""
    store, slept = Script([Answer(False, 0.2, "window"), Answer(False, 2.5, "paused"), GO]), list[float]()

    with Limiter(store, clock=lambda: 0.0, sleep=slept.append).acquire(account()):
        pass

    assert slept[0] == 0.2
    assert 0.5 < slept[1] < 1  # then it looks again
    assert len({ask.ticket for ask in store.asked}) == 1


def test_a_long_wait_is_told() -> None:
    """RateLimited carries it; nothing is kept."""
    store, who = Script([Answer(False, 11.0, "window")]), account()

    with pytest.raises(RateLimited) as caught, Limiter(store, clock=lambda: 0.0).acquire(who):
        pytest.fail("granted")

    assert caught.value.wait == 11
    assert str(caught.value) == f"the limiter lets account {who.id} send again in 11.0 s"
    assert [name for name, _ in store.done] == ["cancel"]


def test_waiting_for_a_slot_has_an_end() -> None:
    """After `longest` seconds it becomes RateLimited too."""
    store, times = Script([Answer(False, 1.0, "parallel")] * 9), count(0.0, 1.5)

    with (
        pytest.raises(RateLimited) as caught,
        Limiter(store, clock=lambda: next(times)).acquire(account(), longest=4),
    ):
        pytest.fail("granted")

    assert caught.value.wait == WINDOW
    assert 0 < len([name for name, _ in store.done if name == "await_slot"]) < 4
    assert all(value <= 1 for name, value in store.done if name == "await_slot")


def test_a_grant_that_comes_late_is_not_used() -> None:
    """The answer took longer than half of what was promised: asked anew, at last with a promise that can be kept."""
    store, times = Script([GO] * 3), iter([0.0, 0.0, 0.04, 0.04, 0.08, 0.08, 0.12])

    with Limiter(store, clock=lambda: next(times)).acquire(account()):
        pass

    assert [ask.lag for ask in store.asked] == [LAG, LAG, pytest.approx(0.16)]


def test_interrupted_while_it_waits_keeps_nothing() -> None:
    """A process told to stop gives its place back."""
    store = Script([Answer(False, 2.5, "window")])

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Limiter(store, clock=lambda: 0.0, sleep=stop).acquire(account()):
        pytest.fail("sent")

    assert store.done == [("cancel", store.asked[0].ticket)]


def test_an_error_inside_frees_the_slot() -> None:
    """Whatever ends the request ends its grant."""
    store = Script([GO])

    with pytest.raises(ZeroDivisionError), Limiter(store, clock=lambda: 0.0).acquire(account()):
        raise ZeroDivisionError

    assert store.done == [("free", (None, None))]


def test_units_are_those_of_the_day_and_the_token() -> None:
    """A user's token costs more from December on, a weight set by hand is used as it is."""
    store = Script([GO] * 3)
    by_auth = Account(uuid4(), "A", "child", "user", None, "t")

    for who, day in ((by_auth, date(2026, 11, 30)), (by_auth, date(2026, 12, 1)), (account(7), date(2026, 12, 1))):
        with Limiter(store, clock=lambda: 0.0, today=lambda day=day: day).acquire(who):
            pass

    assert [ask.units for ask in store.asked] == [3, 4, 7]


def test_pauses_are_1_2_4_8_with_jitter() -> None:
    """Up to a quarter longer, never shorter."""
    store = Script([])
    limiter = Limiter(store, rng=random.Random(1))

    assert limiter.pause(account(), 30) == 30
    assert 0.25 <= limiter.shrink(account()) <= 0.3125

    steps = dict(store.done)["pause"]
    assert len(steps) == 4
    assert all(least <= step <= 1.25 * least for step, least in zip(steps, STEPS, strict=True))
    assert len({step / least for step, least in zip(steps, STEPS, strict=True)}) == 4


def test_threads_contending_for_one_principal(kit: Kit) -> None:
    """Eight at once: never more than five under way, and all get their turn."""
    who, lock, limiter = account(), threading.Lock(), Limiter(kit.store)
    kit.quick(who)
    running, most, done = 0, 0, 0

    def one(_: int) -> None:
        nonlocal running, most, done
        with limiter.acquire(who, longest=60):
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
    assert 1 < most <= PARALLEL
    assert not any(grant.under_way for grant in kit.grants(who))


# -- any schedule -----------------------------------------------------------------------------------------


@dataclass
class Schedule:
    """Requests of two tokens of one account, while time passes as told. Moments are of the schedule's own time."""

    kit: Kit
    accounts: list[Account]
    passed: float = 0.0
    waiting: list[tuple[int, Ask]] = field(default_factory=list)
    under_way: list[tuple[int, Ask]] = field(default_factory=list)
    seen: dict[int, tuple[int, int, float, float]] = field(default_factory=dict)
    """Ticket → token, units, start, and when its units have left."""

    def ask(self, who: int, units: int, urgent: bool, fresh: bool) -> None:
        account = self.accounts[who]
        ask = Ask(next(_TICKETS), account.principal, account.id, units, urgent, FRESH_LAG if fresh else LAG,
                  parallel=3, account_parallel=5)  # fmt: skip
        self._ask(who, ask)

    def again(self, which: int) -> None:
        if self.waiting:
            self._ask(*self.waiting.pop(which % len(self.waiting)))

    def late(self, which: int) -> None:
        if self.under_way:
            who, ask = self.under_way.pop(which % len(self.under_way))
            self.seen.pop(ask.ticket)  # it was not sent
            self._ask(who, ask)

    def _ask(self, who: int, ask: Ask) -> None:
        answer = self.kit.store.ask(ask)
        if not answer.granted:
            if answer.wait <= ask.longest:
                self.waiting.append((who, ask))
            return
        self.under_way.append((who, ask))
        assert sum(one == who for one, _ in self.under_way) <= 3
        assert len(self.under_way) <= 5
        self._read(who)

    def free(self, which: int, remaining: int | None) -> None:
        if self.under_way:
            who, ask = self.under_way.pop(which % len(self.under_way))
            self._read(who)
            self.kit.store.free(ask, None if remaining is None else BUDGET, remaining)
            self._read(who)

    def cancel(self, which: int) -> None:
        if self.waiting:
            self.kit.store.cancel(self.waiting.pop(which % len(self.waiting))[1])

    def crash(self, which: int) -> None:
        """Nobody asks with this ticket again."""
        if self.waiting:
            self.waiting.pop(which % len(self.waiting))

    def pause(self, who: int, seconds: float) -> None:
        self.kit.store.pause(self.accounts[who].id, self.accounts[who].principal, seconds, STEPS)

    def shrink(self, who: int) -> None:
        self.kit.store.shrink(self.accounts[who].id, self.accounts[who].principal, 0.25, STEPS)

    def age(self, milliseconds: int) -> None:
        for who in range(2):
            self._read(who)
            self.kit.age(self.accounts[who], milliseconds / 1000)
        self.passed += milliseconds / 1000

    def _read(self, who: int) -> None:
        for one in self.kit.grants(self.accounts[who]):
            if one.ticket in self.seen or any(ask.ticket == one.ticket for _, ask in self.under_way):
                moments = one.starts + self.passed, one.leaves + self.passed
                self.seen[one.ticket] = (who, one.units, *moments)

    def holds(self) -> None:
        """No window has room for more, wherever between start and arrival each was counted."""
        for who, _, start, _ in self.seen.values():
            together = sum(u for w, u, s, leaves in self.seen.values() if w == who and s <= start < leaves - 2e-6)
            assert together <= BUDGET


ANY = st.integers(0, 4)
ONE = st.integers(0, 1)
STEP = st.one_of(
    st.tuples(st.just("ask"), ONE, st.sampled_from([1, 4, 9, 15, 45]), st.booleans(), st.booleans()),
    st.tuples(st.just("ask"), ONE, st.sampled_from([9, 15]), st.booleans(), st.booleans()),
    st.tuples(st.just("again"), ANY),
    st.tuples(st.just("again"), ANY),
    st.tuples(st.just("free"), ANY, st.sampled_from([None, None, 0, 20, 44])),
    st.tuples(st.just("late"), ANY),
    st.tuples(st.just("age"), st.sampled_from([1, 50, 333, 1000, 2950, 3000, 3051, 7000])),
    st.tuples(st.just("cancel"), ANY),
    st.tuples(st.just("crash"), ANY),
    st.tuples(st.just("pause"), ONE, st.sampled_from([0.5, 4.0, 30.0])),
    st.tuples(st.just("shrink"), ONE),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(STEP, min_size=5, max_size=50))
def test_no_schedule_breaks_the_limits(kit: Kit, steps: list[tuple[Any, ...]]) -> None:
    """Asked, asked again, late, ended, killed, paused and shrunk in whatever order: ≤ 45 units, ≤ slots."""
    id = uuid4()
    schedule = Schedule(kit, [account(id=id, token=token) for token in "ab"])

    for name, *values in steps:
        getattr(schedule, name)(*values)

    schedule.holds()


def register(db: Database, lease: float) -> int:
    """A worker."""
    with db.connection() as conn:
        row = fetch(
            conn, "register_worker", host="h", pid=1, name="", queues=["*"], listens=["%"], release="r", lease=lease
        )[0]
    return int(row["id"])
