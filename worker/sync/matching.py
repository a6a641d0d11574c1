"""Which of the child's goods are main's already: none, one or many hits are three outcomes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote
from uuid import UUID

from worker import mappings
from worker.accounts import Link
from worker.db import Database
from worker.mappings import Body
from worker.moysklad import PAGE, Client
from worker.sync import goods

_FILTER_BYTES = 6000
"""A request line and its headers are limited to 8 KB: md/_restrictions.md."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What the search found: main's id → the child's id, and main's id → why it cannot be decided."""

    found: dict[UUID, UUID]
    problems: dict[UUID, str]


def search(db: Database, client: Client, link: Link, wanted: Mapping[UUID, Body]) -> Matches:
    """Look for main's goods among the child's by the link's match field.

    `wanted` is main's id → a body with that field. Few are asked for by filter, many are found by
    listing the child's goods, whichever takes fewer requests. A failed search raises: it is not "none".
    """
    field = link.settings.match_field
    values = {id: goods.match_values(body, field) for id, body in wanted.items()}
    seekers: dict[str, set[UUID]] = defaultdict(set)
    for id, own in values.items():
        for value in own:
            seekers[value].add(id)
    if not seekers:
        return Matches({}, {id: _without(field) for id in wanted})

    hits: dict[str, set[UUID]] = defaultdict(set)
    for row in _candidates(client, field, sorted(seekers)):
        for value in goods.match_values(row, field):
            if value in seekers:
                hits[value].add(UUID(row["id"]))
    others = mappings.taken(db, link.child, goods.TYPE, {id for found in hits.values() for id in found})
    return _decide(field, values, seekers, {value: found - others for value, found in hits.items()})


def _decide(
    field: str,
    values: Mapping[UUID, Sequence[str]],
    seekers: Mapping[str, set[UUID]],
    hits: Mapping[str, set[UUID]],
) -> Matches:
    matches = Matches({}, {})
    for id, own in values.items():
        found = {hit for value in own for hit in hits.get(value, ())}
        rivals = {rival for value in own if hits.get(value) for rival in seekers[value]} - {id}
        named = f"{field} {', '.join(map(repr, own))}"
        if not own:
            matches.problems[id] = _without(field)
        elif len(found) > 1:
            matches.problems[id] = (
                f"{len(found)} of the child's goods have {named}: make it unique there, or match by another field"
            )
        elif found and rivals:
            matches.problems[id] = (
                f"{len(rivals) + 1} of main's goods have {named}, and one of the child's: "
                "make it unique in main, or match by another field"
            )
        elif found:
            matches.found[id] = found.pop()
    return matches


def _without(field: str) -> str:
    return f"it has no {field} to be recognised by: fill it in main, or match by another field"


def _candidates(client: Client, field: str, values: Sequence[str]) -> Iterator[Body]:
    chunks = list(_filters(field, values))
    if len(chunks) > 1:
        pages = client.pages(goods.PATH, filter=goods.BOTH)
        first = next(pages, [])
        yield from first
        if len(first) < PAGE:
            return
        size = client.get(goods.PATH, limit=1, filter=goods.BOTH)["meta"]["size"]
        if size / PAGE - 1 <= len(chunks):
            for page in pages:
                yield from page
            return
    for chunk in chunks:
        for page in client.pages(goods.PATH, filter=f"{chunk};{goods.BOTH}"):
            yield from page


def _filters(field: str, values: Iterable[str]) -> Iterator[str]:
    """`field=a;field=b…` (repeated = is OR), each short enough for a request line."""
    terms: list[str] = []
    length = 0
    for value in values:
        escaped = value.replace("\\", "\\\\").replace(";", "\\;")
        term = f"{field}={escaped}"
        size = len(quote(term)) + 3
        if terms and length + size > _FILTER_BYTES:
            yield ";".join(terms)
            terms, length = [], 0
        terms.append(term)
        length += size
    if terms:
        yield ";".join(terms)
