"""The exception tree: as drawn, and that an interruption gets through everything."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest

from worker import errors
from worker.app import App
from worker.executor import Context, Executor, Settlement
from worker.task import NewTask, SyncGoods, Task


def drawn() -> dict[str, str]:
    """Class → base class, as the tree in the docstring shows them."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in str(errors.__doc__).splitlines():
        if match := re.match(r"^((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)", line):
            depth = len(match[1]) // 4
            above = [*above[:depth], match[2]]
            if depth:
                parents[match[2]] = above[depth - 1]
    return parents


def test_the_tree_is_as_drawn() -> None:
    """Every class of the module is in the drawing, below its base."""
    classes = {
        name: value.__base__.__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    roots = {"WorkerError": "Exception", "Interrupted": "BaseException"}

    assert classes == drawn() | roots


class Slow(logging.Handler):
    """Takes long to write; a fault while it does is its own affair, as in logging's handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            time.sleep(60)
        except Exception:
            self.handleError(record)


@pytest.mark.parametrize("swallow", ["logging", "plainly"])
def test_a_time_limit_gets_through_what_swallows_exceptions(app: App, swallow: str) -> None:
    """It ends a handler in the middle of a library that catches every Exception."""
    log = logging.Logger("slow")
    log.addHandler(Slow())

    def handler(ctx: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        for _ in range(2):
            if swallow == "logging":
                log.warning("slow")
            else:
                with suppress(Exception):
                    time.sleep(60)
        yield Settlement([])

    def no_client(account: UUID, deadline: float) -> Any:
        raise AssertionError

    app.queue.enqueue([NewTask(UUID(int=1), "product", "sync", SyncGoods(UUID(int=1)), entity_id="1")])
    batch = app.queue.claim(["*"], 1)
    assert batch
    handlers = {("product", "sync"): handler}
    executor = Executor(
        app.db,
        app.queue,
        app.accounts,
        app.runs,
        lambda: handlers,
        no_client,
        timeout=0.2,
        tries=3,
        stopping=lambda: False,
    )
    began = time.monotonic()

    executor.execute(batch)

    assert time.monotonic() - began < 50
    assert [row["error"] for row in app.queue.peek("pending")] == ["ran longer than its time limit of 0.2 s"]
