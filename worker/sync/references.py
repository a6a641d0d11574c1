"""A child's counterparts of what main's goods refer to: looked up, created where missing, remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from worker import mappings
from worker.accounts import Link
from worker.db import Database, fetch
from worker.errors import Rejected, Retryable, TaskError
from worker.mappings import Body, Mapped, Pair
from worker.moysklad import PAGE, Client, item_error
from worker.sync.catalogue import list_references
from worker.sync.entities import REFERENCE_TYPES, REFERENCES, Ids, Key, Reference, reference_body
from worker.telemetry import emit

MutableIds = dict[str, dict[UUID, UUID]]


def ids_of(db: Database, child: UUID) -> Ids:
    """type → main's id → the child's id, for all references known."""
    return mappings.mapped(db, child, REFERENCE_TYPES)


def ensure(db: Database, client: Client, link: Link) -> None:
    """Bring the child's references up to date with main's snapshots.

    A kind none of whose entities changed costs no request; else one list, and one write per 1,000
    missing (folders: per level). What the child refuses is told in the log, and the goods that need it
    fail with their reason. One worker at a time does this for a child: these kinds have no syncId.
    """
    pending = {ref: pairs for ref in REFERENCES if (pairs := mappings.differing(db, link.main, link.child, ref.type))}
    if not pending:
        return
    with db.transaction() as lock:
        fetch(lock, "lock_references", child=link.child)
        ids: MutableIds = mappings.mapped(db, link.child, REFERENCE_TYPES)
        for reference in pending:
            pairs = mappings.differing(db, link.main, link.child, reference.type)
            rows = list_references(client, reference) if pairs else []
            for level in _levels(reference, pairs):
                _ensure_level(db, client, link, reference, level, rows, ids)


def _levels(reference: Reference, pairs: Sequence[Pair]) -> Iterable[list[Pair]]:
    """Parents before their children; all at once where there are none."""
    if reference.parent is None:
        yield list(pairs)
        return
    left = {str(pair.id): pair for pair in pairs}
    while left:
        level = [pair for pair in left.values() if pair.body.get(reference.parent) not in left]
        for pair in level or list(left.values()):
            del left[str(pair.id)]
        yield level


def _ensure_level(
    db: Database,
    client: Client,
    link: Link,
    reference: Reference,
    pairs: Sequence[Pair],
    rows: list[Body],
    ids: MutableIds,
) -> None:
    known = ids[reference.type]
    by_id = {row["id"]: row for row in rows}
    by_key: dict[Key, str] = {}
    mine = {str(child_id) for child_id in known.values()} if reference.parent else set()
    for row in reversed(rows):
        if row["id"] not in mine:
            by_key.update((key, row["id"]) for key in reference.keys_of_child(row) if key[-1])

    create: list[Pair] = []
    settled: list[Mapped] = []
    update: list[Pair] = []
    for pair in pairs:
        if reference.parent and (parent := pair.body.get(reference.parent)) and UUID(parent) not in known:
            emit(
                "reference.skip",
                level="warning",
                type=reference.type,
                main=pair.id,
                reason="its parent is missing",
            )
            continue
        if pair.child_id and str(pair.child_id) in by_id:
            (update if reference.follow else settled).append(
                pair if reference.follow else Mapped(pair.id, pair.child_id, pair.hash)  # type: ignore[arg-type]
            )
            continue
        found = next((by_key[key] for key in reference.keys(pair.body, ids, link.settings) if key in by_key), None)
        if found:
            settled.append(Mapped(pair.id, UUID(found), pair.hash))
        else:
            create.append(pair)
    _remember(db, link, reference, settled, ids)
    if reference.type == "pricetype":
        if create and link.settings.create_price_types:
            _remember(db, link, reference, _create_price_types(client, link, create, rows), ids)
        elif create:
            names = ", ".join(str(pair.body["name"]) for pair in create)
            emit("reference.skip", level="warning", type="pricetype", reason=f"not created by setting: {names}")
        return
    _remember(db, link, reference, _write(client, reference, create, update, ids), ids)


def _write(
    client: Client, reference: Reference, create: Sequence[Pair], update: Sequence[Pair], ids: Ids
) -> list[Mapped]:
    """Create and update in arrays; what became of each that succeeded."""
    done: list[Mapped] = []
    todo = [*create, *update]
    for start in range(0, len(todo), PAGE):
        part = todo[start : start + PAGE]
        bodies = []
        for pair in part:
            body = reference_body(reference, pair.body, ids, client)
            if pair.child_id and pair in update:
                body |= client.meta(reference.type, pair.child_id)
                if reference.parent:
                    body.setdefault(reference.parent, None)
            bodies.append(body)
        answers = client.post(reference.path, bodies, repeatable=not create)
        if not isinstance(answers, list) or len(answers) != len(part):
            raise Retryable(f"POST {reference.path}: {len(part)} elements were sent, the answer is not as long")
        for pair, answer in zip(part, answers, strict=True):
            if error := item_error(answer):
                _tell(reference, pair, error)
            else:
                done.append(Mapped(pair.id, UUID(answer["id"]), pair.hash))
    return done


def _create_price_types(client: Client, link: Link, create: Sequence[Pair], rows: Sequence[Body]) -> list[Mapped]:
    """The POST takes the complete list; a type left out of it is deleted: md/dictionaries/_pricetypes.md."""
    wanted = {link.settings.price_types.get(pair.body["name"], pair.body["name"]): pair for pair in create}
    added = [{"name": name, "externalCode": pair.body.get("externalCode", "")} for name, pair in wanted.items()]
    answers: list[Any] = client.post(
        "context/companysettings/pricetype",
        [*({"meta": row["meta"], "id": row["id"], "name": row["name"]} for row in rows), *added],
        repeatable=False,
    )
    by_name = {row["name"]: row["id"] for row in answers if isinstance(row, dict) and "id" in row}
    return [Mapped(pair.id, UUID(by_name[name]), pair.hash) for name, pair in wanted.items() if name in by_name]


def _remember(db: Database, link: Link, reference: Reference, done: Sequence[Mapped], ids: MutableIds) -> None:
    with db.transaction() as conn:
        mappings.save(conn, link.child, reference.type, done)
    ids[reference.type].update((item.main_id, item.child_id) for item in done)


def _tell(reference: Reference, pair: Pair, error: TaskError) -> None:
    if not isinstance(error, Rejected):
        raise error
    emit("reference.reject", level="warning", type=reference.type, main=pair.id, reason=str(error))
