"""What the torture of the queue is made of: the fleet, its tasks, what is done to them, and what must hold after.

A task's effect is a row in `ledger`, written in the transaction that ends it, with the claim it was done under:
(id, attempts, worker). So a task that was lost shows as one that is not over, one done twice as two rows, and one
whose end and effect disagree as a row too many or too few.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
from cryptography.fernet import Fernet

from bench.queue.zygote import Zygote
from worker import db, sync, task, telemetry
from worker.app import App
from worker.db import Connection, patiently
from worker.demo.postgres import EmbeddedPostgres
from worker.errors import Retryable
from worker.executor import Context, Handler, Settlement
from worker.loop import Options
from worker.queues import Ended
from worker.settings import Settings
from worker.task import Complete, NewTask, Outcome, Payload, Retry, Snooze, Task

WORKERS = 8
TRIES = 4
LEASE = 3
HOUR = 3600.0
CONNECTIONS = 60
ENTITY, OPERATION = "torture", "mark"
LEDGER = """
create table ledger (id bigint not null, attempts integer not null, worker bigint not null, entity_id text not null,
                     pid integer not null default pg_backend_pid(), at timestamptz not null default clock_timestamp())
"""
BEHAVIOURS = ("plain", "plain", "plain", "plain", "slow", "flaky", "raising", "snoozing", "hopeless", "poison")


@dataclass(frozen=True, slots=True)
class Mark:
    """Payload of the torture's tasks: how its handler behaves."""

    behaviour: str = "plain"


_LOT = random.Random()
"""Seeded anew in each worker."""

task.KINDS[ENTITY, OPERATION] = cast(type[Payload], Mark)


def attempts_of(behaviour: str) -> int:
    """How many attempts such a task takes when none is lost and none is counted that was not made."""
    return {"flaky": 3, "raising": 2, "hopeless": 1, "poison": TRIES}.get(behaviour, 1)


def handle(_: Context, tasks: Sequence[Task]) -> Iterator[Settlement]:
    """One part at a time, some slowly; what fails fails as its payload says."""
    rng = random.Random(tasks[0].id)
    raising = [each for each in tasks if _behaviour(each) == "raising" and each.attempts == 1]
    if raising:
        rest = [each for each in tasks if each not in raising]
        yield from _parts(rest, rng)
        raise Retryable("the first attempt of these raises")
    yield from _parts(list(tasks), rng)


def _parts(tasks: list[Task], rng: random.Random) -> Iterator[Settlement]:
    while tasks:
        size = rng.randint(1, 8)
        part, tasks = tasks[:size], tasks[size:]
        time.sleep(max(rng.uniform(0.02, 0.1) if _behaviour(each) == "slow" else 0.001 for each in part))
        ended = [Ended(each, _outcome(each)) for each in part]
        yield Settlement(ended, _effect([end.task for end in ended if isinstance(end.outcome, Complete)]))


def _behaviour(each: Task) -> str:
    return cast(Mark, each.decode()).behaviour


def _outcome(each: Task) -> Outcome:
    behaviour = _behaviour(each)
    if behaviour == "flaky" and each.attempts < attempts_of(behaviour):
        return Retry(f"attempt {each.attempts} of a flaky task")
    if behaviour == "snoozing" and _LOT.random() < 0.5:
        return Snooze(0.3, "not yet")
    if behaviour == "poison":
        return Retry("it never works")
    if behaviour == "hopeless":
        return task.Fail("there is no way")
    return Complete("marked")


def _effect(tasks: Sequence[Task]) -> Callable[[Connection, set[int]], None] | None:
    if not tasks:
        return None

    def write(conn: Connection, owned: set[int]) -> None:
        rows = [(each.id, each.attempts, each.worker, each.entity_id) for each in tasks if each.id in owned]
        with conn.cursor() as cursor:
            cursor.executemany("insert into ledger (id, attempts, worker, entity_id) values (%s, %s, %s, %s)", rows)

    return write


def worker(env: dict[str, str], seed: int, off: float) -> int:
    """A worker's whole life, in a process of its own; its host's clock is off by so many seconds."""
    _LOT.seed(seed)
    if off:
        _set_clock(off)
    sync.HANDLERS[ENTITY, OPERATION] = cast(Handler, handle)
    made = Settings.from_env(env)
    telemetry.configure(made, console=False)
    with App(made) as app:
        patiently(app.require_schema)
        options = Options(sleep=0.5, tries=TRIES, timeout=60, batch=20, memory=4096)
        return app.worker(options, name=f"torture {os.getpid()}", rng=random.Random(seed)).run()


