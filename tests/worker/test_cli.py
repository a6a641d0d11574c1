"""The command line: what it answers, where it refuses, with which exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet

from tests.conftest import EQUAL, Family, Server
from worker import __version__, cli
from worker.app import App
from worker.cli import work
from worker.links import LinkSettings
from worker.loop import Options
from worker.settings import Settings
from worker.task import NewTask, Plan, Prepare, SyncGoods

ROOT = Path(__file__).parents[2]
MAIN, CHILD = UUID(int=1), UUID(int=2)
TOKEN = "token-that-nobody-may-see"


@dataclass
class Answer:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one line of JSON."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Call = Callable[..., Answer]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process as the console script would, with no setting in the environment."""
    for name in Settings.names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "250")

    def call(*words: object, stdin: str = "") -> Answer:
        monkeypatch.setattr(sys, "argv", ["moysklad-worker", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def env(settings: Settings, monkeypatch: pytest.MonkeyPatch, shell: Call) -> Settings:
    """This test's settings in the environment."""
    for name in ("DATABASE_URL", "APP_KEY"):
        monkeypatch.setenv(name, getattr(settings, name).get_secret_value())
    monkeypatch.setenv("LOG_DIR", str(settings.LOG_DIR))
    monkeypatch.setenv("MOYSKLAD_API_URL", settings.MOYSKLAD_API_URL)
    return settings


@pytest.fixture
def known(env: Settings, app: App) -> App:
    """A main account and its child."""
    app.accounts.add(MAIN, "Main", "main", "solution", TOKEN)
    app.accounts.add(CHILD, "Child", "child", "user", TOKEN)
    app.accounts.link(MAIN, CHILD)
    return app


def ended(app: App, end: str) -> int:
    """A task of CHILD that has ended so; its id."""
    app.queue.enqueue([NewTask(CHILD, "product", "sync", SyncGoods(MAIN), entity_id=str(uuid4()))])
    batch = app.queue.claim(["*"], 1)
    assert batch
    with app.db.connection() as conn:
        conn.execute(
            "update sync_queue set status = %s, error = 'no such unit', completed_at = now() where id = %s",
            [end, batch.first.id],
        )
    return batch.first.id


# Set-up


def test_it_is_a_console_script() -> None:
    """`python -m worker` is the command line; --version needs no settings."""
    env = {name: value for name, value in os.environ.items() if name not in Settings.names()}
    done = subprocess.run(
        [sys.executable, "-m", "worker", "--version"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_key_prints_a_new_key(shell: Call) -> None:
    """A Fernet key, another each time, without any settings."""
    first, second = shell("key"), shell("key")

    assert (first.code, second.code) == (0, 0)
    assert first.out != second.out
    Fernet(first.out.strip())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Usage"),
        (["nonsense"], "No such command"),
        (["work", "--sleep", "soon"], "--sleep"),
        (["work", "--tries", "-1"], "--tries"),
        (["sync", "my-shop"], "'my-shop' is not a UUID"),
        (["accounts", "add", "--id", MAIN], "Missing option"),
        (["accounts"], "Usage"),
        (["schedule"], "Usage"),
    ],
)
def test_wrong_usage_is_code_2(shell: Call, words: list[object], told: str) -> None:
    """What cannot be understood ends with 2 and says what."""
    answer = shell(*words)

    assert answer.code == 2
    assert told in answer.out + answer.err


def test_wrong_settings_are_code_2(shell: Call) -> None:
    """Each setting that does not hold is named, on stderr."""
    answer = shell("check")

    assert (answer.code, answer.out) == (2, "")
    assert "DATABASE_URL: is not set" in answer.err
    assert "APP_KEY: is not set" in answer.err


def test_check_shows_the_settings_without_secrets(env: Settings, shell: Call) -> None:
    """Every setting on a line of its own, secrets as stars, then ok."""
    answer = shell("check")

    assert answer.code == 0
    lines = answer.out.splitlines()
    assert [line.partition("=")[0] for line in lines[:-1]] == Settings.names()
    assert lines[-1].startswith("ok")
    assert "APP_KEY=***" in lines
    assert env.APP_KEY.get_secret_value() not in answer.out


def test_check_sees_a_log_folder_that_cannot_be_written(
    env: Settings, shell: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A log file that cannot be opened, or a folder that cannot be made, is told before anything runs."""
    (tmp_path / "taken" / "worker.log").mkdir(parents=True)
    for folder in (tmp_path / "taken", Path("/proc/nowhere")):
        monkeypatch.setenv("LOG_DIR", str(folder))

        answer = shell("check")

        assert answer.code == 2
        assert f"LOG_DIR {folder} cannot be written" in answer.err


def test_the_env_file_option(
    shell: Call, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--env-file names the settings; one that is not there is told."""
    file = tmp_path / "worker.env"
    file.write_text(
        f"DATABASE_URL='{settings.DATABASE_URL.get_secret_value()}'\n"
        f"APP_KEY={settings.APP_KEY.get_secret_value()}\nLOG_DIR={tmp_path}\n"
    )

    assert shell("--env-file", file, "check").code == 0
    missing = shell("--env-file", tmp_path / "none", "check")
    assert missing.code == 2
    assert str(tmp_path / "none") in missing.err


def test_migrate_twice(shell: Call, env: Settings, monkeypatch: pytest.MonkeyPatch, empty_database_url: str) -> None:
    """Before: every command says what to run. The first migrate lists what it did, the second did nothing."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    before = shell("monitor", "--once")
    first, second = shell("migrate"), shell("migrate")

    assert before.code == 1
    assert "moysklad-worker migrate" in before.err
    assert (first.code, second.code) == (0, 0)
    assert first.out.startswith("applied 0001_")
    assert second.out == "nothing to migrate\n"
    assert shell("monitor", "--once").code == 0


@pytest.mark.parametrize("command", [["check"], ["migrate"], ["monitor", "--json"]])
def test_postgresql_that_cannot_be_reached(
    env: Settings, shell: Call, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Code 1 and what to look at, without the password and without a traceback."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://worker:not-to-be-seen@127.0.0.1:1/queue")
    monkeypatch.setenv("CONNECT_TIMEOUT", "0.5")

    answer = shell(*command)

    assert answer.code == 1
    assert "PostgreSQL cannot be reached" in answer.err
    assert "Check DATABASE_URL" in answer.err
    assert "not-to-be-seen" not in answer.out + answer.err
    assert "Traceback" not in answer.err


def test_a_worker_waits_for_postgresql(settings: Settings, server: Server, template: str, tmp_path: Path) -> None:
    """Started before its database is there, it says so, waits, and then works."""
    parts = urlsplit(settings.DATABASE_URL.get_secret_value())
    late = f"late_{uuid4().hex}"
    env = {name: value for name, value in os.environ.items() if name not in Settings.names()} | {
        "DATABASE_URL": urlunsplit(parts._replace(path=f"/{late}")),
        "APP_KEY": settings.APP_KEY.get_secret_value(),
        "LOG_DIR": str(tmp_path),
        "CONNECT_TIMEOUT": "1",
    }
    command = [sys.executable, "-m", "worker", "work", "--max-time", "0.1", "--quiet", "--memory", "4096"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (log := tmp_path / "worker.log").exists() or "database.wait" not in log.read_text("utf-8"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert process.poll() is None
        with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
            conn.execute(f"create database {late} template {template}")  # type: ignore[call-overload]
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        server.drop(env["DATABASE_URL"])


# Accounts


def test_accounts_from_nothing_to_nothing(env: Settings, app: App, shell: Call, tmp_path: Path) -> None:
    """add, link, list, token, unlink, remove; tokens come from a file or standard input and are never shown."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    answers = [
        shell("accounts", "add", "--id", MAIN, "--name", "Main", "--role", "main", "--token-file", file),
        shell("accounts", "add", "--id", CHILD, "--name", "Child", "--role", "child", "--auth", "user",
              "--weight", 7, "--token-file", "-", stdin=f"{TOKEN}-2\n"),
        shell("accounts", "link", MAIN, CHILD, "--set", "match_field=code", "--set", "every_minutes=60"),
        shell("accounts", "list"),
        shell("accounts", "list", "--json"),
        shell("accounts", "token", MAIN, "--token-file", "-", stdin=f"{TOKEN}-3"),
    ]  # fmt: skip

    assert [answer.code for answer in answers] == [0] * 6
    main, child = app.accounts.get(MAIN), app.accounts.get(CHILD)
    assert (main.token, main.role, main.auth, main.weight) == (f"{TOKEN}-3", "main", "solution", None)
    assert (child.token, child.role, child.auth, child.weight) == (f"{TOKEN}-2", "child", "user", 7)
    link = app.accounts.link_between(MAIN, CHILD).settings
    assert link == LinkSettings(match_field="code", every_minutes=60)
    assert "Child" in answers[3].out
    assert [row["name"] for row in answers[4].json] == ["Main", "Child"]

    answers += [
        shell("accounts", "unlink", MAIN, CHILD),
        shell("accounts", "remove", CHILD, "--yes"),
        shell("accounts", "remove", MAIN, stdin="y\n"),
        shell("accounts", "list", "--json"),
    ]
    assert [answer.code for answer in answers] == [0] * 10
    assert answers[-1].json == []
    assert not any(TOKEN in answer.out + answer.err for answer in answers)
    assert TOKEN not in (env.LOG_DIR / "worker.log").read_text()


def test_link_changes_only_what_is_named(known: App, shell: Call) -> None:
    """A second `link` keeps the settings it does not name; JSON values are JSON, others are text."""
    shell("accounts", "link", MAIN, CHILD, "--set", "vat=child", "--set", 'price_types={"Цена": "Опт"}')
    answer = shell("accounts", "link", MAIN, CHILD, "--set", "create_price_types=true")

    assert answer.code == 0
    assert known.accounts.link_between(MAIN, CHILD).settings == LinkSettings(
        vat="child", price_types={"Цена": "Опт"}, create_price_types=True
    )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["link", MAIN, MAIN], 1, "cannot receive from itself"),
        (["link", CHILD, MAIN], 1, "is not a main account"),
        (["link", MAIN, UUID(int=9)], 1, "there is no account"),
        (["link", MAIN, CHILD, "--set", "vat"], 2, "name=value"),
        (["link", MAIN, CHILD, "--set", "vat=none", "--set", "color=red"], 2, "color"),
        (["unlink", MAIN, UUID(int=9)], 1, "does not receive from"),
        (["remove", UUID(int=9), "--yes"], 1, "there is no account"),
        (["remove", CHILD], 1, "Abort"),
        (["token", CHILD, "--token-file", "/nowhere/token"], 2, "/nowhere/token"),
        (["token", CHILD, "--token-file", "-"], 2, "is empty"),
        (["add", "--id", CHILD, "--name", "C", "--role", "child", "--token-file", "-"], 1, "exists already"),
        (["token", CHILD, "--token-file", sys.executable], 2, "is no text"),
    ],
)
def test_accounts_refusals(known: App, shell: Call, words: list[object], code: int, told: str) -> None:
    """What contradicts the accounts known is 1, what cannot be read is 2; nothing has changed."""
    before = known.accounts.overview()

    answer = shell("accounts", *words, stdin="" if "token" in words else "n\n")

    assert (answer.code, told in answer.err) == (code, True), answer.err
    assert known.accounts.overview() == before


