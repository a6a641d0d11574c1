"""oban, the Python port (Python 3.12 or newer): a queue with the limit of 10 that its guide begins with."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import oban
import psycopg
from oban.schema import install

from bench.queue.child import Stand

NAME = "oban"
TASKS = 0.1


def _worker(stand: Stand | None) -> Any:
    @oban.worker(queue="default")
    class Noop:
        async def process(self, job: oban.Job) -> None:
            assert stand is not None
            stand.count()

    return Noop


def setup(url: str) -> None:
    """Its schema."""

    async def run() -> None:
        pool = await oban.Oban.create_pool(url)
        await install(pool)
        await pool.close()

    asyncio.run(run())


async def _enqueue(url: str, tasks: int, portion: int, stand: Stand | None) -> float:
    pool = await oban.Oban.create_pool(url)
    noop = _worker(None)
    async with oban.Oban(pool=pool) as client:
        await client.enqueue_many([noop.new({"n": -1})])
        if stand:
            stand.gate()
        began = time.monotonic()
        for n in range(0, tasks, portion):
            await client.enqueue_many([noop.new({"n": n + m}) for m in range(portion)])
        seconds = time.monotonic() - began
    await pool.close()
    return seconds


def fill(url: str, tasks: int) -> None:
    """`enqueue_many`, its bulk."""
    asyncio.run(_enqueue(url, tasks, min(tasks, 1000), None))


def left(url: str) -> bool:
    """Whether a job is not yet over."""
    with psycopg.connect(url) as conn:
        query = "select 1 from oban_jobs where state in ('available', 'executing', 'scheduled') limit 1"
        return conn.execute(query).fetchone() is not None


def work(stand: Stand, url: str) -> None:
    """Its worker, until killed."""

    async def run() -> None:
        pool = await oban.Oban.create_pool(url)
        _worker(stand)
        server = oban.Oban(pool=pool, queues={"default": 10})
        stand.gate()
        await server.start()
        await asyncio.Event().wait()

    asyncio.run(run())


def one_by_one(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of so many enqueues of one job."""
    return asyncio.run(_enqueue(url, tasks, 1, stand))


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """Seconds of `enqueue_many`, all at once."""
    return asyncio.run(_enqueue(url, tasks, tasks, stand))
