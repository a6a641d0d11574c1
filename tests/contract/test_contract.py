"""The recorder catches what the vendor's description forbids, on both sides of the wire."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.contract import (
    API,
    Contracted,
    ContractRecorder,
    json_schema,
    load_spec,
    simulator_under_contract,
)

HEADERS = {"accept": "application/json", "accept-encoding": "gzip", "content-type": "application/json"}
PRODUCT = "/entity/product"
KEY = "7944ef04-f831-11e5-7a69-971500188b19"
META = {"href": f"http://x{API}{PRODUCT}/{KEY}", "type": "product", "mediaType": "application/json"}
GOOD = {"meta": META, "id": KEY, "name": "Бананы"}

needs_spec = pytest.mark.skipif(load_spec() is None, reason="the description does not lie beside the repository")
pytestmark = needs_spec


@pytest.fixture(scope="module")
def recorder() -> ContractRecorder:
    return ContractRecorder(None, load_spec())


def judge(
    recorder: ContractRecorder,
    asked: Any = None,
    answer: Any = GOOD,
    *,
    path: str = PRODUCT,
    method: str = "POST",
    status: int = 200,
    query: str = "",
    **options: Any,
) -> list[str]:
    """What the recorder says of one exchange made up here."""
    recorder.violations.clear()
    headers = [(name.encode(), value.encode()) for name, value in {**HEADERS, **options.get("headers", {})}.items()]
    scope = {"method": method, "path": API + path, "query_string": query.encode(), "headers": headers}
    body = b"" if asked is None else json.dumps(asked).encode()
    kind = options.get("content_type", "application/json;charset=utf-8")
    answered = [
        {"status": status, "headers": [(b"content-type", kind.encode())]},
        {"body": b"" if answer is None else json.dumps(answer).encode()},
    ]
    recorder.check(scope, body, answered, options.get("fault"))
    return list(recorder.violations)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"},
        [{"name": "x"}],
        {"name": "x", "country": None, "uom": None, "description": None},
        {"name": "x", "images": [{"filename": "a.png", "content": ""}]},
        [{"meta": META, "name": "x"}, {"name": "y"}],
    ],
)
def test_good_requests_pass(recorder: ContractRecorder, body: Any) -> None:
    """What the documentation shows is no violation."""
    answer = [GOOD] * len(body) if isinstance(body, list) else GOOD

    assert judge(recorder, body, answer) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": 5}, ["/name", "string"]),
        ({"name": "x", "colour": "red"}, ["colour"]),
        ({"nmae": "x"}, ["nmae"]),
        ({"name": "x" * 256}, ["/name", "255"]),
        ({"name": "x", "uom": {}}, ["/uom", "meta"]),
        ({"name": "x", "uom": {"meta": {"href": "http://x/y"}}}, ["/uom/meta"]),
        ({"name": "x", "salePrices": [{"value": 1}]}, ["/salePrices/0", "priceType"]),
        ({"name": "x", "syncId": "x"}, ["/syncId", "uuid"]),
        ({"name": "x", "vat": 100}, ["/vat", "99"]),
        ({"name": "x", "code": None}, ["/code", "null"]),
        ([{"name": "x"}, {"name": "x", "weight": "1"}], ["/1/weight"]),
        ([], ["fewer than 1", "less than 1"]),
        ([{"name": "x"}] * 1001, ["1000"]),
    ],
)
def test_bad_requests_are_caught(recorder: ContractRecorder, body: Any, words: list[str]) -> None:
    """Wrong types, misspelt fields, missing metas, too many items: each is told with its place."""
    answer = [GOOD] * len(body) if isinstance(body, list) else GOOD

    found = judge(recorder, body, answer)

    assert any(word in text for text in found for word in words), found
    assert all(text.startswith("request POST /entity/product → 200") for text in found)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ({"name": "Бананы"}, "meta"),
        ({**GOOD, "name": 5}, "/name"),
        ({**GOOD, "colour": "red"}, "colour"),
        ({**GOOD, "uom": {"href": "x"}}, "/uom"),
        ({**GOOD, "id": "x"}, "uuid"),
    ],
)
def test_bad_answers_are_caught(recorder: ContractRecorder, answer: Any, word: str) -> None:
    """An object that is not the described one, alone, in a bulk answer and in a list."""
    request = {"name": "x"}
    page = {
        "context": {},
        "meta": {"href": "http://x/y", "type": "product", "mediaType": "application/json"},
        "rows": [GOOD, answer],
    }

    alone = judge(recorder, request, answer)
    bulk = judge(recorder, [request] * 2, [GOOD, answer])
    listed = judge(recorder, None, page, method="GET")

    assert any(word in text for text in alone)
    assert len(bulk) == 1
    assert any(word in text for text in listed)


def test_partial_failures_pass(recorder: ContractRecorder) -> None:
    """Entities and errors in one array with status 400 are the vendor's way of answering."""
    error = {"errors": [{"error": "нет", "code": 3000}]}

    assert judge(recorder, [{}, {}], [GOOD, error], status=400) == []
    assert judge(recorder, {}, error, status=412) == []


