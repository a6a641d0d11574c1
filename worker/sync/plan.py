"""From the button to tasks: start a run, read main once, prepare each child, enqueue what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from worker import mappings
from worker.accounts import Accounts, Link
from worker.db import Connection, Database, fetch
from worker.errors import Conflict, NotFound
from worker.executor import Context, Settlement
from worker.mappings import Mapped
from worker.queues import Ended, Queue
from worker.runs import Runs
from worker.sync import catalogue, goods, matching, references
from worker.task import Complete, NewTask, Plan, Prepare, Priority, Snooze, SyncGoods, Task
from worker.telemetry import emit


def start(
    db: Database,
    accounts: Accounts,
    runs: Runs,
    queue: Queue,
    account: UUID,
    *,
    requested_by: str,
    priority: int = Priority.USER,
) -> tuple[UUID, bool]:
    """Begin a sync of all goods: of a main account to all its children, of a child from its main.

    The run, and whether it is new: a second request while one is under way joins it. Raises NotFound
    for an unknown account, Conflict for one without a link.
    """
    if accounts.role_of(account) == "main":
        links: Sequence[Link] = accounts.links(account)
        if not links:
            raise Conflict(f"main account {account} has no child; `accounts link {account} CHILD` adds one")
        plans = {account: Plan()}
    else:
        links = accounts.links_of_child(account)
        if not links:
            raise Conflict(f"child account {account} has no main; `accounts link MAIN {account}` adds one")
        plans = {link.main: Plan((account,)) for link in links}
    with db.transaction() as conn:
        run, new = runs.start(conn, account=account, main=links[0].main, mains=list(plans), requested_by=requested_by)
        if new:
            queue.enqueue(
                [
                    NewTask(main, "catalogue", "plan", plan, entity_id=str(run), priority=priority, run_id=run)
                    for main, plan in plans.items()
                ],
                within=conn,
            )
    return run, new


def plan(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
    """Read main's catalogue, once for all tasks of the batch, then have the children prepared."""
    main = tasks[0].account_id
    with ctx.client(main) as client:
        client.urgent = any(task.priority >= Priority.WEBHOOK for task in tasks)
        number = catalogue.read(ctx.db, client)
    emit("catalogue.read", main=main, goods=number)
    linked = [link.child for link in ctx.accounts.links(main)]
    follow = []
    for task in tasks:
        payload = task.decode()
        assert isinstance(payload, Plan)
        children = linked if payload.children is None else [id for id in linked if id in payload.children]
        follow += [
            NewTask(
                child, "catalogue", "prepare", Prepare(main),
                entity_id=str(main), priority=task.priority, run_id=task.run_id,
            )
            for child in children
        ]  # fmt: skip

    def enqueue(conn: Connection, owned: set[int]) -> None:
        if owned:
            ctx.queue.enqueue(follow, within=conn)

    yield Settlement([Ended(task, Complete("read")) for task in tasks], enqueue)


def prepare(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
    """For each (main, child): references first, then recognise goods, then a task for each that differs."""
    for task in tasks:
        payload = task.decode()
        assert isinstance(payload, Prepare)
        try:
            link = ctx.accounts.link_between(payload.main, task.account_id)
        except NotFound as error:
            yield Settlement([Ended(task, Complete("skipped", str(error)))])
        else:
            yield _prepare(ctx, task, link)


def _prepare(ctx: Context, task: Task, link: Link) -> Settlement:
    rows = _unsent(ctx.db, link)
    unmapped = {row["entity_id"]: row["body"] for row in rows if row["child_entity_id"] is None}
    matches = matching.Matches({}, {})
    if rows:
        with ctx.client(link.child) as client:
            client.urgent = task.priority >= Priority.WEBHOOK
            if wait := references.ensure(ctx.db, client, link):
                return Settlement([Ended(task, Snooze(wait, "it is not known yet whether a reference was created"))])
            if unmapped:
                matches = matching.search(ctx.db, client, link, unmapped)
    emit(
        "catalogue.prepare",
        child=link.child,
        differing=len(rows),
        unmapped=len(unmapped),
        matched=len(matches.found),
        undecided=len(matches.problems),
    )

    def tasks() -> Iterator[NewTask]:
        for row in rows:
            id = row["entity_id"]
            yield NewTask(
                link.child, goods.TYPE, "sync",
                SyncGoods(link.main, id in unmapped and id not in matches.found, matches.problems.get(id)),
                entity_id=str(id), priority=task.priority, run_id=task.run_id,
            )  # fmt: skip

    def enqueue(conn: Connection, owned: set[int]) -> None:
        if owned:
            found = [Mapped(main_id, child_id, None) for main_id, child_id in matches.found.items()]
            mappings.save(conn, link.child, goods.TYPE, found)
            ctx.queue.enqueue(tasks(), within=conn)

    return Settlement([Ended(task, Complete("prepared"))], enqueue)


def _unsent(db: Database, link: Link) -> list[dict[str, Any]]:
    with db.connection() as conn:
        return fetch(conn, "unsent_goods", main=link.main, child=link.child, field=link.settings.match_field)
