"""A child's counterparts of what main's goods refer to: looked up, created where missing, remembered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from worker import accounts, mappings
from worker.accounts import Link
from worker.db import Database, fetch
from worker.errors import RateLimited, Rejected, Retryable, Unauthorized, Unreachable
from worker.mappings import Body, Mapped, Pair
from worker.moysklad import DIVISIBLE, PAGE, Client, item_error, objects
from worker.sync.catalogue import list_references
from worker.sync.entities import REFERENCE_TYPES, REFERENCES, Ids, Key, Reference, reference_body
from worker.telemetry import emit

TRIES = 10
"""Times a create may be sent whose outcome nobody learns; then the goods that need it fail."""
LOOK_AGAIN = 1.0
"""Seconds after a lost answer until the first look whether it was created."""

MutableIds = dict[str, dict[UUID, UUID]]


def ids_of(db: Database, child: UUID) -> Ids:
    """type → main's id → the child's id, for all references known."""
    return mappings.mapped(db, child, REFERENCE_TYPES)


def ensure(db: Database, client: Client, link: Link) -> float:
    """Bring the child's references up to date with main's snapshots; seconds until another look, 0 when all is done.

    A kind none of whose entities changed costs no request; else one list, and one write per 1,000
    missing (folders: per level). What the child refuses is told in the log, and the goods that need it
    fail with their reason. One worker at a time does this for a child: these kinds have no syncId. A create
    whose answer was lost is not repeated: it is looked for, as long as it may still take effect.
    """
    pending = {ref: pairs for ref in REFERENCES if (pairs := mappings.differing(db, link.main, link.child, ref.type))}
    if not pending:
        return 0
    with db.transaction() as lock:
        fetch(lock, "lock_references", child=link.child)
        ids: MutableIds = mappings.mapped(db, link.child, REFERENCE_TYPES)
        for reference in pending:
            pairs = mappings.differing(db, link.main, link.child, reference.type)
            rows = list_references(client, reference) if pairs else []
            for level in _levels(reference, pairs):
                if wait := _Level(db, client, link, reference, rows, ids).ensure(level):
                    return wait
    return 0


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


class _Level:
    """Entities of one kind, none of which is another's parent."""

    def __init__(
        self, db: Database, client: Client, link: Link, reference: Reference, rows: Sequence[Body], ids: MutableIds
    ) -> None:
        self.db, self.client, self.link, self.reference, self.rows = db, client, link, reference, rows
        self.ids = ids
        self.known = ids[reference.type]
        self.unknown = False
        """Whether it is not known what became of a create."""

    def ensure(self, pairs: Sequence[Pair]) -> float:
        """As `ensure`, for these."""
        settled, update, missing = self._sort(pairs)
        self._remember(settled)
        for start in range(0, len(update), PAGE):
            self._update(update[start : start + PAGE])
        intents = mappings.intents(self.db, self.link.child, self.reference.type)
        wait = 0.0
        create: list[Pair] = []
        for pair in missing:
            intent = intents.get(pair.id)
            if intent is None or (intent.tries < TRIES and intent.age >= self.client.effect_seconds):
                create.append(pair)
            elif intent.age < self.client.effect_seconds:
                wait = max(wait, self.client.effect_seconds - intent.age)
            else:
                self._reject([pair], f"{intent.tries} times it was not known whether it was created; it is not there")
        if self.reference.type == "pricetype":
            self._create_price_types(create)
        else:
            for start in range(0, len(create), PAGE):
                self._create(create[start : start + PAGE])
        return LOOK_AGAIN if self.unknown else wait

    def _sort(self, pairs: Sequence[Pair]) -> tuple[list[Mapped], list[Pair], list[Pair]]:
        """Which are there, which are to be brought up to date, which are missing."""
        reference = self.reference
        there = {row["id"] for row in self.rows}
        mine = {str(child_id) for child_id in self.known.values()} if reference.parent else set()
        by_key: dict[Key, list[str]] = defaultdict(list)
        for row in self.rows:
            if row["id"] not in mine:
                for key in reference.keys_of_child(row):
                    if key[-1]:
                        by_key[key].append(row["id"])
        settled: list[Mapped] = []
        update: list[Pair] = []
        missing: list[Pair] = []
        for pair in pairs:
            if reference.parent and (parent := pair.body.get(reference.parent)) and UUID(parent) not in self.known:
                self._tell("skip", "its parent is missing", pair.id)
            elif pair.child_id and str(pair.child_id) in there:
                if reference.follow:
                    update.append(pair)
                else:
                    settled.append(Mapped(pair.id, pair.child_id, pair.hash))
            else:
                missing.append(pair)
        found = self._find(missing, by_key)
        settled += [Mapped(pair.id, UUID(found[pair.id]), pair.hash) for pair in missing if pair.id in found]
        return settled, update, [pair for pair in missing if pair.id not in found]

    def _find(self, pairs: Sequence[Pair], by_key: Mapping[Key, Sequence[str]]) -> dict[UUID, str]:
        """main's id → the child's; what the surest key finds, then the next.

        Of folders each is somebody's own; of units and the like several of main's may be one of the child's.
        """
        keys = {pair.id: self.reference.keys(pair.body, self.ids, self.link.settings) for pair in pairs}
        found: dict[UUID, str] = {}
        taken: set[str] = set()
        for rank in range(max(map(len, keys.values()), default=0)):
            for pair in pairs:
                if pair.id not in found and rank < len(keys[pair.id]):
                    hits = [id for id in by_key.get(keys[pair.id][rank], ()) if id not in taken]
                    if hits:
                        found[pair.id] = hits[0]
                        taken |= {hits[0]} if self.reference.parent else set()
        return found

    def _update(self, pairs: Sequence[Pair]) -> None:
        bodies = []
        for pair in pairs:
            assert pair.child_id
            body = reference_body(self.reference, pair.body, self.ids, self.client)
            body |= self.client.meta(self.reference.type, pair.child_id)
            if self.reference.parent:
                body.setdefault(self.reference.parent, None)
            bodies.append(_bytes(body))
        self._record(pairs, self.client.post_all(self.reference.path, bodies, repeatable=True))

    def _create(self, pairs: Sequence[Pair]) -> None:
        """One array; refused as a whole, it is halved down to the guilty one, which alone is told of."""
        bodies = [_bytes(reference_body(self.reference, pair.body, self.ids, self.client)) for pair in pairs]
        try:
            answers = self._send(pairs, lambda: self.client.post_all(self.reference.path, bodies, repeatable=False))
        except Rejected as error:
            if error.status not in DIVISIBLE:
                raise
            if len(pairs) == 1:
                self._reject(pairs, str(error))
                return
            middle = len(pairs) // 2
            self._create(pairs[:middle])
            self._create(pairs[middle:])
        else:
            if answers is not None:
                self._record(pairs, answers)

    def _create_price_types(self, pairs: Sequence[Pair]) -> None:
        """The POST takes the complete list; a type left out of it is deleted: md/dictionaries/_pricetypes.md."""
        names = self.link.settings.price_types
        wanted: dict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            name = str(pair.body["name"])
            wanted[names.get(name, name)].append(pair)
        if not wanted:
            return
        if not self.link.settings.create_price_types:
            self._tell("skip", f"not created by setting: {', '.join(wanted)}")
            return
        added = [
            {"name": name, "externalCode": some[0].body.get("externalCode", "")} for name, some in wanted.items()
        ]
        whole = [*({"meta": row["meta"], "id": row["id"], "name": row["name"]} for row in self.rows), *added]
        path = self.reference.path
        try:
            answers = self._send(pairs, lambda: objects(path, self.client.post(path, whole, repeatable=False)))
        except Rejected as error:
            if error.status not in DIVISIBLE:
                raise
            self._reject(pairs, str(error))
            return
        if answers is not None:
            by_name = {row["name"]: row for row in answers}
            for name, some in wanted.items():
                if name in by_name:
                    self._record(some, [by_name[name]] * len(some))
                else:
                    self._reject(some, f"the answer has no price type {name}")

    def _send(self, pairs: Sequence[Pair], send: Callable[[], list[Any]]) -> list[Any] | None:
        """What a create was answered; None when nobody knows what became of it. Raises what refused it."""
        child, type = self.link.child, self.reference.type
        mappings.intend(self.db, child, type, [pair.id for pair in pairs])
        try:
            return send()
        except (Unreachable, RateLimited, Unauthorized):
            self._fulfil(pairs)
            raise
        except Rejected as error:
            if error.status < 500:
                self._fulfil(pairs)
                raise
            self._tell("lose", str(error))
        except Retryable as error:
            self._tell("lose", str(error))
        self.unknown = True
        return None

    def _record(self, pairs: Sequence[Pair], answers: Sequence[Any]) -> None:
        """What became of each of an array."""
        done: list[Mapped] = []
        for pair, answer in zip(pairs, answers, strict=True):
            error = item_error(answer)
            if error is None:
                done.append(Mapped(pair.id, UUID(answer["id"]), pair.hash))
            elif isinstance(error, Rejected | Unauthorized):
                self._reject([pair], str(error))
            else:
                self._tell("lose", str(error), pair.id)
                self.unknown = True
        self._remember(done)

    def _remember(self, done: Sequence[Mapped]) -> None:
        type = self.reference.type
        with self.db.transaction() as conn:
            current = accounts.still_so(conn, self.link)
            mappings.save(conn, self.link.child, type, done, current=current)
            mappings.fulfil(conn, self.link.child, type, [item.main_id for item in done])
        self.known.update((item.main_id, item.child_id) for item in done)

    def _reject(self, pairs: Sequence[Pair], reason: str) -> None:
        """These are not created; the goods that need them fail with their reason."""
        self._fulfil(pairs)
        for pair in pairs:
            self._tell("reject", reason, pair.id)

    def _fulfil(self, pairs: Sequence[Pair]) -> None:
        with self.db.transaction() as conn:
            mappings.fulfil(conn, self.link.child, self.reference.type, [pair.id for pair in pairs])

    def _tell(self, what: str, reason: str, main: UUID | None = None) -> None:
        emit(f"reference.{what}", level="warning", type=self.reference.type, main=main or "", reason=reason)


def _bytes(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
