"""A worker as a process: signals, limits, death, sleep, and a PostgreSQL that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet

from tests.conftest import EQUAL, Family, Vendor
from worker import db, sync
from worker.app import App
from worker.demo.postgres import EmbeddedPostgres
from worker.executor import Context, Settlement
from worker.loop import Options
from worker.queues import DatabaseQueue, Ended
from worker.settings import Settings
from worker.task import Complete, NewTask, Prepare, SyncGoods, Task

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


def until(look: Callable[[], Any], what: str) -> None:
    """Wait for it to come true, as long as a slow machine may need."""
    end = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)


@dataclass
class Fleet:
    """Starts worker processes as Supervisor does; none outlives the test."""

    settings: Settings
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *options: str, memory: int = 4096, python: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """`python -m worker work` with these options, and those of Python itself."""
        env = {name: value for name, value in os.environ.items() if name not in Settings.names()}
        for name in ("DATABASE_URL", "APP_KEY"):
            env[name] = getattr(self.settings, name).get_secret_value()
        env |= {"MOYSKLAD_API_URL": self.settings.MOYSKLAD_API_URL, "LOG_DIR": str(self.folder)}
        command = [sys.executable, *python, "-m", "worker", "work", "--memory", str(memory), *options]
        with (self.folder / f"stderr-{len(self.processes)}").open("wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=stderr)
        self.processes.append(process)
        return process

    def run(self, *options: str, memory: int = 4096, python: Sequence[str] = ()) -> int:
        """The same until its end; its exit code."""
        return self.start(*options, memory=memory, python=python).wait(PATIENCE)

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def fleet_of(settings: Settings, folder: Path) -> Iterator[Fleet]:
    """A fleet until the block ends."""
    folder.mkdir(exist_ok=True)
    fleet = Fleet(settings, folder)
    try:
        yield fleet
    finally:
        fleet.end()


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """Worker processes on this test's database and simulator."""
    with fleet_of(settings, tmp_path / "fleet") as fleet:
        yield fleet


@dataclass
class Work:
    """60 goods that wait to be sent to one child, by a request that is slow the first time."""

    family: Family
    child: UUID
    run: UUID

    def slow(self, delay_ms: int) -> None:
        """The next request that writes goods takes so long."""
        self.family.simulator.control(
            "POST", "/faults", kind="delay", delay_ms=delay_ms, method="POST", path="/entity/product", count=1
        )

    def sent(self) -> bool:
        """Whether the slow request has come."""
        return any(rule["hits"] for rule in self.family.simulator.control("GET", "/faults"))

    def statuses(self) -> dict[str, int]:
        """How many goods' tasks stand where."""
        return dict(Counter(row["status"] for row in self.rows()))

    def rows(self) -> list[Any]:
        """The goods' tasks, once PostgreSQL is there."""
        peek = self.family.app.queue.peek
        rows: list[Any] = []
        for status in ("pending", "processing", "completed", "failed"):
            rows += db.patiently(lambda status=status: peek(status, account_id=self.child, limit=1000))
        return [row for row in rows if row["entity_type"] == "product"]


def prepared(family: Family) -> Work:
    """A press for one child, done up to the goods themselves."""
    child = family.children[0]
    run, _ = family.app.start_sync(child, requested_by="test")
    family.work(max_tasks=2)
    work = Work(family, child, run)
    assert work.statuses() == {"pending": 60}
    return work


@pytest.fixture
def work(family: Family) -> Work:
    """60 tasks that wait."""
    return prepared(family)


def alive(app: App) -> int:
    """Workers that have registered."""
    return len(app.db.fetch("workers"))


def test_once_with_nothing_to_do(fleet: Fleet, app: App) -> None:
    """--once on an empty queue ends well at once, and leaves no worker behind."""
    assert fleet.run("--once") == 0
    assert alive(app) == 0


def test_sigterm_finishes_the_batch(fleet: Fleet, work: Work) -> None:
    """The request under way is finished and recorded; nothing new is begun; exit 0."""
    work.slow(1000)
    process = fleet.start()
    until(work.sent, "the request")

    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE) == 0
    assert work.statuses() == {"completed": 60}
    assert work.family.difference(work.child) == EQUAL


def test_sigterm_while_asleep(fleet: Fleet, app: App) -> None:
    """A worker with nothing to do ends at once, however long it would sleep."""
    process = fleet.start("--sleep", "600")
    until(lambda: alive(app), "the registration")

    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE) == 0
    assert alive(app) == 0


def test_a_second_signal_hands_the_batch_back(fleet: Fleet, work: Work) -> None:
    """In the middle of a request: exit 0, every task pending and no attempt counted; another worker finishes.

    SIGTERM and SIGINT mean the same here; two equal ones sent at once may arrive as one.
    """
    work.slow(4000)
    process = fleet.start()
    until(work.sent, "the request")

    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)

    assert process.wait(PATIENCE) == 0
    assert {(row["status"], row["attempts"]) for row in work.rows()} == {("pending", 0)}
    assert fleet.run("--stop-when-empty") == 0
    assert work.statuses() == {"completed": 60}
    assert work.family.difference(work.child) == EQUAL


