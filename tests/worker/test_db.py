"""The schema and its migrations, the named queries, and waiting for a server that is away."""

from __future__ import annotations

import ast
import threading
from itertools import count
from pathlib import Path

import psycopg
import pytest

from worker import db
from worker.db import Database
from worker.errors import SchemaMismatch
from worker.settings import Settings

WORKER = Path(db.__file__).parent
LATEST = db.migrations()[-1][0]


def schema(url: str) -> list[tuple[str, ...]]:
    """Every column of every table, for comparison."""
    with psycopg.connect(url) as conn:
        return conn.execute(
            "select table_name, column_name, data_type from information_schema.columns "
            "where table_schema = 'public' order by 1, 2"
        ).fetchall()


def set_version(url: str, version: int) -> None:
    """Pretend that another release has migrated it."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("insert into schema_migrations (version, name) values (%s, 'other')", [version])


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
    known = db.migrations()
    broken = (LATEST + 1, "broken", "create table half (); select 1 / 0")
    monkeypatch.setattr(db, "migrations", lambda: [*known, broken])

    with pytest.raises(psycopg.errors.DivisionByZero):
        db.migrate(empty_database_url)

    monkeypatch.setattr(db, "migrations", lambda: [*known, (LATEST + 1, "mended", "create table half ()")])
    assert db.migrate(empty_database_url) == [f"{LATEST + 1:04}_mended"]


def test_a_newer_schema_is_refused(database_url: str) -> None:
    """By migrate and by every start; the message says which release is wanted."""
    set_version(database_url, LATEST + 1)
    database = Database(database_url)

    with pytest.raises(SchemaMismatch, match=f"version {LATEST + 1}, this code knows {LATEST} at most: install"):
        db.migrate(database_url)
    with pytest.raises(SchemaMismatch, match="install the release that migrated it"):
        db.require_schema(database)
    database.close()


def test_an_older_schema_is_refused(empty_database_url: str) -> None:
    """Never migrated, or by an older release: the message names the command to run; after it all is well."""
    database = Database(empty_database_url)

    with pytest.raises(SchemaMismatch, match=f"version 0, this code needs {LATEST}: run `moysklad-worker migrate`"):
        db.require_schema(database)
    db.migrate(empty_database_url)
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


def test_every_query_is_used_and_every_name_used_is_a_query() -> None:
    """Neither dead SQL nor a name that nothing answers to."""
    assert names_used() == set(db._queries())


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
            db.fetch(conn, "pause_principal", principal="one", wait=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    with database.transaction() as conn:
        db.fetch(conn, "pause_principal", principal="two", wait=1)

    with database.connection() as conn:
        rows = conn.execute("select principal from limiter_principals").fetchall()
    assert rows == [{"principal": "two"}]
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
