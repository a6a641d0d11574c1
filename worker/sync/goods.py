"""Goods (MoySklad's `product`): what is kept of main's and what the child is sent. Pure functions.

Fields and their rules: md/dictionaries/_product.md. Sale prices merge by price type, so every one that
main has is sent, zeros included; barcodes and packs replace the child's list as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid5

from worker.errors import Permanent
from worker.links import LinkSettings
from worker.mappings import Body
from worker.moysklad import id_of
from worker.sync.entities import Ids

TYPE = "product"
PATH = "entity/product"
BOTH = "archived=true;archived=false"
"""Lists show what is not archived unless told otherwise: md/_general.md."""

_NAMESPACE = UUID("6f3c1a52-6c0e-5f3e-9a57-5d2f8a1f0c11")
_TEXTS = ("code", "article", "description")
_PLAIN = ("name", "externalCode", "archived", "weight", "volume")
_VAT = ("vat", "vatEnabled", "useParentVat")
_REFERENCES = {"uom": "uom", "country": "country", "productFolder": "productfolder"}
_PRICES = ("buyPrice", "minPrice")


def sync_id(main_account: UUID, main_id: UUID) -> str:
    """The key that makes a repeated create return the first one's entity: md/_general.md, syncId."""
    return str(uuid5(_NAMESPACE, f"{main_account}/{TYPE}/{main_id}"))


def reduce(row: Body) -> Body:
    """What is kept of main's row: the copied fields, with ids of main's where it refers to something."""
    body: Body = {name: row.get(name, "") for name in _TEXTS}
    body |= {name: row[name] for name in (*_PLAIN, *_VAT) if name in row}
    body |= {name: _id(row.get(name)) for name in _REFERENCES}
    for name in _PRICES:
        if name in row:
            body[name] = _price(row[name])
    body["salePrices"] = [
        _price(price) | {"priceType": _id(price.get("priceType"))} for price in row.get("salePrices", [])
    ]
    body["barcodes"] = row.get("barcodes", [])
    body["packs"] = [
        {"uom": _id(pack.get("uom")), "quantity": pack["quantity"]}
        | ({"barcodes": pack["barcodes"]} if pack.get("barcodes") else {})
        for pack in row.get("packs", [])
    ]
    return body


def referred(body: Body) -> set[tuple[str, str]]:
    """(type, main's id) of everything the goods refer to."""
    found = {(type, body[name]) for name, type in _REFERENCES.items()}
    found |= {("currency", body[name]["currency"]) for name in _PRICES if name in body}
    for price in body["salePrices"]:
        found |= {("pricetype", price["priceType"]), ("currency", price["currency"])}
    found |= {("uom", pack["uom"]) for pack in body["packs"]}
    return {(type, id) for type, id in found if id}


def match_values(body: Mapping[str, Any], field: str) -> list[str]:
    """What main's or the child's goods are recognised by; empty when the field is."""
    if field == "barcode":
        return [value for barcode in body.get("barcodes") or [] for value in barcode.values()]
    value = body.get(field)
    return [str(value)] if value not in (None, "") else []


def to_child(
    body: Body, ids: Ids, settings: LinkSettings, meta: Callable[[str, UUID], Body]
) -> tuple[Body, list[str]]:
    """The body for the child, and what had to be left out of it.

    `meta(type, id)` makes a reference of the child's. Raises Permanent naming a reference the child
    lacks: a price in the wrong currency, or goods without their unit, would be worse than none.
    """
    notes: list[str] = []

    def refer(type: str, id: str | None) -> Body | None:
        if id is None:
            return None
        child_id = ids[type].get(UUID(id))
        if child_id is None:
            raise Permanent(f"the child has no {type} for main's {id}; it is created by the next sync of all goods")
        return meta(type, child_id)

    def price(item: Body) -> Body:
        return {"value": item["value"], "currency": refer("currency", item["currency"])}

    sent = {
        name: body[name] for name in (*_TEXTS, *_PLAIN, *(_VAT if settings.vat == "main" else ())) if name in body
    }
    sent |= {name: refer(type, body[name]) for name, type in _REFERENCES.items()}
    sent |= {name: price(body[name]) for name in _PRICES if name in body}
    sent["salePrices"] = []
    for item in body["salePrices"]:
        if UUID(item["priceType"]) in ids["pricetype"]:
            sent["salePrices"].append(price(item) | {"priceType": refer("pricetype", item["priceType"])})
        elif item["value"]:
            notes.append(f"price of type {item['priceType']} left out: the child has no such price type")
    sent["barcodes"] = body["barcodes"]
    sent["packs"] = [pack | {"uom": refer("uom", pack["uom"])} for pack in body["packs"]]
    return sent, notes


def as_created(sent: Body) -> Body:
    """The same without what need not be said of something new."""
    empty = {*_TEXTS, *_REFERENCES, "packs"}
    return {name: value for name, value in sent.items() if not (name in empty and value in (None, "", []))}


def echoes(sent: Body, received: Body) -> bool:
    """Whether the child's goods are what was sent.

    They are not when a create met its syncId: then the entity of an earlier attempt came back, as
    it was sent then.
    """
    return all(_alike(value, received.get(name)) for name, value in sent.items() if name not in ("meta", "syncId"))


def _alike(sent: Any, received: Any) -> bool:
    if sent in (None, "", []):
        return received in (None, "", [])
    if isinstance(sent, dict):
        if "meta" in sent:
            return id_of(sent) == id_of(received)
        return isinstance(received, dict) and all(_alike(v, received.get(k)) for k, v in sent.items())
    if isinstance(sent, list):
        if not isinstance(received, list):
            return False
        if sent and isinstance(sent[0], dict) and "priceType" in sent[0]:
            by_type = {id_of(price.get("priceType")): price for price in received}
            return all(_alike(price, by_type.get(id_of(price["priceType"]))) for price in sent)
        # Barcodes and packs: the order is the vendor's to choose.
        return (
            len(sent) == len(received)
            and all(any(_alike(one, other) for other in received) for one in sent)
            and all(any(_alike(one, other) for one in sent) for other in received)
        )
    if isinstance(sent, float | int) and not isinstance(sent, bool):
        return isinstance(received, float | int) and abs(float(sent) - float(received)) < 1e-6
    return bool(sent == received)


def _price(price: Body) -> Body:
    return {"value": price.get("value", 0.0), "currency": _id(price.get("currency"))}


def _id(reference: Any) -> str | None:
    id = id_of(reference)
    return str(id) if id else None