def test_list_tells_who_is_parked_now(known: App, shell: Call) -> None:
    """A parked account is listed with its reason, one whose pause is over is not."""
    known.accounts.park(CHILD, "HTTP 401")
    known.accounts.park(MAIN, "was too fast", until=datetime.now(UTC) - timedelta(seconds=1))

    answer = shell("accounts", "list")

    assert "HTTP 401" in answer.out
    assert "was too fast" not in answer.out


def test_names_and_errors_are_shown_as_they_are(known: App, shell: Call) -> None:
    """Brackets and colons in what others wrote are text, not style."""
    strange = "a [/b] [red] :smile: [3006]"
    known.accounts.add(UUID(int=3), strange, "child", "solution", TOKEN)
    run, _ = known.start_sync(CHILD, requested_by=strange)
    task = ended(known, "failed")
    with known.db.connection() as conn:
        conn.execute("update sync_queue set error = %s, run_id = %s where id = %s", [strange, run, task])
    known.accounts.park(CHILD, strange)

    for words in (["accounts", "list"], ["runs"], ["runs", run], ["monitor", "--once"]):
        answer = shell(*words)
        assert (answer.code, strange in answer.out) == (0, True), answer


def test_a_new_token_lets_a_parked_account_go_on(known: App, shell: Call) -> None:
    """`accounts token` un-parks."""
    known.accounts.park(CHILD, "HTTP 401")

    assert shell("accounts", "token", CHILD, "--token-file", "-", stdin="new").code == 0

    assert [row["parked_until"] for row in known.accounts.overview()] == [None, None]


