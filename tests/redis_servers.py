"""Real Redis or Valkey servers of the tests' own: one, or a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

PATIENCE = 60.0


def program() -> str:
    """The server's path; where there is none the test is skipped, or fails where CI is set."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        message = "neither redis-server nor valkey-server is installed: what lives in Redis is NOT tested"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """A port nobody listens on; the cluster's bus takes the one 10,000 above."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = int(low.getsockname()[1])
            if port > 50_000:
                continue
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


class RedisServer:
    """One server, which can be killed and started again on what it has kept."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
                   "--save", "", *self._options]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        eventually(self.ask, "PING")

    def ask(self, *command: Any) -> Any:
        """What it answers."""
        with Redis(port=self.port, socket_timeout=5, retry=None) as redis:
            return redis.execute_command(*command)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE)


def eventually(do: Callable[..., Any], *values: Any, wanted: Callable[[Any], Any] = lambda _: True) -> Any:
    """What it says once that is wanted; the last error when it does not come to that."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            found = do(*values)
            if wanted(found):
                return found
        except RedisError:
            if time.monotonic() > until:
                raise
        assert time.monotonic() < until
        time.sleep(0.02)


@contextmanager
def one(*options: str) -> Iterator[RedisServer]:
    """One server."""
    with tempfile.TemporaryDirectory(prefix="moysklad-redis-", ignore_cleanup_errors=True) as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def cluster(masters: int = 3, replicas: int = 0) -> Iterator[list[RedisServer]]:
    """So many masters, which share the slots, then a replica of each where asked for."""
    with (
        tempfile.TemporaryDirectory(prefix="moysklad-cluster-", ignore_cleanup_errors=True) as folder,
        ExitStack() as all_,
    ):
        servers = []
        for n in range(masters * (1 + replicas)):
            server = RedisServer(
                Path(folder) / str(n), "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                "--appendonly", "yes", "--cluster-allow-replica-migration", "no",
            )  # fmt: skip
            server.start()
            all_.callback(server.stop)
            servers.append(server)
        share = 16384 // masters
        for n, server in enumerate(servers[:masters]):
            last = 16383 if n == masters - 1 else (n + 1) * share - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", n * share, last)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for server in servers[1:]:
            server.ask("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        for server in servers:
            for wanted in ("cluster_state:ok", f"cluster_known_nodes:{len(servers)}"):
                eventually(server.ask, "CLUSTER", "INFO", wanted=lambda info, wanted=wanted: wanted in _text(info))
        for n, server in enumerate(servers[masters:]):
            eventually(server.ask, "CLUSTER", "REPLICATE", _text(servers[n % masters].ask("CLUSTER", "MYID")))
        for server in servers[masters:]:
            eventually(server.ask, "INFO", "replication", wanted=lambda info: (
                "master_link_status:up" in str(info) or "'master_link_status': 'up'" in str(info)))  # fmt: skip
        yield servers


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
