"""A real PgBouncer in transaction mode, where each statement may meet another session of the server."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def pooled(direct_url: str) -> Iterator[str]:
    """The same database through a pooler until the block ends; its URL."""
    if PGBOUNCER is None:
        raise RuntimeError("pgbouncer is not installed (apt-get install pgbouncer)")
    direct = conninfo_to_dict(direct_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    upstream = " ".join(f"{name}={direct[name]}" for name in ("host", "port", "user", "password") if direct.get(name))
    url = f"postgresql://{direct.get('user', 'postgres')}@127.0.0.1:{port}{urlsplit(direct_url).path}"
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder:
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = {upstream}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nunix_socket_dir =\n"
        )
        command = [str(PGBOUNCER), str(config)]
        home = Path(str(direct.get("host", "")))
        if os.geteuid() == 0:  # which it refuses to run as; whoever owns the server's socket may reach it
            owner = home.stat().st_uid if home.is_absolute() else pwd.getpwnam("nobody").pw_uid
            command[1:1] = ["-u", pwd.getpwuid(owner).pw_name]
            Path(folder).chmod(0o755)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(url, process)
            yield url
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)
