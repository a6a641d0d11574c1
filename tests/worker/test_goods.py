"""Goods, without any network: what is kept, what is sent, what counts as the same, what matches what."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import Permanent
from worker.links import LinkSettings
from worker.sync.goods import (
    as_created,
    echoes,
    match_values,
    reduce,
    referred,
    sync_id,
    to_child,
)
from worker.sync.matching import _FILTER_BYTES, _decide, _filters

BASE = "https://api.moysklad.ru/api/remap/1.2"
MAIN = UUID("11111111-1111-1111-1111-111111111111")


def main_id(number: int) -> str:
    """An id in main."""
    return f"00000000-0000-0000-0000-{number:012}"


def child_id(number: int) -> UUID:
    """Its counterpart in the child."""
    return UUID(f"cccccccc-0000-0000-0000-{number:012}")


def meta(type: str, id: str | UUID) -> dict[str, Any]:
    """A reference as MoySklad writes it."""
    return {"meta": {"href": f"{BASE}/entity/{type}/{id}", "type": type, "mediaType": "application/json"}}


RUB, UOM, COUNTRY, FOLDER, SALE, VIP, PACK = range(1, 8)
ROW = {
    **meta("product", main_id(99)),
    "id": main_id(99),
    "accountId": str(MAIN),
    "updated": "2026-11-01 10:00:00.000",
    "name": "Чай",
    "code": "00001",
    "externalCode": "ext-1",
    "description": "Чёрный",
    "archived": False,
    "pathName": "Напитки",
    "weight": 0.1,
    "volume": 0.0,
    "vat": 20,
    "vatEnabled": True,
    "useParentVat": False,
    "uom": meta("uom", main_id(UOM)),
    "productFolder": meta("productfolder", f"{main_id(FOLDER)}?expand=x"),
    "minPrice": {"value": 1.0, "currency": meta("currency", main_id(RUB))},
    "salePrices": [
        {
            "value": 100.0,
            "currency": meta("currency", main_id(RUB)),
            "priceType": meta("pricetype", main_id(SALE)) | {"name": "Цена продажи"},
        },
        {"value": 0.0, "currency": meta("currency", main_id(RUB)), "priceType": meta("pricetype", main_id(VIP))},
    ],
    "barcodes": [{"ean13": "2000000000015"}],
    "packs": [{"id": "p", "uom": meta("uom", main_id(PACK)), "quantity": 6.0, "barcodes": [{"ean8": "20000011"}]}],
    "stock": 5,
}
BODY = {
    "code": "00001",
    "article": "",
    "description": "Чёрный",
    "name": "Чай",
    "externalCode": "ext-1",
    "archived": False,
    "weight": 0.1,
    "volume": 0.0,
    "vat": 20,
    "vatEnabled": True,
    "useParentVat": False,
    "uom": main_id(UOM),
    "country": None,
    "productFolder": main_id(FOLDER),
    "minPrice": {"value": 1.0, "currency": main_id(RUB)},
    "salePrices": [
        {"value": 100.0, "currency": main_id(RUB), "priceType": main_id(SALE)},
        {"value": 0.0, "currency": main_id(RUB), "priceType": main_id(VIP)},
    ],
    "barcodes": [{"ean13": "2000000000015"}],
    "packs": [{"uom": main_id(PACK), "quantity": 6.0, "barcodes": [{"ean8": "20000011"}]}],
}


def ids(*without: int) -> dict[str, dict[UUID, UUID]]:
    """Everything ROW refers to is known in the child, but for these."""
    kinds = {
        "uom": (UOM, PACK),
        "country": (COUNTRY,),
        "currency": (RUB,),
        "pricetype": (SALE, VIP),
        "productfolder": (FOLDER,),
    }
    return {
        kind: {UUID(main_id(n)): child_id(n) for n in numbers if n not in without} for kind, numbers in kinds.items()
    }


def sent(body: dict[str, Any] = BODY, *without: int, **link: Any) -> tuple[dict[str, Any], list[str]]:
    """What the child is sent for it."""
    return to_child(body, ids(*without), LinkSettings(**link), meta)


# -- reduce -----------------------------------------------------------------------------------------------


def test_only_what_is_copied_is_kept() -> None:
    """Ids instead of references; nothing that changes by itself (stock, updated, pack ids, names of others)."""
    assert reduce(ROW) == BODY


def test_a_bare_row_is_kept_whole() -> None:
    """What MoySklad leaves out because it is empty is kept as empty, so that it is cleared in the child."""
    assert reduce({"id": main_id(1), "name": "Чай"}) == {
        "code": "",
        "article": "",
        "description": "",
        "name": "Чай",
        "uom": None,
        "country": None,
        "productFolder": None,
        "salePrices": [],
        "barcodes": [],
        "packs": [],
    }


def test_the_same_row_is_kept_the_same() -> None:
    """What does not concern the child changes nothing; the row itself is left alone."""
    before = repr(ROW)

    assert reduce(ROW | {"updated": "later", "stock": 7, "pathName": "Иначе"}) == reduce(ROW)
    assert repr(ROW) == before


def test_all_references_are_found() -> None:
    """Once each: units of packs, currencies of all prices, price types."""
    assert referred(BODY) == {
        ("uom", main_id(UOM)),
        ("uom", main_id(PACK)),
        ("productfolder", main_id(FOLDER)),
        ("currency", main_id(RUB)),
        ("pricetype", main_id(SALE)),
        ("pricetype", main_id(VIP)),
    }


def test_sync_id_is_for_ever() -> None:
    """The key of a create never changes between releases; each account and each good has its own."""
    one = sync_id(MAIN, UUID(main_id(1)))

    assert one == "ddac5f6b-1706-5304-8b2f-e465d92b0ddf"
    assert sync_id(MAIN, UUID(main_id(2))) != one
    assert sync_id(UUID(main_id(1)), MAIN) != one


# -- to_child ---------------------------------------------------------------------------------------------


def test_the_child_is_sent_its_own_references() -> None:
    """Every id of main's is replaced; zeros and empty values are sent, so that they overwrite."""
    body, notes = sent()

    assert notes == []
    assert [number for number in range(8) if main_id(number) in repr(body)] == []
    assert body["uom"] == meta("uom", child_id(UOM))
    assert body["country"] is None
    assert body["productFolder"] == meta("productfolder", child_id(FOLDER))
    assert body["minPrice"] == {"value": 1.0, "currency": meta("currency", child_id(RUB))}
    assert body["salePrices"] == [
        {
            "value": value,
            "currency": meta("currency", child_id(RUB)),
            "priceType": meta("pricetype", child_id(number)),
        }
        for value, number in ((100.0, SALE), (0.0, VIP))
    ]
    assert body["packs"] == [
        {"uom": meta("uom", child_id(PACK)), "quantity": 6.0, "barcodes": [{"ean8": "20000011"}]}
    ]
    assert (body["article"], body["vat"], body["name"]) == ("", 20, "Чай")


