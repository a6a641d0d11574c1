"""Main → child, end to end: real worker, real PostgreSQL, simulated MoySklad over HTTP."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.conftest import EQUAL, Family
from worker.accounts import Account
from worker.links import LinkSettings
from worker.task import NewTask, Priority, SyncGoods

BOTH = "archived=true;archived=false"


def goods(family: Family, account: UUID, filter: str = BOTH) -> list[dict[str, Any]]:
    """The account's goods as MoySklad lists them."""
    rows: list[dict[str, Any]] = family.vendor(account, "GET", "entity/product", filter=filter, order="name")["rows"]
    return rows


def change(family: Family, account: UUID, row: dict[str, Any], **fields: Any) -> None:
    """Edit one of the account's goods as a person would."""
    family.vendor(account, "PUT", f"entity/product/{row['id']}", fields)


def twin(family: Family, child: UUID, row: dict[str, Any]) -> dict[str, Any]:
    """The child's counterpart of one of main's goods."""
    found = goods(family, child, f"externalCode={row['externalCode']};{BOTH}")
    assert len(found) == 1
    return found[0]


def problems(family: Family, run: dict[str, Any]) -> list[str]:
    """Why tasks of the run failed or wait."""
    return [problem["error"] for problem in family.app.runs.problems(run["id"])]


def test_children_become_equal_to_main(family: Family) -> None:
    """After one press every child has main's goods, no more and no others."""
    run = family.sync()

    assert run["finished_at"] is not None
    assert run["counts"]["created"] == 120
    assert [family.difference(child) for child in family.children] == [EQUAL, EQUAL]


def test_second_press_writes_nothing(family: Family) -> None:
    """Unchanged goods cost no write and no request to a child."""
    family.sync()
    family.ledger()

    family.sync()

    seen = family.ledger()
    assert seen["writes"] == 0
    assert seen["requests"] == 6


def test_only_what_changed_is_sent(family: Family) -> None:
    """A changed price, a cleared text, a good archived and one taken back cost one write per child."""
    family.sync()
    rows = goods(family, family.main)
    price = rows[0]["salePrices"][0]
    change(family, family.main, rows[0], salePrices=[price | {"value": 98765.0}])
    change(family, family.main, next(row for row in rows[1:] if row.get("description")), description="")
    change(family, family.main, next(row for row in rows[2:] if not row["archived"]), archived=True)
    family.ledger()

    run = family.sync()

    assert run["counts"]["updated"] == 6
    seen = family.ledger()
    assert seen["writes"] == 2
    assert [family.difference(child) for child in family.children] == [EQUAL, EQUAL]


def test_unarchived_in_main_comes_back(family: Family) -> None:
    """Archived and taken back in main, it is on sale again in the child."""
    row = goods(family, family.main, "archived=false")[0]
    change(family, family.main, row, archived=True)
    family.sync()
    assert twin(family, family.children[0], row)["archived"] is True

    change(family, family.main, row, archived=False)
    family.sync()

    assert twin(family, family.children[0], row)["archived"] is False


def test_deleted_in_main_is_archived_in_the_child(family: Family) -> None:
    """What main no longer has is taken off sale, never deleted; once."""
    row = goods(family, family.main, "archived=false")[0]
    family.sync()
    family.vendor(family.main, "DELETE", f"entity/product/{row['id']}")

    family.sync()
    assert twin(family, family.children[0], row)["archived"] is True
    family.ledger()
    family.sync()

    assert family.ledger()["writes"] == 0


@pytest.mark.parametrize(
    ("priority", "urgent"), [(Priority.USER, True), (Priority.WEBHOOK, True), (Priority.BACKGROUND, False)]
)
def test_what_somebody_waits_for_is_urgent(
    family: Family, monkeypatch: pytest.MonkeyPatch, priority: int, urgent: bool
) -> None:
    """Every request of a run begun by a user or a webhook goes before bulk work, in main and in the children."""
    asked: list[tuple[UUID, bool]] = []
    acquire = family.app.limiter.acquire

    def note(account: Account, **options: Any) -> Any:
        asked.append((account.id, options["urgent"]))
        return acquire(account, **options)

    monkeypatch.setattr(family.app.limiter, "acquire", note)
    family.app.start_sync(family.main, requested_by="test", priority=priority)
    family.work()

    assert {id for id, _ in asked} == {family.main, *family.children}
    assert {said for _, said in asked} == {urgent}


