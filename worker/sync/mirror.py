"""The one way main → child: bodies from snapshots and the child's references, array POSTs that fit."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from worker import accounts, mappings
from worker.accounts import Link
from worker.db import Connection
from worker.errors import (
    Ambiguous,
    Gone,
    NotFound,
    Permanent,
    Rejected,
    Retryable,
    Slow,
    TaskError,
    TooLarge,
    Unauthorized,
)
from worker.executor import Context, Settlement
from worker.mappings import Body, Doubt, Mapped, Pair
from worker.moysklad import BULK_BYTES, DIVISIBLE, PAGE, Client, item_error
from worker.queues import Ended
from worker.sync import goods, matching, references
from worker.sync.entities import Ids
from worker.task import Complete, Fail, NewTask, Outcome, Prepare, Priority, Retry, Snooze, SyncGoods, Task

REFUSALS = 20
"""Requests of one batch refused as a whole, after which the rest is put off: two guilty items take as many."""
PUT_OFF = 5.0
"""Seconds until then."""
QUICK = 1 / 3
"""Part of the patience within which a full array must be answered for a longer one to be tried, and after which
one that was not answered says something of its length."""


@dataclass(frozen=True, slots=True)
class Item:
    """One of main's goods on its way to the child."""

    task: Task
    pair: Pair
    sent: Body
    notes: Sequence[str]
    data: bytes

    @property
    def hash(self) -> str:
        """The same for what is sent alike."""
        return hashlib.blake2b(self.data, digest_size=16).hexdigest()

    @property
    def created(self) -> bool:
        """Whether it is new to the child."""
        return self.pair.child_id is None


