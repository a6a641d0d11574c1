"""References have no syncId: a create whose answer was lost is looked for before it is sent again."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import EQUAL, Family
from worker.links import LinkSettings
from worker.sync import references

PATHS = {
    "uom": "/entity/uom",
    "country": "/entity/country",
    "currency": "/entity/currency",
    "pricetype": "/context/companysettings/pricetype",
    "productfolder": "/entity/productfolder",
}
LOST: list[dict[str, Any]] = [
    {"kind": "drop_before"},
    {"kind": "drop_after"},
    {"kind": "html", "effect": True},
    {"kind": "status", "status": 500, "effect": True},
    {"kind": "status", "status": 504, "effect": True},
    {"kind": "wrong_json"},
    {"kind": "truncate"},
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions without waits in between."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)


@pytest.fixture
def child(family: Family) -> UUID:
    """A child that has nothing yet; main has goods with one of each reference of its own."""
    goods = {}
    for type, body in (("uom", {"name": "бочка"}), ("country", {"name": "Атлантида"})):
        made = family.vendor(family.main, "POST", f"entity/{type}", body)
        goods[type] = {"meta": made["meta"]}
    row = family.vendor(family.main, "GET", "entity/product")["rows"][0]
    family.vendor(family.main, "PUT", f"entity/product/{row['id']}", goods)
    family.ledger()
    return family.children[0]


def fault(family: Family, child: UUID, type: str, **order: Any) -> None:
    """Have something go wrong when references of that type are created."""
    family.simulator.control("POST", "/faults", method="POST", path=PATHS[type], account=str(child), **order)


def creates(family: Family, child: UUID, type: str) -> int:
    """How many requests to create such references the child has had."""
    entries = family.simulator.control("GET", "/ledger?entries=1")["entries"]
    return sum((one["method"], one["path"], one["account"]) == ("POST", PATHS[type], str(child)) for one in entries)


def intents(family: Family) -> list[dict[str, Any]]:
    """Creates whose outcome is not known."""
    with family.app.db.connection() as conn:
        return conn.execute("select entity_type, tries from intents").fetchall()


def pass_time(family: Family, seconds: float) -> None:
    """Let so much time pass: for intents, parked accounts and what is put off."""
    with family.app.db.connection() as conn:
        conn.execute("update intents set sent_at = sent_at - %s * interval '1 second'", [seconds])
    family.app.unpark(family.children[0])
    family.due_now()


@pytest.mark.parametrize("type", PATHS)
@pytest.mark.parametrize("order", LOST, ids=lambda order: f"{order['kind']}{order.get('status', '')}")
def test_a_lost_answer_creates_nothing_twice(family: Family, child: UUID, type: str, order: dict[str, Any]) -> None:
    """Whatever kind, whatever trouble: after a look, or after five minutes if it is not there, it is made once."""
    fault(family, child, type, count=1, **order)
    run = family.sync(child)
    assert run["finished_at"] is None
    pass_time(family, 2)
    family.work()
    pass_time(family, 300)
    family.work()

    assert family.difference(child) == EQUAL
    assert family.app.runs.get(run["id"])["counts"]["created"] == 60
    assert intents(family) == []


def test_what_took_effect_is_found_at_once(family: Family, child: UUID) -> None:
    """The first look is after a second; nothing waits for five minutes then, and no attempt is lost."""
    fault(family, child, "country", kind="drop_after", count=1)
    family.sync(child)
    pass_time(family, 1)
    family.work()

    assert family.difference(child) == EQUAL
    assert creates(family, child, "country") == 1
    (done,) = [
        row
        for row in family.app.queue.peek("completed", account_id=child, limit=100)
        if row["operation"] == "prepare"
    ]
    assert done["attempts"] == 1


def test_what_may_still_take_effect_is_not_sent_again(family: Family, child: UUID) -> None:
    """MoySklad works on for a client who has gone: the unit appears after the first looks, and stays the only one."""
    fault(family, child, "uom", kind="late", delay_ms=1500, count=1)
    family.sync(child)
    for seconds in (100, 150):
        pass_time(family, seconds)
        family.work()
        assert creates(family, child, "uom") == 1
    while not any(row["name"] == "бочка" for row in family.vendor(child, "GET", "entity/uom")["rows"]):
        time.sleep(0.3)
    pass_time(family, 10)
    family.work()

    assert family.difference(child) == EQUAL
    assert creates(family, child, "uom") == 1


def test_a_worker_that_died_during_the_request(family: Family, child: UUID) -> None:
    """Its intent is found by the next one, which looks, and waits until the request can no longer take effect."""
    family.sync(family.children[1])  # reads main
    with family.app.db.connection() as conn:
        conn.execute(
            "insert into intents (child_id, entity_type, main_entity_id, sent_at) "
            "select %s, entity_type, entity_id, now() - interval '10 seconds' from snapshots "
            "where entity_type = 'country'",
            [child],
        )
    family.ledger()
    family.sync(child)
    assert creates(family, child, "country") == 0

    pass_time(family, 291)
    family.work()

    assert creates(family, child, "country") == 1
    assert family.difference(child) == EQUAL


@pytest.mark.parametrize(
    ("order", "tries"),
    [({"kind": "status", "status": 429, "delay_ms": 1}, 2), ({"kind": "status", "status": 401}, 1)],
)
def test_a_refusal_leaves_no_doubt(family: Family, child: UUID, order: dict[str, Any], tries: int) -> None:
    """429 and 401 have no effect, so nothing needs to be waited for."""
    fault(family, child, "country", count=1, **order)
    family.sync(child)

    assert creates(family, child, "country") == tries
    assert intents(family) == []


def test_a_create_whose_outcome_is_never_known_is_given_up(family: Family, child: UUID) -> None:
    """After ten of them the goods that need it fail with the reason, the others arrive."""
    fault(family, child, "uom", kind="drop_before")
    run = family.sync(child)
    for _ in range(2 * references.TRIES + 2):
        pass_time(family, 300)
        family.work()

    assert creates(family, child, "uom") == references.TRIES
    counts = family.app.runs.get(run["id"])["counts"]
    assert counts["failed"] >= 1
    assert counts["created"] == 60 - counts["failed"]
    assert "the child has no uom" in family.app.runs.problems(run["id"])[0]["error"]
    assert intents(family) == []


def test_a_reference_refused_alone_fails_alone(family: Family, child: UUID) -> None:
    """An element that MoySklad refuses: told in the log; only goods that need it fail."""
    fault(family, child, "country", kind="item_error", items=[0], code=3006, count=1)
    run = family.sync(child)

    assert run["counts"]["failed"] == 1
    assert run["counts"]["created"] == 59
    assert intents(family) == []


def test_an_array_of_references_refused_as_a_whole_is_halved(family: Family, child: UUID) -> None:
    """One answer says nothing of its elements: all of them are made in smaller arrays."""
    fault(family, child, "productfolder", kind="status", status=400, count=1)
    family.sync(child)

    assert family.difference(child) == EQUAL
    assert creates(family, child, "productfolder") > 2


def test_two_of_mains_price_types_may_be_one_of_the_childs(family: Family, child: UUID) -> None:
    """By the link's setting; both are remembered, so that no goods miss a price."""
    names = [row["name"] for row in family.vendor(family.main, "GET", "context/companysettings/pricetype")]
    settings = LinkSettings(price_types={names[1]: "Общая", names[2]: "Общая"}, create_price_types=True)
    family.app.accounts.link(family.main, child, settings)
    run = family.sync(child)

    assert run["counts"]["created"] + run["counts"]["updated"] == 60
    assert "Общая" in [row["name"] for row in family.vendor(child, "GET", "context/companysettings/pricetype")]
    assert intents(family) == []


def test_folders_of_one_name_stay_two(family: Family, child: UUID) -> None:
    """Main has two of one name in one place: the child gets two, and a second look makes no third."""
    folder = family.vendor(family.main, "GET", "entity/productfolder")["rows"][0]
    body = {"name": folder["name"], "productFolder": folder.get("productFolder")}
    twin = family.vendor(family.main, "POST", "entity/productfolder", body)
    row = family.vendor(family.main, "GET", "entity/product")["rows"][1]
    family.vendor(family.main, "PUT", f"entity/product/{row['id']}", {"productFolder": {"meta": twin["meta"]}})
    run = family.sync(child)
    assert run["counts"]["failed"] == 0
    with family.app.db.connection() as conn:
        conn.execute("delete from mappings where child_id = %s", [child])
    before = len(family.vendor(child, "GET", "entity/productfolder")["rows"])

    family.sync(child)

    assert len(family.vendor(child, "GET", "entity/productfolder")["rows"]) == before
