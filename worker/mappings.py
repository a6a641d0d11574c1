"""What main had when last read (snapshots) and which entity of a child it became (mappings)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from worker.db import Connection, Database, fetch, query

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One entity of main, reduced to what is copied, references as main's ids."""

    type: str
    id: UUID
    body: Body


@dataclass(frozen=True, slots=True)
class Pair:
    """A snapshot beside what the child has of it."""

    id: UUID
    hash: str
    body: Body
    child_id: UUID | None
    sent_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Mapped:
    """main's entity ↔ the child's, and the hash the child last received (None: to be sent again)."""

    main_id: UUID
    child_id: UUID
    hash: str | None


def hash_of(body: Body) -> str:
    """The same for equal content, whatever the order of keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_snapshots(db: Database, main: UUID, snapshots: Iterable[Snapshot], read_at: datetime) -> None:
    """Keep what one request to main has brought."""
    with db.transaction() as conn:
        conn.execute(query("create_read"))
        with conn.cursor() as cursor, cursor.copy(query("copy_read")) as copy:
            for item in snapshots:
                body = json.dumps(item.body, ensure_ascii=False)
                copy.write_row((item.type, item.id, hash_of(item.body), body))
        fetch(conn, "save_snapshots", main=main, read_at=read_at)


def withdraw_unseen(db: Database, main: UUID, types: Sequence[str], since: datetime) -> int:
    """Mark as archived what a complete read since then did not meet; how many."""
    return len(db.fetch("withdraw_unseen", main=main, types=list(types), since=since))


def drop_unseen(db: Database, main: UUID, types: Sequence[str], since: datetime) -> None:
    """Forget what a complete read since then did not meet."""
    db.fetch("drop_unseen", main=main, types=list(types), since=since)


def differing(db: Database, main: UUID, child: UUID, type: str) -> list[Pair]:
    """Main's entities whose content is not what the child last received."""
    rows = db.fetch("differing", main=main, child=child, type=type)
    return [Pair(row["entity_id"], row["hash"], row["body"], row["child_entity_id"]) for row in rows]


def load(db: Database, main: UUID, child: UUID, type: str, ids: Collection[UUID]) -> dict[UUID, Pair]:
    """These of main's entities by id; one that was never read is absent."""
    rows = db.fetch("load", main=main, child=child, type=type, ids=list(ids))
    return {
        row["entity_id"]: Pair(row["entity_id"], row["hash"], row["body"], row["child_entity_id"], row["sent_hash"])
        for row in rows
    }


def mapped(db: Database, child: UUID, types: Sequence[str]) -> dict[str, dict[UUID, UUID]]:
    """type → main id → child id."""
    found: dict[str, dict[UUID, UUID]] = {type: {} for type in types}
    for row in db.fetch("mapped", child=child, types=list(types)):
        found[row["entity_type"]][row["main_entity_id"]] = row["child_entity_id"]
    return found


def taken(db: Database, child: UUID, type: str, ids: Collection[UUID]) -> set[UUID]:
    """Those of the child's entities that one of main's is mapped to."""
    return {row["child_entity_id"] for row in db.fetch("claimed_by_others", child=child, type=type, ids=list(ids))}


def owners(db: Database, child: UUID, type: str, ids: Collection[UUID]) -> dict[UUID, UUID]:
    """The child's entity → main's that it is mapped to, for those of these that are mapped."""
    rows = db.fetch("owners", child=child, type=type, ids=list(ids))
    return {row["child_entity_id"]: row["main_entity_id"] for row in rows}


def save(conn: Connection, child: UUID, type: str, pairs: Sequence[Mapped], *, current: bool = True) -> None:
    """Remember what the child has received; not `current`, it is to be sent again all the same."""
    if pairs:
        fetch(
            conn,
            "save_mappings",
            child=child,
            type=type,
            main_ids=[pair.main_id for pair in pairs],
            child_ids=[pair.child_id for pair in pairs],
            hashes=[pair.hash if current else None for pair in pairs],
        )


@dataclass(frozen=True, slots=True)
class Intent:
    """A create that was sent, and whose outcome is not known: how many seconds ago, and how often so far."""

    age: float
    tries: int


def intents(db: Database, child: UUID, type: str) -> dict[UUID, Intent]:
    """Those of the child, by main's id."""
    rows = db.fetch("intents", child=child, type=type)
    return {row["main_entity_id"]: Intent(row["age"], row["tries"]) for row in rows}


def intend(db: Database, child: UUID, type: str, main_ids: Collection[UUID]) -> None:
    """Note, before it is sent, that these are about to be created: whoever comes after a crash looks for them."""
    db.fetch("intend", child=child, type=type, ids=list(main_ids))


def fulfil(conn: Connection, child: UUID, type: str, main_ids: Collection[UUID]) -> None:
    """The outcome of these creates is known."""
    if main_ids:
        fetch(conn, "fulfil", child=child, type=type, ids=list(main_ids))


@dataclass(frozen=True, slots=True)
class Doubt:
    """An update that was sent, whose outcome is not known, and which may still take effect `until` then.

    `hash` is that of what was sent, empty where it was several contents.
    """

    hash: str
    sent_at: datetime
    until: datetime


def intend_updates(
    db: Database, child: UUID, type: str, hashes: Mapping[UUID, str], seconds: float
) -> dict[UUID, Doubt]:
    """Note, before they are sent, updates by main's id and hash; what was noted of them in the last `seconds`."""
    if not hashes:
        return {}
    rows = db.fetch(
        "intend_updates",
        child=child,
        type=type,
        ids=list(hashes),
        hashes=list(hashes.values()),
        seconds=seconds,
    )
    return {row["main_entity_id"]: Doubt(row["hash"], row["sent_at"], row["until"]) for row in rows}


def fulfil_updates(conn: Connection, child: UUID, type: str, known: Mapping[UUID, Doubt | None]) -> None:
    """The outcome of these updates is known; that of an earlier one, where given, still is not."""
    if known:
        fetch(
            conn,
            "fulfil_updates",
            child=child,
            type=type,
            ids=list(known),
            hashes=[doubt and doubt.hash for doubt in known.values()],
            sent_at=[doubt and doubt.sent_at for doubt in known.values()],
        )


def drop(conn: Connection, child: UUID, type: str, main_ids: Collection[UUID]) -> None:
    """Forget mappings whose child entity is confirmed gone."""
    if main_ids:
        fetch(conn, "drop_mappings", child=child, type=type, ids=list(main_ids))


def doubt_references(conn: Connection, child: UUID) -> None:
    """Have all references of the child looked up again."""
    fetch(conn, "doubt_references", child=child)
