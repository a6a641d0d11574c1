"""The PostgreSQL all systems are measured on, one fresh database each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg

from worker.demo.postgres import EmbeddedPostgres

SHARED_BUFFERS_MB = 1024
_NEEDED_MB = 4 * SHARED_BUFFERS_MB


@dataclass(frozen=True, slots=True)
class Cost:
    """What the server has spent on a database so far."""

    commits: int
    wal_bytes: int
    cpu_seconds: float

    def __sub__(self, before: Cost) -> Cost:
        return Cost(
            self.commits - before.commits,
            self.wal_bytes - before.wal_bytes,
            self.cpu_seconds - before.cpu_seconds,
        )


class Server:
    """A PostgreSQL with fsync on and its defaults, but shared_buffers 1 GB where the memory is there."""

    def __init__(self, folder: Path) -> None:
        self._number = count(1)
        self._postgres = EmbeddedPostgres(folder)
        self._postgres.start()
        if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > _NEEDED_MB << 20:
            self._admin(f"alter system set shared_buffers = '{SHARED_BUFFERS_MB}MB'")
        self._postgres.stop()
        self._postgres.start()

    @contextmanager
    def database(self) -> Iterator[str]:
        """An empty database of the caller's own until the block ends; its URL."""
        name = f"bench_{next(self._number)}"
        self._admin(f"create database {name}")
        try:
            yield self._postgres.url(name)
        finally:
            self._admin(f"drop database {name} with (force)")

    def settle(self, url: str) -> None:
        """Give a filled database statistics, and take the writing of what is dirty out of the measurement."""
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("vacuum (analyze)")
            conn.execute("checkpoint")

    @contextmanager
    def still(self) -> Iterator[None]:
        """No autovacuum until the block ends: its transactions count as the database's."""
        self._set("autovacuum", "off")
        try:
            yield
        finally:
            self._set("autovacuum", "on")

    def _set(self, name: str, value: str) -> None:
        self._admin(f"alter system set {name} = {value}")
        self._admin("select pg_reload_conf()")

    def cost(self, url: str) -> Cost:
        """Commits, WAL and processor time until now."""
        name = urlsplit(url).path.lstrip("/")
        rows = self._admin(
            "select pg_stat_get_db_xact_commit(oid), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
            " from pg_database where datname = %s",
            name,
        )
        return Cost(int(rows[0][0]), int(rows[0][1]), tree_cpu_seconds(self._postgres.pid))

    def _admin(self, statement: LiteralString | str, *params: object) -> list[Any]:
        with psycopg.connect(self._postgres.url(), autocommit=True) as conn:
            cursor = conn.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Stop it."""
        self._postgres.close()


@contextmanager
def server() -> Iterator[Server]:
    """A server until the block ends."""
    with tempfile.TemporaryDirectory(prefix="bench-queue-", ignore_cleanup_errors=True) as folder:
        running = Server(Path(folder))
        try:
            yield running
        finally:
            running.close()


@contextmanager
def pinned(url: str) -> Iterator[None]:
    """Another session that holds a snapshot, as a forgotten report does: nothing dead can be removed."""
    with psycopg.connect(url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select count(*) from pg_class")
        yield
        conn.rollback()


def dead_rows(url: str) -> int:
    """Dead rows in a database's tables, as the statistics know them."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute("select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables").fetchone()
    return int(row[0]) if row else 0


def sizes(url: str) -> dict[str, float]:
    """MB of all tables and of all their indexes."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(
            "select sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint from pg_stat_user_tables"
        ).fetchone()
    assert row is not None
    return {"table_mb": round(row[0] / 1e6, 1), "index_mb": round(row[1] / 1e6, 1)}


def tree_cpu_seconds(pid: int) -> float:
    """Processor time of a process, of its children, and of the children it has buried."""
    total, parents = 0.0, {pid}
    ticks = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(entry.name) == pid:
                    total += sum(map(int, fields[11:15])) / ticks
                elif int(fields[1]) in parents:
                    total += sum(map(int, fields[11:13])) / ticks
    return total
