"""The bulk writer: as long arrays as an account bears, down to the one guilty item, which alone fails."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import EQUAL, Family
from worker.links import LinkSettings
from worker.sync import mirror
from worker.task import Task

PATH = "/entity/product"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions without waits in between."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)


def fault(family: Family, child: UUID, **order: Any) -> None:
    """Have something go wrong when goods are sent to that child."""
    family.simulator.control("POST", "/faults", method="POST", path=PATH, account=str(child), **order)


def calm(family: Family) -> None:
    """No more faults."""
    family.simulator.control("DELETE", "/faults")


def posts(family: Family, child: UUID) -> list[tuple[int, int]]:
    """Elements and status of each array of goods sent to that child since the last look."""
    ledger = family.simulator.control("GET", "/ledger?entries=1")
    family.simulator.control("POST", "/ledger/reset")
    wanted = ("POST", PATH, str(child))
    return [
        (one["items"], one["status"])
        for one in ledger["entries"]
        if (one["method"], one["path"], one["account"]) == wanted
    ]


def bulk(family: Family, child: UUID) -> int:
    """Elements per array that the account is known to bear."""
    return family.app.accounts.get(child).bulk


def long_ago(family: Family) -> None:
    """Let the time pass until what was refused is no limit any more."""
    with family.app.db.connection() as conn:
        conn.execute("update accounts set bulk_at = bulk_at - interval '1 day'")


def problems(family: Family, run: dict[str, Any]) -> list[str]:
    """Why tasks of the run failed."""
    return [problem["error"] for problem in family.app.runs.problems(run["id"])]


def test_one_array_for_all(family: Family) -> None:
    """As long as nothing speaks against it."""
    child = family.children[0]
    family.sync(child)

    assert posts(family, child) == [(60, 200)]
    assert bulk(family, child) == 1000


@pytest.mark.parametrize("order", [{"status": 413}, {"status": 504}, {"status": 400, "code": 1044}])
def test_too_large_is_halved_and_remembered(family: Family, order: dict[str, int]) -> None:
    """413, 1044 and 1088: half as many from now on, by every worker; the goods all arrive."""
    child, other = family.children
    fault(family, child, kind="status", count=2, **order)
    family.sync(child)

    assert [status for _, status in posts(family, child)][:2] == [order["status"]] * 2
    assert bulk(family, child) < 30
    assert bulk(family, other) == 1000
    assert family.difference(child) == EQUAL


def test_what_takes_too_long_is_halved(family: Family) -> None:
    """An answer that is not there in time is not asked for again: half as many may be quick enough."""
    child = family.children[0]
    fault(family, child, kind="timeout", delay_ms=3000, count=1)
    family.app.settings = replace(family.app.settings, READ_TIMEOUT=1.0)

    family.sync(child)

    assert [one for one in posts(family, child) if one[1] == 200] == [(30, 200), (30, 200)]
    assert bulk(family, child) >= 30
    assert family.difference(child) == EQUAL


def test_a_batch_that_needs_more_than_its_time(family: Family) -> None:
    """MoySklad takes 20 ms an element, the batch may take 1 s: the first array is too long, the next ones are
    shorter, and what was not even sent has lost no attempt."""
    child = family.children[0]
    family.simulator.control("POST", "/speed", item_ms=20)
    family.app.start_sync(child, requested_by="test")
    family.work(max_tasks=2)  # main is read, the child prepared
    for _ in range(40):
        family.work(timeout=1)
        family.due_now()
        if not family.app.queue.peek("pending", account_id=child):
            break

    assert family.difference(child) == EQUAL
    assert bulk(family, child) < 60
    done = family.app.queue.peek("completed", account_id=child, limit=100)
    assert len(done) == 61
    assert max(row["attempts"] for row in done) <= 3


def test_arrays_grow_back_after_a_slow_one(family: Family) -> None:
    """Slowness that passes leaves nothing behind: after each full array borne well comes one twice as long."""
    child = family.children[0]
    family.app.accounts.shrink_bulk(child, 8, refused=False)

    family.sync(child)

    assert [items for items, _ in posts(family, child)] == [4, 8, 16, 32]
    assert bulk(family, child) == 64
    assert family.difference(child) == EQUAL


def test_arrays_grow_back_to_what_was_refused(family: Family) -> None:
    """Half the way to it with each that is borne well, so that few are refused; after a while it is forgotten."""
    child = family.children[0]
    accounts = family.app.accounts
    sizes = [accounts.shrink_bulk(child, 60, refused=True)]
    for _ in range(7):
        sizes.append(accounts.grow_bulk(child, sizes[-1]))
    assert sizes == [30, 45, 52, 56, 58, 59, 59, 59]

    assert accounts.shrink_bulk(child, 45, refused=True) == 22
    assert accounts.grow_bulk(child, 22) == 33
    long_ago(family)
    assert accounts.grow_bulk(child, 33) == 66


def test_only_a_full_array_tells_that_more_are_borne(family: Family) -> None:
    """And only while the size is still what it was: another worker may have learnt otherwise."""
    child = family.children[0]
    family.app.accounts.shrink_bulk(child, 200, refused=False)
    family.sync(child)
    assert bulk(family, child) == 100

    assert family.app.accounts.grow_bulk(child, 80) == 80
    assert bulk(family, child) == 100


def test_one_element_too_large_by_itself(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails alone; the others' arrays are as long as before."""
    child = family.children[0]
    Blacklist(family, codes(family, 9), 413, monkeypatch)

    run = family.sync(child)

    assert (run["counts"]["failed"], run["counts"]["created"]) == (1, 59)
    assert bulk(family, child) == 1000