def test_vat_of_the_child_is_left_alone() -> None:
    """vat=child: none of the three VAT fields is sent."""
    body, _ = sent(vat="child")

    assert [name for name in ("vat", "vatEnabled", "useParentVat") if name in body] == []


@pytest.mark.parametrize(
    ("number", "kind"), [(UOM, "uom"), (PACK, "uom"), (FOLDER, "productfolder"), (RUB, "currency")]
)
def test_a_reference_the_child_lacks_is_named(number: int, kind: str) -> None:
    """Nothing is sent with a unit, folder or currency missing."""
    with pytest.raises(Permanent) as caught:
        sent(BODY, number)

    assert str(caught.value) == (
        f"the child has no {kind} for main's {main_id(number)}; it is created by the next sync of all goods"
    )


def test_a_price_type_the_child_lacks_is_left_out_and_told() -> None:
    """A price is told as left out, a zero is not worth a word."""
    body, notes = sent(BODY, SALE, VIP)

    assert body["salePrices"] == []
    assert notes == [f"price of type {main_id(SALE)} left out: the child has no such price type"]


def test_something_new_needs_no_empty_values() -> None:
    """A create leaves out empty texts, references and packs, and keeps zeros, false and empty lists of prices."""
    body, _ = sent(BODY | {"packs": [], "barcodes": [], "description": ""})

    created = as_created(body)

    assert sorted(set(body) - set(created)) == ["article", "country", "description", "packs"]
    assert {name: created[name] for name in created} == {name: body[name] for name in created}
    assert (created["archived"], created["volume"], created["barcodes"]) == (False, 0.0, [])


# -- echoes -----------------------------------------------------------------------------------------------


def answer(**changes: Any) -> dict[str, Any]:
    """What MoySklad gives back for what was sent: more fields, its own order, empty ones left out."""
    body, _ = sent()
    filled = {name: value for name, value in body.items() if value not in (None, "", [])}
    prices = [price | {"priceType": price["priceType"] | {"name": "x"}} for price in reversed(body["salePrices"])]
    packs = [pack | {"id": "p"} for pack in body["packs"]]
    return filled | {"id": str(child_id(99)), "salePrices": prices, "packs": packs, "stock": 0} | changes


def test_what_was_sent_echoes() -> None:
    """Other order, additional fields and empty fields left out are no difference."""
    body, _ = sent()

    assert echoes(body | {"syncId": "x", "meta": {}}, answer()) is True
    assert echoes(as_created(body), answer()) is True


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Кофе"},
        {"archived": True},
        {"article": "filled"},
        {"weight": 0.2},
        {"weight": None},
        {"vat": 10},
        {"country": meta("country", child_id(COUNTRY))},
        {"uom": meta("uom", child_id(PACK))},
        {"uom": None},
        {"minPrice": {"value": 2.0, "currency": meta("currency", child_id(RUB))}},
        {"minPrice": {"value": 1.0, "currency": meta("currency", child_id(UOM))}},
        {"salePrices": []},
        {"salePrices": None},
        {"barcodes": []},
        {"barcodes": [{"ean13": "2000000000022"}]},
        {"barcodes": [{"ean8": "2000000000015"}]},
        {"barcodes": [{"ean13": "2000000000015"}, {"ean13": "2000000000022"}]},
        {"packs": []},
    ],
)
def test_what_is_older_does_not_echo(changes: dict[str, Any]) -> None:
    """Any field that differs says that another attempt's entity came back."""
    body, _ = sent()

    assert echoes(body, answer(**changes)) is False


