"""The queue against a model of it: whatever is done in whatever order, both must say the same.

Hypothesis makes up the sequences: producers, workers that end their claims in every way, die, lose their lease and
come back, operators who park, pause and prune, and a clock. A driver is a `Rig` more in `RIGS`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis import Redis

from worker.accounts import Accounts
from worker.db import Connection, Database, fetch, fetch_one
from worker.queues import DatabaseQueue, Ended, Queue
from worker.queues.database import LOCK_CLASS, MAX_RESCUES
from worker.queues.lanes import AGEING
from worker.queues.redis import RedisQueue
from worker.queues.routing import listens
from worker.settings import Settings
from worker.task import Complete, Fail, NewTask, Outcome, Prepare, Release, Retry, Snooze, SyncGoods, Task

T0 = datetime(2030, 1, 1, tzinfo=UTC)
PAST, FUTURE = datetime(2001, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
FOR_EVER = 3e9
"""Seconds; longer than any clock here goes."""
ACCOUNTS = (UUID(int=1), UUID(int=2), UUID(int=3))
MAINS = (UUID(int=98), UUID(int=99))
QUEUES = ("high", "low", "account-child-1")
PATTERNS = (("*",), ("high", "low"), ("low", "*"), ("account-*", "high"), ("low",), ("*gh", "account-child-1"))
STATUSES = ("pending", "processing", "completed", "failed")
Key = tuple[UUID, str, str]


@dataclass
class Row:
    """A task as the model has it."""

    key: Key
    queue: str
    priority: int
    main: UUID
    max_attempts: int | None
    at: datetime | None
    """When it is due; None: some time ago, by the server's clock."""
    status: str = "pending"
    attempts: int = 0
    rescues: int = 0
    worker: int | None = None
    result: str | None = None
    id: int = 0
    """As the driver called it; 0 until it was seen there."""

    def seen(self) -> tuple[Any, ...]:
        """What the driver must tell of it."""
        return (self.key, self.queue, self.priority, {"main": str(self.main)}, self.max_attempts, self.status,
                self.attempts, self.worker, self.result)  # fmt: skip


