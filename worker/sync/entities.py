"""Which entities are copied, which of their fields, and what makes two of them the same.

A new kind is a line in REFERENCES or a module like `goods`; everything else is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from worker.links import LinkSettings
from worker.mappings import Body
from worker.moysklad import Client, id_of

Ids = Mapping[str, Mapping[UUID, UUID]]
"""type → main's id → the child's id."""
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """A kind of entity that goods refer to; it has no syncId, so it is looked up before it is created."""

    type: str
    path: str
    fields: tuple[str, ...]
    """Copied as they are."""
    keys: Callable[[Body, Ids, LinkSettings], list[Key]]
    """What a snapshot of main's is recognised by in the child, the surest first."""
    keys_of_child: Callable[[Body], list[Key]]
    """The same of a child's own row."""
    follow: bool = False
    """Whether a later change in main is carried to the child's."""
    parent: str | None = None
    """The field with the parent of the same type."""
    created_as: Callable[[Body], Body] = dict
    """What is sent to create it, before references are put in."""
    filter: str | None = None
    """What a list needs to show all of them."""


def _by_code_or_name(body: Body) -> list[Key]:
    code = [("code", body["code"])] if body.get("code") else []
    return [*code, ("name", body.get("name"))]


def _by_iso_code(body: Body) -> list[Key]:
    return [("isoCode", body.get("isoCode"))]


def _currency(body: Body) -> Body:
    """A currency of the vendor's catalogue is created by its ISO code alone: md/dictionaries/_currency.md."""
    if body.get("system"):
        return {"system": True, "isoCode": body["isoCode"]}
    return {name: value for name, value in body.items() if name != "system"}


def _folder_keys(body: Body, ids: Ids, settings: LinkSettings) -> list[Key]:
    """What we made has main's external code; the child's own is recognised by its place and name."""
    parent = body.get("productFolder")
    return [
        ("externalCode", body.get("externalCode")),
        (ids["productfolder"].get(UUID(parent)) if parent else None, body.get("name")),
    ]


REFERENCES: tuple[Reference, ...] = (
    Reference(
        "uom",
        "entity/uom",
        ("name", "description", "code", "externalCode"),
        lambda body, ids, settings: _by_code_or_name(body),
        _by_code_or_name,
    ),
    Reference(
        "country",
        "entity/country",
        ("name", "description", "code", "externalCode"),
        lambda body, ids, settings: _by_code_or_name(body),
        _by_code_or_name,
    ),
    Reference(
        "currency",
        "entity/currency",
        ("name", "fullName", "code", "isoCode", "rate", "multiplicity", "system"),
        lambda body, ids, settings: _by_iso_code(body),
        _by_iso_code,
        created_as=_currency,
    ),
    Reference(
        "pricetype",
        "context/companysettings/pricetype",
        ("name", "externalCode"),
        lambda body, ids, settings: [("name", settings.price_types.get(body["name"], body["name"]))],
        lambda body: [("name", body.get("name"))],
    ),
    Reference(
        "productfolder",
        "entity/productfolder",
        ("name", "code", "externalCode", "description", "vat", "vatEnabled", "useParentVat"),
        _folder_keys,
        lambda body: [
            ("externalCode", body.get("externalCode")),
            (id_of(body.get("productFolder")), body.get("name")),
        ],
        follow=True,
        parent="productFolder",
        filter="archived=true;archived=false",
    ),
)
"""In the order they are brought up to date."""

REFERENCE_TYPES = tuple(reference.type for reference in REFERENCES)


def reduce_reference(reference: Reference, row: Body) -> Body:
    """What is kept of main's row: the copied fields and, as an id, the parent."""
    body = {name: row[name] for name in reference.fields if name in row}
    if reference.type == "currency":
        body.pop("rate" if body.get("system") else "system", None)
    if reference.parent and (parent := id_of(row.get(reference.parent))):
        body[reference.parent] = str(parent)
    return body


def reference_body(reference: Reference, body: Body, ids: Ids, client: Client) -> Body:
    """What is sent to the child for it."""
    sent = dict(reference.created_as(body))
    if reference.parent and (parent := sent.pop(reference.parent, None)):
        sent[reference.parent] = client.meta(reference.type, ids[reference.type][UUID(parent)])
    return sent
