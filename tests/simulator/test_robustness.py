"""Whatever a client sends, the answer is a vendor error or a success, and what was refused left no trace."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import create_app
from simulator.answer import Call
from simulator.dictionaries import CURRENCY_FIELDS, FOLDER_FIELDS
from simulator.errors import ApiError
from simulator.goods import FIELDS
from simulator.render import BASE
from simulator.routes import route
from simulator.seed import seed

SCALARS = st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=False, allow_infinity=False)
RELAXED: Any = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
TEXTS = st.sampled_from(["", "x", "20", "8b7c97cf-cf77-4f7e-b200-d264125578ab", "2000000000008", "x" * 300])


@dataclass
class Shop:
    """One seeded account and every reference it knows."""

    account: Any
    references: list[Any]


@pytest.fixture(scope="module")
def shop() -> Shop:
    world = create_app().world
    account = world.new_account({"name": "main", "settings": {"checkUniqueCode": True}})
    seed(account, 5, folders=3)
    found = [one.ref for kind in account.entities.values() for one in list(kind.values())[:3]]
    return Shop(account, found)


def bodies(shop: Shop) -> Any:
    """Bodies that are nearly right: known names with values of every kind, references among them."""
    leaves = SCALARS | TEXTS | st.sampled_from(shop.references)
    keys = ["value", "currency", "priceType", "uom", "quantity", "barcodes", "ean13", "gtin", "meta", "href"]
    keys += ["filename", "content", "id", "type", "name"]
    names = [*FIELDS, *FOLDER_FIELDS, *CURRENCY_FIELDS, "meta", "id", "nonsense"]
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=3),
        max_leaves=6,
    )
    body = st.dictionaries(st.sampled_from(names), values, max_size=6)
    named = body.map(lambda one: {"name": "x", **one})
    return body | named | st.lists(named | values, max_size=3) | values


def call(method: str, path: str, body: Any = None, query: str = "") -> Call:
    data = b"" if body is None else json.dumps(body).encode()
    return Call(method, path, query, {}, "http://x", 0, data)


@pytest.mark.parametrize("kind", ["product", "productfolder", "uom", "country", "currency", "pricetype"])
@settings(max_examples=150, deadline=None, database=None, **RELAXED)
@given(data=st.data())
def test_any_body_is_answered(shop: Shop, kind: str, data: Any) -> None:
    """Nothing but `ApiError` may come out of a write, and the lists can still be read afterwards."""
    account = shop.account
    body = data.draw(bodies(shop))
    path = "/context/companysettings/pricetype" if kind == "pricetype" else f"/entity/{kind}"
    for method, place in (("POST", path), ("POST", f"{path}/delete"), ("PUT", f"{path}/{_any(shop, kind)}")):
        answered(account, call(method, place, body))

    page = json.loads(route(account, call("GET", "/entity/product", query="limit=100&expand=uom")).body)
    assert all(row["name"] for row in page["rows"])


def answered(account: Any, asked: Call) -> tuple[int, Any]:
    """Status and parsed body of a success or a vendor error; anything else is raised."""
    try:
        answer = route(account, asked)
    except ApiError as refusal:
        return refusal.status, refusal.body()
    return answer.status, json.loads(answer.body) if answer.body else None


def _any(shop: Shop, kind: str) -> str:
    return next(reversed(shop.account.entities[kind]), "nobody")


@settings(max_examples=300, deadline=None, database=None, **RELAXED)
@given(
    text=st.lists(
        st.tuples(
            st.sampled_from(["name", "id", "updated", "weight", "uom", "archived", "barcode", "syncId", "x"]),
            st.sampled_from(["=", "!=", ">", "<", ">=", "<=", "~", "~=", "=~", ""]),
            st.sampled_from(["", "1", "true", "2026-11-24 10:00:00", f"{BASE}/entity/uom/1", r"a\;b", "ы"]),
        ),
        max_size=4,
    )
)
def test_any_filter_is_answered(shop: Shop, text: list[tuple[str, str, str]]) -> None:
    """A filter gives a page or an error."""
    query = "filter=" + ";".join("".join(one) for one in text)

    status, body = answered(shop.account, call("GET", "/entity/product", query=query))

    assert (status == 400) == ("errors" in body)
    assert (status == 200) == ("rows" in body)