class Blacklist:
    """Has the simulator refuse whole arrays that hold certain goods, as a validation of the request would."""

    def __init__(self, family: Family, codes: set[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from simulator import routes
        from simulator.errors import ApiError

        whole = routes._write_all

        def write_all(account: Any, kind: str, items: list[Any], fault: Any) -> Any:
            if kind == "product" and any(item.get("externalCode") in codes for item in items):
                raise ApiError(2016 if status != 500 else 1999, "weight", "число", status=status)
            return whole(account, kind, items, fault)

        monkeypatch.setattr(routes, "_write_all", write_all)


def codes(family: Family, *numbers: int) -> set[str]:
    """External codes of main's goods by their place in the list."""
    rows = family.vendor(family.main, "GET", "entity/product", filter=mirror.goods.BOTH, order="name")["rows"]
    return {rows[n]["externalCode"] for n in numbers}


def test_the_guilty_item_alone_fails(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request refused as a whole is halved until the item is alone; it fails with MoySklad's words."""
    child = family.children[0]
    Blacklist(family, codes(family, 17), 400, monkeypatch)
    family.ledger()

    run = family.sync(child)

    assert (run["counts"]["failed"], run["counts"]["created"]) == (1, 59)
    assert "2016" in problems(family, run)[0]
    assert len(posts(family, child)) <= 2 * 6 + 1
    assert bulk(family, child) == 1000  # it was not the length


def test_two_guilty_items(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them fails, all others arrive."""
    child = family.children[0]
    Blacklist(family, codes(family, 3, 44), 412, monkeypatch)

    run = family.sync(child)

    assert (run["counts"]["failed"], run["counts"]["created"]) == (2, 58)


def test_many_guilty_items_do_not_make_a_hammer(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """After twenty refusals the rest of the batch waits, without losing attempts; no innocent fails in the end."""
    child = family.children[0]
    Blacklist(family, codes(family, *range(0, 60, 5)), 400, monkeypatch)
    run = family.sync(child)

    assert sum(status == 400 for _, status in posts(family, child)) == mirror.REFUSALS
    for _ in range(12):
        family.app.unpark(child)
        family.due_now()
        family.work()

    counts = family.app.runs.get(run["id"])["counts"]
    assert (counts["failed"], counts["created"], counts["pending"]) == (12, 48, 0)


@pytest.mark.parametrize("order", [{"status": 405}, {"status": 415}, {"kind": "redirect"}])
def test_what_is_nobodys_fault_is_not_halved(family: Family, order: dict[str, Any]) -> None:
    """Each element would meet the same: one request, told by all."""
    child = family.children[0]
    fault(family, child, **{"kind": "status", **order})

    run = family.sync(child)

    assert len(posts(family, child)) == 1
    assert run["counts"]["failed"] == 60


def test_an_item_that_makes_moysklad_stumble_fails_alone(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 for every array it is in: smaller parts with each attempt, in the end it is alone."""
    child = family.children[0]
    Blacklist(family, codes(family, 17), 500, monkeypatch)
    run = family.sync(child)
    assert run["counts"]["failed"] == 0
    for _ in range(8):
        family.app.unpark(child)
        family.due_now()
        family.work()

    counts = family.app.runs.get(run["id"])["counts"]
    assert (counts["failed"], counts["created"], counts["pending"]) == (1, 59, 0)


def test_a_gateway_that_loses_every_answer_creates_nothing_twice(family: Family) -> None:
    """502 after the effect, again and again: what was made is found by its syncId."""
    child = family.children[0]
    fault(family, child, kind="html", status=502, effect=True, count=4)

    run = family.sync(child)

    assert run["counts"]["created"] == 60
    assert family.difference(child) == EQUAL


def test_a_row_that_cannot_be_kept_fails_alone(family: Family) -> None:
    """The child's good is another main good's already: that task says so, the others are recorded."""
    child = family.children[0]
    family.sync(child)
    rows = family.vendor(family.main, "GET", "entity/product", filter=mirror.goods.BOTH, order="name")["rows"]
    one, two = rows[0]["id"], rows[1]["id"]
    with family.app.db.connection() as conn:
        # What a restored backup or a hand in the database may leave: one's mapping is lost, two has its entity.
        conn.execute("alter table mappings drop constraint mappings_pkey")
        row = conn.execute(
            "delete from mappings where main_entity_id = %s and child_id = %s returning child_entity_id", [one, child]
        ).fetchone()
        assert row
        conn.execute(
            "update mappings set child_entity_id = %s where main_entity_id = %s and child_id = %s",
            [row["child_entity_id"], two, child],
        )
        conn.execute("alter table mappings add primary key (child_id, entity_type, main_entity_id)")
        conn.execute("update mappings set hash = null where child_id = %s and main_entity_id <> %s", [child, two])
    family.app.accounts.link(family.main, child, LinkSettings(match_field="code", create_price_types=True))

    run = family.sync(child)

    assert run["counts"]["failed"] == 1
    assert f"is already that of main's {two}" in problems(family, run)[0]
    assert run["counts"]["updated"] == 59


def test_settings_changed_while_a_batch_is_under_way(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent with the old ones is not taken for what the new ones want: the next sync sends it again."""
    child = family.children[0]
    changed = LinkSettings(vat="child", create_price_types=True)
    settle = mirror._settle

    def meanwhile(*args: Any, **named: Any) -> Any:
        thread = threading.Thread(target=lambda: family.app.accounts.link(family.main, child, changed))
        thread.start()
        thread.join(30)
        return settle(*args, **named)

    monkeypatch.setattr(mirror, "_settle", meanwhile)
    run = family.sync(child)
    assert run["counts"]["created"] == 60
    monkeypatch.setattr(mirror, "_settle", settle)

    again = family.sync(child)

    assert again["counts"]["updated"] == 60


def test_a_link_waits_for_what_is_being_recorded(family: Family) -> None:
    """New settings come after the transaction that records what the old ones have sent, and see all of it."""
    child = family.children[0]
    family.sync(child)
    link = family.app.accounts.link_between(family.main, child)
    fresh = UUID(int=77)
    with family.app.db.transaction() as conn:
        assert mirror.accounts.still_so(conn, link)
        thread = threading.Thread(
            target=lambda: family.app.accounts.link(family.main, child, LinkSettings(match_field="code"))
        )
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        mirror.mappings.save(conn, child, "product", [mirror.Mapped(fresh, fresh, "sent with the old ones")])
    thread.join(30)

    with family.app.db.connection() as conn:
        found = conn.execute("select count(*) as n from mappings where child_id = %s and hash is not null", [child])
        assert found.fetchone() == {"n": 0}
        assert not mirror.accounts.still_so(conn, link)


def test_parts_are_cut_by_number_bytes_and_attempts() -> None:
    """No longer than the account bears, 8 MB, and what former trouble allows."""

    def item(attempts: int = 1, size: int = 10) -> mirror.Item:
        task = Task(1, "q", UUID(int=1), "product", "", "sync", 1, {}, attempts, None, None, 1, 0.0)
        return mirror.Item(task, mirror.Pair(UUID(int=1), "", {}, None), {}, (), b"x" * size)

    def sizes(items: list[mirror.Item], most: int) -> list[int]:
        found = []
        for group in mirror._alike(items):
            rest = group
            while rest:
                part, rest = mirror._cut(rest, most)
                found.append(len(part))
        return found

    assert sizes([item()] * 2500, 1000) == [1000, 1000, 500]
    assert sizes([item()] * 5, 2) == [2, 2, 1]
    assert sizes([item(size=3_000_000)] * 5, 1000) == [2, 2, 1]
    assert sizes([item(size=9_000_000)] * 2, 1000) == [1, 1]
    assert sizes([item(), *[item(2)] * 33, item(), item(3), item(7)], 1000) == [2, 32, 1, 1, 1]
