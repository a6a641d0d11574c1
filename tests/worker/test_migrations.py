"""Two releases on one database: copies of the code with their own versions and migrations, run as processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import ExecStatus

from worker import db
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
LATEST = db.migrations()[-1].version
EXPAND = f"{LATEST + 1:04}_note"
CONTRACT = f"{LATEST + 2:04}_no_memory"
STEPS = {
    EXPAND: "-- A column nothing of before knows.\nalter table workers add column note text;\n",
    CONTRACT: "-- Away with it.\n-- contract: workers.rss_mb goes, which 1.0.0 writes with each heartbeat\n"
    "alter table workers drop column rss_mb;\n",
}


class Release:
    """A copy of the code."""

    def __init__(self, folder: Path, version: str, steps: list[str], settings: Settings) -> None:
        shutil.copytree(ROOT / "worker", folder / "worker", ignore=shutil.ignore_patterns("__pycache__"))
        start = folder / "worker/__init__.py"
        start.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', start.read_text()))
        for step in steps:
            (folder / f"worker/sql/migrations/{step}.sql").write_text(STEPS[step])
        self.folder, self.version = folder, version
        self.env = {name: value for name, value in os.environ.items() if name not in Settings.names()}
        self.env |= {
            "DATABASE_URL": settings.DATABASE_URL.get_secret_value(),
            "APP_KEY": settings.APP_KEY.get_secret_value(),
            "LOG_DIR": str(folder),
            "PYTHONPATH": str(folder),
        }

    def rewrite(self, file: str, old: str, new: str) -> None:
        """Change the copy."""
        path = self.folder / "worker" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = [sys.executable, "-m", "worker", *words]
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60)

    @contextmanager
    def worker(self, name: str) -> Iterator[None]:
        """A worker at work."""
        command = [sys.executable, "-m", "worker", "work", "--name", name, "--sleep", "0.2"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.env, stderr=subprocess.PIPE, text=True)
        try:
            self.wait_until(lambda: name in self.names() or process.poll() is not None)
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield
            assert process.poll() is None, process.stderr and process.stderr.read()
        finally:
            process.terminate()
            process.communicate(timeout=30)

    def names(self) -> list[str]:
        """Who is alive, and its release."""
        with psycopg.connect(self.env["DATABASE_URL"]) as conn:
            return [row[0] for row in conn.execute("select name from workers where lease_until > now()")]

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Look until it is so."""
        end = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.fixture
def old(tmp_path: Path, settings: Settings) -> Release:
    """What is at work before the deploy."""
    return Release(tmp_path / "old", "1.0.0", [], settings)


@pytest.fixture
def new(tmp_path: Path, settings: Settings) -> Release:
    """A later release: one more column for all, and one less that it does not use any more."""
    release = Release(tmp_path / "new", "2.0.0", [EXPAND, CONTRACT], settings)
    release.rewrite("sql/workers.sql", ",\n    rss_mb = %(rss_mb)s", ",\n    note = %(rss_mb)s")
    release.rewrite("sql/workers.sql", "done, failed, rss_mb,", "done, failed, note as rss_mb,")
    return release


def test_a_rolling_deploy_over_both_kinds(old: Release, new: Release) -> None:
    """Expand before, both at work side by side, contract when the last old one is gone; then no way back."""
    with old.worker("old"):
        refused = new.call("migrate", "--check")
        assert refused.returncode == 1
        assert f"{CONTRACT} is a contract step" in refused.stderr
        assert "old on " in refused.stderr
        assert "(1.0.0)" in refused.stderr
        assert new.call("migrate").returncode == 1

        told = new.call("migrate", "--check", "--expand")
        assert (told.returncode, told.stdout) == (0, f"would apply {EXPAND} (expand)\n")
        assert new.call("migrate", "--expand").stdout == f"applied {EXPAND}\n"

        with new.worker("new"), old.worker("old-again"):
            # A process of the old release that Supervisor starts anew in the middle of the deploy.
            assert set(new.names()) == {"old", "new", "old-again"}
            assert old.call("check").returncode == 0
            assert new.call("migrate", "--check").returncode == 1

    with new.worker("new"):
        told = new.call("migrate", "--check")
        assert (told.returncode, told.stdout.count("contract: workers.rss_mb goes")) == (0, 1)
        assert new.call("migrate").stdout == f"applied {CONTRACT}\n"
        assert new.call("migrate", "--check").stdout == "nothing to migrate\n"
        assert new.call("monitor", "--once").returncode == 0

    back = old.call("work", "--once")
    assert back.returncode == 1
    assert f"{CONTRACT} took away what it needs" in back.stderr