def test_restart_finishes_the_whole_batch(fleet: Fleet, work: Work) -> None:
    """Asked to restart in the middle of a request, also on heartbeats rare enough to be late: the batch is done, exit
    0, and the log says why. A worker that sleeps ends as well."""
    work.slow(1000)
    processes = [fleet.start("--sleep", "600"), fleet.start("--sleep", "600")]
    until(work.sent, "the request")
    until(lambda: alive(work.family.app) == 2, "the registration")

    assert len(work.family.app.restart_workers()) == 2

    assert [process.wait(20) for process in processes] == [0, 0]
    assert work.statuses() == {"completed": 60}
    assert (fleet.folder / "worker.log").read_text().count("reason=restart") == 2


def test_stop_when_empty_for(fleet: Fleet, work: Work) -> None:
    """Work is done first; then the process ends, though not before so long, and wakes for nothing else."""
    began = time.monotonic()

    assert fleet.run("--stop-when-empty-for", "1.5", "--sleep", "600") == 0

    assert time.monotonic() - began > 1.5
    assert work.statuses() == {"completed": 60}


def test_a_waiting_worker_has_not_imported_what_only_tasks_need(fleet: Fleet) -> None:
    """Most of its memory would be that. It has claimed, slept and tidied up: what it imports later is for a task."""
    unneeded = {"cryptography", "fastapi", "prometheus_client", "pydantic", "redis", "requests", "rich", "urllib3"}
    unneeded |= {"worker.api", "worker.links", "worker.metrics", "worker.moysklad", "worker.sync"}

    assert fleet.run("--stop-when-empty-for", "0.5", python=["-X", "importtime"]) == 0

    report = (fleet.folder / "stderr-0").read_text()
    imported = {line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")}
    assert {"worker.loop", "psycopg"} <= imported
    assert unneeded & imported == set()


def test_rest_between_batches(fleet: Fleet, work: Work) -> None:
    """Two pauses between three batches; a signal ends one."""
    began = time.monotonic()
    assert fleet.run("--rest", "0.7", "--batch", "5", "--max-tasks", "10") == 0
    assert time.monotonic() - began > 1.4

    process = fleet.start("--rest", "600", "--batch", "5")
    until(lambda: work.statuses().get("completed") == 15, "the batch")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_max_tasks(fleet: Fleet, work: Work) -> None:
    """So many and no more, though a batch could be larger."""
    assert fleet.run("--max-tasks", "5") == 0

    assert work.statuses() == {"pending": 55, "completed": 5}


def test_max_jobs_is_another_name(fleet: Fleet, work: Work) -> None:
    """Laravel's name does the same."""
    assert fleet.run("--max-jobs", "5", "--batch", "2") == 0

    assert work.statuses() == {"pending": 55, "completed": 5}


def test_max_time(fleet: Fleet) -> None:
    """The process ends itself, also out of a long sleep."""
    assert fleet.run("--max-time", "0.5", "--sleep", "600") == 0


def test_memory(fleet: Fleet, app: App, work: Work) -> None:
    """More memory than allowed: exit code 12 after one batch, however small the limit, nothing left in work."""
    assert fleet.run("--batch", "5", memory=64) == 12

    assert work.statuses() == {"pending": 55, "completed": 5}
    assert alive(app) == 0


def test_timeout(fleet: Fleet, work: Work) -> None:
    """A request longer than --timeout is given up: the tasks wait for another try, and say why."""
    work.slow(4000)

    assert fleet.run("--once", "--timeout", "1") == 0

    assert {(row["status"], row["attempts"]) for row in work.rows()} == {("pending", 1)}
    reasons = {row["error"] for row in work.rows()}
    assert len(reasons) == 1
    assert "time" in reasons.pop()


def test_stop_when_empty(fleet: Fleet, work: Work) -> None:
    """Batch after batch until nothing is there; the run is over."""
    assert fleet.run("--stop-when-empty", "--batch", "25") == 0

    assert work.statuses() == {"completed": 60}
    assert work.family.app.runs.get(work.run)["finished_at"] is not None


def test_kill_9(fleet: Fleet, work: Work) -> None:
    """A worker killed in the middle of a request: another takes over and finishes; no good is doubled."""
    work.slow(1000)
    victim = fleet.start()
    until(work.sent, "the request")

    victim.kill()
    heir = fleet.start("--sleep", "0.2")

    until(lambda: work.statuses() == {"completed": 60}, "the end")
    assert {(row["attempts"], row["worker"]) for row in work.rows()} == {(1, None)}
    assert work.family.difference(work.child) == EQUAL
    heir.send_signal(signal.SIGTERM)
    assert heir.wait(PATIENCE) == 0


def test_a_new_task_wakes_a_sleeping_worker(fleet: Fleet, app: App) -> None:
    """Enqueued, it is done at once, though the worker would sleep for ten minutes; also right after another."""
    fleet.start("--sleep", "600")
    until(lambda: alive(app), "the registration")
    account = uuid4()
    app.accounts.add(account, "child", "child", "solution", "token")

    for n in range(1, 4):
        app.queue.enqueue([NewTask(account, "catalogue", "prepare", Prepare(uuid4()), entity_id=str(n))])
        until(lambda n=n: len(app.queue.peek("completed")) == n, f"task {n}")


def test_a_buried_worker_comes_back_under_another_name(fleet: Fleet, work: Work) -> None:
    """Its session was cut and it was given up for dead: it registers anew and goes on working."""
    app = work.family.app
    process = fleet.start("--sleep", "600", "--queue", "nothing,default")
    until(lambda: work.statuses() == {"completed": 60}, "the goods")
    (before,) = app.db.fetch("workers")
    with app.db.connection() as conn:
        conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%'")
        conn.execute("delete from workers")

    until(lambda: alive(app), "the new registration")

    (after,) = app.db.fetch("workers")
    assert after["pid"] == before["pid"] == process.pid
    assert after["id"] > before["id"]
    app.queue.enqueue([NewTask(work.child, "catalogue", "prepare", Prepare(uuid4()), entity_id="x")])
    until(lambda: not app.queue.peek("pending"), "the next task")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_postgresql_stopped_and_started(simulator: Vendor) -> None:
    """It goes away during a request: the worker waits, records the answer, sleeps, is woken, works on."""
    with tempfile.TemporaryDirectory(prefix="moysklad-test-", ignore_cleanup_errors=True) as folder:
        postgres = EmbeddedPostgres(Path(folder))
        postgres.start()
        try:
            settings = Settings.from_env({
                "DATABASE_URL": postgres.url(),
                "APP_KEY": Fernet.generate_key().decode(),
                "MOYSKLAD_API_URL": simulator.url,
                "LOG_DIR": folder,
            })  # fmt: skip
            db.migrate(postgres.url())
            with App(settings) as app, fleet_of(settings, Path(folder) / "fleet") as fleet:
                family = Family(app, simulator, uuid4())
                family.main = family.add("main", "Main")
                family.add("child", "First")
                family.seed(60)
                outage(family, fleet, postgres)
        finally:
            postgres.close()


def outage(family: Family, fleet: Fleet, postgres: EmbeddedPostgres) -> None:
    """Stop PostgreSQL while a request is under way, start it once the answer has come."""
    work = prepared(family)
    work.slow(500)
    process = fleet.start("--sleep", "600")
    until(work.sent, "the request")
    postgres.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.url())
    time.sleep(0.6)
    assert process.poll() is None

    postgres.start()

    until(lambda: work.statuses() == {"completed": 60}, "the record")
    assert {row["attempts"] for row in work.rows()} == {1}
    assert family.difference(work.child) == EQUAL
    app = family.app
    app.queue.enqueue([NewTask(work.child, "catalogue", "prepare", Prepare(uuid4()), entity_id="x")])
    until(lambda: not app.queue.peek("pending"), "the next task")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_who_is_told_of_each_task_looks_once_a_second(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after every task; and so it finds, while they come, what nobody has told it of."""
    done: list[str] = []

    def handle(_: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
        done.extend(task.entity_id for task in tasks)
        yield Settlement([Ended(task, Complete("done")) for task in tasks])

    monkeypatch.setitem(sync.HANDLERS, ("product", "sync"), handle)
    looks: list[float] = []
    look = DatabaseQueue._look
    monkeypatch.setattr(DatabaseQueue, "_look", lambda *given: looks.append(time.monotonic()) or look(*given))
    account, told = uuid4(), iter(range(10_000))

    def tell() -> None:
        name = f"told {next(told)}"
        app.queue.enqueue([NewTask(account, "product", "sync", SyncGoods(account), entity_id=name)])
        until(lambda: name in done, name)

    def produce() -> None:
        try:
            with app.db.connection() as conn:
                until(lambda: conn.execute("select from workers where asleep").fetchall(), "the sleep")
            time.sleep(0.5)
            before, began = len(looks), time.monotonic()
            for _ in range(60):
                tell()
            found.append((len(looks) - before, time.monotonic() - began))
            with app.db.connection() as conn:
                conn.execute(
                    "insert into sync_queue (queue, account_id, entity_type, entity_id, operation)"
                    " values ('default', %s, 'product', 'untold', 'sync')",
                    [uuid4()],
                )
            while "untold" not in done:
                tell()
        finally:
            if not ended.is_set():  # else the signal would end pytest
                os.kill(os.getpid(), signal.SIGTERM)

    found: list[tuple[int, float]] = []
    ended = threading.Event()
    producer = threading.Thread(target=produce)
    loop = app.worker(Options(sleep=600, memory=100_000))  # all of pytest is in this process
    producer.start()
    try:
        code = loop.run()
    finally:
        ended.set()
    producer.join()
    assert code == 0

    ((number, seconds),) = found
    assert number <= 4 * (seconds + 1)  # each look that finds nothing is followed by up to three
    assert number < 60 or seconds > 15
    assert "untold" in done
