"""Writers on the clock: one, or several at once, each a process with a connection of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from bench.queue.child import Stand


def timed(stand: Stand, write: Callable[[], object]) -> float:
    """Seconds that `write()` takes, once let go."""
    stand.gate()
    began = time.monotonic()
    write()
    return time.monotonic() - began


def side_by_side(stand: Stand, write: Callable[[int, Callable[[], None]], None], tasks: int, writers: int) -> float:
    """Seconds until all are done with their share; `write(share, ready)` calls `ready()` before its first task.

    They are forked from this process, which has no thread and no connection yet.
    """
    went, go = os.pipe()
    told, tell = os.pipe()
    pids = []
    for _ in range(writers):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(go)

                def ready() -> None:
                    os.write(tell, b".")
                    os.read(went, 1)  # ends with the pipe: all are let go at once

                write(tasks // writers, ready)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(tell)
    for _ in pids:
        if os.read(told, 1) != b".":
            raise RuntimeError("a writer did not start")
    stand.gate()
    began = time.monotonic()
    os.close(go)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    seconds = time.monotonic() - began
    if any(codes):
        raise RuntimeError("a writer failed")
    return seconds