def test_workers_go_on_when_columns_change_their_type(old: Release, new: Release, empty_database_url: str) -> None:
    """Their sessions have prepared statements whose rows are of another type from then on."""
    old.env["DATABASE_URL"] = new.env["DATABASE_URL"] = empty_database_url
    (old.folder / "worker/sql/migrations/0015_types.sql").unlink()
    assert old.call("migrate").returncode == 0

    with psycopg.connect(empty_database_url, autocommit=True) as conn, old.worker("old"):

        def done() -> bool:
            """Of an account nobody knows, so that it fails at once."""
            conn.execute(
                "insert into sync_queue (queue, account_id, entity_type, operation, payload) values "
                "('default', gen_random_uuid(), 'product', 'sync', jsonb_build_object('main', gen_random_uuid()))"
            )
            old.wait_until(lambda: left() == 0)
            return True

        def left() -> int:
            row = conn.execute("select count(*) from sync_queue where status <> 'failed'").fetchone()
            return int(row[0]) if row else 0

        assert all(done() for _ in range(8))
        (before,) = conn.execute("select id, started_at from workers where name = 'old'").fetchall()
        assert "applied 0015_types" in new.call("migrate", "--expand").stdout
        assert all(done() for _ in range(8))
        assert conn.execute("select id, started_at from workers where name = 'old'").fetchall() == [before]
        errors = {row[0] for row in conn.execute("select distinct error from sync_queue")}
    assert len(errors) == 1, errors


def test_a_first_migrate_asks_nobody(new: Release, empty_database_url: str) -> None:
    """An empty database has no workers: everything is applied in one go, contract steps too."""
    new.env["DATABASE_URL"] = empty_database_url

    told, done = new.call("migrate", "--check"), new.call("migrate")

    assert (told.returncode, done.returncode) == (0, 0), told.stderr + done.stderr
    assert told.stdout.count("would apply ") == done.stdout.count("applied ") == LATEST + 2
    assert new.call("check").returncode == 0


TYPES = {"claim_settlements": [20], "rescue_settlements": [20], "tick": [1184]}
"""Where PostgreSQL cannot tell the first parameter's type (bigint, timestamptz) unless psycopg says it."""


def test_statements_already_prepared_survive_columns_that_a_later_release_adds(database_url: str) -> None:
    """No statement of ours has a result that a new column changes: PostgreSQL would refuse it from then on in every
    session of an old worker that has prepared it ("cached plan must not change result type")."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        ours = []
        for name in sorted(db._queries(), key=lambda name: "create temporary" not in db.query(name)):
            if "create temporary" in db.query(name):
                conn.execute(db.query(name).replace("on commit drop", ""))
                continue
            if name == "create_schema_migrations":  # several commands: nothing prepares those
                continue
            answer = conn.pgconn.prepare(name.encode(), db._statement(name).sql, TYPES.get(name))
            assert answer.status == ExecStatus.COMMAND_OK, (name, answer.error_message.decode())
            ours.append(name)
        conn.pgconn.prepare(b"careless", b"select * from sync_queue")
        tables = conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        assert len(tables) > 5
        for table in tables:
            conn.execute(
                sql.SQL("alter table {} add column of_a_later_release text").format(sql.Identifier(table[0]))
            )
        refused = {
            name: answer.error_message.decode()
            for name in [*ours, "careless"]
            if (answer := conn.pgconn.describe_prepared(name.encode())).status != ExecStatus.COMMAND_OK
        }
        assert list(refused) == ["careless"], refused
