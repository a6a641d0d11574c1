"""Accounts: their tokens, what a request of theirs costs, whom they receive from, and when they wait."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.fernet import Fernet

from worker.accounts import FOREVER, WEIGHTS, Account, Accounts, weight_of
from worker.app import App
from worker.errors import ConfigError, Conflict, NotFound, Unauthorized
from worker.links import LinkSettings
from worker.task import NewTask, Plan, SyncGoods

MAIN, CHILD, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)
NOBODY = UUID(int=9)
TOKEN = "token-that-nobody-may-see"


@pytest.fixture
def accounts(app: App) -> Accounts:
    """A main account, its child, and another child of nobody."""
    app.accounts.add(MAIN, "Main", "main", "solution", TOKEN)
    app.accounts.add(CHILD, "Child", "child", "user", TOKEN)
    app.accounts.add(OTHER, "Other", "child", "user", TOKEN)
    app.accounts.link(MAIN, CHILD)
    return app.accounts


def rows(app: App, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """What is in the database."""
    with app.db.connection() as conn:
        return [tuple(row.values()) for row in conn.execute(sql, params).fetchall()]  # type: ignore[arg-type]


# Weights


@pytest.mark.parametrize(
    ("auth", "day", "units"),
    [
        ("solution", date(2026, 11, 30), 1),
        ("solution", date(2020, 1, 1), 1),
        ("user", date(2020, 1, 1), 2),
        ("user", date(2026, 5, 12), 2),
        ("user", date(2026, 8, 31), 2),
        ("user", date(2026, 9, 1), 3),
        ("user", date(2026, 11, 30), 3),
        ("user", date(2026, 12, 1), 4),
        ("user", date(2030, 1, 1), 4),
    ],
)
def test_what_a_request_costs(auth: str, day: date, units: int) -> None:
    """By kind of token and day, as MoySklad announced it; before the first day, what the first says."""
    assert units == weight_of(auth, day)


def test_weights_stand_in_order() -> None:
    """Each list begins with its earliest day."""
    assert all(list(steps) == sorted(steps) for steps in WEIGHTS.values())


def test_an_accounts_own_weight_wins() -> None:
    """One that was given counts on every day."""
    assert Account(MAIN, "", "main", "user", 7, TOKEN).units(date(2026, 12, 1)) == 7


def test_a_principal_is_one_token_of_one_account() -> None:
    """Same token in another account, and another token in the same: others. The token is not in it."""
    principals = {
        Account(id, "", "main", "user", None, token).principal for id in (MAIN, CHILD) for token in (TOKEN, "b")
    }

    assert len(principals) == 4
    assert not any(TOKEN in principal for principal in principals)


# Tokens


def test_the_token_is_kept_encrypted(app: App, accounts: Accounts) -> None:
    """Readable with APP_KEY only; in no repr."""
    ((stored,),) = rows(app, "select token from accounts where id = %s", MAIN)

    assert accounts.get(MAIN).token == TOKEN
    assert TOKEN not in stored
    assert TOKEN not in repr(accounts.get(MAIN))


def test_another_app_key_is_told(app: App, accounts: Accounts) -> None:
    """The account cannot be used, and the message says both ways out; the new token works with the new key."""
    strange = Accounts(app.db, Fernet.generate_key().decode())

    with pytest.raises(Unauthorized, match=r"another APP_KEY.*accounts token"):
        strange.get(MAIN)
    strange.set_token(MAIN, "new")

    assert strange.get(MAIN).token == "new"


@pytest.mark.parametrize("token", ["", " \n"])
def test_an_empty_token_is_refused(accounts: Accounts, token: str) -> None:
    """Neither a new account nor an old one gets it."""
    with pytest.raises(ConfigError, match="the token is empty"):
        accounts.add(uuid4(), "", "main", "user", token)
    with pytest.raises(ConfigError, match="the token is empty"):
        accounts.set_token(MAIN, token)

    assert accounts.get(MAIN).token == TOKEN


@pytest.mark.parametrize("token", ["\ufeffabc", "a\nb", "a\tb", "токен"])
def test_a_token_no_header_can_carry_is_refused(accounts: Accounts, token: str) -> None:
    """At once and in words, instead of with every request."""
    with pytest.raises(ConfigError, match="copy it anew"):
        accounts.set_token(MAIN, token)

    assert accounts.get(MAIN).token == TOKEN


def test_a_token_is_stripped(accounts: Accounts) -> None:
    """The newline at a file's end is no part of it."""
    accounts.set_token(MAIN, " abc\n")

    assert accounts.get(MAIN).token == "abc"


def test_an_account_is_added_once(accounts: Accounts) -> None:
    """A second one of the same id is a conflict and changes nothing."""
    with pytest.raises(Conflict, match="exists already"):
        accounts.add(MAIN, "Else", "child", "user", "else")

    assert accounts.get(MAIN).name == "Main"