def test_errors_have_a_shape(recorder: ContractRecorder) -> None:
    """An error answer without `errors`, and one that is no JSON, are caught."""
    assert judge(recorder, {}, {"detail": "no"}, status=404)
    assert judge(recorder, {}, {"errors": [{"code": 5}]}, status=400)
    assert judge(recorder, {}, "<html>", status=502, content_type="text/html")
    assert judge(recorder, {}, None, status=415) == []


def test_paths_and_parameters_must_be_described(recorder: ContractRecorder) -> None:
    """Unknown paths, methods and query parameters, and values out of range."""
    page = {
        "context": {},
        "meta": {"href": "http://x/y", "type": "product", "mediaType": "application/json"},
        "rows": [],
    }

    assert judge(recorder, None, None, method="GET", path="/entity/spaceship")
    assert judge(recorder, None, None, method="DELETE", path=PRODUCT)
    assert judge(recorder, None, page, method="GET", query="limit=1000&offset=0") == []
    assert judge(recorder, None, page, method="GET", query="limit=1001")
    assert judge(recorder, None, page, method="GET", query="page=2")
    assert judge(recorder, None, page, method="GET", headers={"accept": "text/html"})
    assert judge(recorder, {"name": "x"}, headers={"content-type": "text/plain"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/entity/product/metadata/attributes"),
        ("GET", f"/entity/product/syncid/{KEY}"),
        ("DELETE", f"/entity/product/syncid/{KEY}"),
        ("POST", "/security/token"),
    ],
)
def test_documented_but_undescribed_paths_pass(recorder: ContractRecorder, method: str, path: str) -> None:
    """The description lacks some paths the documentation has."""
    assert judge(recorder, None, None, method=method, path=path) == []


def test_refused_and_faulty_requests_are_not_judged(recorder: ContractRecorder) -> None:
    """A refusal is right if its answer is; what a fault spoils on purpose is no violation."""
    bad = {"nmae": 5}

    assert judge(recorder, bad, {"errors": [{"error": "нет", "code": 1007}]}, status=400) == []
    assert judge(recorder, bad, "<html>", status=502, fault="html", content_type="text/html") == []
    assert judge(recorder, bad, GOOD, fault="delay")


def test_json_schema_of_nullable() -> None:
    """`nullable` becomes the type null, with references and enumerations too."""
    assert json_schema({"type": "string", "nullable": True}) == {"type": ["string", "null"]}
    assert json_schema({"$ref": "#/x", "nullable": True}) == {"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}
    assert json_schema({"type": "string", "nullable": False}) == {"type": "string"}


def test_a_thousand_products_are_checked_fast(recorder: ContractRecorder) -> None:
    """The recorder must not be what a benchmark measures."""
    uom = {"meta": {**META, "type": "uom"}}
    price = {"value": 1.5, "currency": uom, "priceType": uom}
    items = [{"name": f"Товар {number}", "uom": uom, "salePrices": [price] * 3} for number in range(1000)]
    answer = [{**GOOD, **item} for item in items]
    judge(recorder, items, answer)

    begun = time.perf_counter()
    assert judge(recorder, items, answer) == []

    assert time.perf_counter() - begun < 1.0


@pytest.fixture(scope="module")
def contracted() -> Iterator[Contracted]:
    with simulator_under_contract() as served:
        yield served


def test_over_real_http(contracted: Contracted) -> None:
    """What goes through a served simulator is counted and judged; the control side is not."""
    account = contracted.control("POST", "/accounts", name="main", tokens=[{"token": "t"}])
    headers = {**HEADERS, "authorization": "Bearer t"}
    contracted.control("POST", "/seed", account=account["id"], products=200)

    listed = contracted.session.get(f"{contracted.url}/entity/product?limit=200", headers=headers, timeout=30)
    assert len(listed.json()["rows"]) > 150
    assert contracted.violations == []
    body = {"name": "x", "description": "y" * 10}
    made = contracted.session.post(f"{contracted.url}/entity/product", json=body, headers=headers, timeout=30)
    assert made.status_code == 200

    assert contracted.violations == []
    assert (contracted.recorder.checked_requests, contracted.recorder.checked_responses) == (2, 2)

    wrong = contracted.session.get(f"{contracted.url}/entity/uom?page=1", headers=headers, timeout=30)
    assert wrong.status_code == 200
    assert contracted.violations == ["request GET /entity/uom → 200: query parameter 'page' is not described"]
