"""PostgreSQL: the pool, named queries from sql/*.sql, migrations from sql/migrations."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any, LiteralString, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import backoff
import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from worker.errors import Conflict, QueueAway, SchemaMismatch
from worker.release import release
from worker.telemetry import emit

Connection = psycopg.Connection[DictRow]
AWAY: tuple[type[Exception], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
    QueueAway,
)
"""What is raised when the server cannot be reached or has just gone; also when it says no, see `refused`."""

_PASSING = ("08", "25P03", "40", "53000", "53100", "53200", "53300", "57P01", "57P02", "57P03", "57P05")
"""SQLSTATEs, or how they begin, of what passes by itself: the connection broke, another transaction was in the way, a
disk, the memory or all connections are taken, the server stops or starts, or gave up on a session that stood still in
a transaction."""

_FINE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
_MIGRATION_LOCK = 0x6D73_0001
_CONTRACT = re.compile(r"(?:--.*\n)*?-- contract: *(\S.*)")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_FIELD = re.compile(r"%\((\w+)\)s")
_PREPARED: WeakKeyDictionary[Connection, set[str]] = WeakKeyDictionary()
"""What `fetch_quick` has prepared on which connection."""
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
            for name, text in sections(file.read_text("utf-8")).items():
                if name in found:
                    raise KeyError(f"two queries are called {name!r}")
                found[name] = text
    return found


def sections(text: str) -> dict[str, str]:
    """The parts of a file that each begin with a line `-- name: ...`, by that name."""
    _, *parts = _NAME.split(text)
    return {name: part.strip() for name, part in zip(parts[::2], parts[1::2], strict=True)}


def refused(error: BaseException) -> bool:
    """Whether the server is there and says no (a statement cancelled, a limit of its configuration exceeded, ...), so
    that the same would be refused again."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and not state.startswith(_PASSING)


class Database:
    """A pool of connections; each statement outside `transaction` commits by itself."""

    def __init__(self, url: str, *, connect_timeout: float = 5, size: int = 4, listen_url: str | None = None) -> None:
        """`listen_url` is where `connect` goes, should `url` lead to a pooler."""
        self.url = url
        self._listen_url = listen_url or url
        self._options: dict[str, Any] = {
            "autocommit": True,
            "row_factory": dict_row,
            "connect_timeout": max(2, int(connect_timeout)),
            "application_name": "moysklad-worker",
            "client_encoding": "UTF8",  # of what is sent as bytes
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
            max_size=size + 1,  # see `fetch_quick`
            timeout=connect_timeout,
            reconnect_timeout=0.5,
            configure=_heed_pooler,
            num_workers=1,
            open=False,
        )
        self._pool.open()
        self._quick = threading.Lock()
        self._kept: Connection | None = None
        self._after: dict[Connection, list[Callable[[], None]]] = {}

    def connection(self) -> AbstractContextManager[Connection]:
        """A connection of the pool, in autocommit."""
        self._give_back(0)
        return self._pool.connection()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside a transaction: committed at the end, rolled back by an error."""
        with self.connection() as conn:
            try:
                with conn.transaction():
                    yield conn
            except BaseException:
                self._after.pop(conn, None)
                raise
            works = self._after.pop(conn, ())
        for work in works:
            work()

    def after(self, conn: Connection, work: Callable[[], None]) -> None:
        """Do `work` when the `transaction` that `conn` came from is committed; never, if it is rolled back."""
        self._after.setdefault(conn, []).append(work)

    def connect(self) -> Connection:
        """A connection of the caller's own, outside the pool (LISTEN, session locks)."""
        conn: Connection = psycopg.Connection.connect(self._listen_url, **self._options)
        _heed_pooler(conn)
        return conn

    def fetch(self, name: str, /, **params: Any) -> list[dict[str, Any]]:
        """All rows of the named query."""
        with self.connection() as conn:
            return fetch(conn, name, **params)

    def fetch_quick(self, name: str, /, **params: str | None) -> list[list[bytes | None]]:
        """See `fetch_quick`. One connection is kept for whoever calls this over and over: to take it from the pool
        and to give it back each time costs as much as the rest of the client's part.
        """
        if not self._quick.acquire(blocking=False):
            with self.connection() as conn:
                return fetch_quick(conn, name, **params)
        try:
            conn = self._kept or self._pool.getconn()
            self._kept = None
            try:
                rows = fetch_quick(conn, name, **params)
            except BaseException:
                self._pool.putconn(conn)  # which looks at it, and drops it if it is broken
                raise
            self._kept = conn
            return rows
        finally:
            self._quick.release()

    def _give_back(self, patience: float) -> None:
        """Have the pool lend the kept connection to whoever comes next: who works alone needs no second one."""
        if self._kept is not None and self._quick.acquire(timeout=patience):
            kept, self._kept = self._kept, None
            if kept is not None:
                self._pool.putconn(kept)
            self._quick.release()

    def close(self) -> None:
        """Close every connection."""
        self._give_back(2)
        self._pool.close(timeout=2)


