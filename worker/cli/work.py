"""Processes and set-up: work, schedule run, serve, migrate, check, key, demo."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from worker import db, scheduler
from worker.cli.common import AsJson, open_app, out, out_json, settings
from worker.errors import ConfigError
from worker.loop import Options
from worker.memory import freeze

_LONGEST = 86_400
"""Seconds a retry may be told to wait."""

schedule = typer.Typer(help="What cron calls.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    for command in (work, serve, migrate, check, health, key, demo):
        cli.command()(command)
    cli.add_typer(schedule, name="schedule")


def work(
    queue: Annotated[str, Option(help="Queues in order of preference, separated by commas; * is a wildcard.")] = "*",
    sleep: Annotated[float, Option(help="Seconds between looks while nothing is there.", min=0.01)] = 3,
    tries: Annotated[int, Option(help="Attempts before a task fails; 0 = no limit.", min=0)] = 3,
    max_time: Annotated[float, Option(help="Seconds until the process ends itself; 0 = never.", min=0)] = 0,
    timeout: Annotated[float, Option(help="Seconds a batch may run; 0 = no limit.", min=0)] = 300,
    batch: Annotated[int, Option(help="Tasks claimed at once, of one kind and account.", min=1, max=10_000)] = 500,
    max_tasks: Annotated[
        int, Option("--max-tasks", "--max-jobs", help="Tasks until the process ends itself; 0 = no limit.", min=0)
    ] = 0,
    memory: Annotated[int, Option(help="MB at which the process ends itself, with code 12.", min=64)] = 256,
    once: Annotated[bool, Option("--once", help="One batch, or none if nothing is there, then exit.")] = False,
    stop_when_empty: Annotated[bool, Option("--stop-when-empty", help="Exit when nothing is there.")] = False,
    stop_when_empty_for: Annotated[
        float, Option(help="Exit when nothing has been there for so many seconds; 0 = never.", min=0)
    ] = 0,
    rest: Annotated[float, Option(help="Seconds between two batches.", min=0)] = 0,
    backoff: Annotated[
        str, Option(help="Seconds before each retry, such as 10,60,300; else 2, 4, 8 ... with jitter.")
    ] = "",
    name: Annotated[str, Option(help="How monitor calls this process; default Supervisor's name for it.")] = "",
    quiet: Annotated[bool, Option("--quiet", help="Write events to LOG_DIR only, not to stderr.")] = False,
) -> None:
    """Claim tasks and do them, until told to stop.

    SIGTERM or SIGINT: take nothing new, finish the part of the batch that is under way (one request), hand the rest
    back, exit 0; a second one hands that back too, at once. `queue restart` ends it after the whole batch.
    """
    queues = tuple(part.strip() for part in queue.split(",") if part.strip())
    if not queues:
        raise ConfigError("--queue names no queue")
    options = Options(
        queues, sleep, tries, max_time, timeout, batch, max_tasks, memory, once, stop_when_empty,
        stop_when_empty_for, rest, _delays(backoff),
    )  # fmt: skip
    with open_app(console=not quiet, patient=not (once or stop_when_empty)) as app:
        code = app.worker(options, name=name, warm=freeze).run()
    raise typer.Exit(code)


def _delays(text: str) -> tuple[float, ...]:
    """Raises ConfigError unless these are seconds."""
    try:
        delays = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        delays = (-1.0,)
    if any(not 0 <= delay <= _LONGEST for delay in delays):
        raise ConfigError(f"--backoff takes seconds up to {_LONGEST}, separated by commas, not {text!r}")
    return delays


@schedule.command("run")
def schedule_run(json: AsJson = False) -> None:
    """Rescue, end runs, prune, start planned syncs: what cron calls every minute, on every host."""
    with open_app() as app:
        done = scheduler.run(app.db, app.queue, app.runs, app.settings, app.start_sync, datetime.now(UTC))
        with app.db.connection() as conn:
            app.counts.add(conn)
    if json:
        out_json(done)
    elif done is None:
        out("another host has done this minute's work")
    else:
        out(f"rescued {done['rescued']}, pruned {done['pruned']}, started {len(done['started'])} runs")


def serve(
    port_file: Annotated[Path | None, Option(help="Write the port here once listening.", dir_okay=False)] = None,
) -> None:
    """The HTTP API and its page, on API_HOST and API_PORT."""
    from worker import api

    with open_app(console=True, patient=True) as app:
        api.serve(app, port_file=port_file)


def migrate(
    check: Annotated[bool, Option("--check", help="Only say what would be applied, and whether it may be.")] = False,
    expand: Annotated[
        bool, Option("--expand", help="Leave out the contract steps at the end; for while other releases work.")
    ] = False,
) -> None:
    """Bring the database's schema to this release; safe to run twice and from two hosts at once.

    An expand step disturbs no worker. A contract step takes away what older releases use: exit code 1, and nothing is
    applied, while workers of another release are at work.
    """
    url = settings().DATABASE_URL.get_secret_value()
    if check:
        steps = db.pending(url, expand=expand)
        kinds = [f"contract: {step.contract}" if step.contract else "expand" for step in steps]
        lines = [f"would apply {step.label} ({kind})" for step, kind in zip(steps, kinds, strict=True)]
    else:
        lines = [f"applied {label}" for label in db.migrate(url, expand=expand)]
    out("\n".join(lines) or "nothing to migrate")


def check() -> None:
    """Print the settings, secrets hidden, and see that database, schema and log folder are usable."""
    for name, value in settings().shown().items():
        out(f"{name}={value}")
    with open_app() as app:
        app.accounts.overview()
    out("ok: settings, database, schema and log folder")


def health(
    process: Annotated[str, Option(help="Supervisor's name of one worker of this host; default: any of them.")] = "",
    release: Annotated[str, Option(help="The release it must run; default: whichever.")] = "",
    wait: Annotated[float, Option(help="Seconds to wait for it.", min=0)] = 0,
) -> None:
    """Exit 0 when such a worker of this host is alive and may work; 1 and a sentence when not."""
    until = time.monotonic() + wait
    with open_app() as app:
        while True:
            problem = app.monitor.absence(socket.gethostname(), process, release)
            if problem is None or time.monotonic() >= until:
                break
            time.sleep(0.2)
    out(problem or "ok")
    raise typer.Exit(1 if problem else 0)


def key() -> None:
    """Print a new APP_KEY."""
    from cryptography.fernet import Fernet

    out(Fernet.generate_key().decode())


def demo(
    products: Annotated[int, Option(help="Goods in the main account.", min=1, max=100_000)] = 1000,
    children: Annotated[int, Option(help="Child accounts.", min=1, max=50)] = 3,
    workers: Annotated[int, Option(help="Worker processes.", min=1, max=32)] = 2,
    latency: Annotated[int, Option(help="Milliseconds the simulated MoySklad takes per request.", min=0)] = 0,
    again: Annotated[bool, Option("--again", help="Press the button a second time: nothing is written.")] = False,
    exit: Annotated[bool, Option("--exit", help="Do not wait for Ctrl-C at the end.")] = False,
    json: AsJson = False,
) -> None:
    """Sync a made-up catalogue to made-up child accounts, all on this machine, and check the result."""
    try:
        from worker.demo import show
    except ImportError as error:
        raise ConfigError(f"the demo needs the extra: pip install 'moysklad-worker[demo]' ({error.name})") from None

    equal = show.run(
        products=products,
        children=children,
        workers=workers,
        latency_ms=latency,
        again=again,
        wait=not exit,
        json=json,
    )
    raise typer.Exit(0 if equal else 1)