@dataclass
class Model:
    """What a queue is, without a server."""

    rows: list[Row] = field(default_factory=list)
    parked: dict[UUID, datetime] = field(default_factory=dict)
    paused: dict[str, datetime] = field(default_factory=dict)
    bounds: dict[UUID, int | None] = field(default_factory=dict)
    wanted: dict[Key, int] = field(default_factory=dict)
    """When each thing was asked for last, and when it was last done or given up: steps."""
    answered: dict[Key, int] = field(default_factory=dict)
    ledger: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """Effects: (id, attempt, worker)."""
    step: int = 0

    def pending(self, key: Key) -> Row | None:
        """The one task of that key that waits."""
        return next((row for row in self.rows if row.key == key and row.status == "pending"), None)

    def of(self, task: Task) -> Row | None:
        """What this claim holds; None when it was lost."""
        return next(
            (
                row
                for row in self.rows
                if row.id == task.id
                and (row.status, row.worker, row.attempts) == ("processing", task.worker, task.attempts)
            ),
            None,
        )

    def enqueue(self, rows: Iterable[Row]) -> int:
        """Add or coalesce; of twins in one call the last one counts."""
        added = 0
        for row in {row.key: row for row in rows}.values():
            self.wanted[row.key] = self.step
            twin = self.pending(row.key)
            if twin is None:
                self.rows.append(row)
                added += 1
            else:
                twin.queue, twin.main = row.queue, row.main
                twin.priority = max(twin.priority, row.priority)
                twin.at = _earlier(twin.at, row.at)
        return added

    def lanes(
        self, worker: int, patterns: Sequence[str], now: datetime
    ) -> dict[tuple[int, int, str, UUID], list[Row]]:
        """What may be claimed: (place of the queue, rank, queue, account) → its tasks that wait, oldest first; empty
        where each of them has a twin in work, or enough workers serve the account."""
        found: dict[tuple[int, int, str, UUID], list[Row]] = {}
        busy = {row.key for row in self.rows if row.status == "processing"}
        for row in sorted(self.rows, key=lambda row: row.id):
            place = next((n for n, pattern in enumerate(patterns) if listens([pattern], row.queue)), None)
            account = row.key[0]
            if (
                row.status != "pending"
                or place is None
                or (row.at is not None and row.at > now)
                or self.parked.get(account, PAST) > now
                or any(listens([name], row.queue) and until > now for name, until in self.paused.items())
            ):
                continue
            lane = found.setdefault((place, -row.priority, row.queue, account), [])
            bound = self.bounds.get(account)
            if row.key not in busy and (bound is None or self.others(worker, account) < bound):
                lane.append(row)
        return found

    def others(self, worker: int, account: UUID) -> int:
        """How many other workers serve the account."""
        at_work = {row.worker for row in self.rows if row.status == "processing" and row.key[0] == account}
        return len(at_work - {worker})

    def put_back(self, row: Row, at: datetime | None) -> None:
        """To wait again, unless a twin waits already."""
        row.worker = None
        if self.pending(row.key):
            row.status, row.result = "completed", "coalesced"
        else:
            row.status, row.at = "pending", at

    def end(self, row: Row, outcome: Outcome, at: Callable[[float], datetime | None]) -> None:
        """End a claim that is still whose it was."""
        match outcome:
            case Complete():
                row.status, row.result, row.worker = "completed", outcome.result, None
                self.answered[row.key] = self.step
            case Fail():
                row.status, row.result, row.worker = "failed", "failed", None
                self.answered[row.key] = self.step
            case Retry():
                self.put_back(row, at(outcome.delay))
            case Snooze():
                row.attempts -= 1
                self.put_back(row, at(outcome.wait))
            case Release():
                row.attempts -= 1
                self.put_back(row, row.at)

    def rescue(self, dead: set[int], now: datetime | None) -> int:
        """Take back what these held."""
        held = [row for row in self.rows if row.status == "processing" and row.worker in dead]
        for row in held:
            row.attempts -= 1
            row.rescues += 1
            if row.rescues >= MAX_RESCUES and not self.pending(row.key):
                row.status, row.result, row.worker = "failed", "failed", None
                self.answered[row.key] = self.step
            else:
                self.put_back(row, now)
        return len(held)

    def retry_failed(self, ids: Sequence[int] | None, account: UUID | None) -> int:
        """The newest failed task of each key, where none waits."""
        chosen: dict[Key, Row] = {}
        for row in sorted(self.rows, key=lambda row: row.id):
            if (
                row.status == "failed"
                and (ids is None or row.id in ids)
                and (account is None or row.key[0] == account)
                and (row.result != "cancelled" or ids is not None)
                and not self.pending(row.key)
            ):
                chosen[row.key] = row
        for row in chosen.values():
            row.status, row.result, row.attempts, row.rescues, row.at = "pending", None, 0, 0, None
            self.wanted[row.key] = self.step
        return len(chosen)

    def cancel(self, ids: Sequence[int] | None, account: UUID | None, queue: str | None) -> int:
        """What waits and meets all of it is given up."""
        chosen = [
            row
            for row in self.rows
            if row.status == "pending"
            and (ids is None or row.id in ids)
            and (account is None or row.key[0] == account)
            and (queue is None or listens([queue], row.queue))
        ]
        for row in chosen:
            row.status, row.result = "failed", "cancelled"
            self.answered[row.key] = self.step
        return len(chosen)

    def prune(self, statuses: set[str]) -> int:
        """Forget what is over."""
        kept = [row for row in self.rows if row.status not in statuses]
        gone = len(self.rows) - len(kept)
        self.rows = kept
        return gone

    def stats(self) -> Counter[tuple[str, UUID, str]]:
        """How many stand where."""
        return Counter((row.queue, row.key[0], row.status) for row in self.rows)


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    """Of two times of being due; None is some time ago, but not before one that is in the past by any clock."""
    if one is None or other is None:
        known = one or other
        return known if known == PAST else None
    return min(one, other)


