"""Main's catalogue: read once, whatever the number of children, and kept as hashed snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from worker import mappings
from worker.db import Database
from worker.mappings import Body, Snapshot
from worker.moysklad import Client
from worker.sync import goods
from worker.sync.entities import REFERENCE_TYPES, REFERENCES, Reference, reduce_reference


def read(db: Database, client: Client) -> int:
    """Bring the snapshots of this main account up to date; how many goods it has.

    Requests: one per 1,000 goods and one per kind of reference. References no goods use are not kept,
    so that a child is not filled with main's dictionaries.
    """
    main = client.account.id
    since = _now(db)
    used: set[tuple[str, str]] = set()
    number = 0
    for page in _timed_pages(db, client):
        read_at, rows = page
        snapshots = [Snapshot(goods.TYPE, UUID(row["id"]), goods.reduce(row)) for row in rows]
        for snapshot in snapshots:
            used |= goods.referred(snapshot.body)
        mappings.save_snapshots(db, main, snapshots, read_at)
        number += len(rows)
    for reference in REFERENCES:
        read_at = _now(db)
        found = {row["id"]: reduce_reference(reference, row) for row in list_references(client, reference)}
        wanted = _with_parents(reference, found, {id for type, id in used if type == reference.type})
        mappings.save_snapshots(db, main, (Snapshot(reference.type, UUID(id), found[id]) for id in wanted), read_at)
    mappings.drop_unseen(db, main, REFERENCE_TYPES, since)
    mappings.withdraw_unseen(db, main, [goods.TYPE], since)
    return number


def list_references(client: Client, reference: Reference) -> list[Body]:
    """All the account's entities of that kind; price types come as a bare array."""
    if reference.type == "pricetype":
        return client.array(reference.path)
    return client.rows(reference.path, **({"filter": reference.filter} if reference.filter else {}))


def _timed_pages(db: Database, client: Client) -> Iterable[tuple[datetime, list[dict[str, Any]]]]:
    """Pages of goods, each with a moment before its request was sent."""
    read_at = _now(db)
    for rows in client.pages(goods.PATH, filter=goods.BOTH):
        yield read_at, rows
        read_at = _now(db)


def _with_parents(reference: Reference, found: dict[str, Body], ids: set[str]) -> list[str]:
    """The ids that exist, and their parents up to the root."""
    wanted: dict[str, None] = {}
    for id in sorted(ids):
        current: str | None = id
        while current and current in found and current not in wanted:
            wanted[current] = None
            current = found[current].get(reference.parent) if reference.parent else None
    return list(wanted)


def _now(db: Database) -> datetime:
    return cast(datetime, db.fetch("server_time")[0]["now"])
