"""The command line: check what was given, call, answer."""

from __future__ import annotations

import sys

import typer

from worker.cli import accounts, operate, queue, work
from worker.cli.common import err, root
from worker.cli.doctor import doctor
from worker.db import AWAY
from worker.errors import ConfigError, WorkerError
from worker.settings import without_password

EXIT_ERROR = 1
EXIT_CONFIG = 2

cli = typer.Typer(
    name="moysklad-worker",
    help="Keeps the goods of MoySklad child accounts equal to their main account.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    callback=root,
)
work.register(cli)
operate.register(cli)
cli.add_typer(accounts.group, name="accounts")
cli.add_typer(queue.group, name="queue")
cli.command()(queue.retry)
cli.command()(doctor)

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 refused or failed (and why), 2 wrong settings or usage."""
    try:
        cli(standalone_mode=True)
    except ConfigError as error:
        err(str(error))
        sys.exit(EXIT_CONFIG)
    except WorkerError as error:
        err(str(error))
        sys.exit(EXIT_ERROR)
    except AWAY as error:
        err(f"PostgreSQL cannot be reached: {without_password(str(error).strip())}")
        err("Check DATABASE_URL, and that the server runs.")
        sys.exit(EXIT_ERROR)
