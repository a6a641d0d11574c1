"""Lists: filter, search, order, one page, and the envelope around it (md/workbook/_workbook_paging.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .account import Account, Entity
from .errors import ApiError
from .filters import Condition, compile_filter, parse
from .kinds import KINDS, expand
from .render import BASE, JSON, dumps

MAX_LIMIT = 1000
EXPAND_LIMIT = 100  # md/_restrictions.md: above it `expand` is ignored
EXPAND_DEPTH = 3
EXPANDABLE = frozenset(
    {
        *("uom", "country", "productFolder", "supplier", "group", "owner", "images", "files"),
        *("attributes", "minimumStock", "packs"),
    }
)
FIELDS = frozenset({"minimumStock", "downloadPermanentHref", "stock"})


@dataclass(frozen=True)
class Query:
    """The parameters of a list request, checked."""

    limit: int = MAX_LIMIT
    offset: int = 0
    order: tuple[tuple[str, bool], ...] = ()
    conditions: tuple[Condition, ...] = ()
    search: str = ""
    expand: tuple[list[str], ...] = ()
    fields: str = ""
    raw: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def from_text(cls, text: str) -> Query:
        """Read a query string."""
        pairs = tuple(parse_qsl(text, keep_blank_values=True))
        given = dict(pairs)
        filters = ";".join(value for name, value in pairs if name == "filter")
        return cls(
            limit=_whole(given, "limit", MAX_LIMIT, 1, MAX_LIMIT),
            offset=_whole(given, "offset", 0, 0, None),
            order=_order(given.get("order", "")),
            conditions=tuple(parse(filters)),
            search=given.get("search", "").lower(),
            expand=_expand(given.get("expand", "")),
            fields=_fields(given.get("fields", "")),
            raw=pairs,
        )


def page(account: Account, kind: str, query: Query) -> bytes:
    """One page of a list, serialised, `BASE` still inside."""
    found = select(account, kind, query)
    rows = found[query.offset : query.offset + query.limit]
    head = {"context": context(account), "meta": _meta(kind, query, len(found))}
    body = b",".join(row_text(account, row, query, query.limit <= EXPAND_LIMIT) for row in rows)
    return dumps(head)[:-1] + b',"rows":[' + body + b"]}"


def row_text(account: Account, entity: Entity, query: Query, expandable: bool = True) -> bytes:
    """One object, with what `expand` and `fields` add to it."""
    extra = query.fields and query.fields in entity.hidden
    if not extra and not (query.expand and expandable):
        return entity.bytes()
    data: dict[str, Any] = dict(entity.data)
    if expandable:
        for path in query.expand:
            data.update({path[0]: value} if (value := expand(account, entity, path).get(path[0])) else {})
    if extra:
        data[query.fields] = entity.hidden[query.fields]
    return dumps(data)


def select(account: Account, kind: str, query: Query) -> list[Entity]:
    """Everything the query asks for, in its order.

    Archived objects are left out unless the filter speaks of `archived` or names ids (md/_general.md).
    """
    rules = KINDS[kind]
    predicates = compile_filter(rules, list(query.conditions))
    asked = {one.field for one in query.conditions}
    entities = list(account.kind(kind).values())
    if rules.hides_archived and not asked & {"archived", "id"}:
        entities = [one for one in entities if not one.data.get("archived")]
    for predicate in predicates:
        entities = [one for one in entities if predicate(one)]
    if query.search:
        entities = [
            one
            for one in entities
            if any(query.search in str(one.data.get(name, "")).lower() for name in rules.search)
        ]
    for name, descending in reversed(query.order):
        if name not in rules.sortable:
            raise ApiError(1063, name, parameter="order")
        entities.sort(key=lambda one: _sort_key(one, name), reverse=descending)
    return entities


def context(account: Account) -> dict[str, Any]:
    """Who asked."""
    meta = dict(account.owner.ref["meta"])
    meta["href"] = f"{BASE}/context/employee"
    return {"employee": {"meta": meta}}


def _sort_key(entity: Entity, name: str) -> tuple[bool, Any]:
    value = entity.data.get(name)
    return (value is not None, value)


def _meta(kind: str, query: Query, size: int) -> dict[str, Any]:
    def href(offset: int | None = None) -> str:
        pairs = list(query.raw)
        if offset is not None:
            pairs = [pair for pair in pairs if pair[0] not in ("limit", "offset")]
            pairs += [("limit", str(query.limit)), ("offset", str(offset))]
        text = urlencode(pairs)
        return f"{BASE}/entity/{kind}" + (f"?{text}" if text else "")

    meta: dict[str, Any] = {
        "href": href(),
        "metadataHref": f"{BASE}/entity/{kind}/metadata",
        "type": kind,
        "mediaType": JSON,
        "size": size,
        "limit": query.limit,
        "offset": query.offset,
    }
    if query.offset + query.limit < size:
        meta["nextHref"] = href(query.offset + query.limit)
    if query.offset > 0:
        meta["previousHref"] = href(max(0, query.offset - query.limit))
    return meta


def _whole(given: dict[str, str], name: str, default: int, low: int, high: int | None) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < low or (high is not None and int(text) > high):
        raise ApiError(1040, parameter=name)
    return int(text)


def _order(text: str) -> tuple[tuple[str, bool], ...]:
    result = []
    for part in filter(None, text.split(";")):
        name, _, direction = part.partition(",")
        if direction not in ("", "asc", "desc"):
            raise ApiError(1040, parameter="order")
        result.append((name, direction == "desc"))
    return tuple(result)


def _expand(text: str) -> tuple[list[str], ...]:
    paths = [part.split(".") for part in text.split(",") if part]
    for path in paths:
        if path[0] not in EXPANDABLE or len(path) > EXPAND_DEPTH:
            raise ApiError(1089, ".".join(path), parameter="expand")
    return tuple(paths)


def _fields(text: str) -> str:
    if "," in text:
        raise ApiError(3042, parameter="fields")
    if text and text not in FIELDS:
        raise ApiError(3043, text, parameter="fields")
    return text
