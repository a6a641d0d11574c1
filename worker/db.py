"""PostgreSQL: the pool, named queries from sql/*.sql, migrations from sql/migrations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, LiteralString, TypeVar, cast

import backoff
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from worker.errors import SchemaMismatch
from worker.telemetry import emit

Connection = psycopg.Connection[DictRow]
AWAY: tuple[type[Exception], ...] = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
"""What is raised when the server cannot be reached or has just gone; the work may be repeated."""

_MIGRATION_LOCK = 0x6D73_0001
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_T = TypeVar("_T")


@cache
def query(name: str) -> LiteralString:
    """The SQL called `name`, from the one file of worker/sql that has it."""
    return _queries()[name]


@cache
def _queries() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(files("worker").joinpath("sql").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".sql"):
            _, *parts = _NAME.split(file.read_text("utf-8"))
            for name, text in zip(parts[::2], parts[1::2], strict=True):
                if name in found:
                    raise KeyError(f"two queries are called {name!r}")
                found[name] = text.strip()
    return found


class Database:
    """A pool of connections; each statement outside `transaction` commits by itself."""

    def __init__(self, url: str, *, connect_timeout: float = 5, size: int = 4) -> None:
        self.url = url
        self._options: dict[str, Any] = {
            "autocommit": True,
            "row_factory": dict_row,
            "connect_timeout": max(2, int(connect_timeout)),
            "application_name": "moysklad-worker",
            # A host that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,
        }
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url,
            kwargs=self._options,
            connection_class=cast(type[Connection], psycopg.Connection),
            min_size=0,
            max_size=size,
            timeout=connect_timeout,
            reconnect_timeout=0.5,
            open=False,
        )
        self._pool.open()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection of the pool, in autocommit."""
        with self._pool.connection() as conn:
            yield conn

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside a transaction: committed at the end, rolled back by an error."""
        with self._pool.connection() as conn, conn.transaction():
            yield conn

    def connect(self) -> Connection:
        """A connection of the caller's own, outside the pool (LISTEN, session locks)."""
        return psycopg.Connection.connect(self.url, **self._options)

    def fetch(self, name: str, /, **params: Any) -> list[dict[str, Any]]:
        """All rows of the named query."""
        with self.connection() as conn:
            return fetch(conn, name, **params)

    def close(self) -> None:
        """Close every connection."""
        self._pool.close(timeout=2)


def fetch(conn: Connection, name: str, /, **params: Any) -> list[dict[str, Any]]:
    """All rows of the named query on this connection."""
    cursor = conn.execute(query(name), params)
    return cursor.fetchall() if cursor.description else []


def fetch_one(conn: Connection, name: str, /, **params: Any) -> dict[str, Any] | None:
    """The first row of the named query, or None."""
    rows = fetch(conn, name, **params)
    return rows[0] if rows else None


def patiently(work: Callable[[], _T], *, give_up: Callable[[], bool] = lambda: False) -> _T:
    """Do `work` (repeatable as a whole), waiting out a PostgreSQL that is away.

    Raises what the server raised once `give_up()` is true.
    """

    def tell(details: Any) -> None:
        if details["tries"] in (1, 10) or details["tries"] % 100 == 0:
            emit("database.wait", level="warning", tries=details["tries"], reason=str(details["exception"]))

    attempt = backoff.on_exception(
        backoff.expo,
        AWAY,
        factor=0.1,
        max_value=1,
        giveup=lambda _: give_up(),
        on_backoff=tell,
        logger=None,
    )(work)
    return attempt()


def migrations() -> list[tuple[int, str, str]]:
    """(version, name, SQL) of every migration this code knows, in order."""
    found = []
    for file in files("worker").joinpath("sql", "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append((int(match[1]), match[2], file.read_text("utf-8")))
    return sorted(found)


def migrate(url: str) -> list[str]:
    """Bring the schema to this code's version; the names of the migrations applied, perhaps none.

    Each runs in its own transaction; an advisory lock makes a second host wait and then find
    nothing to do. Raises SchemaMismatch when the database is newer than this code.
    """
    applied = []
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as conn:
        conn.execute("select pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        conn.execute(query("create_schema_migrations"))
        current = _version(conn)
        _refuse_newer(current)
        for version, name, sql in migrations():
            if version > current:
                with conn.transaction():
                    conn.execute(sql)
                    conn.execute(query("record_migration"), {"version": version, "name": name})
                applied.append(f"{version:04}_{name}")
                emit("schema.migrate", version=version, name=name)
    return applied


def require_schema(db: Database) -> None:
    """Raises SchemaMismatch, saying what to do, unless the schema is the one this code knows."""
    with db.connection() as conn:
        try:
            current = _version(conn)
        except psycopg.errors.UndefinedTable:
            current = 0
    _refuse_newer(current)
    latest = migrations()[-1][0]
    if current < latest:
        raise SchemaMismatch(
            f"the database's schema is version {current}, this code needs {latest}: run `moysklad-worker migrate`"
        )


def _version(conn: Connection) -> int:
    row = fetch_one(conn, "schema_version")
    return int(row["version"]) if row else 0


def _refuse_newer(current: int) -> None:
    latest = migrations()[-1][0]
    if current > latest:
        raise SchemaMismatch(
            f"the database's schema is version {current}, this code knows {latest} at most: "
            "install the release that migrated it, or a newer one"
        )
