"""The one way main → child: bodies from snapshots and the child's references, one array POST per chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from worker import mappings
from worker.accounts import Link
from worker.db import Connection
from worker.errors import (
    Ambiguous,
    Gone,
    NotFound,
    Permanent,
    Rejected,
    Retryable,
    TaskError,
    TooLarge,
    Unauthorized,
)
from worker.executor import Context, Settlement
from worker.mappings import Body, Mapped, Pair
from worker.moysklad import BULK_BYTES, PAGE, Client, item_error
from worker.queues import Ended
from worker.sync import goods, matching, references
from worker.sync.entities import Ids
from worker.task import Complete, Fail, NewTask, Outcome, Prepare, Retry, Snooze, SyncGoods, Task


@dataclass(frozen=True, slots=True)
class Item:
    """One of main's goods on its way to the child."""

    task: Task
    pair: Pair
    sent: Body
    notes: Sequence[str]
    data: bytes

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
        if unsearched:
            found, undecided = _search(ctx, client, link, unsearched)
            if undecided:
                yield Settlement(undecided)
            todo += found
        items, failed = _items(client, link, references.ids_of(ctx.db, link.child), todo)
        if failed:
            yield Settlement(failed)
        for chunk in _chunks(items):
            yield from _post(ctx, client, link, chunk)


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


def _chunks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """As many as one request may hold."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) == PAGE or size + len(item.data) > BULK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item.data) + 1
    if chunk:
        yield chunk


def _post(ctx: Context, client: Client, link: Link, chunk: Sequence[Item]) -> Iterator[Settlement]:
    """One array POST; a request refused as a whole is halved down to the guilty item, which alone fails.

    Repeating it does no harm: creates carry a syncId, updates say what they want.
    """
    try:
        answers = client.post(goods.PATH, b"[" + b",".join(item.data for item in chunk) + b"]", repeatable=True)
        if not isinstance(answers, list) or len(answers) != len(chunk):
            raise Retryable(f"POST {goods.PATH}: {len(chunk)} elements were sent, the answer is not as long")
    except (Rejected, TooLarge) as error:
        if len(chunk) == 1:
            yield _settle(ctx, client, link, chunk, [{"errors": error.errors}])
            return
        middle = len(chunk) // 2
        yield from _post(ctx, client, link, chunk[:middle])
        yield from _post(ctx, client, link, chunk[middle:])
        return
    yield _settle(ctx, client, link, chunk, answers)


def _settle(ctx: Context, client: Client, link: Link, chunk: Sequence[Item], answers: Sequence[Body]) -> Settlement:
    outcomes: dict[int, Outcome] = {}
    saved: dict[int, Mapped] = {}
    gone: list[Item] = []
    for item, answer in zip(chunk, answers, strict=True):
        error = item_error(answer)
        if isinstance(error, Gone):
            gone.append(item)
            outcomes[item.task.id] = Retry(str(error))
        elif error:
            outcomes[item.task.id] = _outcome(error)
        elif item.created and not goods.echoes(item.sent, answer):
            saved[item.task.id] = Mapped(item.pair.id, UUID(answer["id"]), None)
            outcomes[item.task.id] = Snooze(0, "an earlier attempt had created it, with other content")
        else:
            saved[item.task.id] = Mapped(item.pair.id, UUID(answer["id"]), item.pair.hash)
            done = "created" if item.created else "updated"
            outcomes[item.task.id] = Complete(done, "; ".join(item.notes) or None)
    lost = _confirm_gone(client, [item for item in gone if not item.created])
    stale = [item for item in gone if item.task.id not in {other.task.id for other in lost}]

    def effect(conn: Connection, owned: set[int]) -> None:
        mappings.save(conn, link.child, goods.TYPE, [pair for id, pair in saved.items() if id in owned])
        mappings.drop(conn, link.child, goods.TYPE, [item.pair.id for item in lost if item.task.id in owned])
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
