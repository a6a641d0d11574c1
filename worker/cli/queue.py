"""queue: retry, cancel, pause, resume, drain, restart, reroute, move, peek, stats, history."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer
from typer import Option

from worker.accounts import FOREVER
from worker.cli.common import AsJson, console, open_app, out, out_json, table, uuid
from worker.errors import ConfigError, NotFound
from worker.pauses import EVERYTHING

if TYPE_CHECKING:
    from worker.queues.move import Left

group = typer.Typer(help="Look into the queue, and steer it.", no_args_is_help=True)

Which = Annotated[list[str] | None, typer.Argument(help="all, or ids of tasks.", metavar="all | ID...")]
Account = Annotated[UUID | None, Option("--account", parser=uuid, metavar="UUID", help="Only of this account.")]
Reason = Annotated[str, Option("--reason", help="Why; it is shown and kept.")]
Until = Annotated[datetime | None, Option("--until", help="Until this moment, local time; default: until resumed.")]
QueueName = Annotated[str | None, typer.Argument(metavar="QUEUE", help="Its name; * is a wildcard.")]
Place = Literal["database", "redis"]
_STATUSES = ("pending", "processing", "completed", "failed")


def retry(
    what: Which = None,
    account: Account = None,
    since: Annotated[datetime | None, Option(help="Only what failed at this moment, local time, or later.")] = None,
    error_class: Annotated[str | None, Option(help="Only what failed with this class of error.")] = None,
) -> None:
    """Give failed tasks a new set of attempts; cancelled ones by id, or with --error-class Cancelled."""
    ids = _ids("retry", what, account, since, error_class)
    since = since and since.astimezone()
    with open_app() as app:
        number = app.retry_failed(ids=ids, account=account, since=since, error_class=error_class)
    out(f"{number} failed tasks are pending again")


@group.command()
def cancel(
    what: Which = None,
    account: Account = None,
    queue: Annotated[str | None, Option(help="Only in queues of this name; * is a wildcard.")] = None,
    reason: Reason = "cancelled by hand",
) -> None:
    """End pending tasks as failed, with the result `cancelled`; what is being processed goes on."""
    ids = _ids("queue cancel", what, account, queue)
    with open_app() as app:
        cancelled = app.cancel(ids=ids, account=account, queue=queue, reason=reason)
    out(f"{cancelled.tasks} pending tasks are cancelled, {cancelled.processing} are being processed and go on")


@group.command()
def pause(
    queue: QueueName = None, account: Account = None, until: Until = None, reason: Reason = "paused by hand"
) -> None:
    """Have nothing of a queue, or of an account, be claimed; what is being processed goes on, all else waits."""
    what = _one(queue, account)
    end = until.astimezone() if until else FOREVER
    with open_app() as app:
        if account:
            app.pause(account, reason, end)
        elif queue:
            app.pauses.pause(queue, end, reason)
    out(f"{what} is paused{f' until {end:%F %T}' if until else ''}")


@group.command()
def resume(queue: QueueName = None, account: Account = None) -> None:
    """Have a paused queue, named as it was paused, or account go on. After `drain`: `queue resume '*'`."""
    what = _one(queue, account)
    with open_app() as app:
        if account:
            app.unpark(account)
        elif queue and not app.pauses.resume(queue):
            names = ", ".join(row["queue"] for row in app.pauses.current())
            raise NotFound(f"queue {queue!r} is not paused; paused are: {names or 'none'}")
    out(f"{what} goes on")


@group.command()
def drain(
    wait: Annotated[float, Option(help="Seconds to wait until nothing is processed.", min=0)] = 600,
    reason: Reason = "drained for maintenance",
) -> None:
    """Stop claiming everywhere and wait until nothing is processed. Exit code 0 then, 1 when the time is over.

    Workers stay alive and claim nothing, also new ones, until `queue resume '*'`. Asked again, it waits on.
    """
    with open_app() as app:
        left = app.drain(wait, reason, tell=lambda number: out(f"{number} tasks are being processed"))
    if left:
        out(f"not drained after {wait:g} s: ask again to wait on, or `queue resume '*'`")
    else:
        out(f"drained; `queue resume '{EVERYTHING}'` lets the workers go on")
    raise typer.Exit(1 if left else 0)


@group.command()
def restart() -> None:
    """Have every worker, on every host, end after its batch; Supervisor starts it anew."""
    with open_app() as app:
        ids = app.restart_workers()
    out(f"{len(ids)} workers end after their batch")


@group.command()
def reroute() -> None:
    """Move pending tasks to the queues that QUEUE_TOPOLOGY says, after it was changed everywhere."""
    with open_app() as app:
        number = app.queue.reroute(app.route)
    out(f"{number} tasks were moved")


@group.command()
def move(
    source: Annotated[Place, Option("--from", help="Where tasks wait now.")],
    target: Annotated[Place, Option("--to", help="Where they are to wait.")],
    wait: Annotated[float, Option(help="Seconds to go on until nothing is left.", min=0)] = 600,
    dry_run: Annotated[bool, Option("--dry-run", help="Only tell what is there.")] = False,
    json: AsJson = False,
) -> None:
    """Move waiting tasks between PostgreSQL and Redis while workers of both go on. Exit code 0 when nothing is left.

    What is being processed is waited for, as it may be put back. Cut off, or asked again, it goes on where it was;
    QUEUE_CONNECTION tells where new tasks go, and needs to be changed everywhere first.
    """
    if source == target:
        raise ConfigError(f"tasks are in {source} already: name `database` and `redis`, each once")
    with open_app() as app, app.moving(source) as moving:
        if dry_run:
            left = moving.left(source)
        else:
            left = moving.run(source, wait, tell=lambda left: None if json else out(_left(left, source)))
        moved = moving.moved
    if json:
        out_json({"from": source, "to": target, "moved": moved, **asdict(left)})
    elif dry_run:
        out(_left(left, source))
    else:
        out(f"{moved} tasks were moved" + ("; ask again to go on" if left else ""))
    raise typer.Exit(1 if left and not dry_run else 0)


@group.command()
def peek(
    status: Annotated[Literal["pending", "processing", "completed", "failed"], typer.Argument()] = "pending",
    account: Account = None,
    limit: Annotated[int, Option(min=1, max=10_000)] = 20,
    json: AsJson = False,
) -> None:
    """The tasks of a status that changed last."""
    with open_app() as app:
        rows = app.queue.peek(status, account_id=account, limit=limit)
    if json:
        out_json(rows)
        return
    drawn = table("id", "queue", "account", "kind", "entity", "tries", "due", "changed", "error")
    for row in rows:
        drawn.add_row(
            str(row["id"]), row["queue"], str(row["account_id"]), f"{row['entity_type']}/{row['operation']}",
            row["entity_id"], str(row["attempts"]), f"{row['scheduled_at']:%F %T}", f"{row['updated_at']:%F %T}",
            row["error"] or "",
        )  # fmt: skip
    console().print(drawn)


@group.command()
def stats(json: AsJson = False) -> None:
    """How many tasks stand where, per queue, and how long the oldest due one has waited."""
    with open_app() as app:
        snapshot = app.monitor.snapshot(failures=0)
    if json:
        out_json({name: snapshot[name] for name in ("totals", "queues", "accounts", "paused", "parked", "unheard")})
        return
    drawn = table("queue", *_STATUSES, "oldest pending, s")
    for row in snapshot["queues"]:
        oldest = "" if row["oldest_seconds"] is None else f"{row['oldest_seconds']:.0f}"
        drawn.add_row(row["queue"], *(str(row[status]) for status in _STATUSES), oldest)
    console().print(drawn)


@group.command()
def history(id: Annotated[int, typer.Argument(metavar="ID")], json: AsJson = False) -> None:
    """One task and every attempt of it that ended badly: when, where, how and why."""
    with open_app() as app:
        row = app.queue.find(id)
    if row is None:
        raise NotFound(f"there is no task {id}: perhaps it was pruned; `queue peek failed` shows failed ones")
    if json:
        out_json(row)
        return
    fields = ("status", "result", "queue", "account_id", "entity_type", "entity_id", "operation", "run_id",
              "attempts", "created_at", "scheduled_at", "started_at", "completed_at", "error")  # fmt: skip
    for name in fields:
        if row[name] not in (None, ""):
            out(f"{name}: {row[name]}")
    drawn = table("at", "how", "attempt", "began", "worker", "host", "class", "error")
    for entry in row["history"] or []:
        drawn.add_row(*(_text(entry, name) for name in (
            "at", "how", "attempt", "started_at", "worker", "host", "class", "error")))  # fmt: skip
    console().print(drawn)


group.command()(retry)


def _left(left: Left, source: str) -> str:
    return (f"{left.waiting} tasks wait in {source}, {left.processing} are being processed there, "
            f"{left.on_the_way} are on their way")  # fmt: skip


def _text(entry: dict[str, Any], name: str) -> str:
    return "" if entry.get(name) is None else str(entry[name])


def _ids(command: str, words: list[str] | None, *others: object) -> list[int] | None:
    """The ids among the words; None when these do not choose."""
    if not words and all(other is None for other in others):
        raise ConfigError(f"say which tasks: `{command} all`, `{command} ID...`, or an option such as --account")
    if not words or words == ["all"]:
        return None
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ConfigError(f"task ids are numbers, not {' '.join(words)!r}; `queue peek` shows them") from None


def _one(queue: str | None, account: UUID | None) -> str:
    if (queue is None) == (account is None):
        raise ConfigError("name a queue, or an account with --account, one of both")
    return f"account {account}" if account else f"queue {queue}"