def test_unknown_accounts(app: App, accounts: Accounts) -> None:
    """Everything that needs one says that there is none."""
    calls = [
        lambda: accounts.get(NOBODY),
        lambda: accounts.role_of(NOBODY),
        lambda: accounts.set_token(NOBODY, "x"),
        lambda: app.remove_account(NOBODY),
        lambda: accounts.link(NOBODY, CHILD),
        lambda: accounts.link(MAIN, NOBODY),
        lambda: accounts.unlink(MAIN, NOBODY),
        lambda: accounts.link_between(MAIN, NOBODY),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()


# Links


def test_roles_must_fit(accounts: Accounts) -> None:
    """A child receives from a main account, never from itself."""
    for main, child in ((CHILD, OTHER), (CHILD, MAIN), (MAIN, MAIN)):
        with pytest.raises(Conflict):
            accounts.link(main, child)

    assert [(link.main, link.child) for link in accounts.links()] == [(MAIN, CHILD)]


def test_links_are_found_from_both_ends(accounts: Accounts) -> None:
    """By main, by child, between the two, and all."""
    accounts.link(MAIN, OTHER, LinkSettings(vat="child"))

    assert {link.child for link in accounts.links(MAIN)} == {CHILD, OTHER}
    assert [link.settings.vat for link in accounts.links_of_child(OTHER)] == ["child"]
    assert accounts.link_between(MAIN, OTHER).settings == LinkSettings(vat="child")
    assert list(accounts.links(NOBODY)) == []
    overview = {row["id"]: (row["children"], row["mains"]) for row in accounts.overview()}
    assert overview == {MAIN: ([CHILD, OTHER], []), CHILD: ([], [MAIN]), OTHER: ([], [MAIN])}


def test_changed_link_settings_have_everything_sent_anew(app: App, accounts: Accounts) -> None:
    """The hashes of that child are forgotten, its ids and other children's hashes are not; the same settings
    again change nothing."""
    for child in (CHILD, OTHER):
        rows(
            app,
            "insert into mappings (child_id, entity_type, main_entity_id, child_entity_id, hash) "
            "values (%s, 'product', %s, %s, 'h') returning 1",
            child, UUID(int=5), UUID(int=6),
        )  # fmt: skip
    hashes = "select hash from mappings order by child_id"

    accounts.link(MAIN, CHILD, LinkSettings())
    assert rows(app, hashes) == [("h",), ("h",)]
    accounts.link(MAIN, CHILD, LinkSettings(match_field="code"))
    assert rows(app, hashes) == [(None,), ("h",)]
    assert rows(app, "select count(*) from mappings where child_entity_id = %s", UUID(int=6)) == [(2,)]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"match_field": "weight"}, ["match_field"]),
        ({"every_minutes": -1, "vat": "none"}, ["every_minutes", "vat"]),
        ({"color": "red", "create_price_types": "maybe"}, ["color", "create_price_types"]),
        ({"price_types": ["a"]}, ["price_types"]),
    ],
)
def test_link_settings_that_do_not_hold(values: dict[str, Any], names: list[str]) -> None:
    """Every one is named."""
    with pytest.raises(ConfigError) as error:
        LinkSettings.parse(values)

    assert [name for name in names if name in str(error.value)] == names


# Waiting


def until(app: App, id: UUID = CHILD) -> tuple[Any, Any]:
    """Till when the account waits, and why."""
    ((moment, reason),) = rows(app, "select parked_until, parked_reason from accounts where id = %s", id)
    return moment, reason


def test_parked_until_a_new_token_comes(app: App, accounts: Accounts) -> None:
    """Its tasks are not claimed; with another token they are."""
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id="1")])
    accounts.park(CHILD, "HTTP 401")

    assert until(app) == (FOREVER, "HTTP 401")
    assert app.queue.claim(["*"], 1) is None
    accounts.set_token(CHILD, "new")
    assert until(app) == (None, None)
    assert app.queue.claim(["*"], 1) is not None


def test_a_pause_ends_by_itself(app: App, accounts: Accounts) -> None:
    """It is as long as was asked for, on the server's clock."""
    before = rows(app, "select now()")[0][0]
    accounts.pause(CHILD, 60, "too fast")
    moment, reason = until(app)
    after = rows(app, "select now()")[0][0]

    assert before <= moment - timedelta(seconds=60) <= after
    assert reason == "too fast"


def test_a_pause_neither_shortens_nor_renames_a_longer_wait(app: App, accounts: Accounts) -> None:
    """A refused token stays the reason; a longer pause replaces a shorter one, and one that is over."""
    accounts.park(OTHER, "over", until=datetime.now(UTC) - timedelta(days=1))
    accounts.park(CHILD, "HTTP 401")
    for id in (CHILD, OTHER):
        accounts.pause(id, 600, "ten minutes")
    ten = until(app, OTHER)
    accounts.pause(OTHER, 60, "one minute")

    assert until(app) == (FOREVER, "HTTP 401")
    assert ten[1] == "ten minutes"
    assert until(app, OTHER) == ten
    accounts.pause(OTHER, 6000, "a long time")
    assert until(app, OTHER)[1] == "a long time"


# Removing


def test_remove_forgets_what_was_kept_for_it(app: App, accounts: Accounts) -> None:
    """Links, mappings and pending tasks of that account go; a claimed one and other accounts' stay."""
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id="claimed")])
    app.queue.claim(["*"], 1)
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id="waiting")])
    app.queue.enqueue([NewTask(MAIN, "catalogue", "plan", Plan(), entity_id="main's")])
    rows(
        app,
        "insert into mappings (child_id, entity_type, main_entity_id, child_entity_id) "
        "values (%s, 'product', %s, %s) returning 1",
        CHILD, UUID(int=5), UUID(int=6),
    )  # fmt: skip

    app.remove_account(CHILD)

    assert list(accounts.links()) == []
    assert rows(app, "select count(*) from mappings") == [(0,)]
    assert rows(app, "select entity_id from sync_queue order by 1") == [("claimed",), ("main's",)]