class Rig:
    """The driver `database` with what surrounds a queue: workers who live and die, accounts, pauses, a ledger."""

    def __init__(self, made: Settings) -> None:
        self.db = Database(made.DATABASE_URL.get_secret_value(), size=4)
        self.routes: dict[UUID, str] = {}
        self.clock = 0.0
        self._accounts = Accounts(self.db, made.APP_KEY.get_secret_value())
        self._sessions: dict[int, Connection] = {}
        for account in ACCOUNTS:
            self._accounts.add(account, str(account), "child", "solution", "token")
        with self.db.connection() as conn:
            conn.execute("create table ledger (id bigint, attempts integer, worker bigint)")
        self.queue = self.driver()

    def route(self, _: str, account: UUID) -> str:
        """As the topology of the moment has it."""
        return self.routes[account]

    def driver(self) -> Queue:
        """The queue under test, as one process has it."""
        return DatabaseQueue(self.db, self.route, clock=lambda: self.clock)

    def empty(self) -> None:
        """A new beginning."""
        for worker in list(self._sessions):
            self._sessions.pop(worker).close()
        self.routes = dict(zip(ACCOUNTS, QUEUES, strict=True))
        self.clock = 0.0
        with self.db.connection() as conn:
            conn.execute("delete from sync_queue; delete from workers; delete from paused_queues; delete from ledger;"
                         "update accounts set parked_until = null, concurrency = null")  # fmt: skip
        self.queue = self.driver()

    def live(self, patterns: Sequence[str]) -> int:
        """A worker that is alive: its id."""
        conn = self.db.connect()
        who = {"host": "here", "pid": 1, "name": "", "queues": list(patterns), "listens": ["%"], "release": "test"}
        row = fetch_one(conn, "register_worker", **who, lease=FOR_EVER)
        assert row is not None
        fetch(conn, "hold_worker", lock_class=LOCK_CLASS, worker=row["id"])
        self._sessions[row["id"]] = conn
        return int(row["id"])

    def die(self, worker: int, how: str) -> None:
        """By kill -9 (its session ends), on a host that vanishes (its lease ends), or given up by others."""
        conn = self._sessions.pop(worker)
        if how == "session":
            conn.close()
            while worker not in {row["id"] for row in self.db.fetch("dead_workers", lock_class=LOCK_CLASS, now=PAST)}:
                time.sleep(0.001)
            return
        with self.db.connection() as other:
            if how == "lease":
                other.execute("update workers set lease_until = %s where id = %s", [PAST, worker])
            else:
                other.execute("delete from workers where id = %s", [worker])
        self._sessions[-worker] = conn  # it is alive, and does not know

    def park(self, account: UUID, until: datetime) -> None:
        """Until then the account is left alone."""
        self._accounts.park(account, "a test", until)

    def pause(self, name: str, until: datetime) -> None:
        """Until then the queues called so are left alone."""
        with self.db.connection() as conn:
            conn.execute("delete from paused_queues where name = %s", [name])
            conn.execute("insert into paused_queues (pattern, name, until) values (%s, %s, %s)",
                         [name.replace("*", "%"), name, until])  # fmt: skip
        self.queue.pauses_changed()

    def bound(self, account: UUID, workers: int | None) -> None:
        """So many workers may serve the account at once."""
        with self.db.connection() as conn:
            conn.execute("update accounts set concurrency = %s where id = %s", [workers, account])

    def ledger(self) -> Counter[tuple[int, int, int]]:
        """The effects there are."""
        with self.db.connection() as conn:
            rows = conn.execute("select id, attempts, worker from ledger").fetchall()
        return Counter((row["id"], row["attempts"], row["worker"]) for row in rows)

    def close(self) -> None:
        """Give everything back."""
        for conn in self._sessions.values():
            conn.close()
        self.queue.close()
        self.db.close()


class RedisRig(Rig):
    """The driver `redis`."""

    url = ""

    def driver(self) -> Queue:
        return RedisQueue(self.db, self.url, self.route, clock=lambda: self.clock)

    def empty(self) -> None:
        self.queue.close()
        super().empty()
        with Redis.from_url(self.url) as redis:
            redis.flushall()
        with self.db.connection() as conn:
            conn.execute("delete from queue_settlements; delete from queue_outbox")


RIGS: dict[str, Callable[[Settings], Rig]] = {"database": Rig, "redis": RedisRig}

