"""What the commands share: the settings, the app, output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from worker import __version__, telemetry
from worker.app import App
from worker.db import patiently
from worker.errors import ConfigError
from worker.settings import Settings

if TYPE_CHECKING:  # what draws is imported when something is drawn: no worker needs it
    from rich.console import Console
    from rich.table import Table

_env_file: Path | None = None


def _print_version(wanted: bool) -> None:
    if wanted:
        out(__version__)
        raise typer.Exit


def root(
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file", help="File with NAME=value settings; default $MOYSKLAD_WORKER_ENV.", dir_okay=False
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Keeps the goods of MoySklad child accounts equal to their main account."""
    global _env_file
    _env_file = env_file


def settings() -> Settings:
    """The settings of this command. Raises ConfigError."""
    return Settings.from_env(env_file=_env_file)


def open_app(*, console: bool = False, patient: bool = False) -> App:
    """The wired app on a database whose schema fits; events go to LOG_DIR, with `console` also to stderr.

    `patient` waits for a PostgreSQL that is away, as a process under Supervisor should.
    """
    current = settings()
    try:
        telemetry.configure(current, console=console)
    except OSError as error:
        raise ConfigError(f"LOG_DIR {current.LOG_DIR} cannot be written: {error.strerror}") from None
    app = App(current)
    try:
        if patient:
            patiently(app.require_schema)
        else:
            app.require_schema()
    except BaseException:
        app.close()
        raise
    return app


def uuid(value: str) -> UUID:
    """For arguments that are ids."""
    try:
        return UUID(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a UUID such as 8d0fa0a4-1d7c-11e4-8c21-0002a5d5c51b") from None


def out(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(text + "\n")


def out_json(value: Any) -> None:
    """The answer as one line of JSON."""
    out(json.dumps(value, ensure_ascii=False, default=str))


def console() -> Console:
    """Where tables are drawn; names and errors are shown as they are, brackets and colons included."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def table(*columns: str) -> Table:
    """An empty one with these columns, for `console` to print."""
    from rich.table import Table

    return Table(*columns)


def err(text: str) -> None:
    """A line of why not."""
    sys.stderr.write(text + "\n")


Id = Annotated[UUID, typer.Argument(parser=uuid, metavar="UUID")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in one line of JSON.")]