def test_a_child_alone(family: Family) -> None:
    """A child's id syncs that child only."""
    first, second = family.children

    family.sync(first)

    assert family.difference(first) == EQUAL
    assert goods(family, second) == []


def test_renamed_and_moved_folder_follows(family: Family) -> None:
    """A folder renamed and moved in main is the same folder in the child, renamed and moved; none is added."""
    family.sync()
    child = family.children[0]
    folders = family.vendor(family.main, "GET", "entity/productfolder")["rows"]
    leaf = next(f for f in folders if f.get("productFolder") and f["id"] in _folders_used(family))
    before = len(family.vendor(child, "GET", "entity/productfolder")["rows"])

    family.vendor(family.main, "PUT", f"entity/productfolder/{leaf['id']}", {"name": "Другое", "productFolder": None})
    # A folder is looked at when goods are to be sent.
    change(family, family.main, goods(family, family.main)[0], weight=12.5)
    family.sync()

    after = family.vendor(child, "GET", "entity/productfolder")["rows"]
    assert len(after) == before
    assert any(f["name"] == "Другое" and not f.get("productFolder") for f in after)
    assert family.difference(child) == EQUAL


def _folders_used(family: Family) -> set[str]:
    rows = goods(family, family.main)
    return {row["productFolder"]["meta"]["href"].rpartition("/")[2] for row in rows if row.get("productFolder")}


def test_goods_the_child_has_are_taken_over(family: Family) -> None:
    """One hit by the match field: the child's own good becomes main's, with its id, and no other is made."""
    row = goods(family, family.main, "archived=false")[0]
    child = family.children[0]
    family.app.accounts.link(family.main, child, LinkSettings(match_field="code", create_price_types=True))
    own = family.vendor(child, "POST", "entity/product", {"name": "Своё", "code": row["code"]})

    family.sync(child)

    assert twin(family, child, row)["id"] == own["id"]
    assert family.difference(child) == EQUAL


def test_several_hits_are_told_not_guessed(family: Family) -> None:
    """Two of the child's goods with the same code: that one task fails and says so, the others go on."""
    row = goods(family, family.main, "archived=false")[0]
    child = family.children[0]
    family.app.accounts.link(family.main, child, LinkSettings(match_field="code", create_price_types=True))
    for name in ("Раз", "Два"):
        family.vendor(child, "POST", "entity/product", {"name": name, "code": row["code"]})

    run = family.sync(child)

    assert run["counts"]["failed"] == 1
    assert run["counts"]["created"] == 59
    assert "2 of the child's goods have code" in problems(family, run)[0]


def test_two_of_mains_goods_do_not_claim_one_of_the_childs(family: Family) -> None:
    """Two of main's goods with one name and one such good in the child: both fail and say so."""
    rows = goods(family, family.main, "archived=false")[:2]
    for row in rows:
        change(family, family.main, row, name="Одинаковые")
    child = family.children[0]
    family.app.accounts.link(family.main, child, LinkSettings(match_field="name", create_price_types=True))
    family.vendor(child, "POST", "entity/product", {"name": "Одинаковые"})

    run = family.sync(child)

    assert run["counts"]["failed"] == 2
    assert all("2 of main's goods have name" in problem for problem in problems(family, run))


def test_goods_without_the_match_field_fail_with_a_reason(family: Family) -> None:
    """No article to be recognised by: the good is not created blindly."""
    child = family.children[0]
    family.app.accounts.link(family.main, child, LinkSettings(match_field="article", create_price_types=True))
    row = goods(family, family.main)[0]
    change(family, family.main, row, article="")

    run = family.sync(child)

    assert run["counts"]["failed"] >= 1
    assert all("it has no article to be recognised by" in problem for problem in problems(family, run))


def test_a_failed_search_is_not_a_miss(family: Family) -> None:
    """While the child cannot be searched nothing is created; the search is tried again."""
    child = family.children[0]
    family.simulator.control(
        "POST",
        "/faults",
        kind="status",
        status=500,
        method="GET",
        path="/entity/product",
        account=str(child),
        count=5,
    )

    run = family.sync(child)
    assert run["finished_at"] is None
    assert goods(family, child) == []
    family.app.unpark(child)
    family.due_now()
    family.work()

    assert family.difference(child) == EQUAL


