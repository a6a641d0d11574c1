"""Day to day: sync, runs, enqueue, monitor."""

from __future__ import annotations

import json as stdlib_json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from typer import Option

from worker.cli.common import AsJson, Id, console, open_app, out, out_json, table, uuid
from worker.errors import ConfigError
from worker.task import KINDS, NewTask, Priority, decode

if TYPE_CHECKING:
    from rich.console import Group


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    for command in (sync, runs, enqueue, monitor):
        cli.command()(command)


def sync(
    account: Id,
    wait: Annotated[bool, Option("--wait", help="Wait for the end; exit code 1 unless everything was done.")] = False,
    json: AsJson = False,
) -> None:
    """Sync all goods: of a main account to all its children, of a child from its main."""
    with open_app() as app:
        run, new = app.start_sync(account, requested_by="cli")
        if not json:
            out(f"{'started' if new else 'joined'} run {run}")
        row = app.runs.get(run)
        while wait and row["finished_at"] is None:
            time.sleep(0.5)
            row = app.runs.get(run)
        problems = app.runs.problems(run) if wait else []
    if json:
        out_json({**row, "joined": not new, "problems": problems})
    elif wait:
        out(_counted(row["counts"]))
        for problem in problems:
            out(f"{problem['status']} {problem['entity_type']} {problem['entity_id']}: {problem['error']}")
        if row["counts"]["pending"]:
            out("what is pending waits for an account that is parked; `monitor` says why")
    raise typer.Exit(1 if wait and (row["counts"]["failed"] or row["counts"]["pending"]) else 0)


def runs(
    id: Annotated[
        UUID | None, typer.Argument(parser=uuid, metavar="UUID", help="One run, with its problems.")
    ] = None,
    account: Annotated[UUID | None, Option(parser=uuid, metavar="UUID", help="Only of this account.")] = None,
    limit: Annotated[int, Option(min=1, max=1000)] = 20,
    json: AsJson = False,
) -> None:
    """The newest runs, or one with what went wrong in it."""
    with open_app() as app:
        rows = [app.runs.get(id)] if id else app.runs.newest(account, limit)
        problems = app.runs.problems(id) if id else []
    if json:
        out_json({**rows[0], "problems": problems} if id else rows)
        return
    drawn = table("id", "account", "by", "began", "ended", "counts")
    for row in rows:
        drawn.add_row(
            str(row["id"]), str(row["account_id"]), row["requested_by"], f"{row['created_at']:%F %T}",
            f"{row['finished_at']:%T}" if row["finished_at"] else "under way", _counted(row["counts"]),
        )  # fmt: skip
    screen = console()
    screen.print(drawn)
    for problem in problems:
        screen.print(f"{problem['status']} {problem['entity_type']} {problem['entity_id']}: {problem['error']}")


def enqueue(
    entity_type: Annotated[str, typer.Argument(help="product or catalogue.")],
    operation: Annotated[str, typer.Argument(help="sync; plan or prepare.")],
    account: Id,
    entity_id: Annotated[str, Option("--entity", help="Id of main's entity.")] = "",
    payload: Annotated[str, Option(help="The payload as JSON.")] = "{}",
    priority: Annotated[int, Option(help="10 user, 5 webhook, 1 background.", min=0, max=100)] = Priority.USER,
    at: Annotated[datetime | None, Option(help="Not before this moment.")] = None,
) -> None:
    """Put one task into the queue by hand."""
    if (entity_type, operation) not in KINDS:
        known = ", ".join("/".join(kind) for kind in KINDS)
        raise ConfigError(f"there are no tasks {entity_type}/{operation}; known are {known}")
    try:
        values = stdlib_json.loads(payload)
    except ValueError as error:
        raise ConfigError(f"--payload is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("--payload must be a JSON object")
    if operation == "sync" and not _is_uuid(entity_id):
        raise ConfigError(f"--entity must be the UUID of one of main's goods, not {entity_id!r}")
    task = NewTask(
        account, entity_type, operation, decode(entity_type, operation, values),
        entity_id=entity_id, priority=priority, scheduled_at=at.astimezone() if at else None,
    )  # fmt: skip
    with open_app() as app:
        app.accounts.role_of(account)
        added = app.queue.enqueue([task])
    out("enqueued" if added else "joined a pending task")


def monitor(
    once: Annotated[bool, Option("--once", help="Show it once and exit.")] = False,
    json: AsJson = False,
    interval: Annotated[float, Option(help="Seconds between looks.", min=0.2)] = 2,
) -> None:
    """What is pending, processing, completed and failed, who works, and what failed last."""
    from rich.live import Live

    with open_app() as app:
        if json or once:
            snapshot = app.monitor.snapshot()
            if json:
                out_json(snapshot)
            else:
                console().print(_picture(snapshot))
            return
        with Live(_picture(app.monitor.snapshot()), console=console(), auto_refresh=False, screen=False) as live:
            try:
                while True:
                    time.sleep(interval)
                    live.update(_picture(app.monitor.snapshot()), refresh=True)
            except KeyboardInterrupt:
                return


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _counted(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{number} {name}" for name, number in (counts or {}).items() if number) or "nothing yet"


def _picture(snapshot: dict[str, Any]) -> Group:
    from rich.console import Group

    tables = []
    for title, key in (("Queues", "queue"), ("Accounts", "account_id")):
        drawn = table(title, "pending", "processing", "completed", "failed", "oldest pending", "")
        for row in snapshot["queues" if key == "queue" else "accounts"]:
            note = row.get("parked_reason") or ("nobody listens" if row.get("queue") in snapshot["unheard"] else "")
            name = f"{row.get('name') or ''} {row[key]}".strip()
            numbers = [str(row[status]) for status in ("pending", "processing", "completed", "failed")]
            drawn.add_row(name, *numbers, _age(row["oldest_seconds"]), note)
        tables.append(drawn)
    workers = table("Workers", "host", "pid", "queues", "holds", "done", "failed", "MB", "heard of")
    for row in snapshot["workers"]:
        numbers = [str(row[name]) for name in ("processing", "done", "failed", "rss_mb")]
        who = (f"{row['id']} {row['name']}", row["host"], str(row["pid"]), ",".join(row["queues"]))
        workers.add_row(*who, *numbers, f"{_age(row['silent_seconds'])} ago")
    failures = table("Failures", "account", "kind", "entity", "error")
    for row in snapshot["failures"]:
        kind = f"{row['entity_type']}/{row['operation']}"
        failures.add_row(str(row["id"]), row["account_id"], kind, row["entity_id"], row["error"] or "")
    halted = table("Paused and parked", "until", "why")
    for row in snapshot["paused"]:
        halted.add_row(f"queue {row['queue']}", row["until"], row["reason"])
    for row in snapshot["parked"]:
        halted.add_row(f"account {row['name']} {row['account']}", row["until"], row["reason"])
    return Group(*tables, workers, *([halted] if halted.row_count else []), failures)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
