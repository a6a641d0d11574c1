"""Our queue as its users have it: tasks enqueued through the app, worked off by real worker processes.

The kind of task is the bench's own: its handler ends every task at once. Everything else is at its default:
the loop, its lease, its log, the history.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, LiteralString, cast
from uuid import UUID, uuid5

import psycopg
from cryptography.fernet import Fernet

from bench.queue.child import Stand, started
from bench.queue.pulse import pulse
from bench.queue.writers import side_by_side
from worker import db, sync, task, telemetry
from worker.app import App
from worker.executor import Context, Handler, Settlement
from worker.loop import Options
from worker.memory import freeze
from worker.queues import Ended
from worker.settings import Settings
from worker.task import Complete, NewTask, Payload, Priority, Task

NAME = "ours"
TASKS = 1.0
ACCOUNTS = 10
"""Accounts the tasks of a plain drain belong to."""

_SPACE = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
_KEY = Fernet.generate_key().decode()
_PRIORITIES = (Priority.BACKGROUND, Priority.WEBHOOK, Priority.USER)
HIGH, LOW = "product", "bench"
"""Entity types that the topology `priority` sends to its two queues."""


@dataclass(frozen=True, slots=True)
class Noop:
    """Payload of the bench's tasks: when it was enqueued, on the monotonic clock."""

    sent: float = 0.0


for _entity in (HIGH, LOW):
    task.KINDS[_entity, "noop"] = cast(type[Payload], Noop)


def account(n: int) -> UUID:
    """The nth account of the bench."""
    return uuid5(_SPACE, f"bench {n}")


def tasks_of(
    accounts: int, each: int, *, first: int = 0, priorities: int = 1, scattered: bool = True, seed: int = 1
) -> Iterator[NewTask]:
    """Tasks of so many accounts, their priorities drawn by lot.

    `scattered` takes the accounts in turn, as webhooks come; else they come one after the other, as runs do.
    """
    rng = random.Random(seed)
    ids = [account(first + n) for n in range(accounts)]
    pairs = product(range(each), ids) if scattered else ((n, id) for id in ids for n in range(each))
    for n, id in pairs:
        yield NewTask(id, LOW, "noop", cast(Payload, Noop()), entity_id=str(n),
                      priority=rng.choice(_PRIORITIES[:priorities]))  # fmt: skip


def settings(url: str, *, topology: str = "single", logs: Path | None = None, **more: str) -> Settings:
    """Settings on that database; with REDIS_URL in the environment the tasks live there."""
    values = {"DATABASE_URL": url, "APP_KEY": _KEY, "LOG_DIR": str(logs or tempfile.gettempdir()),
              "QUEUE_TOPOLOGY": topology}  # fmt: skip
    return Settings.from_env(values | _elsewhere() | more)


def _elsewhere() -> dict[str, str]:
    address = os.environ.get("REDIS_URL")
    return {"REDIS_URL": address, "QUEUE_CONNECTION": "redis"} if address else {}


def setup(url: str) -> None:
    """The schema, and an empty Redis where tasks live there."""
    db.migrate(url)
    if os.environ.get("REDIS_URL"):
        import redis

        redis.Redis.from_url(os.environ["REDIS_URL"]).flushdb()


def enqueue(url: str, tasks: Iterator[NewTask], *, topology: str = "single") -> float:
    """Enqueue all of them as one bulk; seconds."""
    with App(settings(url, topology=topology)) as app:
        return _bulk(app, tasks)


def _bulk(app: App, tasks: Iterable[NewTask]) -> float:
    _connect(app)
    began = time.monotonic()
    app.queue.enqueue(tasks)
    return time.monotonic() - began


def _connect(app: App) -> None:
    with app.db.connection() as conn:
        conn.execute("select 1")