def _heed_pooler(conn: Connection) -> None:
    """Prepare nothing where another server process may answer the next statement.

    A pooler makes up the process id it greets with. One that keeps a client on one server process (PgBouncer's
    session mode) cannot be told from one that does not, and is used like it.
    """
    row = conn.execute("select pg_backend_pid() as pid").fetchone()
    if row and row["pid"] != conn.info.backend_pid:
        conn.prepare_threshold = None


def pooled(conn: Connection) -> bool:
    """Whether a pooler stands in between: then a session holds no lock and hears no NOTIFY."""
    return conn.prepare_threshold is None


def fetch(conn: Connection, name: str, /, **params: Any) -> list[dict[str, Any]]:
    """All rows of the named query on this connection."""
    cursor = conn.execute(query(name), params)
    return cursor.fetchall() if cursor.description else []


def fetch_one(conn: Connection, name: str, /, **params: Any) -> dict[str, Any] | None:
    """The first row of the named query, or None."""
    rows = fetch(conn, name, **params)
    return rows[0] if rows else None


def fetch_quick(conn: Connection, name: str, /, **params: str | None) -> list[list[bytes | None]]:
    """The rows of a named query, in PostgreSQL's text format, as are the parameters.

    For statements that run thousands of times a second: half of what a small one costs the client goes into
    psycopg's cursor. What remains is prepared once a connection. Only in autocommit.
    """
    statement = _statement(name)
    values = [None if (value := params[field]) is None else value.encode() for field in statement.fields]
    pgconn = conn.pgconn
    if pooled(conn):
        pgconn.send_query_params(statement.sql, values)
        return _rows(conn)
    known = _PREPARED.setdefault(conn, set())
    while True:
        if name not in known:
            pgconn.send_prepare(statement.name, statement.sql)
            with suppress(psycopg.errors.DuplicatePreparedStatement):
                _rows(conn)
            known.add(name)
        pgconn.send_query_prepared(statement.name, values)
        try:
            return _rows(conn)
        except psycopg.errors.InvalidSqlStatementName:
            # psycopg forgets all prepared statements of a session (DEALLOCATE ALL) when a transaction is rolled back.
            known.discard(name)


def _rows(conn: Connection) -> list[list[bytes | None]]:
    """What the server says to what was sent."""
    result: PGresult = conn.wait(generators.execute(conn.pgconn))[0]
    if result.status not in _FINE:
        raise psycopg.errors.error_from_result(result)
    get, columns = result.get_value, range(result.nfields)
    return [[get(row, column) for column in columns] for row in range(result.ntuples)]


class _Statement(NamedTuple):
    name: bytes
    sql: bytes
    fields: tuple[str, ...]


@cache
def _statement(name: str) -> _Statement:
    """A named query as the protocol has it: `$1` instead of `%(field)s`."""
    numbers: dict[str, int] = {}
    sql = _FIELD.sub(lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}", query(name))
    return _Statement(name.encode(), sql.replace("%%", "%").encode(), tuple(numbers))


def patiently(
    work: Callable[[], _T],
    *,
    give_up: Callable[[], bool] = lambda: False,
    away: tuple[type[Exception], ...] = AWAY,
    event: str = "database.wait",
) -> _T:
    """Do `work` (repeatable as a whole), waiting out a PostgreSQL that is away, or another server: what it raises
    then is `away`, and what the log calls that `event`.

    Raises what the server raised once `give_up()` is true, and at once what is `refused`.
    """

    try:
        return work()  # most often all there is to do, and less than what the loop below takes to be built
    except away as error:
        if give_up() or refused(error):
            raise

    def tell(details: Any) -> None:
        tries, error = details["tries"], details["exception"]
        if tries not in (1, 10) and tries % 100:
            return
        if isinstance(error, QueueAway):
            emit("redis.wait", level="warning", tries=tries, reason=str(error))
        else:
            emit(event, level="warning", tries=tries, reason=str(error))

    attempt = backoff.on_exception(
        backoff.expo,
        away,
        factor=0.1,
        max_value=1,
        giveup=lambda error: give_up() or refused(error),
        on_backoff=tell,
        logger=None,
    )(work)
    return attempt()