def _set_clock(off: float) -> None:
    """Have all of the worker's code see another time than the servers do."""
    real = time.time
    time.time = lambda: real() + off

    class Elsewhere(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Elsewhere:
            return cls.fromtimestamp(time.time(), tz)

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "worker" and getattr(module, "datetime", None) is datetime:
            vars(module)["datetime"] = Elsewhere


def mover(env: dict[str, str], source: str) -> int:
    """Move what waits, as `queue move` does, in a process of its own."""
    made = Settings.from_env(env)
    telemetry.configure(made, console=False)
    with App(made) as app, app.moving(source) as moving:
        moving.run(source, 600)
    return 0


class RedisServer:
    """A Redis with AOF and few connections; what it has answered survives its death.

    With `everysec` a write may wait in the process for two seconds behind a slow fsync, and die with it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its REDIS_URL."""
        return f"unix://{self._socket}"

    def connect(self) -> Any:
        """A connection of one's own."""
        import redis

        client = redis.Redis.from_url(self.url, single_connection_client=True, retry=None)
        client.ping()
        return client

    def start(self) -> None:
        """Start it, on the data it has."""
        command = ["redis-server", "--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder),
                   "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxclients", str(CONNECTIONS),
                   "--loglevel", "warning", "--logfile", str(self._folder / "redis.log")]  # fmt: skip
        self._process = subprocess.Popen(command)
        until = time.monotonic() + 30
        while True:
            try:
                self.connect().close()
            except Exception:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self, mode: str = "fast") -> None:
        """In good order, or `immediate`: by kill -9."""
        if self._process is not None:
            self._process.kill() if mode == "immediate" else self._process.terminate()
            self._process.wait(30)