wishes = st.lists(
    st.tuples(
        st.sampled_from(ACCOUNTS), st.sampled_from(("sync", "prepare")), st.sampled_from("abc"),
        st.sampled_from((1, 1, 5, 10)), st.sampled_from(MAINS), st.sampled_from((None, 1, 3)),
        st.sampled_from((None, None, None, -10, 0, 10, 60)),
    ),
    min_size=1, max_size=12,
)  # fmt: skip
outcomes = st.sampled_from(
    (Complete("updated"), Complete("unchanged"), Complete("updated"), Retry("again", 0), Retry("again", 10),
     Snooze(0, "wait"), Snooze(60, "wait"), Fail("broken", "Permanent"), Release(), None)
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    """One run: whatever Hypothesis does to the queue, it does to the model."""

    def __init__(self, rig: Rig, *, timed: bool) -> None:
        """`timed`: time is what the test says. Otherwise it is the server's, and things are due or never: so runs
        what a worker remembers from claim to claim."""
        super().__init__()
        self.rig, self.timed = rig, timed
        self.model = Model()
        self.clock = T0
        self.workers: dict[int, Sequence[str]] = {}
        self.dead: set[int] = set()
        self.unburied: set[int] = set()
        self.claims: list[Task] = []
        """Every claim ever made, also those that are over or lost."""
        self.lower: Counter[int] = Counter()
        self.turns: Counter[int] = Counter()

    @property
    def now(self) -> datetime | None:
        """What the driver is told."""
        return self.clock if self.timed else None

    def at(self, seconds: float) -> datetime | None:
        """So long from now, as the model has it: due is due, where time is the server's."""
        if self.timed:
            return self.clock + timedelta(seconds=seconds)
        return FUTURE if seconds > 0 else None

    def when(self, seconds: float) -> datetime:
        """So long from now, as the driver is told."""
        return self.clock + timedelta(seconds=seconds) if self.timed else FUTURE if seconds > 0 else PAST

    @initialize()
    def begin(self) -> None:
        """Nothing there but two workers."""
        self.rig.empty()
        for patterns in (("*",), ("high", "low")):
            self.workers[self.rig.live(patterns)] = patterns

    def _new(self, wish: tuple[Any, ...]) -> tuple[NewTask, Row]:
        account, operation, entity, priority, main, tries, seconds = wish
        kind = ("product", SyncGoods(main)) if operation == "sync" else ("catalogue", Prepare(main))
        scheduled = None if seconds is None else self.when(seconds)
        task = NewTask(account, kind[0], operation, kind[1], entity, priority, None, tries, scheduled)
        at = (self.clock if self.timed else None) if scheduled is None else scheduled
        return task, Row((account, operation, entity), self.rig.routes[account], priority, main, tries, at)

    @rule(wishes=wishes)
    def enqueue(self, wishes: list[tuple[Any, ...]]) -> None:
        """Some tasks, in one statement or, from four on, by COPY."""
        new = [self._new(wish) for wish in wishes]
        expected = self.model.enqueue(row for _, row in new)
        assert self.rig.queue.enqueue([task for task, _ in new], now=self.now) == expected

    @rule(wishes=wishes, commit=st.booleans())
    def enqueue_within(self, wishes: list[tuple[Any, ...]], commit: bool) -> None:
        """Inside a transaction of the caller's: all or nothing."""
        new = [self._new(wish) for wish in wishes]
        with contextlib.suppress(ZeroDivisionError), self.rig.db.transaction() as conn:
            self.rig.queue.enqueue([task for task, _ in new], within=conn, now=self.now)
            if not commit:
                raise ZeroDivisionError
        if commit:
            self.model.enqueue(row for _, row in new)

    @rule(data=st.data(), limit=st.sampled_from((1, 1, 2, 5, 100)), any_patterns=st.booleans())
    def claim(self, data: st.DataObject, limit: int, any_patterns: bool) -> None:
        """By one who is alive, or does not know that he was given up."""
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        patterns = data.draw(st.sampled_from(PATTERNS)) if any_patterns else self.workers[worker]
        self._claim(worker, patterns, limit)

    def _claim(self, worker: int, patterns: Sequence[str], limit: int) -> bool:
        lanes = self.model.lanes(worker, patterns, self.clock)
        waiting = {lane: rows for lane, rows in lanes.items() if rows}
        batch = self.rig.queue.claim(patterns, worker, limit=limit, now=self.now)
        if batch is None and not self.timed:
            self.rig.clock += 2  # what landed behind the worker's mark is found when it looks anew
            batch = self.rig.queue.claim(patterns, worker, limit=limit)
        if batch is None:
            assert waiting == {}
            return False
        by_id = {row.id: row for row in self.model.rows}
        taken = [by_id[task.id] for task in batch.tasks]
        lane = next((lane for lane, rows in waiting.items() if taken[0] in rows), None)
        assert lane is not None, f"{taken[0]} may not be claimed"
        of_kind = [row for row in waiting[lane] if row.key[1] == taken[0].key[1]]
        assert [row.id for row in taken] == sorted(row.id for row in taken)
        assert [row for row in taken if row not in of_kind] == []
        assert len(taken) <= max(1, limit >> max(0, taken[0].rescues - 2))
        if self.timed:
            assert waiting[lane][:1] == taken[:1]
            assert of_kind[: len(taken)] == taken
            self._right_lane(worker, lane, lanes)
        for row, task in zip(taken, batch.tasks, strict=True):
            row.status, row.worker = "processing", worker
            row.attempts += 1
            assert (task.worker, task.attempts, task.priority) == (worker, row.attempts, row.priority)
            assert (task.queue, task.max_attempts) == (row.queue, row.max_attempts)
        self.claims += batch.tasks
        return True

    def _right_lane(self, worker: int, lane: tuple[int, int, str, UUID], lanes: dict[Any, list[Row]]) -> None:
        """The first queue of the list that has something; there the highest rank, but for one claim in AGEING."""
        assert lane[0] == min(place for (place, *_), rows in lanes.items() if rows)
        self.turns[worker] += 1 + sum(not rows for rows in lanes.values())
        if lane[1] > min(rank for (place, rank, *_), rows in lanes.items() if rows and place == lane[0]):
            self.lower[worker] += 1
            assert self.lower[worker] * AGEING <= self.turns[worker]

    @rule(data=st.data(), effect=st.sampled_from((None, "write", "write", "break")), old=st.booleans())
    def settle(self, data: st.DataObject, effect: str | None, old: bool) -> None:
        """Claims of one worker, alive or not, each in its own way; perhaps some that are not his any more."""
        ours = [task for task in self.claims if old or self.model.of(task)]
        if not ours:
            return
        worker = data.draw(st.sampled_from(sorted({task.worker for task in ours})))
        mine = {(task.id, task.attempts): task for task in ours if task.worker == worker}
        latest = {task.id: task for task in mine.values()}
        ways = data.draw(st.lists(outcomes, min_size=len(latest), max_size=len(latest)))
        ended = [Ended(task, way) for task, way in zip(latest.values(), ways, strict=True) if way is not None]
        self._settle(ended, effect)

    def _settle(self, ended: list[Ended], effect: str | None) -> None:
        told: list[set[int]] = []

        def write(conn: Connection, owned: set[int]) -> None:
            told.append(owned)
            for end in ended:
                if end.task.id in owned:
                    conn.execute("insert into ledger values (%s, %s, %s)",
                                 [end.task.id, end.task.attempts, end.task.worker])  # fmt: skip
            if effect == "break":
                raise ZeroDivisionError

        held = {end.task.id for end in ended if self.model.of(end.task)}
        counts: Counter[str] = Counter()
        try:
            counts = self.rig.queue.settle(ended, write if effect else None, now=self.now)
        except ZeroDivisionError:
            assert effect == "break"
            return
        assert effect != "break" or not ended
        expected: Counter[str] = Counter(lost=len(ended) - len(held))
        for end in ended:
            row = self.model.of(end.task)
            if row is None:
                continue
            expected[type(end.outcome).__name__.lower()] += 1
            if effect:
                self.model.ledger[end.task.id, end.task.attempts, end.task.worker] += 1
            self.model.end(row, end.outcome, self.at)
        assert +counts == +expected
        assert told == ([held] if effect and ended else [])

    @rule(data=st.data(), how=st.sampled_from(("session", "lease", "buried")))
    def die(self, data: st.DataObject, how: str) -> None:
        """A worker dies, or is taken for dead; another comes in its place."""
        worker = data.draw(st.sampled_from(sorted(set(self.workers) - self.dead)))
        self.rig.die(worker, how)
        self.dead.add(worker)
        self.unburied.add(worker)
        patterns = self.workers[worker]
        if how == "session":
            del self.workers[worker]
        self.workers[self.rig.live(patterns)] = patterns

    @rule()
    def rescue(self) -> None:
        """Exactly what dead workers held comes back."""
        expected = self.model.rescue(self.dead, self.clock if self.timed else None)
        assert self.rig.queue.rescue(now=self.now) == expected

    @rule(data=st.data(), by=st.sampled_from(("all", "ids", "account")))
    def retry_failed(self, data: st.DataObject, by: str) -> None:
        """What failed gets another chance, where it does not wait already."""
        known = [row.id for row in self.model.rows]
        ids = data.draw(st.lists(st.sampled_from(known))) if by == "ids" and known else None
        account = data.draw(st.sampled_from(ACCOUNTS)) if by == "account" else None
        expected = self.model.retry_failed(ids, account)
        assert self.rig.queue.retry_failed(ids=ids, account_id=account) == expected

    @rule(data=st.data(), by=st.sampled_from(("ids", "account", "queue")))
    def cancel(self, data: st.DataObject, by: str) -> None:
        """What waits is given up on an operator's word, and what is worked on goes on."""
        known = [row.id for row in self.model.rows]
        ids = data.draw(st.lists(st.sampled_from(known), max_size=3)) if by == "ids" and known else None
        account = data.draw(st.sampled_from(ACCOUNTS)) if by in ("account", "ids") else None
        queue = data.draw(st.sampled_from((*QUEUES, "*-1"))) if by == "queue" else None
        expected = self.model.cancel(ids, account, queue)
        assert self.rig.queue.cancel(ids=ids, account_id=account, queue=queue, reason="why").tasks == expected

    @rule()
    def reroute(self) -> None:
        """What waits goes where the topology of the moment would put it."""
        elsewhere = [
            row for row in self.model.rows if row.status == "pending" and row.queue != self.rig.routes[row.key[0]]
        ]
        for row in elsewhere:
            row.queue = self.rig.routes[row.key[0]]
        assert self.rig.queue.reroute(self.rig.route) == len(elsewhere)

    @rule(statuses=st.sets(st.sampled_from(("completed", "failed"))))
    def prune(self, statuses: set[str]) -> None:
        """What is over goes; what is not stays whatever its age."""
        keep = {name: -10_000 if name in statuses else 100_000 for name in ("completed", "failed")}
        expected = self.model.prune(statuses)
        assert self.rig.queue.prune(completed_days=keep["completed"], failed_days=keep["failed"]) == expected

    @rule(account=st.sampled_from(ACCOUNTS), seconds=st.sampled_from((-1, 0, 10, 100)))
    def park(self, account: UUID, seconds: float) -> None:
        """An account is left alone for a while."""
        self.model.parked[account] = self.when(seconds)
        self.rig.park(account, self.when(seconds))

    @rule(name=st.sampled_from(("high", "account-*", "*")), seconds=st.sampled_from((-1, 10)))
    def pause(self, name: str, seconds: float) -> None:
        """Queues are left alone for a while."""
        self.model.paused[name] = self.when(seconds)
        self.rig.pause(name, self.when(seconds))

    @rule(account=st.sampled_from(ACCOUNTS), workers=st.sampled_from((None, 1, 2)))
    def bound(self, account: UUID, workers: int | None) -> None:
        """So many workers may serve an account."""
        self.model.bounds[account] = workers
        self.rig.bound(account, workers)

    @rule(account=st.sampled_from(ACCOUNTS), queue=st.sampled_from(QUEUES))
    def route(self, account: UUID, queue: str) -> None:
        """Another topology: what is enqueued from now on goes elsewhere."""
        self.rig.routes[account] = queue

    @rule(data=st.data())
    def sleep(self, data: st.DataObject) -> None:
        """A worker says that it sleeps, and that it does not."""
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        self.rig.queue.doze(worker)
        if data.draw(st.booleans()):
            self.rig.queue.rouse(worker)

    @rule(seconds=st.sampled_from((1, 10, 60)))
    def step(self, seconds: float) -> None:
        """Time goes by."""
        self.rig.clock += seconds
        if self.timed:
            self.clock += timedelta(seconds=seconds)

    @invariant()
    def alike(self) -> None:
        """Row by row the same; never two of a key that wait, nor two that are worked on."""
        self.model.step += 1
        rows = {row["id"]: row for status in STATUSES for row in self.rig.queue.peek(status, limit=10_000)}
        waiting = {(row["account_id"], row["operation"], row["entity_id"]): id
                   for id, row in rows.items() if row["status"] == "pending"}  # fmt: skip
        for row in self.model.rows:
            if not row.id:
                assert row.key in waiting, f"{row} is not there"
                row.id = waiting[row.key]
        assert {id: _told(row) for id, row in rows.items()} == {row.id: row.seen() for row in self.model.rows}
        for row in self.model.rows:
            told = rows[row.id]
            if row.status == "pending" and row.at is not None:
                if row.at == FUTURE:
                    assert told["scheduled_at"] > datetime.now(UTC) + timedelta(seconds=5)
                else:
                    assert told["scheduled_at"] == row.at
            assert row.status != "failed" or told["error"]
        for status in ("pending", "processing"):
            keys = [row.key for row in self.model.rows if row.status == status]
            assert len(keys) == len(set(keys))
        told = {(row["queue"], row["account_id"], row["status"]): row["tasks"] for row in self.rig.queue.stats()}
        assert told == self.model.stats()

    def teardown(self) -> None:
        """With all obstacles gone, everything asked for is done or given up after it was last asked for, and every
        effect is there once."""
        for account in ACCOUNTS:
            self.model.parked[account] = PAST
            self.rig.park(account, PAST)
            self.model.bounds[account] = None
            self.rig.bound(account, None)
        for name in list(self.model.paused):
            self.model.paused[name] = PAST
            self.rig.pause(name, PAST)
        if not self.workers:
            return
        worker = self.rig.live(("*",))
        for each in set(self.workers) - self.dead:
            self.rig.die(each, "lease")
            self.dead.add(each)
        self.rescue()
        self.clock += timedelta(days=1)
        while self._claim(worker, ("*",), 100):
            self._settle([Ended(task, Complete("done")) for task in self.claims if self.model.of(task)], "write")
            self.alike()
        left = Counter(row.status for row in self.model.rows if row.at != FUTURE or self.timed)
        assert left["pending"] == left["processing"] == 0
        if self.timed:
            late = {key for key, asked in self.model.wanted.items() if self.model.answered.get(key, -1) < asked}
            assert late == set()
        assert self.rig.ledger() == self.model.ledger
        assert set(self.model.ledger.values()) <= {1}


def _told(row: Any) -> tuple[Any, ...]:
    """A driver's row as `Row.seen` has it."""
    return ((row["account_id"], row["operation"], row["entity_id"]), row["queue"], row["priority"], row["payload"],
            row["max_attempts"], row["status"], row["attempts"], row["worker"], row["result"])  # fmt: skip


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Each driver, with bulks that begin at four tasks."""
    monkeypatch.setattr("worker.queues.database._BULK", 3)
    if request.param == "redis":
        monkeypatch.setattr("worker.queues.settlements._SWEEP", 0)
        monkeypatch.setattr(RedisRig, "url", request.getfixturevalue("redis_server").url)
    rig = RIGS[request.param](settings)
    yield rig
    rig.close()


def check(rig: Rig, timed: bool, examples: int, *, seeded: bool) -> None:
    """So many sequences."""
    run_state_machine_as_test(
        lambda: Machine(rig, timed=timed),
        settings=settings(
            max_examples=examples, stateful_step_count=40, derandomize=seeded, database=None, deadline=None,
            suppress_health_check=list(HealthCheck), print_blob=True,
            phases=[Phase.generate, Phase.shrink],
        ),
    )  # fmt: skip


@pytest.mark.timeout(600)  # a failure is made smaller before it is told
@pytest.mark.parametrize("timed", [True, False], ids=["by the test's clock", "by the server's clock"])
def test_any_sequence_of_verbs_and_deaths(rig: Rig, timed: bool) -> None:
    """Driver and model agree after every step, and at the end nothing was lost, doubled or forgotten."""
    check(rig, timed, 40, seeded=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("timed", [True, False], ids=["by the test's clock", "by the server's clock"])
def test_many_more_sequences(rig: Rig, timed: bool) -> None:
    """The same with sequences nobody has seen before; a failure prints what reproduces it."""
    check(rig, timed, 1500, seeded=False)