def fill(url: str, tasks: int) -> None:
    """A plain drain's tasks."""
    enqueue(url, tasks_of(ACCOUNTS, tasks // ACCOUNTS))


def fill_completed(url: str, rows: int, accounts: int = 1000) -> None:
    """A history: rows of tasks that were completed a while ago."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            insert into sync_queue (queue, account_id, entity_type, entity_id, operation, priority, status, attempts,
                                    result, scheduled_at, started_at, completed_at)
            select 'default', (%(ids)s::uuid[])[1 + n %% %(accounts)s], 'bench', 'done ' || n, 'noop', 1,
                   'completed', 1, 'done', at, at, at
            from generate_series(1, %(rows)s) n, lateral (select now() - n * interval '10 ms' as at) t
            """,
            {"rows": rows, "accounts": accounts, "ids": [account(n) for n in range(accounts)]},
        )


def add_children(url: str, number: int) -> None:
    """The first accounts exist, as children."""
    with App(settings(url)) as app:
        for n in range(number):
            app.accounts.add(account(n), f"child {n}", "child", "solution", "token")


def left(url: str) -> bool:
    """Whether a task is not yet over."""
    if os.environ.get("REDIS_URL"):
        with App(settings(url)) as app:
            return any(row["status"] in ("pending", "processing") and row["tasks"] for row in app.queue.stats())
    with psycopg.connect(url, autocommit=True) as conn:
        # Each by its own index: both in one condition would read the whole table, in the time that is measured.
        row = conn.execute(
            "select exists (select from sync_queue where status = 'pending')"
            " or exists (select from sync_queue where status = 'processing')"
        ).fetchone()
    return row is None or bool(row[0])


def work(
    stand: Stand,
    url: str,
    trace: str = "",
    queues: Sequence[str] = ("*",),
    topology: str = "single",
    options: dict[str, Any] | None = None,
) -> None:
    """A worker with default options, until told to stop; `trace` keeps its turns, or the tasks' delays."""

    def begun(tasks: Sequence[Task]) -> None:
        if trace == "turns":
            stand.trace(len(tasks), tasks[0].account_id)
        elif trace == "delays":
            for each in tasks:
                stand.trace(1, sent=cast(Noop, each.decode()).sent)
        else:
            stand.count(len(tasks))

    _handle(begun)
    with App(settings(url, topology=topology, logs=stand.folder)) as app:
        telemetry.configure(app.settings, console=False)
        loop = app.worker(Options(queues=tuple(queues), **(options or {})), warm=freeze)
        stand.gate()
        loop.run()


def _handle(begun: Callable[[Sequence[Task]], None]) -> None:
    """Have the bench's tasks end at once, `begun(tasks)` being called first."""

    done = Complete("done")

    def noop(_: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        begun(tasks)
        yield Settlement([Ended(each, done) for each in tasks])

    for entity in (HIGH, LOW):
        sync.HANDLERS[entity, "noop"] = cast(Handler, noop)


def one_by_one(stand: Stand, url: str, tasks: int, writers: int = 1) -> float:
    """Seconds that so many enqueues of one task take, from so many processes, which have enqueued one before."""

    def write(share: int, ready: Any) -> None:
        with App(settings(url)) as app:
            first, *mine = tasks_of(1, 1 + share, first=os.getpid())
            app.queue.enqueue([first])
            ready()
            for task in mine:
                app.queue.enqueue([task])

    return side_by_side(stand, write, tasks, writers)


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """Seconds that one enqueue of so many takes."""
    made = list(tasks_of(ACCOUNTS, tasks // ACCOUNTS))
    with App(settings(url)) as app:
        stand.gate()
        return _bulk(app, made)


def copy(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of one COPY of so many ready-made lines, as they come, into our own table, with its indexes."""
    made = tasks_of(ACCOUNTS, tasks // ACCOUNTS)
    lines = [f"default\t{new.account_id}\t{LOW}\t{new.entity_id}\tnoop\t{new.priority}\t{{}}\n" for new in made]
    into: LiteralString = (
        "copy sync_queue (queue, account_id, entity_type, entity_id, operation, priority, payload) from stdin"
    )
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        stand.gate()
        began = time.monotonic()
        with cursor.copy(into) as stream:
            stream.write("".join(lines))
        conn.commit()
        return time.monotonic() - began


def in_caller(stand: Stand, url: str, tasks: int) -> float:
    """Seconds that so many take with the driver `sync`, which does them at enqueue."""
    _handle(lambda done: stand.count(len(done)))
    mine = list(tasks_of(ACCOUNTS, tasks // ACCOUNTS))
    with App(settings(url, logs=stand.folder, QUEUE_CONNECTION="sync")) as app:
        telemetry.configure(app.settings, console=False)
        _connect(app)
        stand.gate()
        began = time.monotonic()
        app.queue.enqueue(mine)
        seconds = time.monotonic() - began
    if int.from_bytes((stand.folder / "count").read_bytes(), sys.byteorder) != len(mine):
        raise RuntimeError("not every task was done at enqueue")
    return seconds


def pulses(stand: Stand, url: str, rate: float, seconds: float, seed: int, topology: str = "single") -> int:
    """Enqueue single tasks at that rate."""
    mine = account(0)
    with App(settings(url, topology=topology)) as app:
        number = iter(range(1 << 30))

        def send(sent: float) -> None:
            payload = cast(Payload, Noop(sent))
            app.queue.enqueue([NewTask(mine, HIGH, "noop", payload, entity_id=str(next(number)))])

        return pulse(stand, send, rate, seconds, seed)


def flow(stand: Stand, url: str, tasks: int, backlog: int, consumer: str) -> int:
    """Keep about so many tasks waiting until so many were enqueued in all; how many.

    What waits is reckoned from the count of who works them off, the child in the folder `consumer`: to ask the table
    would weigh on what is measured, the more the larger it is.
    """
    portion = backlog // 2
    sent = 0
    with App(settings(url)) as app:
        stand.gate()
        while sent < tasks:
            if sent - started(Path(consumer)) > portion:
                time.sleep(0.1)
                continue
            first = sent // portion
            app.queue.enqueue(
                NewTask(account(n % ACCOUNTS), LOW, "noop", cast(Payload, Noop()), entity_id=f"{first} {n}")
                for n in range(portion)
            )
            sent += portion
            stand.count(portion)
    return sent


def prune(stand: Stand, url: str, keep_seconds: float) -> None:
    """Prune what is older than that every second, until told to stop."""
    with App(settings(url)) as app:
        stand.gate()
        while True:
            app.queue.prune(completed_days=keep_seconds / 86_400, failed_days=1)
            time.sleep(1)