def test_price_type_is_left_out_where_it_may_not_be_created(family: Family) -> None:
    """Without the setting the child's price types stay as they are, and each task says which price is missing."""
    child = family.add("child", "Third", LinkSettings(create_price_types=False))

    run = family.sync(child)

    names = [t["name"] for t in family.vendor(child, "GET", "context/companysettings/pricetype")]
    assert names == ["Цена продажи"]
    assert run["counts"]["created"] == 60
    notes = [row["error"] for row in family.app.queue.peek("completed", account_id=child, limit=100) if row["error"]]
    assert notes
    assert all("the child has no such price type" in note for note in notes)


def test_price_type_by_another_name(family: Family) -> None:
    """A link may say which of the child's price types main's becomes."""
    settings = LinkSettings(
        price_types={"Оптовая": "Цена продажи", "Цена продажи": "Розница"}, create_price_types=True
    )
    child = family.add("child", "Third", settings)
    row = goods(family, family.main)[0]
    wholesale = next(p["value"] for p in row["salePrices"] if p["priceType"]["name"] == "Оптовая")

    family.sync(child)

    prices = {p["priceType"]["name"]: p["value"] for p in twin(family, child, row)["salePrices"]}
    assert prices["Цена продажи"] == wholesale
    assert set(prices) == {"Цена продажи", "Розница", "VIP"}


def test_the_childs_own_vat_stays(family: Family) -> None:
    """vat=child: VAT is neither set nor overwritten."""
    settings = LinkSettings(vat="child", create_price_types=True)
    child = family.add("child", "Third", settings)
    family.sync(child)
    row = goods(family, family.main)[0]
    own = twin(family, child, row)
    change(family, child, own, vat=7, vatEnabled=True)
    change(family, family.main, row, name="Новое имя")

    family.sync(child)

    after = twin(family, child, row)
    assert (after["name"], after["vat"]) == ("Новое имя", 7)


def test_a_changed_link_sends_everything_anew(family: Family) -> None:
    """Settings are part of what the child has received."""
    child = family.children[0]
    family.sync(child)
    family.app.accounts.link(family.main, child, LinkSettings(vat="child", create_price_types=True))

    run = family.sync(child)

    assert run["counts"]["updated"] == 60


def test_one_refused_item_fails_alone(family: Family) -> None:
    """An element that MoySklad refuses fails with its words; the other elements of the array are done."""
    child = family.children[0]
    family.simulator.control(
        "POST",
        "/faults",
        kind="item_error",
        method="POST",
        items=[3],
        code=3000,
        path="/entity/product",
        account=str(child),
        count=1,
    )

    run = family.sync(child)

    assert run["counts"]["failed"] == 1
    assert run["counts"]["created"] == 59
    assert "3000" in problems(family, run)[0]


@pytest.mark.parametrize("status", [413, 400])
def test_a_request_refused_as_a_whole_is_halved(family: Family, status: int) -> None:
    """One answer for the whole array says nothing of its elements: they are sent in smaller arrays."""
    child = family.children[0]
    family.simulator.control(
        "POST", "/faults", kind="status", status=status, method="POST", path="/entity/product", account=str(child),
        count=2,
    )  # fmt: skip

    run = family.sync(child)

    assert run["counts"]["created"] == 60
    assert family.difference(child) == EQUAL


def test_deleted_in_the_child_is_made_again(family: Family) -> None:
    """A good that a person deleted in the child is created anew when main's changes next."""
    child = family.children[0]
    family.sync(child)
    row = goods(family, family.main)[0]
    family.vendor(child, "DELETE", f"entity/product/{twin(family, child, row)['id']}")
    change(family, family.main, row, weight=3.25)

    family.sync(child)
    family.due_now()
    family.work()

    assert family.difference(child) == EQUAL


def test_a_reference_gone_from_the_child_is_looked_up_again(family: Family) -> None:
    """A folder that a person deleted in the child is made again, and the goods find it."""
    child = family.children[0]
    family.sync(child)
    folders = family.vendor(family.main, "GET", "entity/productfolder")["rows"]
    parents = {folder["productFolder"]["meta"]["href"] for folder in folders if folder.get("productFolder")}
    rows = [row for row in goods(family, family.main) if row.get("productFolder")]
    leaf = next(href for row in rows if (href := row["productFolder"]["meta"]["href"]) not in parents)
    mine = [row for row in rows if row["productFolder"]["meta"]["href"] == leaf]
    for one in mine:
        own = twin(family, child, one)
        href = own["productFolder"]["meta"]["href"]
        change(family, child, own, productFolder=None)
    family.vendor(child, "DELETE", f"entity/productfolder/{href.rpartition('/')[2].partition('?')[0]}")
    for one in mine:
        change(family, family.main, one, weight=4.75)

    family.sync(child)
    for _ in range(3):
        family.due_now()
        family.work()

    assert family.difference(child) == EQUAL


