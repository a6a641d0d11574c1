"""The breaker: what opens it, for how long, who tries, what closes it; MoySklad's own switch never falls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.limits import Principal
from tests.conftest import Family, Vendor
from worker import cli
from worker.accounts import Account
from worker.app import App
from worker.breaker import (
    ALIKE,
    AWAY_WAIT,
    COUNTED_WAIT,
    IN_A_ROW,
    LATELY,
    LONGEST_AWAY,
    LONGEST_WAIT,
    PROBE,
    PUTS,
    Breaker,
)
from worker.errors import RateLimited, Retryable, Unauthorized
from worker.task import NewTask, SyncGoods

POST = ("POST", "entity/product")


class Clock:
    """The server's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    """A clock of this test's own."""
    return Clock()


@pytest.fixture
def account(app: App) -> Account:
    """An account known to the database."""
    return add(app)


def add(app: App) -> Account:
    """One more account."""
    id = uuid4()
    app.accounts.add(id, "A", "child", "solution", "token")
    return app.accounts.get(id)


@pytest.fixture
def breaker(app: App, clock: Clock) -> Breaker:
    """A breaker of one process."""
    return Breaker(app.db, clock=clock)


def fail(
    breaker: Breaker, account: Account, times: int, status: int = 400, path: str = "entity/product"
) -> list[bool]:
    """That many failures; what each was answered."""
    return [breaker.failed(account, "POST", path, status, "no") for _ in range(times)]


def refused(breaker: Breaker, account: Account) -> RateLimited:
    """Why it admits nobody."""
    with pytest.raises(RateLimited) as raised:
        breaker.admit(account)
    return raised.value


def parked(app: App, id: UUID) -> str | None:
    """Why the account is parked."""
    row = next(row for row in app.accounts.overview() if row["id"] == id)
    return row["parked_reason"] if row["parked_until"] else None


@pytest.mark.parametrize("status", [400, 404, 413, 429, 308])
def test_failures_alike_open_it(app: App, breaker: Breaker, account: Account, status: int) -> None:
    """The 50th in a minute, long before the vendor's 200; the account is parked and says why."""
    answers = fail(breaker, account, ALIKE, status)

    assert answers == [False] * (ALIKE - 1) + [True]
    error = refused(breaker, account)
    assert error.wait == COUNTED_WAIT
    assert f"{ALIKE} " in str(error)
    assert parked(app, account.id) == str(error)