# Day to day


def in_background(call: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    """The call begun in a thread, and where its answer will be."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def test_sync_waits_for_the_end(family: Family, env: Settings, shell: Call) -> None:
    """--wait returns when the children are equal, with what was done."""
    thread, answers = in_background(lambda: shell("sync", family.main, "--wait"))
    end = time.monotonic() + 60
    while not family.app.queue.stats():
        assert time.monotonic() < end
        time.sleep(0.02)
    family.work()
    thread.join(60)

    assert [answer.code for answer in answers] == [0]
    assert answers[0].out.startswith("started run ")
    assert "120 created" in answers[0].out
    assert [family.difference(child) for child in family.children] == [EQUAL, EQUAL]


def test_sync_waits_and_tells_what_failed(family: Family, env: Settings, shell: Call) -> None:
    """One good refused: code 1, its id and the vendor's reason."""
    child = family.children[0]
    family.simulator.control(
        "POST", "/faults", kind="item_error", method="POST", path="/entity/product", account=str(child), items=[3],
        code=3006,
    )  # fmt: skip
    run, _ = family.app.start_sync(child, requested_by="test")
    family.work()

    answer = shell("runs", run, "--json")

    assert (answer.code, answer.json["counts"]["failed"]) == (0, 1)
    assert "3006" in answer.json["problems"][0]["error"]
    assert "3006" in shell("runs", run).out


def test_sync_without_waiting_starts_then_joins(known: App, shell: Call) -> None:
    """The run is begun and named; a second press joins it."""
    first, second = shell("sync", MAIN), shell("sync", MAIN, "--json")

    assert (first.code, second.code) == (0, 0)
    assert first.out == f"started run {second.json['id']}\n"
    assert second.json["joined"] is True
    assert [str(row["id"]) for row in known.runs.newest()] == [second.json["id"]]


@pytest.mark.parametrize(("account", "told"), [(UUID(int=9), "there is no account"), (UUID(int=3), "has no main")])
def test_sync_of_what_cannot_be_synced(known: App, shell: Call, account: UUID, told: str) -> None:
    """An unknown account, and one without a link, are refused."""
    known.accounts.add(UUID(int=3), "Alone", "child", "user", TOKEN)

    answer = shell("sync", account, "--wait")

    assert (answer.code, told in answer.err) == (1, True)


def test_runs(known: App, shell: Call) -> None:
    """The newest first, of one account if asked for; an unknown run is refused."""
    run, _ = known.start_sync(CHILD, requested_by="somebody")

    assert [row["id"] for row in shell("runs", "--json").json] == [str(run)]
    assert shell("runs", "--account", UUID(int=9), "--json").json == []
    told = shell("runs").out
    assert (str(run) in told, "somebody" in told, "under way" in told) == (True, True, True)
    assert (shell("runs", uuid4()).code, shell("runs", "--limit", 0).code) == (1, 2)


def test_enqueue(known: App, shell: Call) -> None:
    """A task with its payload, rank and time; a second one joins it."""
    entity = str(uuid4())
    words = ("enqueue", "product", "sync", CHILD, "--entity", entity, "--payload", json.dumps({"main": str(MAIN)}))

    first = shell(*words, "--at", "2030-01-02T03:04:05")
    second = shell(*words, "--priority", 50, "--at", "2031-01-01")

    assert (first.out, second.out) == ("enqueued\n", "joined a pending task\n")
    (row,) = known.queue.peek("pending")
    assert (row["account_id"], row["entity_id"], row["payload"]) == (CHILD, entity, {"main": str(MAIN)})
    assert (row["priority"], row["scheduled_at"]) == (50, datetime(2030, 1, 2, 3, 4, 5).astimezone())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["product", "explode", CHILD], 2, "known are catalogue/plan"),
        (["product", "sync", CHILD, "--entity", uuid4(), "--payload", "{"], 2, "is not JSON"),
        (["product", "sync", CHILD, "--entity", uuid4(), "--payload", "[]"], 2, "must be a JSON object"),
        (["product", "sync", CHILD, "--entity", uuid4()], 1, "main"),
        (["product", "sync", CHILD, "--entity", uuid4(), "--payload", '{"main": "x"}'], 1, "does not fit"),
        (["product", "sync", CHILD, "--payload", json.dumps({"main": str(MAIN)})], 2, "--entity"),
        (["product", "sync", CHILD, "--entity", "x", "--payload", json.dumps({"main": str(MAIN)})], 2, "--entity"),
        (["catalogue", "plan", UUID(int=9)], 1, "there is no account"),
        (["catalogue", "plan", MAIN, "--priority", 101], 2, "--priority"),
    ],
)
def test_enqueue_refusals(known: App, shell: Call, words: list[object], code: int, told: str) -> None:
    """What no worker could do is not put into the queue."""
    answer = shell("enqueue", *words)

    assert (answer.code, told in answer.err) == (code, True), answer.err
    assert known.queue.stats() == []