def test_connection_cut_after_the_effect_creates_nothing_twice(family: Family) -> None:
    """The POST took effect, its answer was lost: the repeated one returns what was made."""
    child = family.children[0]
    family.simulator.control(
        "POST", "/faults", kind="drop_after", method="POST", path="/entity/product", account=str(child), count=2
    )

    run = family.sync(child)

    assert run["counts"]["created"] == 60
    assert family.difference(child) == EQUAL


def test_content_changed_between_attempts_is_sent(family: Family) -> None:
    """A create that met its syncId brings back what the earlier attempt sent; the newer content follows."""
    child = family.children[0]
    row = goods(family, family.main)[0]
    family.simulator.control(
        "POST", "/faults", kind="drop_after", method="POST", path="/entity/product", account=str(child), count=5
    )
    family.sync(child)
    assert len(goods(family, child)) == 60
    change(family, family.main, row, name="Уже другое")

    family.app.unpark(child)
    family.app.start_sync(family.main, requested_by="test")
    family.work()
    family.due_now()
    family.work()

    assert twin(family, child, row)["name"] == "Уже другое"
    assert family.difference(child) == EQUAL


def pass_time(family: Family, seconds: float) -> None:
    """Let so much time pass for requests without an answer, parked accounts and what is put off."""
    with family.app.db.connection() as conn:
        conn.execute("update intents set sent_at = sent_at - %s * interval '1 second'", [seconds])
    family.app.unpark(family.children[0])
    family.due_now()


def in_doubt(family: Family) -> int:
    """Of how many updates nobody knows what became."""
    with family.app.db.connection() as conn:
        return len(conn.execute("select from intents where hash is not null").fetchall())


@pytest.mark.parametrize("lost", [1, 3, 6])
def test_an_update_executed_late_does_not_outlive_a_newer_one(family: Family, lost: int) -> None:
    """Its answer was lost, and the same attempt (1, 3) or another (6) sent it again; newer content is sent once more
    when MoySklad can no longer be working on the older, whatever became of the good in between."""
    child = family.children[0]
    family.sync(child)
    row = goods(family, family.main)[0]
    change(family, family.main, row, name="Первое")
    family.simulator.control(
        "POST", "/faults", kind="drop_before", method="POST", path="/entity/product", account=str(child), count=lost
    )
    family.sync(child)
    family.app.unpark(child)
    family.due_now()
    family.work()
    assert twin(family, child, row)["name"] == "Первое"
    assert in_doubt(family) == 1
    change(family, family.main, row, name="Второе")
    family.sync(child)
    assert twin(family, child, row)["name"] == "Второе"

    change(family, child, twin(family, child, row), name="Первое")  # executed only now
    pass_time(family, 301)
    family.work()

    assert twin(family, child, row)["name"] == "Второе"
    assert family.difference(child) == EQUAL
    assert not family.app.queue.peek("pending")
    family.ledger()
    family.sync(child)
    assert family.ledger()["writes"] == 0


def test_an_update_repeated_with_the_same_content_is_sent_no_more(family: Family) -> None:
    """Whichever of the two is executed last, the child has what it is to have; one that is too old counts no more."""
    child = family.children[0]
    family.sync(child)
    row = goods(family, family.main)[0]
    change(family, family.main, row, name="Первое")
    family.simulator.control(
        "POST", "/faults", kind="drop_before", method="POST", path="/entity/product", account=str(child), count=8
    )
    family.sync(child)
    family.app.unpark(child)
    family.due_now()
    family.work()
    assert twin(family, child, row)["name"] == "Первое"
    assert not family.app.queue.peek("pending")

    pass_time(family, 301)
    change(family, family.main, row, name="Второе")
    family.sync(child)

    assert not family.app.queue.peek("pending")
    assert in_doubt(family) == 0


def test_updates_answered_at_once_leave_nothing_in_doubt(family: Family) -> None:
    """Nor is anything sent again later; what a refused array holds is known as well."""
    child = family.children[0]
    family.sync(child)
    first, second, *_ = goods(family, family.main)
    change(family, family.main, first, name="Первое")
    change(family, family.main, second, name="Второе")
    refusal = {"kind": "status", "status": 400, "method": "POST", "path": "/entity/product", "count": 1}
    family.simulator.control("POST", "/faults", account=str(child), **refusal)

    family.sync(child)

    assert family.difference(child) == EQUAL
    assert in_doubt(family) == 0
    assert not family.app.queue.peek("pending")