def test_other_failures_are_counted_apart(breaker: Breaker, account: Account) -> None:
    """By path and by status; 429s all together, whatever they were the answers to."""
    for status in (400, 404):
        assert not any(fail(breaker, account, ALIKE - 1, status))
    assert not any(fail(breaker, account, ALIKE - 1, path="entity/uom"))
    assert not any(fail(breaker, account, ALIKE // 2, 429, "entity/uom"))

    assert any(fail(breaker, account, ALIKE // 2, 429))


def test_only_the_last_minute_counts(breaker: Breaker, account: Account, clock: Clock) -> None:
    """As many as one likes, slowly."""
    for _ in range(4 * ALIKE):
        assert fail(breaker, account, 1) == [False]
        clock.pass_(60 / (ALIKE - 2))


def test_accounts_are_counted_apart(app: App, breaker: Breaker, account: Account) -> None:
    """One child's trouble is not another's."""
    other = add(app)
    fail(breaker, account, ALIKE)

    assert breaker.admit(other)
    assert parked(app, other.id) is None


def test_failures_are_counted_over_all_processes(app: App, breaker: Breaker, account: Account, clock: Clock) -> None:
    """Two of them have together what opens it; it is open for both."""
    second = Breaker(app.db, clock=clock)
    fail(breaker, account, ALIKE // 2)

    assert fail(second, account, ALIKE // 2)[-1]
    refused(breaker, account)
    refused(second, account)


def test_puts_to_one_entity_open_it_though_they_succeed(breaker: Breaker, account: Account) -> None:
    """The 25th in a minute, the vendor bears 100; other entities count apart."""
    for n in range(PUTS - 1):
        breaker.succeeded(account, "PUT", "entity/product/1")
        breaker.succeeded(account, "PUT", f"entity/product/x{n}")
    assert breaker.admit(account)

    breaker.succeeded(account, "PUT", "entity/product/1")

    refused(breaker, account)


@pytest.mark.parametrize("status", [0, 500, 502, 503, 504])
def test_moysklad_away_opens_it_soon(breaker: Breaker, account: Account, status: int) -> None:
    """Five in a row, for a short while; a success or a refusal in between shows that it is there."""
    for between in (lambda: breaker.succeeded(account, *POST), lambda: fail(breaker, account, 1, 400)):
        assert not any(fail(breaker, account, IN_A_ROW - 1, status))
        between()

    assert fail(breaker, account, IN_A_ROW, status)[-1]
    assert refused(breaker, account).wait == AWAY_WAIT


def test_success_writes_nothing(app: App, breaker: Breaker, account: Account) -> None:
    """A request answered well costs no statement; admission one, for reading."""
    sent = spied(app)
    breaker.succeeded(account, *POST)
    assert sent == []

    assert breaker.admit(account)
    assert sent == ["breaker"]


def spied(app: App) -> list[str]:
    """The names of the queries that go to the database from now on."""
    names: list[str] = []
    fetch = app.db.fetch

    def note(name: str, /, **params: Any) -> list[dict[str, Any]]:
        names.append(name)
        return fetch(name, **params)

    app.db.fetch = note  # type: ignore[method-assign]
    return names


def test_one_tries_when_the_wait_is_over(app: App, breaker: Breaker, account: Account, clock: Clock) -> None:
    """The others wait for its outcome, or, if it dies, until another may try; success closes it for all."""
    second = Breaker(app.db, clock=clock)
    fail(breaker, account, ALIKE)
    clock.pass_(COUNTED_WAIT)

    assert breaker.admit(account) is False
    assert "being tried" in str(refused(second, account))
    clock.pass_(PROBE)
    assert second.admit(account) is False
    second.probed(account, None)

    assert breaker.admit(account) is True
    assert second.admit(account) is True


def test_each_wait_is_twice_the_one_before(breaker: Breaker, account: Account, clock: Clock) -> None:
    """Up to half a minute while MoySklad is away; after a quiet time it begins anew."""
    fail(breaker, account, IN_A_ROW, 0)
    waits = [refused(breaker, account).wait]
    for _ in range(9):
        clock.pass_(waits[-1])
        assert breaker.admit(account) is False
        with pytest.raises(RateLimited) as raised:
            breaker.probed(account, "HTTP 503")
        waits.append(raised.value.wait)
        assert "HTTP 503" in str(raised.value)

    assert waits == [min(AWAY_WAIT * 2**n, LONGEST_AWAY) for n in range(10)]
    clock.pass_(waits[-1])
    assert breaker.admit(account) is False
    breaker.probed(account, None)
    clock.pass_(LATELY)
    fail(breaker, account, IN_A_ROW, 0)
    assert refused(breaker, account).wait == AWAY_WAIT


def test_who_knocks_again_waits_twice_as_long(breaker: Breaker, account: Account, clock: Clock) -> None:
    """Failures alike, though the probes between them succeed: up to a quarter of an hour."""
    waits = []
    for _ in range(7):
        fail(breaker, account, ALIKE)
        waits.append(refused(breaker, account).wait)
        clock.pass_(waits[-1])
        assert breaker.admit(account) is False
        breaker.probed(account, None)

    assert waits == [min(COUNTED_WAIT * 2**n, LONGEST_WAIT) for n in range(7)]


def test_who_is_late_does_not_prolong_it(app: App, breaker: Breaker, account: Account, clock: Clock) -> None:
    """Requests that were under way when it opened come back as failures, too."""
    second = Breaker(app.db, clock=clock)
    fail(breaker, account, ALIKE)

    assert all(fail(second, account, 2 * ALIKE, 0))

    assert refused(breaker, account).wait == COUNTED_WAIT


def test_another_token_is_another_principal(app: App, breaker: Breaker, account: Account) -> None:
    """A new token un-parks the account, and nothing is held against it."""
    fail(breaker, account, ALIKE)
    app.set_token(account.id, "fresh")
    fresh = app.accounts.get(account.id)

    assert parked(app, account.id) is None
    assert breaker.admit(fresh) is True
    assert not any(fail(breaker, fresh, ALIKE - 1))
    assert breaker.admit(fresh) is True


def test_an_operator_closes_it(app: App, breaker: Breaker, account: Account) -> None:
    """`accounts unpark`: the account goes on at once, counts and waits begin anew."""
    fail(breaker, account, ALIKE)
    app.unpark(account.id)

    assert parked(app, account.id) is None
    assert breaker.admit(account) is True
    assert not any(fail(breaker, account, ALIKE - 1))
    fail(breaker, account, 1)
    assert refused(breaker, account).wait == COUNTED_WAIT


def test_it_is_seen_and_released_from_the_command_line(
    app: App, breaker: Breaker, account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`monitor` and `accounts list` say why; `accounts unpark` lets it go on, and knows whom it does not know."""
    shell = commands(app, monkeypatch, capsys)
    app.queue.enqueue([NewTask(account.id, "product", "sync", SyncGoods(uuid4()), entity_id=str(uuid4()))])
    fail(breaker, account, ALIKE)

    for words in (("monitor", "--once"), ("accounts", "list")):
        assert "stopped before MoySklad disables" in shell(*words)
    assert app.queue.claim(["*"], 1) is None
    assert shell("accounts", "unpark", str(account.id)) == f"account {account.id} goes on\n"
    assert app.queue.claim(["*"], 1) is not None
    with pytest.raises(SystemExit):
        shell("accounts", "unpark", str(UUID(int=9)))


def commands(app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process with the app's settings; what it wrote."""
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("DATABASE_URL", "APP_KEY"):
        monkeypatch.setenv(name, getattr(app.settings, name).get_secret_value())
    monkeypatch.setenv("LOG_DIR", str(app.settings.LOG_DIR))

    def shell(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["moysklad-worker", *words])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
        return capsys.readouterr().out

    return shell


def test_a_removed_account_takes_its_breaker_along(app: App, breaker: Breaker, account: Account) -> None:
    """Nothing is left of it."""
    fail(breaker, account, ALIKE)
    app.remove_account(account.id)

    with app.db.connection() as conn:
        assert conn.execute("select count(*) as n from breakers").fetchone() == {"n": 0}


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # which of four processes
        st.sampled_from([0, 200, 200, 400, 404, 412, 429, 429, 500, 503]),
        st.sampled_from([("POST", "/entity/product"), ("GET", "/entity/uom"), ("PUT", "/entity/product/1")]),
        st.sampled_from([0.0, 0.0, 0.01, 0.2, 7.0, 70.0]),  # seconds until the next
        st.integers(1, 120),  # how often
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_no_schedule_makes_moysklad_switch_the_access_off(app: App, steps: Any) -> None:
    """Whatever is answered, by whichever process, however fast: who asks the breaker first is never disabled."""
    account, clock = add(app), Clock()
    fleet = [Breaker(app.db, clock=clock) for _ in range(4)]
    vendor = Principal("token", str(account.id))

    for process, status, (method, path), pause, times in steps:
        breaker = fleet[process]
        for _ in range(times):
            with suppress(RateLimited):
                whole = breaker.admit(account)
                method, path = (method, path) if whole else ("GET", "/entity/uom")
                assert vendor.judge(clock.now.timestamp(), method, path, status) is None
                if status == 200:
                    breaker.succeeded(account, method, path)
                else:
                    breaker.failed(account, method, path, status, "no")
                if not whole:
                    breaker.probed(account, None if status in (200, 400, 404, 412) else "no")
            clock.pass_(pause)


# Together with client and worker


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions without waits in between."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)


def fault(simulator: Vendor, **order: Any) -> Callable[[], None]:
    """Order a fault; calling what comes back ends all of them."""
    simulator.control("POST", "/faults", **order)
    return lambda: simulator.control("DELETE", "/faults")


def elapse(app: App) -> None:
    """Let the time pass until open breakers may be tried and pauses are over."""
    with app.db.connection() as conn:
        conn.execute("update breakers set open_until = least(open_until, clock_timestamp()) where open")
        conn.execute("update accounts set parked_until = null where parked_until < now() + interval '1 hour'")
        conn.execute("update limiter_principals set paused_until = '-infinity'")


@pytest.mark.usefixtures("impatient")
def test_an_outage_costs_no_task_its_life(family: Family) -> None:
    """While MoySklad is away the accounts are parked and say so; when it is back everything goes on."""
    end = fault(family.simulator, kind="status", status=503)
    run = family.sync()
    assert run["counts"]["failed"] == 0
    assert "MoySklad is away" in str(parked(family.app, family.main))

    for _ in range(12):
        elapse(family.app)
        family.due_now()
        family.work()
    assert family.app.runs.get(run["id"])["counts"]["failed"] == 0
    end()
    for _ in range(4):
        elapse(family.app)
        family.due_now()
        family.work()

    assert all(family.difference(child)["missing"] == 0 for child in family.children)
    assert family.app.runs.get(run["id"])["counts"]["failed"] == 0


@pytest.mark.usefixtures("impatient")
def test_a_task_that_always_fails_does_fail(family: Family) -> None:
    """MoySklad is there for everything else: the probe succeeds, the task uses up its attempts."""
    child = family.children[0]
    family.sync(child)
    family.vendor(family.main, "PUT", f"entity/product/{first(family)}", {"weight": 8.25})
    fault(family.simulator, kind="status", status=500, method="POST", account=str(child))

    run = family.sync(child)
    for _ in range(6):
        elapse(family.app)
        family.due_now()
        family.work()

    counts = family.app.runs.get(run["id"])["counts"]
    assert (counts["failed"], counts["pending"]) == (1, 0)


def first(family: Family) -> str:
    """Id of one of main's goods."""
    id: str = family.vendor(family.main, "GET", "entity/product", limit=1)["rows"][0]["id"]
    return id


def test_the_client_stops_in_the_middle(app: App, simulator: Vendor) -> None:
    """Once it is open nothing more is sent, neither repeated nor new; after the wait one probe goes first."""
    id = account_there(app, simulator)
    end = fault(simulator, kind="drop_before")
    with app.client(id) as client:
        with pytest.raises(Retryable):
            client.get("entity/product", limit=1)
        with pytest.raises(RateLimited, match="MoySklad is away"):
            client.get("entity/product", limit=1)
    assert simulator.control("GET", "/ledger")["by_status"] == {"0": IN_A_ROW}
    end()
    elapse(app)

    with app.client(id) as client:
        client.get("entity/product", limit=1)
        client.get("entity/product", limit=1)

    paths = simulator.control("GET", "/ledger")["by_path"]
    assert paths == {"GET /entity/product": IN_A_ROW + 2, "GET /entity/uom": 1}


def test_a_probe_that_fails_sends_nothing_else(app: App, simulator: Vendor) -> None:
    """One request, and the breaker is open for longer."""
    id = account_there(app, simulator)
    fault(simulator, kind="drop_before")
    with app.client(id) as client, pytest.raises(Retryable):
        client.get("entity/product", limit=1)
    elapse(app)

    with app.client(id) as client, pytest.raises(RateLimited, match="still away") as raised:
        client.get("entity/product", limit=1)

    assert raised.value.wait == pytest.approx(2 * AWAY_WAIT, abs=1)
    assert simulator.control("GET", "/ledger")["by_path"]["GET /entity/uom"] == 1


def test_a_probe_that_was_not_sent_says_nothing(app: App, simulator: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limiter had no turn for it: the breaker stays as it is, and is not opened for longer."""
    id = account_there(app, simulator)
    fault(simulator, kind="drop_before")
    with app.client(id) as client, pytest.raises(Retryable):
        client.get("entity/product", limit=1)
    elapse(app)
    no_turn = RateLimited("later", 5.0)

    def refuse(*_: Any, **options: Any) -> Any:
        raise no_turn

    with monkeypatch.context() as patched:
        patched.setattr(app.limiter, "acquire", refuse)
        with app.client(id) as client, pytest.raises(RateLimited) as raised:
            client.get("entity/product", limit=1)

    assert raised.value is no_turn
    with app.db.connection() as conn:
        row = conn.execute("select open, open_until <= now() as over, opened from breakers").fetchone()
    assert row == {"open": True, "over": True, "opened": 1}


def test_a_refused_token_parks_at_once(app: App, simulator: Vendor) -> None:
    """The first 401 is the last: the worker claims nothing more of that account."""
    id = account_there(app, simulator)
    simulator.control("POST", f"/accounts/{id}/tokens", revoke=[f"token-{id}"])
    with app.client(id) as client, pytest.raises(Unauthorized):
        client.get("entity/product", limit=1)
    app.queue.enqueue([NewTask(id, "product", "sync", SyncGoods(uuid4()), entity_id=str(uuid4()))])
    app.accounts.park(id, "HTTP 401")

    assert app.queue.claim(["*"], 1) is None
    assert simulator.control("GET", "/ledger")["requests"] == 1


def account_there(app: App, simulator: Vendor) -> UUID:
    """An account known to both sides."""
    id = uuid4()
    simulator.control("POST", "/accounts", id=str(id), name="A", tokens=[{"token": f"token-{id}", "weight": 1}])
    app.accounts.add(id, "A", "child", "solution", f"token-{id}")
    return id
