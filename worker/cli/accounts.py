"""accounts: add, link, unlink, list, set, token, unpark, remove."""

from __future__ import annotations

import json as stdlib_json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer
from typer import Option

from worker.cli.common import AsJson, Id, console, open_app, out, out_json, table, uuid
from worker.errors import ConfigError
from worker.monitor import parked_reason

group = typer.Typer(help="Accounts, their tokens and links.", no_args_is_help=True)

TokenFile = Annotated[
    Path,
    Option(
        "--token-file", help="File that holds the token, - for standard input. Never an argument: ps shows those."
    ),
]


@group.command()
def add(
    id: Annotated[UUID, Option("--id", parser=uuid, metavar="UUID", help="The account's id in MoySklad.")],
    name: Annotated[str, Option(help="How it is called here.")],
    role: Annotated[Literal["main", "child"], Option(help="Whether goods come from it or go to it.")],
    token_file: TokenFile,
    auth: Annotated[
        Literal["solution", "user"], Option(help="Whose token: a published solution's costs 1 unit a request.")
    ] = "solution",
    weight: Annotated[int | None, Option(help="Units a request costs, if not as usual.", min=1, max=45)] = None,
) -> None:
    """Make an account known; its token is kept encrypted."""
    token = _token(token_file)
    with open_app() as app:
        app.accounts.add(id, name, role, auth, token, weight)
    out(f"added {role} account {id} ({name})")


@group.command()
def token(id: Id, token_file: TokenFile) -> None:
    """Give an account a new token; one that was parked for its old token works again."""
    value = _token(token_file)
    with open_app() as app:
        app.set_token(id, value)
    out(f"account {id} has a new token")


@group.command()
def link(
    main: Id,
    child: Id,
    set: Annotated[
        list[str] | None, Option("--set", help="A setting as name=value, JSON where it is not text.", metavar="N=V")
    ] = None,
) -> None:
    """Have CHILD receive MAIN's goods; on an existing link change the settings named."""
    from worker.links import LinkSettings

    with open_app() as app:
        current = next((known for known in app.accounts.links_of_child(child) if known.main == main), None)
        values: dict[str, Any] = current.settings.model_dump() if current else {}
        settings = app.accounts.link(main, child, LinkSettings.parse(values | _parse(set or [])))
    out(f"{child} receives from {main}: {settings.model_dump_json()}")


@group.command()
def unlink(main: Id, child: Id) -> None:
    """Have CHILD no longer receive MAIN's goods; what it has stays."""
    with open_app() as app:
        app.accounts.unlink(main, child)
    out(f"{child} no longer receives from {main}")


@group.command("list")
def list_(json: AsJson = False) -> None:
    """The accounts with their links and why one is parked."""
    with open_app() as app:
        rows = app.accounts.overview()
    if json:
        out_json(rows)
        return
    drawn = table("id", "name", "role", "token of", "linked to", "parked")
    for row in rows:
        linked = [str(other) for other in (*row["children"], *row["mains"])]
        reason = parked_reason(row)
        parked = f"until {row['parked_until']:%F %T}: {reason}" if reason else ""
        drawn.add_row(str(row["id"]), row["name"], row["role"], row["auth"], "\n".join(linked), parked)
    console().print(drawn)


@group.command("set")
def set_(
    id: Id,
    concurrency: Annotated[
        int, Option(help="How many workers may serve it at once; 0 = any number.", min=0, max=10_000)
    ],
) -> None:
    """Change how an account is served."""
    with open_app() as app:
        app.accounts.set_concurrency(id, concurrency or None)
    out(f"account {id}: {concurrency or 'any number of'} workers at once")


@group.command()
def unpark(id: Id) -> None:
    """Have a parked account go on at once; one whose token is refused needs `accounts token` instead."""
    with open_app() as app:
        app.unpark(id)
    out(f"account {id} goes on")


@group.command()
def remove(
    id: Id,
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget an account, its links and what is known of its goods; MoySklad is not touched."""
    if not yes:
        typer.confirm(f"Forget account {id} and its mappings?", abort=True)
    with open_app() as app:
        app.remove_account(id)
    out(f"removed account {id}")


def _token(file: Path) -> str:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"token file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"token file {file} is no text") from None
    if not text.strip():
        raise ConfigError(f"token file {file} is empty")
    return text.strip()


def _parse(pairs: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, not {pair!r}")
        try:
            values[name] = stdlib_json.loads(text)
        except ValueError:
            values[name] = text
    return values
