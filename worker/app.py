"""The wiring, once: everything a command, the API or a worker needs, made from the settings.

What works on tasks (`sync`, the client, links, the tokens' key) is imported with the first of them, and what only
some commands need when they are called: a worker that waits would keep 25 MB of it for nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from worker.accounts import FOREVER, Accounts
from worker.breaker import Breaker
from worker.counters import Counts
from worker.db import Database, require_schema
from worker.doctor import Doctor
from worker.errors import ConfigError
from worker.executor import Executor, Handler
from worker.lease import Lease
from worker.limiter import DatabaseStore, Limiter, Store
from worker.loop import Loop, Options
from worker.monitor import Monitor
from worker.pauses import EVERYTHING, Pauses
from worker.queues import Cancelled, DatabaseQueue, Queue, SyncQueue
from worker.queues.routing import route
from worker.release import release
from worker.runs import Runs
from worker.settings import Settings
from worker.task import Priority
from worker.telemetry import emit

if TYPE_CHECKING:
    from worker.moysklad import Client
    from worker.queues.move import Move

_DRAIN_LOOK = 0.2
_CLAIM_SECONDS = 1.0
"""Seconds a claim may take from its beginning to its commit, with a margin."""


class App:
    """The parts, wired; close it, or use it as a context."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        listen = settings.DATABASE_LISTEN_URL
        self.db = Database(
            settings.DATABASE_URL.get_secret_value(),
            connect_timeout=settings.CONNECT_TIMEOUT,
            listen_url=listen.get_secret_value() if listen else None,
        )
        self.accounts = Accounts(self.db, settings.APP_KEY.get_secret_value())
        self.route = route(settings.QUEUE_TOPOLOGY, lru_cache(maxsize=10_000)(self.accounts.role_of))
        self.queue: Queue = self._queue()
        self.pauses = Pauses(self.db, self.queue.pauses_changed)
        self.runs = Runs(self.db, self.queue)
        self.limiter = Limiter(self._limiter_store())
        self.breaker = Breaker(self.db)
        self.counts = Counts()
        self.monitor = Monitor(self.db, self.queue, self.pauses)

    def _queue(self) -> Queue:
        if self.settings.QUEUE_CONNECTION == "sync":
            return SyncQueue(self.db, self.route, lambda: self._executor(Options(), lambda: False).execute)
        if self.settings.QUEUE_CONNECTION == "redis" and self.settings.REDIS_URL:
            from worker.queues.redis import RedisQueue  # its package is an extra

            return RedisQueue(self.db, self.settings.REDIS_URL.get_secret_value(), self.route)
        return DatabaseQueue(self.db, self.route)

    def _executor(self, options: Options, stopping: Callable[[], bool], rng: random.Random | None = None) -> Executor:
        return Executor(
            self.db,
            self.queue,
            self.accounts,
            self.runs,
            _handlers,
            self.client,
            timeout=options.timeout,
            tries=options.tries,
            stopping=stopping,
            backoff=options.backoff,
            rng=rng,
        )

    def _limiter_store(self) -> Store:
        settings = self.settings
        if settings.LIMITER_STORE == "redis" and settings.REDIS_URL:
            from worker.limiter.redis import RedisStore  # its package is an extra

            return RedisStore(settings.REDIS_URL.get_secret_value())
        return DatabaseStore(self.db, ttl=settings.READ_TIMEOUT + settings.CONNECT_TIMEOUT + 30)

    def __enter__(self) -> App:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.limiter.close()
        self.queue.close()
        self.db.close()

    def require_schema(self) -> None:
        """Raises SchemaMismatch unless the database fits this code."""
        require_schema(self.db)

    def metrics(self) -> bytes:
        """What the fleet does and has counted, in Prometheus' text format."""
        from worker.metrics import exposition

        with self.db.connection() as conn:
            self.counts.add(conn)
        return exposition(self.db, self.monitor, self.limiter)

    def doctor(self) -> Doctor:
        """Who looks for what is wrong."""
        return Doctor(self.db, self.queue, self.accounts, self.monitor, self.route)

    def start_sync(self, account: UUID, *, requested_by: str, priority: int = Priority.USER) -> tuple[UUID, bool]:
        """Begin, or join, a sync of all goods of the account; see `sync.plan.start`."""
        from worker.sync import plan

        return plan.start(
            self.db,
            self.accounts,
            self.runs,
            self.queue,
            account,
            requested_by=requested_by,
            priority=priority,
        )

    def retry_failed(
        self,
        *,
        ids: Sequence[int] | None = None,
        account: UUID | None = None,
        since: datetime | None = None,
        error_class: str | None = None,
    ) -> int:
        """Give failed tasks a new set of attempts, and have their runs be under way; how many tasks."""
        number = self.queue.retry_failed(ids=ids, account_id=account, since=since, error_class=error_class)
        self.runs.reopen()
        return number

    def cancel(
        self,
        *,
        ids: Sequence[int] | None = None,
        account: UUID | None = None,
        queue: str | None = None,
        reason: str = "",
    ) -> Cancelled:
        """End pending tasks as cancelled, and the runs that waited for nothing else."""
        cancelled = self.queue.cancel(ids=ids, account_id=account, queue=queue, reason=reason)
        self.runs.finish_all()
        return cancelled

    @contextmanager
    def moving(self, source: str) -> Iterator[Move]:
        """What moves waiting tasks from `database` or `redis` to the other, wherever they belong now."""
        from worker.queues.move import DatabaseSide, Move, RedisSide

        if self.settings.REDIS_URL is None:
            raise ConfigError("REDIS_URL is not set: it names the Redis or Valkey, redis://...")
        with ExitStack() as stack:
            redis = RedisSide(self.db, self.settings.REDIS_URL.get_secret_value(), self.route)
            stack.callback(redis.close)
            if source == "redis":
                lease = self._lease((), "queue move", counters=lambda: {"done": 0, "failed": 0})
                stack.callback(lease.stop)
                lease.start()
            yield Move(self.db, DatabaseSide(self.db, self.route), redis, lambda: lease.worker)

    def remove_account(self, account: UUID) -> None:
        """Forget an account and what waits for it. Raises NotFound."""
        with self.db.transaction() as conn:
            self.accounts.remove(account, conn)
            self.queue.forget(account, conn)

    def pause(self, account: UUID, reason: str, until: datetime = FOREVER) -> None:
        """Claim none of the account's tasks before then. Raises NotFound."""
        self.accounts.role_of(account)
        self.accounts.park(account, reason, until)

    def drain(self, seconds: float, reason: str, *, tell: Callable[[int], None] = lambda _: None) -> int:
        """Have nothing claimed any more, and wait so long until nothing is processed; how many tasks still are.

        Asked again it waits on; `pauses.resume(EVERYTHING)` ends it. `tell` is told each number of tasks.
        """
        self.pauses.pause(EVERYTHING, FOREVER, reason)
        until = time.monotonic() + seconds
        quiet_since: float | None = None
        told = -1
        while True:
            self.tidy()
            busy = self.queue.processing()
            if busy != told:
                tell(busy)
                told = busy
            now = time.monotonic()
            quiet_since = None if busy else quiet_since or now
            # A claim that had begun before the pause shows with its commit.
            if now >= until or (quiet_since is not None and now - quiet_since >= _CLAIM_SECONDS):
                return busy
            time.sleep(_DRAIN_LOOK)

    def restart_workers(self) -> list[int]:
        """Have every worker end after its batch, for Supervisor to start it anew; their ids."""
        ids = [int(row["id"]) for row in self.db.fetch("restart_workers")]
        emit("worker.restart", workers=len(ids))
        return ids

    def set_token(self, account: UUID, token: str) -> None:
        """Give an account a new token; what waited for it goes on. Raises NotFound."""
        self.accounts.set_token(account, token)
        self.runs.reopen()

    def unpark(self, account: UUID) -> None:
        """Have a parked account, and the runs that waited for it, go on. Raises NotFound."""
        self.accounts.unpark(account)
        self.runs.reopen()

    def tidy(self) -> None:
        """Take up what dead workers have left: their tasks, and runs they could not end."""
        self.queue.rescue()
        self.runs.finish_all()

    def client(self, account: UUID, deadline: float = float("inf")) -> Client:
        """A client of that account, for a task that must end by then (on the monotonic clock)."""
        from worker.moysklad import Client

        return Client(
            self.accounts.get(account),
            self.settings.MOYSKLAD_API_URL,
            self.limiter,
            breaker=self.breaker,
            current=lambda: self.accounts.get(account),
            connect_timeout=self.settings.CONNECT_TIMEOUT,
            read_timeout=self.settings.READ_TIMEOUT,
            effect_seconds=self.settings.EFFECT_SECONDS,
            deadline=deadline,
        )

    def _lease(self, queues: Sequence[str], name: str, **callbacks: Any) -> Lease:
        seconds = self.settings.LEASE_SECONDS
        return Lease(self.db, queues=queues, name=name, release=release(), seconds=seconds, **callbacks)

    def worker(
        self,
        options: Options,
        *,
        name: str = "",
        warm: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
    ) -> Loop:
        """A worker process, ready to `run`; `warm()` is called after its first batch.

        Raises ConfigError where tasks run at enqueue.
        """

        if isinstance(self.queue, SyncQueue):
            raise ConfigError("QUEUE_CONNECTION=sync runs tasks at enqueue: there is nothing for a worker to do")

        def executor(stopping: Callable[[], bool]) -> Executor:
            return self._executor(options, stopping, rng)

        def lease(
            counters: Callable[[], dict[str, int]], watch: Callable[[], None], restart: Callable[[], None]
        ) -> Lease:
            process = name or os.environ.get("SUPERVISOR_PROCESS_NAME", "")
            return self._lease(
                options.queues, process, counters=counters, watch=watch, restart=restart, count=self.counts.add
            )

        def on_register(worker: int) -> None:
            self.limiter.worker = worker

        return Loop(self.queue, executor, lease, options, tidy=self.tidy, on_register=on_register, warm=warm, rng=rng)


def _handlers() -> Mapping[tuple[str, str], Handler]:
    from worker.sync import HANDLERS

    return HANDLERS
