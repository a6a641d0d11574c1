"""Tasks in Redis or Valkey, by the scripts of queue.lua; what must never disagree with the effects is in PostgreSQL.

Tasks enqueued in a transaction wait in `queue_outbox` for its commit; how claims end is in settlements.py. Workers,
parked accounts and paused queues are PostgreSQL's too; of the pauses Redis has a word, which changes with them: so a
claim asks PostgreSQL only then.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from secrets import token_hex
from typing import Any
from uuid import UUID

from worker.db import AWAY, Connection, Database, fetch, query
from worker.errors import QueueAway
from worker.queues.directed import Directed
from worker.queues.lanes import Lane
from worker.queues.lines import Ear
from worker.queues.routing import Route, listens
from worker.queues.settlements import RedisSettlements
from worker.queues.shards import AT_ONCE, time_of, to_micros
from worker.task import NewTask, Task, to_json
from worker.telemetry import emit
from worker.wake import Wake

_OUTBOX_AT_ONCE = 2_000
_GATES = 1.0
"""Seconds between two looks at which accounts and queues are closed."""


class RedisQueue(Directed, RedisSettlements):
    """The driver `redis`, see `contract.Queue`."""

    def __init__(self, db: Database, url: str, route: Route, *, clock: Callable[[], float] = time.monotonic) -> None:
        Directed.__init__(self, clock=clock)
        RedisSettlements.__init__(self, db, url, clock=clock)
        self._route = route
        self._known = 0
        self._gates_at = float("-inf")
        self._parked: set[UUID] = set()
        self._concurrency: dict[UUID, int] = {}
        self._paused: list[str] = []
        self._word: str | None = None
        """The word under which they were read; None when they are to be read anew."""
        self._wake = Wake()
        self._queues: Sequence[str] = ("*",)
        self._dozing = False
        self._ear: Ear | None = None
        self._unwatch: Callable[[], None] = lambda: None

    # Enqueue

    def enqueue(
        self, tasks: Iterable[NewTask], *, within: Connection | None = None, now: datetime | None = None
    ) -> int:
        tasks = iter(tasks)
        first = tuple(islice(tasks, 2))
        if len(first) == 1 and within is None and now is None and self._enqueue_one(first[0]):
            return 1
        tasks = chain(first, tasks)
        added, queues = 0, set[str]()
        while part := list(islice(tasks, 20 * AT_ONCE)):
            rows: dict[UUID, dict[tuple[str, ...], list[Any]]] = {}
            for task in part:
                queue = self._route(task.entity_type, task.account_id)
                queues.add(queue)
                rows.setdefault(task.account_id, {})[task.entity_type, task.entity_id, task.operation] = [
                    queue, task.entity_type, task.entity_id, task.operation, task.priority, to_json(task.payload),
                    str(task.run_id) if task.run_id else "", task.max_attempts or 0,
                    to_micros(at) if (at := task.scheduled_at or (now if within else None)) else 0,
                ]  # fmt: skip
            if within is not None:
                added += self._note(within, rows)
            else:
                self._shards.number(rows)
                added += self._add({account: list(things.values()) for account, things in rows.items()}, now)
        if queues:
            emit("task.enqueue", tasks=added, queues=",".join(sorted(queues)))
        return added

    def _enqueue_one(self, task: NewTask) -> bool:
        """The quick way for a single task; False where a twin is pending."""
        account = task.account_id
        queue = self._route(task.entity_type, account)
        self._shards.number([account])
        added = self._scripts.run(
            "enqueue_one", account, queue, task.entity_type, task.entity_id, task.operation, task.priority,
            to_json(task.payload), str(task.run_id) if task.run_id else "", task.max_attempts or 0,
            to_micros(task.scheduled_at) if task.scheduled_at else 0,
        )  # fmt: skip
        if added:
            emit("task.enqueue", tasks=1, queues=queue)
        return bool(added)

    def _add(self, rows: Mapping[UUID, Sequence[list[Any]]], now: datetime | None) -> int:
        at = time_of(now)
        calls = [
            ("enqueue", account, (at, json.dumps(each[n : n + AT_ONCE], ensure_ascii=False), ""))
            for account, each in rows.items()
            for n in range(0, len(each), AT_ONCE)
        ]
        return sum(self._scripts.run_all(calls))

    def _note(self, conn: Connection, rows: Mapping[UUID, Mapping[tuple[str, ...], list[Any]]]) -> int:
        """Have tasks wait for the commit of the caller's transaction; how many would be new as things stand."""
        keys = [(account, *thing) for account, things in rows.items() for thing in things]
        names = ("account_id", "entity_type", "entity_id", "operation")
        columns = dict(zip(names, map(list, zip(*keys, strict=True)), strict=True))
        known = {tuple(row[name] for name in names) for row in fetch(conn, "in_outbox", **columns)}
        for account, things in rows.items():
            there = json.loads(self._scripts.run("twins", account, "", json.dumps(list(things))))
            known |= {(account, *thing) for thing in there}
        with conn.cursor() as cursor, cursor.copy(query("copy_outbox")) as copy:
            for account, things in rows.items():
                for thing, row in things.items():
                    copy.write_row((account, *thing, row[6] or None, json.dumps(row, ensure_ascii=False)))
        self._db.after(conn, self._relay)
        return sum(key not in known for key in keys)

    def _relay(self) -> None:
        """Send to Redis what was committed; what is sent twice arrives once."""
        try:
            self._relay_all()
        except AWAY as error:
            emit("queue.relay", level="warning", reason=str(error))

    def _relay_all(self) -> None:
        while self._relay_some() == _OUTBOX_AT_ONCE:
            pass

    def _relay_some(self) -> int:
        with self._db.transaction() as conn:
            noted = fetch(conn, "take_outbox", limit=_OUTBOX_AT_ONCE)
            each: dict[UUID, dict[tuple[str, ...], tuple[int, list[Any]]]] = defaultdict(dict)
            merged: dict[UUID, list[int]] = defaultdict(list)
            for note in sorted(noted, key=lambda note: note["n"]):
                row = json.loads(note["task"])
                if before := each[note["account_id"]].get(tuple(row[1:4])):
                    _join(row, before[1])
                each[note["account_id"]][tuple(row[1:4])] = note["n"], row
                merged[note["account_id"]].append(note["n"])
            self._shards.number(each)
            calls = []
            for account, things in each.items():
                rows = list(things.values())
                for n in range(0, len(rows), AT_ONCE):
                    part = rows[n : n + AT_ONCE]
                    numbers = json.dumps([str(number) for number, _ in part])
                    calls.append(("enqueue", account, ("", json.dumps([row for _, row in part]), numbers)))
            self._scripts.run_all(calls)
        if noted:
            self._scripts.run_all(
                [("forget", account, ("", json.dumps([str(n) for n in ns]))) for account, ns in merged.items()]
            )
        return len(noted)

    # Claim

    def _look(self, queues: Sequence[str], now: datetime | None) -> list[Lane]:
        if self._dozing:
            self._subscribe()
        self._read_gates(now)
        found = []
        accounts = [account for account in self._shards.known() if account not in self._parked]
        order: dict[str, int | None] = {}
        for account, lanes in self._shards.each("look", accounts, now):
            for name in lanes:
                rank, _, queue = name.partition(":")
                if queue not in order:
                    matching = [n for n, pattern in enumerate(queues, 1) if listens([pattern], queue)]
                    order[queue] = matching[0] if matching and not listens(self._paused, queue) else None
                number = order[queue]
                if number is not None:
                    found.append(Lane(number, queue, int(rank), account, self._concurrency.get(account)))
        return found

    def _read_gates(self, now: datetime | None) -> None:
        """Which accounts and queues are closed, and what accounts there are."""
        if now is None and self._clock() < self._gates_at + _GATES:
            if self._paused:  # perhaps no longer
                self._read_pauses(now)
            return
        rows = self._db.fetch("gates", known=self._known, now=now)
        self._read_pauses(now)
        self._shards.learn(rows)
        # A number drawn earlier may be committed later: look a little further back.
        self._known = max([self._known, *(row["number"] - 1_000 for row in rows)])
        self._parked = {row["account_id"] for row in rows if row["parked"]}
        self._concurrency = {row["account_id"]: row["concurrency"] for row in rows if row["concurrency"]}
        self._gates_at = self._clock()

    def _take(self, lane: Lane, worker: int, limit: int, now: datetime | None) -> tuple[Task, ...]:
        account, concurrency = lane.account_id, lane.concurrency
        if lane.announced:
            self._shards.number([account])
            self._read_gates(now)
            if account in self._parked:
                return ()
            concurrency = self._concurrency.get(account)
        bound = concurrency or ""
        if lane.task:
            told = self._take_if_open(
                lane, now, "claim_told", account, lane.task, lane.rank, lane.queue, worker, bound
            )
            if told is None:
                return ()
            if told:
                return (_told_task(self._shards.first(account), lane.queue, account, worker, told),)
        at = time_of(now)
        taken = self._take_if_open(lane, now, "claim", account, at, f"{lane.rank}:{lane.queue}", worker, limit, bound)
        if taken is None:
            return ()
        first = self._shards.first(account)
        return tuple([_task(first, account, worker, row) for row in json.loads(taken)])

    def _take_if_open(self, lane: Lane, now: datetime | None, script: str, *values: Any) -> Any:
        """The script's answer; None while the lane's queue is paused."""
        while True:
            if now is not None or self._word is None or listens(self._paused, lane.queue):
                self._read_pauses(now)
            if listens(self._paused, lane.queue):
                return None
            word, self._word = self._word or "", None  # also where no answer comes: who knows what passes meanwhile
            answer = self._scripts.run_while(word, script, *values)
            if answer is not None:
                self._word = word
                return answer

    def _read_pauses(self, now: datetime | None) -> None:
        """The word goes first: a pause that this reading misses changes it."""
        word = self._scripts.word()
        self._paused = [row["queue"] for row in self._db.fetch("pauses", now=now)]
        self._word = word

    def pauses_changed(self) -> None:
        try:
            self._scripts.word(token_hex(8))
        except QueueAway as error:
            emit("redis.wait", level="warning", reason=f"{error}; workers see what is paused at their next look")

    def _hand_back(self, worker: int, lane: Lane) -> None:
        claims = json.loads(self._scripts.run("holdings", lane.account_id, "", worker)) or []
        rows = json.dumps([[n, attempts, 1] for n, attempts in claims])
        self._scripts.run("settle", lane.account_id, "", worker, rows, json.dumps([["release"]]), "")

    # Sleep

    def listen(self, queues: Sequence[str], wake: Wake) -> None:
        self._queues, self._wake = queues, wake

    def doze(self, worker: int) -> None:
        self._dozing = True
        self._subscribe()

    def rouse(self, worker: int) -> None:
        self._dozing = False
        self._unsubscribe()

    def _subscribe(self) -> None:
        if self._ear is None:
            self._ear = self._scripts.subscribe()
            self._unwatch = self._wake.watch(self._ear.number, self._hear)

    def _unsubscribe(self) -> None:
        if self._ear is not None:
            self._unwatch()
            self._ear.close()
            self._ear = None

    def _hear(self) -> list[str]:
        """What was enqueued that the worker listens to. Where Redis is gone, the next look subscribes anew."""
        assert self._ear is not None
        try:
            heard = self._ear.hear()
        except Exception as error:  # whatever it is, a worker must not become deaf
            emit("redis.wait", level="warning", reason=str(error))
            self._unsubscribe()
            return ["gone"]
        return [news for news in heard if listens(self._queues, news.partition("\t")[0])]

    def close(self) -> None:
        self._unsubscribe()
        self._scripts.close()


def _task(first: int, account: UUID, worker: int, row: Sequence[Any]) -> Task:
    """A task as the script `claim` tells it."""
    n, queue, entity_type, entity_id, operation, priority, payload, attempts, most, run, waited = row
    run_id = UUID(run) if run else None
    return Task(
        first + int(n), queue, account, entity_type, entity_id, operation, priority, payload, attempts, most or None,
        run_id, worker, waited,
    )  # fmt: skip


def _told_task(first: int, queue: str, account: UUID, worker: int, row: Sequence[Any]) -> Task:
    """A task as the script `claim_told` tells it."""
    n, entity_type, entity_id, operation, priority, payload, attempts, most, run, waited = row
    return Task(
        first + int(n), queue, account, entity_type.decode(), entity_id.decode(), operation.decode(), priority,
        payload.decode(), attempts, most or None, UUID(run.decode()) if run else None, worker, waited / 1e6,
    )  # fmt: skip


def _join(row: list[Any], before: Sequence[Any]) -> None:
    """Have what was asked for later take over what it has from its twin before it: as `enqueue` does."""
    row[4] = max(row[4], before[4])
    row[6] = row[6] or before[6]
    row[8] = min(row[8], before[8])
    row += before[9:] if len(row) == 9 else ()