@dataclass
class Cell:
    """One torture: a server of its own, eight workers that are started again whenever they end."""

    seed: int
    folder: Path
    env: dict[str, str]
    postgres: EmbeddedPostgres
    app: App
    zygote: Zygote
    off: dict[int, float]
    redis: RedisServer | None = None
    """Where the tasks live, if it is not PostgreSQL."""
    drivers: Sequence[str] = ()
    """Where the workers, in turn, look for tasks; all at the same place unless told."""
    counts: Counter[str] = field(default_factory=Counter)

    def keep_alive(self, over: threading.Event) -> None:
        """Start whoever is not there, as Supervisor does."""
        rng = random.Random(self.seed)
        while not over.wait(0.02):
            alive = set(self.zygote.alive().values())
            for slot in range(WORKERS):
                if str(slot) not in alive:
                    self.start(slot, rng.randrange(1 << 30))
                    self.counts["starts"] += 1

    def start(self, slot: int, seed: int = 1) -> int:
        """Start that worker; its process id."""
        env = self.env | {"QUEUE_CONNECTION": self.drivers[slot % len(self.drivers)]}
        return self.zygote.start(str(slot), env=env, seed=seed, off=self.off.get(slot, 0.0))

    def killer(self, over: threading.Event) -> None:
        """kill -9, at random, one worker or several."""
        rng = random.Random(self.seed + 1)
        while not over.wait(rng.uniform(0.1, 0.8)):
            pids = sorted(self.zygote.alive())
            for pid in rng.sample(pids, min(len(pids), rng.choice((1, 1, 1, 3)))):
                self.zygote.kill(pid)
                self.counts["kills"] += 1

    def terminator(self, over: threading.Event) -> None:
        """A stream of terminated sessions: some hold locks, some claim, some settle."""
        rng = random.Random(self.seed + 2)
        while not over.wait(rng.uniform(0.02, 0.2)):
            with contextlib.suppress(*self._away()):
                if self.redis and rng.random() < 0.5:
                    client = self.redis.connect()
                    ids = [row["id"] for row in client.client_list() if int(row["id"]) != client.client_id()]
                    client.client_kill_filter(_id=rng.choice(ids))
                    client.close()
                else:
                    with psycopg.connect(self.postgres.url(), autocommit=True) as conn:
                        pids = conn.execute(
                            "select pid from pg_stat_activity where datname = current_database()"
                            " and backend_type = 'client backend' and pid <> pg_backend_pid() order by pid"
                        ).fetchall()
                        conn.execute("select pg_terminate_backend(%s)", rng.choice(pids))
                self.counts["terminated"] += 1

    def _away(self) -> tuple[type[Exception], ...]:
        """What the tormentors themselves run into, where a server is gone or nobody is there."""
        errors: tuple[type[Exception], ...] = (psycopg.Error, IndexError)
        if self.redis:
            import redis

            errors += (redis.RedisError,)
        return errors

    def hog(self, over: threading.Event) -> None:
        """Take every connection there is for a while: nobody gets in."""
        rng = random.Random(self.seed + 3)
        while not over.wait(rng.uniform(2, 4)):
            with contextlib.ExitStack() as held:
                try:
                    for _ in range(CONNECTIONS):
                        if self.redis:
                            held.callback(self.redis.connect().close)
                        else:
                            held.enter_context(psycopg.connect(self.postgres.url(), autocommit=True))
                except self._away():
                    self.counts["exhausted"] += 1
                over.wait(rng.uniform(0.3, 1))

    def idler(self, over: threading.Event) -> None:
        """A session that has locked tasks, or the ledger, and then forgets about its transaction."""
        rng = random.Random(self.seed + 4)
        while not over.wait(rng.uniform(0.2, 1)):
            with contextlib.suppress(psycopg.Error), psycopg.connect(self.postgres.url()) as conn:
                status = rng.choice(("pending", "processing", ""))
                if status and not self.redis:
                    conn.execute("select id from sync_queue where status = %s limit 30 for update", [status])
                else:
                    conn.execute("lock table ledger in share mode")
                self.counts["idle"] += 1
                over.wait(rng.uniform(0.5, 2))
                conn.rollback()

    def restarts(self, over: threading.Event) -> None:
        """The server crashes and comes back, and is restarted in good order; with Redis both do."""
        rng = random.Random(self.seed + 5)
        servers: list[EmbeddedPostgres | RedisServer] = [self.postgres, *([self.redis] if self.redis else [])]
        for mode in rng.sample(("immediate", "fast"), 2):
            for server in servers:
                if over.wait(rng.uniform(2, 4) / (2 if self.redis else 1)):
                    return
                server.stop(mode)
                over.wait(rng.uniform(0.2, 1))
                server.start()
                self.counts["restarts"] += 1

    def produce(self, tasks: int, over: threading.Event) -> None:
        """Enqueue so many in small and large portions, now and then one again; what got no answer is repeated."""
        rng = random.Random(self.seed + 6)
        accounts = [UUID(int=n + 1) for n in range(6)]
        number = 0
        while number < tasks:
            size = min(rng.choice((1, 1, 3, 30, 150)), tasks - number)
            fresh = [self._new(n, accounts, rng) for n in range(number, number + size)]
            again = [self._new(rng.randrange(number), accounts, rng) for _ in range(size // 10) if number]
            patiently(lambda new=[*fresh, *again]: self.app.queue.enqueue(new))  # type: ignore[misc]
            number += size
            over.wait(rng.uniform(0, 0.15))

    def _new(self, number: int, accounts: list[UUID], rng: random.Random) -> NewTask:
        own = random.Random(self.seed * 1_000_003 + number)  # asked for again, a task is the same
        payload = cast(Payload, Mark(own.choice(BEHAVIOURS)))
        return NewTask(own.choice(accounts), ENTITY, OPERATION, payload, entity_id=str(number),
                       priority=rng.choice((1, 5, 10)))  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Every task there is, once the server answers."""
        found: list[dict[str, Any]] = []
        for status in ("pending", "processing", "completed", "failed"):
            found += map(dict, patiently(lambda status=status: self.app.queue.peek(status, limit=1_000_000)))  # type: ignore[misc]
        return found

    def waiting(self) -> int:
        """Tasks that are not over."""
        return sum(len(patiently(lambda status=status: self.app.queue.peek(status, limit=1_000_000)))  # type: ignore[misc]
                   for status in ("pending", "processing"))  # fmt: skip

    def ledger(self) -> list[dict[str, Any]]:
        """Every effect."""
        with self.app.db.connection() as conn:
            return conn.execute("select * from ledger order by at").fetchall()


@contextmanager
def cell(seed: int, folder: Path, driver: str = "database") -> Iterator[Cell]:
    """Servers with few connections, one worker whose clock is an hour off, nobody at work yet."""
    postgres = EmbeddedPostgres(folder)
    postgres.start()
    with contextlib.ExitStack() as stack:
        stack.callback(postgres.close)
        with psycopg.connect(postgres.url(), autocommit=True) as conn:
            # A crash of the server loses nothing that the system has in its cache, so fsync would only cost time.
            conn.execute("alter system set fsync = off")
            conn.execute(f"alter system set max_connections = {CONNECTIONS}")
        postgres.stop()
        postgres.start()
        db.migrate(postgres.url())
        with psycopg.connect(postgres.url(), autocommit=True) as conn:
            conn.execute(LEDGER)
        env = {
            "DATABASE_URL": postgres.url(),
            "APP_KEY": Fernet.generate_key().decode(),
            "LOG_DIR": str(folder / "logs"),
            "LEASE_SECONDS": str(LEASE),
            "CONNECT_TIMEOUT": "2",
            "QUEUE_CONNECTION": driver,
        }
        redis = None
        if driver == "redis":
            redis = RedisServer(folder)
            redis.start()
            stack.callback(redis.stop)
            env["REDIS_URL"] = redis.url
        app = stack.enter_context(App(Settings.from_env(env)))
        zygote = stack.enter_context(Zygote("tests.chaos.torture", "worker", folder / "stderr"))
        off = {random.Random(seed).randrange(WORKERS): random.Random(seed).choice((-HOUR, HOUR))}
        yield Cell(seed, folder, env, postgres, app, zygote, off, redis, [driver])