def test_monitor(known: App, shell: Call) -> None:
    """Text and JSON show what waits and failed, per queue and account, and that nobody listens."""
    ended(known, "failed")
    known.queue.enqueue([NewTask(MAIN, "catalogue", "plan", Plan(), entity_id="1")])
    known.accounts.park(CHILD, "HTTP 401")

    text, whole = shell("monitor", "--once"), shell("monitor", "--json")

    assert (text.code, whole.code) == (0, 0)
    assert all(word in text.out for word in ("default", "no such unit", "nobody listens", "HTTP 401", str(MAIN)))
    assert whole.json["totals"] == {"pending": 1, "processing": 0, "completed": 0, "failed": 1}
    assert whole.json["unheard"] == ["default"]
    assert whole.json["failures"][0]["error"] == "no such unit"


def test_retry(known: App, shell: Call) -> None:
    """By id, by account and all; without saying what it is refused."""
    first, second, third = (ended(known, "failed") for _ in range(3))
    ended(known, "completed")

    assert shell("retry", first).out == "1 failed tasks are pending again\n"
    assert shell("retry", "--account", MAIN).out == "0 failed tasks are pending again\n"
    assert shell("retry", "all").out == "2 failed tasks are pending again\n"
    assert {row["id"] for row in known.queue.peek("pending")} == {first, second, third}
    assert [shell("retry").code, shell("retry", "some").code] == [2, 2]