def test_numbers_echo_by_value() -> None:
    """0.1 + 0.2 is 0.3, 1 is 1.0; true is not 1."""
    assert echoes({"weight": 0.1 + 0.2}, {"weight": 0.3}) is True
    assert echoes({"vat": 1}, {"vat": 1.0}) is True
    assert echoes({"vatEnabled": True}, {"vatEnabled": False}) is False


def test_lists_echo_by_all_their_elements() -> None:
    """Two of one and one of another are not one of one and two of another."""
    one, other = {"ean13": "2000000000015"}, {"ean13": "2000000000022"}

    assert echoes({"barcodes": [one, other]}, {"barcodes": [other, one]}) is True
    assert echoes({"barcodes": [one, one]}, {"barcodes": [one, other]}) is False


# -- matching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        ({"code": "1"}, "code", ["1"]),
        ({"code": 1}, "code", ["1"]),
        ({"code": ""}, "code", []),
        ({"code": None}, "code", []),
        ({}, "code", []),
        ({"barcodes": [{"ean13": "1"}, {"ean8": "2"}]}, "barcode", ["1", "2"]),
        ({"barcodes": []}, "barcode", []),
        ({"barcodes": None}, "barcode", []),
        ({}, "barcode", []),
    ],
)
def test_match_values(body: dict[str, Any], field: str, expected: list[str]) -> None:
    """One value of a field, every value of the barcodes, none of what is empty."""
    assert match_values(body, field) == expected


def decide(values: dict[int, list[str]], hits: dict[str, set[int]]) -> tuple[dict[int, int], dict[int, str]]:
    """`_decide` on small numbers: main's good → its values, value → the child's goods."""
    own = {UUID(main_id(id)): found for id, found in values.items()}
    seekers = {value: {id for id, found in own.items() if value in found} for one in own.values() for value in one}
    matches = _decide("code", own, seekers, {value: {child_id(id) for id in found} for value, found in hits.items()})
    found = {number(id): number(hit) for id, hit in matches.found.items()}
    return found, {number(id): problem for id, problem in matches.problems.items()}


def number(id: UUID) -> int:
    """What `main_id` and `child_id` made it of."""
    return int(str(id)[-12:])


def test_none_one_and_many() -> None:
    """No hit: created, so not mentioned. One: found. Several: a problem, with what to do."""
    found, problems = decide({1: ["a"], 2: ["b"], 3: ["c"]}, {"b": {20}, "c": {30, 31}})

    assert found == {2: 20}
    assert problems == {
        3: "2 of the child's goods have code 'c': make it unique there, or match by another field",
    }


def test_rivals_in_main() -> None:
    """Two of main's goods with one value and one such good in the child: a problem for both."""
    found, problems = decide({1: ["a"], 2: ["a"], 3: ["b"]}, {"a": {10}, "b": {30}})

    assert found == {3: 30}
    assert set(problems) == {1, 2}
    assert problems[1].startswith("2 of main's goods have code 'a', and one of the child's")


def test_rivals_for_nothing_are_none() -> None:
    """Two of main's goods with one value that the child does not have are both created."""
    assert decide({1: ["a"], 2: ["a"]}, {}) == ({}, {})


def test_goods_without_a_value() -> None:
    """They cannot be recognised, and say so."""
    assert decide({1: []}, {}) == (
        {},
        {1: "it has no code to be recognised by: fill it in main, or match by another field"},
    )


def test_several_values_with_one_owner() -> None:
    """Two barcodes that lead to the same good of the child are one hit; to two goods, two."""
    assert decide({1: ["a", "b"]}, {"a": {10}, "b": {10}})[0] == {1: 10}
    assert set(decide({1: ["a", "b"]}, {"a": {10}, "b": {11}})[1]) == {1}


def test_filters_are_escaped() -> None:
    """A semicolon ends a condition unless a backslash stands before it."""
    assert list(_filters("name", ["a;b", "c\\d"])) == ["name=a\\;b;name=c\\\\d"]
    assert list(_filters("name", [])) == []


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters=";\\"), min_size=1, max_size=255)))
def test_filters_fit_a_request_line(values: list[str]) -> None:
    """Every value is asked for once, in order, and no filter is longer than a request line may be."""
    chunks = list(_filters("name", values * 20))

    terms = [term for chunk in chunks for term in chunk.split(";")]
    assert terms == [f"name={value}" for value in values * 20]
    assert [chunk for chunk in chunks if len(quote(chunk)) > _FILTER_BYTES] == []