def test_refused_token_parks_the_account_and_a_new_one_lets_it_go_on(family: Family) -> None:
    """401 costs the other child nothing, this one no attempt; with a new token it finishes."""
    first, second = family.children
    family.simulator.control("POST", f"/accounts/{first}/tokens", revoke=[family.tokens[first]])

    family.sync()

    assert family.difference(second) == EQUAL
    parked = {row["id"]: row["parked_reason"] for row in family.app.accounts.overview()}
    assert "401" in parked[first]
    assert parked[second] is None
    family.simulator.control("POST", f"/accounts/{first}/tokens", add=[{"token": "fresh", "weight": 1}])
    family.app.set_token(first, "fresh")
    family.work()

    assert family.difference(first) == EQUAL
    assert all(row["attempts"] == 1 for row in family.app.queue.peek("completed", account_id=first, limit=100))


def test_a_parked_child_does_not_keep_the_others_from_syncing(family: Family) -> None:
    """A run ends although one child waits for a new token; the next one brings the others what has changed."""
    first, second = family.children
    family.simulator.control("POST", f"/accounts/{first}/tokens", revoke=[family.tokens[first]])

    run = family.sync()
    assert run["finished_at"] is not None
    assert run["counts"]["pending"] == 1
    change(family, family.main, goods(family, family.main)[0], weight=7.25)
    again = family.sync()

    assert again["id"] != run["id"]
    assert family.difference(second) == EQUAL
    family.simulator.control("POST", f"/accounts/{first}/tokens", add=[{"token": "fresh", "weight": 1}])
    family.app.set_token(first, "fresh")
    assert family.app.runs.get(again["id"])["finished_at"] is None
    family.work()
    assert family.difference(first) == EQUAL
    assert family.app.runs.get(again["id"])["counts"]["pending"] == 0


def test_one_good_by_itself_is_searched_for_first(family: Family) -> None:
    """A task that no plan has prepared looks into the child before it creates."""
    child = family.children[0]
    family.sync(child)
    row = goods(family, family.main)[0]
    own = twin(family, child, row)
    with family.app.db.connection() as conn:
        conn.execute("delete from mappings where child_id = %s and main_entity_id = %s", [child, row["id"]])

    family.app.queue.enqueue([NewTask(child, "product", "sync", SyncGoods(family.main), entity_id=row["id"])])
    family.work()

    assert twin(family, child, row)["id"] == own["id"]


def test_a_second_press_while_one_is_under_way_joins_it(family: Family) -> None:
    """Two presses make one run; a child's press joins its main's."""
    first, new = family.app.start_sync(family.main, requested_by="one")
    second, newer = family.app.start_sync(family.main, requested_by="two")
    third, newest = family.app.start_sync(family.children[0], requested_by="three")

    assert (first, True) == (second, new)
    assert first == third
    assert not newer
    assert not newest


def test_unlinked_meanwhile_is_skipped_with_its_reason(family: Family) -> None:
    """Tasks of a link that was removed do nothing and say why."""
    child = family.children[0]
    run, _ = family.app.start_sync(child, requested_by="test")
    family.work(max_tasks=1)
    family.app.accounts.unlink(family.main, child)

    family.work()

    assert goods(family, child) == []
    assert "does not receive from" in family.app.runs.problems(run)[0]["error"]


def test_a_task_nobody_can_read_fails_alone(family: Family) -> None:
    """Neither a wrong id nor a wrong payload keeps the goods beside it from being sent."""
    child = family.children[0]
    family.sync(child)
    row = goods(family, family.main)[0]
    change(family, family.main, row, name="Новое имя")
    tasks = [
        NewTask(child, "product", "sync", SyncGoods(family.main), entity_id=id) for id in ("x", str(UUID(int=1)))
    ]
    family.app.queue.enqueue(tasks)
    with family.app.db.connection() as conn:
        conn.execute("""update sync_queue set payload = '{"main": 7}' where entity_id = %s""", [str(UUID(int=1))])

    family.sync(child)

    assert family.difference(child) == EQUAL
    assert {row["entity_id"] for row in family.app.queue.peek("failed")} == {"x", str(UUID(int=1))}
