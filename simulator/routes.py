"""From a call to an answer: which path does what (the API's own shape, md/_general.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from . import pricetypes
from .account import Account, Entity
from .answer import Answer, Call
from .errors import ApiError
from .faults import Fault
from .fields import boolean, checked, href_of, text
from .kinds import KINDS, delete
from .listing import Query, context, page, row_text
from .render import BASE, JSON, Json, collection_meta, dumps

MAX_ITEMS = 1000
MAX_DEPTH = 10
_SETTINGS = {
    "discountStrategy": "bySum",
    "globalOperationNumbering": False,
    "checkShippingStock": False,
    "checkMinPrice": False,
    "useRecycleBin": True,
    "useCompanyAddress": False,
}


def route(account: Account, call: Call, fault: Fault | None = None) -> Answer:
    """Do what the call asks of this account."""
    match call.path.strip("/").split("/"):
        case ["entity", kind, *rest]:
            if kind not in KINDS:
                raise ApiError(1005, kind)
            return _entity(account, kind, rest, call, fault)
        case ["context", "companysettings"]:
            return _company(account, call)
        case ["context", "companysettings", "pricetype", *rest] if len(rest) < 2:
            return _price_types(account, rest, call)
        case ["context", "employee"]:
            _only(call, "GET")
            return Answer(200, account.owner.bytes(), items=1)
    raise ApiError(1002, call.path)


def _only(call: Call, *methods: str) -> None:
    if call.method not in methods:
        raise ApiError(1039, call.method)


def _entity(account: Account, kind: str, rest: list[str], call: Call, fault: Fault | None) -> Answer:
    match rest:
        case []:
            _only(call, "GET", "POST")
            if call.method == "GET":
                return Answer(200, page(account, kind, Query.from_text(call.query)))
            return _write(account, kind, call, fault)
        case ["batch"]:
            _only(call, "POST")
            return _write_all(account, kind, _array(call), fault)
        case ["delete"]:
            _only(call, "POST")
            return _delete_all(account, kind, _array(call), fault)
        case ["metadata"]:
            _only(call, "GET")
            return Answer.of(_metadata(kind))
        case ["metadata", "attributes"]:
            _only(call, "GET")
            meta = collection_meta(f"/entity/{kind}/metadata/attributes", "attributemetadata")
            return Answer.of({"context": context(account), "meta": meta, "rows": []})
        case ["syncid", key] if kind == "product":
            _only(call, "GET", "DELETE")
            entity = account.sync_ids.get(key.lower())
            if entity is None:
                raise ApiError(1021, kind, key)
            return _one(account, entity, call)
        case [key]:
            _only(call, "GET", "PUT", "DELETE")
            return _one(account, account.get(kind, key), call)
        case [key, ("images" | "files") as name] if kind == "product":
            _only(call, "GET")
            return _nested(account.get(kind, key), name)
    raise ApiError(1002, call.path)


def _one(account: Account, entity: Entity, call: Call) -> Answer:
    query = Query.from_text(call.query)
    if call.method == "DELETE":
        delete(account, entity)
        return Answer(200, items=1)
    if call.method == "PUT":
        body = read_json(call)
        if isinstance(body, list):
            raise ApiError(2009)
        entity = KINDS[entity.kind].update(account, entity, body)
    return Answer(200, row_text(account, entity, query), items=1)


def _nested(entity: Entity, name: str) -> Answer:
    rows = entity.hidden.get(name, [])
    return Answer.of({"meta": entity.data[name]["meta"], "rows": rows}, items=len(rows))


def _write(account: Account, kind: str, call: Call, fault: Fault | None) -> Answer:
    query = Query.from_text(call.query)
    body = read_json(call)
    if isinstance(body, list):
        return _write_all(account, kind, _limited(body), fault)
    _forced(fault, 0)
    return Answer(200, row_text(account, upsert(account, kind, body), query), items=1)


def upsert(account: Account, kind: str, body: Any) -> Entity:
    """Update with `meta`, create without (md/_general.md "Создание и обновление нескольких объектов")."""
    if not isinstance(body, dict):
        raise ApiError(2005)
    if body.get("meta") is None:
        return KINDS[kind].create(account, body)
    named, key = href_of("meta", body)
    if named != kind:
        raise ApiError(2024, named, kind, parameter="meta")
    return KINDS[kind].update(account, account.get(kind, key), body)


def _write_all(account: Account, kind: str, items: list[Any], fault: Fault | None) -> Answer:
    return _each(items, fault, lambda item: upsert(account, kind, item).bytes())


def _delete_all(account: Account, kind: str, items: list[Any], fault: Fault | None) -> Answer:
    def one(item: Any) -> bytes:
        _, key = href_of("meta", item)
        delete(account, account.get(kind, key))
        return dumps({"info": f"Сущность '{kind}' с UUID: {key} успешно удалена"})

    return _each(items, fault, one)


def _each(items: list[Any], fault: Fault | None, work: Callable[[Any], bytes]) -> Answer:
    """Every item for itself: a failed one leaves its errors in its place and makes the status 400."""
    parts: list[bytes] = []
    failed = 0
    for index, item in enumerate(items):
        try:
            _forced(fault, index)
            parts.append(work(item))
        except ApiError as error:
            parts.append(dumps(error.body()))
            failed += 1
    body = b"[" + b",".join(parts) + b"]"
    return Answer(400 if failed else 200, body, items=len(items), applied=failed < len(items))


def _forced(fault: Fault | None, index: int) -> None:
    if fault is not None and fault.kind == "item_error" and index in fault.items:
        raise ApiError(fault.code or 3006, "name", "", "", parameter="name")


def _array(call: Call) -> list[Any]:
    body = read_json(call)
    if not isinstance(body, list):
        raise ApiError(2005)
    return _limited(body)


def _limited(items: list[Any]) -> list[Any]:
    if not items:
        raise ApiError(1027)
    if len(items) > MAX_ITEMS:
        raise ApiError(2007)
    return items


def read_json(call: Call) -> Any:
    """The parsed body; errors 2001, 2005 and 2006 for what is not JSON, not an object, or too deep."""
    try:
        value = json.loads(call.body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(2001) from None
    if not isinstance(value, (dict, list)):
        raise ApiError(2005)
    _check_depth(value)
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _check_depth(value: dict[str, Any] | list[Any], depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise ApiError(2006)
    for child in value.values() if type(value) is dict else value:
        if type(child) is dict or type(child) is list:
            _check_depth(child, depth + 1)


def _metadata(kind: str) -> Json:
    meta: Json = {"href": f"{BASE}/entity/{kind}/metadata", "mediaType": JSON}
    if kind != "product":
        return {"meta": meta, "createShared": True}
    attributes = collection_meta("/entity/product/metadata/attributes", "attributemetadata")
    return {"meta": meta, "attributes": {"meta": attributes}, "createShared": True}


def _company(account: Account, call: Call) -> Answer:
    _only(call, "GET", "PUT")
    if call.method == "PUT":
        body = read_json(call)
        if isinstance(body, list):
            raise ApiError(2009)
        checks = {name: boolean for name, value in _SETTINGS.items() if isinstance(value, bool)}
        fields = {**checks, "companyAddress": text(), "discountStrategy": text()}
        ignored = ("currency", "priceTypes", "accountCountry")
        values = checked(account, fields, {n: v for n, v in body.items() if n not in ignored})
        account.company.update({name: value for name, value in values.items() if value is not None})
    path = "/context/companysettings"
    meta = {"href": BASE + path, "metadataHref": f"{BASE}{path}/metadata", "type": "companysettings"}
    return Answer.of(
        {
            "meta": {**meta, "mediaType": JSON},
            "currency": account.default_currency.data,
            "priceTypes": [kind.data for kind in account.price_types],
            **_SETTINGS,
            **account.company,
            "accountCountry": "RU",
        }
    )


def _price_types(account: Account, rest: list[str], call: Call) -> Answer:
    match rest:
        case []:
            _only(call, "GET", "POST")
            if call.method == "POST":
                pricetypes.replace(account, read_json(call))
            kinds = account.price_types
            return Answer.of([kind.data for kind in kinds], items=len(kinds))
        case ["default"]:
            _only(call, "GET")
            return Answer.of(account.price_types[0].data)
        case [key]:
            _only(call, "GET")
            return Answer.of(account.get("pricetype", key).data)
    raise ApiError(1002, call.path)
