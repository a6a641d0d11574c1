"""procrastinate: `procrastinate worker` with its default of one task at a time; psycopg."""

from __future__ import annotations

import procrastinate
import psycopg

from bench.queue.child import Stand
from bench.queue.writers import timed

NAME = "procrastinate"
TASKS = 0.05


def _app(url: str) -> tuple[procrastinate.App, procrastinate.tasks.Task]:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))

    @app.task(name="noop")
    def noop(n: int) -> None:
        raise NotImplementedError

    return app, noop


def setup(url: str) -> None:
    """Its schema."""
    app, _ = _app(url)
    with app.open():
        app.schema_manager.apply_schema()


def fill(url: str, tasks: int) -> None:
    """`batch_defer`, its bulk."""
    app, noop = _app(url)
    with app.open():
        noop.batch_defer(*({"n": n} for n in range(tasks)))


def left(url: str) -> bool:
    """Whether a job is not yet over."""
    with psycopg.connect(url) as conn:
        query = "select 1 from procrastinate_jobs where status in ('todo', 'doing') limit 1"
        return conn.execute(query).fetchone() is not None


def work(stand: Stand, url: str) -> None:
    """Its worker, until killed."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="noop")
    async def noop(n: int) -> None:
        stand.count()

    stand.gate()
    app.run_worker()


def one_by_one(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of so many `defer`."""
    app, noop = _app(url)
    with app.open():
        noop.defer(n=0)
        return timed(stand, lambda: [noop.defer(n=n) for n in range(tasks)])


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of one `batch_defer`."""
    return timed(stand, lambda: fill(url, tasks))