def sync(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
    """Bring the child's goods to main's content; what has not changed costs no request."""
    by_main: dict[UUID, list[tuple[Task, SyncGoods]]] = {}
    unreadable: list[Ended] = []
    for task in tasks:
        try:
            UUID(task.entity_id)
            payload = task.decode()
        except (Permanent, ValueError) as error:
            unreadable.append(Ended(task, Fail(str(error))))
            continue
        assert isinstance(payload, SyncGoods)
        by_main.setdefault(payload.main, []).append((task, payload))
    if unreadable:
        yield Settlement(unreadable)
    for main, group in by_main.items():
        try:
            link = ctx.accounts.link_between(main, tasks[0].account_id)
        except NotFound as error:
            yield Settlement([Ended(task, Complete("skipped", str(error))) for task, _ in group])
            continue
        yield from _sync(ctx, link, group)


def _sync(ctx: Context, link: Link, group: Sequence[tuple[Task, SyncGoods]]) -> Iterator[Settlement]:
    pairs = mappings.load(ctx.db, link.main, link.child, goods.TYPE, [UUID(task.entity_id) for task, _ in group])
    ended: list[Ended] = []
    todo: list[tuple[Task, Pair]] = []
    unsearched: list[tuple[Task, Pair]] = []
    for task, payload in group:
        pair = pairs.get(UUID(task.entity_id))
        if pair is None:
            ended.append(Ended(task, Complete("skipped", "main no longer has it")))
        elif pair.sent_hash == pair.hash:
            ended.append(Ended(task, Complete("unchanged")))
        elif pair.child_id is None and payload.problem:
            ended.append(Ended(task, _undecided(payload.problem)))
        elif pair.child_id is None and not payload.searched:
            unsearched.append((task, pair))
        else:
            todo.append((task, pair))
    if ended:
        yield Settlement(ended)
    if not todo and not unsearched:
        return
    with ctx.client(link.child) as client:
        client.urgent = any(task.priority >= Priority.WEBHOOK for task, _ in group)
        if unsearched:
            found, undecided = _search(ctx, client, link, unsearched)
            if undecided:
                yield Settlement(undecided)
            todo += found
        if client.left() <= 0:
            raise Retryable("the search left no time to send anything")
        items, failed = _items(client, link, references.ids_of(ctx.db, link.child), todo)
        if failed:
            yield Settlement(failed)
        yield from _write(ctx, client, link, items)


def _search(
    ctx: Context, client: Client, link: Link, unsearched: Sequence[tuple[Task, Pair]]
) -> tuple[list[tuple[Task, Pair]], list[Ended]]:
    matches = matching.search(ctx.db, client, link, {pair.id: pair.body for _, pair in unsearched})
    found, undecided = [], []
    for task, pair in unsearched:
        if problem := matches.problems.get(pair.id):
            undecided.append(Ended(task, _undecided(problem)))
        else:
            child_id = matches.found.get(pair.id)
            found.append((task, Pair(pair.id, pair.hash, pair.body, child_id)))
    return found, undecided


def _undecided(problem: str) -> Outcome:
    return Fail(str(Ambiguous(problem)))


def _items(client: Client, link: Link, ids: Ids, todo: Sequence[tuple[Task, Pair]]) -> tuple[list[Item], list[Ended]]:
    items, failed = [], []
    for task, pair in todo:
        try:
            sent, notes = goods.to_child(pair.body, ids, link.settings, client.meta)
        except Permanent as error:
            failed.append(Ended(task, Fail(str(error))))
            continue
        if pair.child_id is None:
            sent = goods.as_created(sent) | {"syncId": goods.sync_id(link.main, pair.id)}
        else:
            sent |= client.meta(goods.TYPE, pair.child_id)
        data = json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode()
        items.append(Item(task, pair, sent, notes, data))
    return items, failed


def _write(ctx: Context, client: Client, link: Link, items: Sequence[Item]) -> Iterator[Settlement]:
    """Array POSTs, each as long as the account bears; what is refused as a whole is halved down to the guilty item.

    Sending it again does no harm: creates carry a syncId, updates say what they want. A part that only meets
    trouble is tried again later, by itself, in smaller parts each time: if it is one item that makes MoySklad
    stumble, that one is alone in the end.
    """
    size = client.account.bulk
    patience = min(client.read_timeout, client.left())
    refusals = 0
    late = False
    parts = deque(_alike(items))
    while parts:
        late = late or client.left() <= 0
        if late or refusals >= REFUSALS:
            why = "the batch had no time left" if late else f"MoySklad has refused {refusals} arrays of this batch"
            yield Settlement([Ended(item.task, Snooze(PUT_OFF, why)) for part in parts for item in part])
            return
        part, rest = _cut(parts.popleft(), size)
        if rest:
            parts.appendleft(rest)
        updates = {item.pair.id: item.hash for item in part if not item.created}
        doubts = mappings.intend_updates(ctx.db, link.child, goods.TYPE, updates, client.effect_seconds)
        began, lost = client.clock(), client.lost
        try:
            answers = client.post_all(goods.PATH, [item.data for item in part], repeatable=True)
        except (TooLarge, Slow) as error:
            refused = isinstance(error, TooLarge)
            if not refused and client.clock() - began < patience * QUICK:  # begun too late to tell anything
                late = True
                parts.appendleft(part)
            elif len(part) > 1:
                if refused and client.lost == lost:
                    _withdraw(ctx, link, updates, doubts)
                size = ctx.accounts.shrink_bulk(link.child, len(part), refused=refused)
                if client.left() > 0:
                    parts.extendleft(_halves(part))
                else:
                    late = True
                    yield _again(part, f"{error}, and the batch had no time left")
            else:
                size = ctx.accounts.restore_bulk(link.child, client.account.bulk) if refused else size
                yield _settle(ctx, client, link, part, [error], doubts, sure=client.lost == lost)
        except Rejected as error:
            if error.status not in DIVISIBLE:
                raise
            refusals += 1
            if len(part) == 1:
                yield _settle(ctx, client, link, part, [error], doubts, sure=client.lost == lost)
            else:
                if client.lost == lost:
                    _withdraw(ctx, link, updates, doubts)
                parts.extendleft(_halves(part))
        except Retryable as error:
            yield _again(part, str(error))
        else:
            if len(part) == size < PAGE and client.clock() - began < patience * QUICK:
                size = ctx.accounts.grow_bulk(link.child, size)
            results = [item_error(answer) or answer for answer in answers]
            yield _settle(ctx, client, link, part, results, doubts, sure=client.lost == lost)


def _withdraw(ctx: Context, link: Link, updates: Iterable[UUID], doubts: Mapping[UUID, Doubt]) -> None:
    """What was refused as a whole can take no effect any more."""
    with ctx.db.transaction() as conn:
        mappings.fulfil_updates(conn, link.child, goods.TYPE, {id: doubts.get(id) for id in updates})


def _again(part: Sequence[Item], error: str) -> Settlement:
    return Settlement([Ended(item.task, Retry(error)) for item in part])


def _alike(items: Sequence[Item]) -> list[list[Item]]:
    """The items, those that had no trouble before apart from those that had some, which go in smaller parts."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(_most(item), []).append(item)
    return [groups[most] for most in sorted(groups, reverse=True)]


def _most(item: Item) -> int:
    """With how many others an item may travel at most, by the number of its attempts."""
    return {1: PAGE, 2: 32}.get(item.task.attempts, 1)


def _cut(items: list[Item], size: int) -> tuple[list[Item], list[Item]]:
    """As many as one request may hold, and the rest."""
    most, total = min(size, _most(items[0])), 0
    for n, item in enumerate(items):
        total += len(item.data) + 1
        if n and (n == most or total > BULK_BYTES):
            return items[:n], items[n:]
    return items, []


def _halves(part: list[Item]) -> tuple[list[Item], list[Item]]:
    """The second and the first half: as `extendleft` wants them."""
    middle = (len(part) + 1) // 2
    return part[middle:], part[:middle]


def _settle(
    ctx: Context,
    client: Client,
    link: Link,
    chunk: Sequence[Item],
    results: Sequence[Body | TaskError],
    doubts: Mapping[UUID, Doubt],
    *,
    sure: bool,
) -> Settlement:
    """What became of each: an entity of the child's, or the error it met.

    An update that went through while an earlier one of other content may still take effect (`doubts`) is sent once
    more when that is over. `sure` tells that each item was sent but once, or its fate known before it was sent again.
    """
    outcomes: dict[int, Outcome] = {}
    saved: dict[int, Mapped] = {}
    known: dict[int, tuple[UUID, Doubt | None]] = {}
    later: dict[int, NewTask] = {}
    gone: list[Item] = []
    entities = {item.task.id: result for item, result in zip(chunk, results, strict=True) if isinstance(result, dict)}
    owners = mappings.owners(ctx.db, link.child, goods.TYPE, {UUID(entity["id"]) for entity in entities.values()})
    for item, result in zip(chunk, results, strict=True):
        doubt = doubts.get(item.pair.id)
        if sure and not item.created and not isinstance(result, Retryable):
            known[item.task.id] = item.pair.id, doubt
        if isinstance(result, Gone):
            gone.append(item)
            outcomes[item.task.id] = Retry(str(result))
        elif isinstance(result, TaskError):
            outcomes[item.task.id] = _outcome(result)
        elif owners.setdefault(id := UUID(result["id"]), item.pair.id) != item.pair.id:
            # One row that cannot be kept would undo the whole part's.
            outcomes[item.task.id] = _undecided(f"the child's {id} is already that of main's {owners[id]}")
        elif item.created and not goods.echoes(item.sent, result):
            saved[item.task.id] = Mapped(item.pair.id, id, None)
            outcomes[item.task.id] = Snooze(0, "an earlier attempt had created it, with other content")
        else:
            outlived = doubt is None or doubt.hash == item.hash
            saved[item.task.id] = Mapped(item.pair.id, id, item.pair.hash if outlived else None)
            if doubt is not None and not outlived:
                later[item.task.id] = _once_more(link, item, doubt)
            done = "created" if item.created else "updated"
            outcomes[item.task.id] = Complete(done, "; ".join(item.notes) or None)
    lost = _confirm_gone(client, [item for item in gone if not item.created])
    stale = [item for item in gone if item.task.id not in {other.task.id for other in lost}]

    def effect(conn: Connection, owned: set[int]) -> None:
        kept = [pair for id, pair in saved.items() if id in owned]
        mappings.save(conn, link.child, goods.TYPE, kept, current=accounts.still_so(conn, link))
        mappings.drop(conn, link.child, goods.TYPE, [item.pair.id for item in lost if item.task.id in owned])
        mappings.fulfil_updates(conn, link.child, goods.TYPE, dict(one for id, one in known.items() if id in owned))
        if tasks := [task for id, task in later.items() if id in owned]:
            ctx.queue.enqueue(tasks, within=conn)
        if stale:
            mappings.doubt_references(conn, link.child)
            again = Prepare(link.main)
            first = stale[0].task
            ctx.queue.enqueue(
                [NewTask(link.child, "catalogue", "prepare", again, entity_id=str(link.main),
                         priority=first.priority, run_id=first.run_id)],
                within=conn,
            )  # fmt: skip

    return Settlement([Ended(item.task, outcomes[item.task.id]) for item in chunk], effect)


def _once_more(link: Link, item: Item, doubt: Doubt) -> NewTask:
    """To send it once more when the earlier update can no longer overwrite it."""
    return NewTask(link.child, goods.TYPE, "sync", SyncGoods(link.main), entity_id=str(item.pair.id),
                   priority=item.task.priority, scheduled_at=doubt.until)  # fmt: skip


def _confirm_gone(client: Client, items: Sequence[Item]) -> list[Item]:
    """Those that the child really no longer has; for the others, something they refer to is gone."""
    lost = []
    for start in range(0, len(items), 100):
        part = items[start : start + 100]
        wanted = ";".join(f"id={item.pair.child_id}" for item in part)
        there = {row["id"] for row in client.rows(goods.PATH, filter=wanted)}
        lost += [item for item in part if str(item.pair.child_id) not in there]
    return lost


def _outcome(error: TaskError) -> Outcome:
    """Of one element: rights that it lacks say nothing of the account as a whole."""
    match error:
        case Permanent() | Unauthorized():
            return Fail(str(error))
        case _:
            return Retry(str(error))