class Migration(NamedTuple):
    """One file of sql/migrations."""

    version: int
    name: str
    sql: str

    @property
    def label(self) -> str:
        """What it is called: `0007_name`."""
        return f"{self.version:04}_{self.name}"

    @property
    def contract(self) -> str:
        """What it takes away from releases that do not know it; empty when they can go on (an expand step).

        It is told by a line `-- contract: ...` in the comment the file begins with.
        """
        match = _CONTRACT.match(self.sql)
        return match[1].strip() if match else ""


def migrations() -> list[Migration]:
    """Every migration this code knows, in order."""
    found = []
    for file in files("worker").joinpath("sql", "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    return sorted(found)


def pending(url: str, *, expand: bool = False) -> list[Migration]:
    """What `migrate` would apply now; with `expand` only the steps that disturb no release at work.

    Raises SchemaMismatch when that cannot be: the database is too new, or `expand` would have to leave a contract
    step out that stands before others. Raises Conflict when a contract step would take away what workers of another
    release, now at work, still use.
    """
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as conn:
        return _pending(conn, expand)


def migrate(url: str, *, expand: bool = False) -> list[str]:
    """Bring the schema to this code's version; the labels of the migrations applied, perhaps none.

    Each runs in its own transaction; an advisory lock makes a second host wait and then find
    nothing to do. Raises what `pending` raises, and then nothing was applied.
    """
    applied = []
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as conn:
        conn.execute("select pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        conn.execute(query("create_schema_migrations"))
        for step in _pending(conn, expand):
            with conn.transaction():
                conn.execute(step.sql)
                kind = "contract" if step.contract else "expand"
                conn.execute(query("record_migration"), {"version": step.version, "name": step.name, "kind": kind})
            applied.append(step.label)
            emit("schema.migrate", version=step.version, name=step.name, kind=kind)
    return applied


def require_schema(db: Database) -> None:
    """Raises SchemaMismatch, saying what to do, unless this code can work on the schema.

    It can when the steps it knows are applied, but for contract steps at the end, and those it does not know are
    expand steps: so the old and the new release work side by side while a deploy goes through the fleet.
    """
    with db.connection() as conn:
        applied = _applied(conn)
    if any(not step.contract for step in _unapplied(applied)):
        raise SchemaMismatch(
            f"the database's schema is version {_newest(applied)}, this code needs {migrations()[-1].version}: "
            "run `moysklad-worker migrate`"
        )


def _pending(conn: Connection, expand: bool) -> list[Migration]:
    applied = _applied(conn)
    steps = _steps(_unapplied(applied), expand)
    contract = next((step for step in steps if step.contract), None)
    old = fetch(conn, "workers_of_other_releases", release=release()) if contract and applied else []
    if contract and old:
        raise Conflict(
            f"{contract.label} is a contract step: {contract.contract}. Workers of another release are at work: "
            + ", ".join(f"{row['name'] or row['pid']} on {row['host']} ({row['release']})" for row in old)
            + ". Replace them by this release first (`moysklad-worker migrate --expand` prepares the database), "
            "or stop them; then migrate again"
        )
    return steps


def _steps(todo: list[Migration], expand: bool) -> list[Migration]:
    """All of `todo`, or the expand steps it begins with."""
    if not expand:
        return todo
    steps = list(takewhile(lambda step: not step.contract, todo))
    behind = next((step for step in todo[len(steps) :] if not step.contract), None)
    if behind:
        raise SchemaMismatch(
            f"{behind.label} stands behind the contract step {todo[len(steps)].label}: deploy the release before "
            "this one first, or stop all workers and run `moysklad-worker migrate`"
        )
    return steps


def _applied(conn: Connection) -> list[dict[str, Any]]:
    """Version, name and kind of what the database has had; nothing before the first `migrate`."""
    try:
        return fetch(conn, "applied_migrations")
    except psycopg.errors.UndefinedTable:
        return []


def _unapplied(applied: list[dict[str, Any]]) -> list[Migration]:
    """The migrations of this code that the database has not had; raises SchemaMismatch when it is too new."""
    known = migrations()
    versions = {step.version for step in known}
    alien = [row for row in applied if row["version"] not in versions and row["kind"] == "contract"]
    if alien:
        raise SchemaMismatch(
            f"the database's schema is version {_newest(applied)}, this code knows {known[-1].version}, and "
            f"{alien[0]['version']:04}_{alien[0]['name']} took away what it needs: "
            "install the release that migrated it, or a newer one"
        )
    had = {row["version"] for row in applied}
    return [step for step in known if step.version not in had]


def _newest(applied: list[dict[str, Any]]) -> int:
    return max((int(row["version"]) for row in applied), default=0)