def test_work_once(known: App, shell: Call) -> None:
    """A worker in the foreground: events on stderr unless --quiet, 0 at the end."""
    loud, quiet = shell("work", "--once", "--memory", 4096), shell("work", "--once", "--memory", 4096, "--quiet")

    assert (loud.code, quiet.code) == (0, 0)
    assert "worker.start" in loud.err
    assert quiet.err == ""
    assert shell("work", "--queue", " , ").code == 2


def test_work_freezes_what_is_there_after_the_first_batch(
    known: App, shell: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not before it: what tasks need is imported with the first one."""
    done: list[int] = []
    monkeypatch.setattr("worker.cli.work.freeze", lambda: done.append(len(known.queue.peek("pending"))))
    assert shell("work", "--once", "--memory", 4096).code == 0
    assert done == []

    known.queue.enqueue([NewTask(MAIN, "catalogue", "prepare", Prepare(uuid4()), entity_id=str(n)) for n in range(3)])
    shell("work", "--batch", 1, "--max-tasks", 2, "--tries", 1, "--memory", 4096)
    assert done == [2]


def test_health(known: App, shell: Call) -> None:
    """1 and who is missing while no worker is alive; 0 beside one, also by name and release."""
    dead = shell("health")
    codes: list[int] = []

    def look() -> None:
        codes.extend(
            shell("health", *words).code
            for words in ((), ("--process", "w_01"), ("--process", "w_02"), ("--release", "x"))
        )

    loop = known.worker(Options(once=True, memory=4096), name="w_01")
    loop._tidy = look  # called by the loop once it is registered
    loop.run()

    assert (dead.code, "no worker of" in dead.out) == (1, True)
    assert codes == [0, 0, 1, 1]


# Cron


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the time that `schedule run` sees."""

    def set(moment: datetime) -> None:
        class Still(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return moment

        monkeypatch.setattr(work, "datetime", Still)

    return set


def test_schedule_does_each_minute_once(known: App, shell: Call, clock: Callable[[datetime], None]) -> None:
    """The second host in a minute finds it done; the next minute is done again."""
    now = datetime.now(UTC).replace(second=10)
    clock(now)
    first, second, quiet = shell("schedule", "run"), shell("schedule", "run"), shell("schedule", "run", "--json")
    clock(now + timedelta(minutes=1))
    third = shell("schedule", "run", "--json")

    assert first.out == "rescued 0, pruned 0, started 0 runs\n"
    assert second.out == "another host has done this minute's work\n"
    assert quiet.json is None
    assert third.json["started"] == []


def test_schedule_starts_planned_syncs(known: App, shell: Call, clock: Callable[[datetime], None]) -> None:
    """A link with every_minutes gets a run when the last began long enough ago, and none while one is under way."""
    known.accounts.link(MAIN, CHILD, LinkSettings(every_minutes=30))
    now = datetime.now(UTC)

    def started(minutes: float) -> int:
        clock(now + timedelta(minutes=minutes))
        return len(shell("schedule", "run", "--json").json["started"])

    assert [started(0), started(1), started(31)] == [1, 0, 0]
    with known.db.connection() as conn:
        conn.execute("update sync_queue set status = 'completed', completed_at = now()")
    assert [started(29), started(32), started(33)] == [0, 1, 0]
    assert {row["requested_by"] for row in known.runs.newest()} == {"schedule"}


def test_schedule_takes_up_after_the_dead(known: App, shell: Call) -> None:
    """Tasks of a worker that no longer exists go back, whichever host did the minute; old ones are pruned."""
    ended(known, "completed")
    with known.db.connection() as conn:
        conn.execute("update sync_queue set completed_at = now() - interval '4 days'")
    known.queue.enqueue([NewTask(MAIN, "catalogue", "plan", Plan(), entity_id="1")])
    known.queue.claim(["*"], 7)

    answer = shell("schedule", "run", "--json").json

    assert (answer["rescued"], answer["pruned"]) == (1, 1)
    assert [row["status"] for row in known.queue.stats()] == ["pending"]
