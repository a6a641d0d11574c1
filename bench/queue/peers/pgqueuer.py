"""pgqueuer: `PgQueuer.run()` with its default batch of 10, on asyncpg as its quickstart has it."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pgqueuer
import psycopg

from bench.queue.child import Stand

NAME = "pgqueuer"
TASKS = 0.3


def setup(url: str) -> None:
    """Its schema."""

    async def install() -> None:
        conn = await asyncpg.connect(url)
        await pgqueuer.Queries.from_asyncpg_connection(conn).install()
        await conn.close()

    asyncio.run(install())


async def _enqueue(url: str, tasks: int) -> float:
    conn = await asyncpg.connect(url)
    queries = pgqueuer.Queries.from_asyncpg_connection(conn)
    began = time.monotonic()
    await queries.enqueue(["noop"] * tasks, [b"{}"] * tasks, [0] * tasks)
    seconds = time.monotonic() - began
    await conn.close()
    return seconds


def fill(url: str, tasks: int) -> None:
    """One enqueue of lists, its bulk."""
    asyncio.run(_enqueue(url, tasks))


def left(url: str) -> bool:
    """Whether a job is left: done ones are deleted."""
    with psycopg.connect(url) as conn:
        return conn.execute("select 1 from pgqueuer limit 1").fetchone() is not None


def work(stand: Stand, url: str) -> None:
    """Its worker, until killed."""

    async def run() -> None:
        conn = await asyncpg.connect(url)
        worker = pgqueuer.PgQueuer.from_asyncpg_connection(conn)

        @worker.entrypoint("noop")
        async def noop(job: pgqueuer.Job) -> None:
            stand.count()

        stand.gate()
        await worker.run()

    asyncio.run(run())


def one_by_one(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of so many enqueues of one job."""

    async def run() -> float:
        conn = await asyncpg.connect(url)
        queries = pgqueuer.Queries.from_asyncpg_connection(conn)
        await queries.enqueue("noop", b"{}")
        stand.gate()
        began = time.monotonic()
        for _ in range(tasks):
            await queries.enqueue("noop", b"{}")
        seconds = time.monotonic() - began
        await conn.close()
        return seconds

    return asyncio.run(run())


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of one enqueue of lists."""
    stand.gate()
    return asyncio.run(_enqueue(url, tasks))
