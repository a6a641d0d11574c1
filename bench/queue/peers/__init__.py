"""The peers that are installed (extra `bench`), each in the mode its documentation begins with.

A module a peer, with the names of `measures.System`; those on Redis find it by REDIS_URL.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PEERS = {"database": ("procrastinate", "pgqueuer", "oban"), "redis": ("dramatiq", "huey", "rq")}


def found(driver: str, wanted: str) -> list[Any]:
    """Those asked for (`all`, or names) that can be imported, as modules."""
    names = PEERS[driver] if wanted == "all" else [name for name in wanted.split(",") if name]
    peers = []
    for name in names:
        try:
            peers.append(importlib.import_module(f"bench.queue.peers.{name}"))
        except ModuleNotFoundError as error:
            print(f"{name} is left out: no module {error.name}")
    return peers


@contextmanager
def place(driver: str) -> Iterator[None]:
    """A redis-server of the run's own with AOF, named by REDIS_URL, where tasks are to live there."""
    if driver != "redis":
        yield
        return
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("--driver redis needs redis-server or valkey-server")
    with tempfile.TemporaryDirectory(prefix="bench-redis-", ignore_cleanup_errors=True) as folder:
        socket = Path(folder) / "redis.sock"
        process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", str(socket), "--dir", folder, "--appendonly", "yes",
             "--save", "", "--loglevel", "warning"]
        )  # fmt: skip
        try:
            until = time.monotonic() + 10
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("redis-server did not start")
                time.sleep(0.02)
            os.environ["REDIS_URL"] = f"unix://{socket}"
            yield
        finally:
            os.environ.pop("REDIS_URL", None)
            process.terminate()
            process.wait()
