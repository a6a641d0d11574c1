"""The schema and its migrations, the named queries, and waiting for a server that is away."""

from __future__ import annotations

import ast
import re
import threading
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from worker import db
from worker.db import Database, Migration
from worker.errors import Conflict, SchemaMismatch
from worker.release import release
from worker.settings import Settings

WORKER = Path(db.__file__).parent
KNOWN = db.migrations()
LATEST = KNOWN[-1].version


def schema(url: str) -> list[tuple[str, ...]]:
    """Every column of every table, for comparison."""
    with psycopg.connect(url) as conn:
        return conn.execute(
            "select table_name, column_name, data_type from information_schema.columns "
            "where table_schema = 'public' order by 1, 2"
        ).fetchall()


EXPAND = Migration(LATEST + 1, "more", "-- More of it.\ncreate table more ()")
CONTRACT = Migration(LATEST + 2, "less", "-- Less of it.\n-- contract: `more` goes\ndrop table more")


def know(monkeypatch: pytest.MonkeyPatch, *further: Migration) -> None:
    """From here on this code is a release that has these migrations, too."""
    known = [*KNOWN, *further]
    monkeypatch.setattr(db, "migrations", lambda: known)


def at_work(url: str, release: str, name: str) -> None:
    """A worker of that release, alive for a minute."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "insert into workers (host, pid, name, queues, release, lease_until) "
            "values ('h1', 7, %s, array['*'], %s, now() + interval '1 minute')",
            [name, release],
        )


def test_migrations_are_numbered_without_gaps() -> None:
    """0001, 0002, ...: none is missing, none is there twice."""
    assert [version for version, _, _ in db.migrations()] == list(range(1, LATEST + 1))


def test_migrate_twice(empty_database_url: str) -> None:
    """The first applies every migration in order, the second finds nothing to do."""
    applied = [db.migrate(empty_database_url), db.migrate(empty_database_url)]

    assert applied == [[f"{version:04}_{name}" for version, name, _ in db.migrations()], []]


def test_two_hosts_migrate_at_once(empty_database_url: str, database_url: str) -> None:
    """Of two at the same moment each migration is applied by one; the schema is whole, and neither fails."""
    start = threading.Barrier(2)
    applied: list[list[str]] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            start.wait(30)
            applied.append(db.migrate(empty_database_url))
        except BaseException as error:  # told below
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert problems == []
    assert sorted(len(names) for names in applied) == [0, LATEST]
    assert schema(empty_database_url) == schema(database_url)


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The good ones stay, the broken one is rolled back as a whole, and the next start goes on from there."""
    know(monkeypatch, Migration(LATEST + 1, "broken", "create table half (); select 1 / 0"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.migrate(empty_database_url)

    know(monkeypatch, Migration(LATEST + 1, "mended", "create table half ()"))
    assert db.migrate(empty_database_url) == [f"{LATEST + 1:04}_mended"]


def test_a_contract_step_is_told_by_its_header() -> None:
    """By a line of the comment a file begins with; a mention further down is no header."""
    assert [EXPAND.contract, CONTRACT.contract] == ["", "`more` goes"]
    assert Migration(1, "x", "-- contract: a\n-- and more\nselect 1").contract == "a"
    assert Migration(1, "x", "-- What.\nselect 1;\n-- contract: a").contract == ""
    assert Migration(1, "x", "-- contract:\nselect 1").contract == ""


TAKES_AWAY = re.compile(
    r"\b(drop\s+(table|column|function|view|type|trigger)|rename|set\s+not\s+null|alter\s+column\s+\w+\s+(set\s+data\s+)?type)\b",
    re.IGNORECASE,
)


def test_what_takes_away_says_so() -> None:
    """A migration that drops or renames, or forbids what was allowed, has the header; or one that tells why older
    releases do not mind.

    Up to 0006 nobody is disturbed: release 0.1.0, with 0002, works on no newer schema whatever it is.
    """
    assert TAKES_AWAY.search("alter table a\n  drop column b")
    assert TAKES_AWAY.search("alter table a alter column b type bigint")
    assert not TAKES_AWAY.search("drop index a; create table b (c integer not null)")
    silent = [
        step.label
        for step in KNOWN
        if step.version > 6
        and not step.contract
        and not re.match(r"(--.*\n)*-- expand: \w", step.sql)
        and TAKES_AWAY.search(re.sub(r"--.*", "", step.sql))
    ]
    assert silent == []


def test_a_release_works_on_after_an_expand_step_of_a_later_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a deploy goes through the fleet; its own migrate finds nothing to do."""
    with monkeypatch.context() as later:
        know(later, EXPAND)
        db.migrate(database_url)

    database = Database(database_url)
    db.require_schema(database)
    assert db.migrate(database_url) == []
    database.close()


def test_a_release_does_not_work_after_a_contract_step_of_a_later_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither start nor migrate; the message names the step and which release is wanted."""
    with monkeypatch.context() as later:
        know(later, EXPAND, CONTRACT)
        db.migrate(database_url)
    database = Database(database_url)

    reason = f"version {LATEST + 2}, this code knows {LATEST}, and {CONTRACT.label} took away what it needs: install"
    for refused in (lambda: db.require_schema(database), lambda: db.pending(database_url)):
        with pytest.raises(SchemaMismatch, match=reason):
            refused()
    with pytest.raises(SchemaMismatch, match="install the release that migrated it, or a newer one"):
        db.migrate(database_url)
    database.close()


def test_a_contract_step_waits_for_workers_of_another_release(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is applied while one is alive, and it is named; those of this release and the dead do not count."""
    know(monkeypatch, EXPAND, CONTRACT)
    at_work(database_url, release(), "new_00")
    at_work(database_url, "0.0.9", "old_00")

    reason = r"`more` goes\. Workers of another release are at work: old_00 on h1 \(0\.0\.9\)\. Replace"
    for refused in (db.pending, db.migrate):
        with pytest.raises(Conflict, match=reason):
            refused(database_url)
    assert db.pending(database_url, expand=True) == [EXPAND]
    with psycopg.connect(database_url) as conn:
        conn.execute("update workers set lease_until = now() - interval '1 second' where name = 'old_00'")
    assert db.pending(database_url) == [EXPAND, CONTRACT]
    assert db.migrate(database_url) == [EXPAND.label, CONTRACT.label]


def test_the_new_release_works_before_its_contract_step(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expand steps alone let it start; the contract step follows when the whole fleet runs it."""
    know(monkeypatch, EXPAND, CONTRACT)
    database = Database(database_url)
    with pytest.raises(SchemaMismatch, match=f"version {LATEST}, this code needs {LATEST + 2}: run"):
        db.require_schema(database)

    assert db.migrate(database_url, expand=True) == [EXPAND.label]
    db.require_schema(database)
    assert db.migrate(database_url) == [CONTRACT.label]
    db.require_schema(database)
    database.close()


def test_an_expand_step_behind_a_contract_step(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two releases in one go: it cannot be applied alone, and the message says what to do."""
    behind = Migration(LATEST + 3, "behind", "create table behind ()")
    know(monkeypatch, EXPAND, CONTRACT, behind)

    with pytest.raises(SchemaMismatch, match=f"{behind.label} stands behind the contract step {CONTRACT.label}"):
        db.migrate(database_url, expand=True)
    assert db.pending(database_url) == [EXPAND, CONTRACT, behind]


def test_a_migration_that_came_late(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a lower number than the newest applied is applied all the same."""
    late = Migration(LATEST + 1, "late", "create table late ()")
    know(monkeypatch, Migration(LATEST + 2, "early", "create table early ()"))
    db.migrate(database_url)

    know(monkeypatch, late, Migration(LATEST + 2, "early", "create table early ()"))
    assert db.migrate(database_url) == [late.label]


def test_a_list_of_before_the_kinds(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list without the column `kind` is read as it is, and gets it from the next migrate."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("alter table schema_migrations drop column kind")
    database = Database(database_url)
    db.require_schema(database)

    know(monkeypatch, EXPAND, CONTRACT)
    db.migrate(database_url)

    with database.connection() as conn:
        kinds = [row["kind"] for row in db.fetch(conn, "applied_migrations")]
    assert kinds == ["expand"] * (LATEST + 1) + ["contract"]
    database.close()


def test_an_older_schema_is_refused(empty_database_url: str) -> None:
    """Never migrated, or by an older release: the message names the command to run; after it all is well."""
    database = Database(empty_database_url)

    with pytest.raises(SchemaMismatch, match=f"version 0, this code needs {LATEST}: run `moysklad-worker migrate`"):
        db.require_schema(database)
    assert db.pending(empty_database_url) == KNOWN
    database.close()
    db.migrate(empty_database_url)
    database = Database(empty_database_url)
    db.require_schema(database)
    with database.connection() as conn:
        conn.execute("delete from schema_migrations where version = %s", [LATEST])
    with pytest.raises(SchemaMismatch, match=f"version {LATEST - 1}, this code needs {LATEST}"):
        db.require_schema(database)
    database.close()


CALLS = {"fetch": 1, "fetch_one": 1, "query": 0, "_put_back": 1}
"""Functions that take a query's name, and as which argument; a method of Database takes it first."""


def names_used() -> set[str]:
    """Every name a query is called by in worker/."""
    used = set()
    for file in WORKER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                method = isinstance(node.func, ast.Attribute)
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                place = 0 if method and name == "fetch" else CALLS.get(name)
                if place is not None and len(node.args) > place:
                    argument = node.args[place]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        used.add(argument.value)
    return used


def words() -> set[str]:
    """Every string in worker/'s code."""
    trees = (ast.parse(file.read_text("utf-8")) for file in WORKER.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_query_is_used_and_every_name_used_is_a_query() -> None:
    """Neither dead SQL nor a name that nothing answers to."""
    assert names_used() - set(db._queries()) == set()
    assert set(db._queries()) - words() == set()


def test_every_query_says_what_it_is_for() -> None:
    """The line after the name is a comment."""
    silent = [name for name, text in db._queries().items() if not text.startswith("-- ")]
    assert silent == []


def test_an_unknown_query() -> None:
    """A name nothing answers to is an error, not an empty answer."""
    with pytest.raises(KeyError):
        db.query("nothing")


def test_a_transaction_is_all_or_nothing(settings: Settings) -> None:
    """Committed at its end, rolled back by an error; the connection works on."""
    database = Database(settings.DATABASE_URL.get_secret_value(), size=1)

    def broken() -> None:
        with database.transaction() as conn:
            db.fetch(conn, "record_migration", version=1001, name="one", kind="expand")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    with database.transaction() as conn:
        db.fetch(conn, "record_migration", version=1002, name="two", kind="expand")

    with database.connection() as conn:
        rows = conn.execute("select name from schema_migrations where version > 1000").fetchall()
    assert rows == [{"name": "two"}]
    database.close()


def test_patiently_waits_until_it_works() -> None:
    """A server that comes back: the work's own answer."""
    tries = count(1)

    def work() -> int:
        number = next(tries)
        if number < 3:
            raise psycopg.OperationalError("gone")
        return number

    assert db.patiently(work) == 3


def test_patiently_gives_up() -> None:
    """Once asked to, it raises what the server raised, and does not try again."""
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise psycopg.OperationalError("gone")

    with pytest.raises(psycopg.OperationalError, match="gone"):
        db.patiently(work, give_up=lambda: len(tries) >= 2)
    assert len(tries) == 2


def test_patiently_does_not_wait_for_a_fault_of_the_work() -> None:
    """Only an absent server is waited for."""
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise psycopg.errors.UniqueViolation("twice")

    with pytest.raises(psycopg.errors.UniqueViolation):
        db.patiently(work)
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg.errors.ConnectionFailure(), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.CannotConnectNow(), True),
        (psycopg.errors.TooManyConnections(), True),
        (psycopg.errors.DiskFull(), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.SerializationFailure(), True),
        (PoolTimeout(), True),
        (psycopg.errors.QueryCanceled(), False),
        (psycopg.errors.ConfigurationLimitExceeded(), False),
        (psycopg.errors.StatementTooComplex(), False),
        (psycopg.errors.DatabaseDropped(), False),
        (psycopg.errors.LockNotAvailable(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_patiently_waits_for_what_passes_only(error: Exception, passes: bool) -> None:
    """By SQLSTATE: what the server would refuse again is raised at once, not repeated for ever."""
    tries: list[int] = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise error
        return "done"

    if passes:
        assert db.patiently(work) == "done"
    else:
        with pytest.raises(type(error)):
            db.patiently(work)
        assert len(tries) == 1


def test_a_statement_that_is_cancelled_is_refused(settings: Settings) -> None:
    """As the real server says it: a statement longer than its time limit does not count as a server that is away."""
    database = Database(settings.DATABASE_URL.get_secret_value(), size=1)

    def work() -> None:
        with database.transaction() as conn:
            conn.execute("set local statement_timeout = 20")
            conn.execute("select pg_sleep(10)")

    with pytest.raises(psycopg.errors.QueryCanceled):
        db.patiently(work)
    database.close()
