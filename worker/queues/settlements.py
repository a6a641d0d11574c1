"""How claims of tasks in Redis end: settled in PostgreSQL beside their effect, then in Redis; rescued from the dead.

A claim that ends with an effect is settled in PostgreSQL, in the effect's own transaction, and then in Redis:
whatever dies in between, a rescue finds the settlement and goes on with it.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from worker.db import Database, fetch
from worker.queues.contract import VERBS, Effect, Ended
from worker.queues.database import MAX_RESCUES, lock_dead_workers
from worker.queues.records import RedisRecords
from worker.queues.shards import time_of
from worker.task import Complete, Fail, Outcome, Release, Retry, Snooze
from worker.telemetry import emit

_SWEEP = 10.0
"""Seconds between two looks for claims of workers nobody knows."""


@dataclass(frozen=True, slots=True)
class Moved(Release):
    """It goes on elsewhere: how a mover ends what it has claimed."""


class RedisSettlements(RedisRecords):
    """The half of the driver `redis` that ends claims, see `contract.Queue`."""

    def __init__(self, db: Database, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        RedisRecords.__init__(self, db, url)
        self._clock = clock
        self._hosts: dict[int, str] = {}
        self._settled: dict[int, set[int]] = {}
        self._sweep_at = float("-inf")

    @abstractmethod
    def _relay(self) -> None:
        """Send to Redis what was enqueued in transactions and is committed."""

    def settle(
        self, ended: Sequence[Ended], effect: Effect | None = None, *, now: datetime | None = None
    ) -> Counter[str]:
        counts: Counter[str] = Counter()
        if not ended:
            return counts
        live = ended if effect is None else self._settle_effect(ended, effect)
        counts += self._apply(ended[0].task.worker, [_claim(end) for end in live], now)
        if effect is not None:
            self._settled.setdefault(ended[0].task.worker, set()).update(end.task.id for end in live)
        counts["lost"] = len(ended) - counts.total()
        return counts

    def _settle_effect(self, ended: Sequence[Ended], effect: Effect) -> list[Ended]:
        """Write the ends beside their effect; those of them that stand, now or since a call that was cut off."""
        worker = ended[0].task.worker
        claims = {end.task.id: end for end in ended}
        before = self._settled.setdefault(worker, set())
        if not before.isdisjoint(claims):
            # The number of an attempt that did not count comes again. Its earlier end must be gone for sure, and only
            # now: the transaction below may have to be repeated without anybody knowing whether it was committed.
            self._db.fetch("forget_settlements", worker=worker, tasks=list(before))
            before.clear()
        with self._db.transaction() as conn:
            if before:
                fetch(conn, "forget_settlements", worker=worker, tasks=list(before))
            mine = {
                row["task"]
                for row in fetch(
                    conn,
                    "claim_settlements",
                    worker=worker,
                    tasks=list(claims),
                    attempts=[end.task.attempts for end in claims.values()],
                    accounts=[end.task.account_id for end in claims.values()],
                    outcomes=[json.dumps(_way(end.outcome)) for end in claims.values()],
                )
            }
            standing = set[int]()
            if len(mine) < len(claims):
                found = fetch(conn, "settlements", worker=worker)
                standing = {row["task"] for row in found if row["outcome"] is not None} & claims.keys() - mine
            owned = self._owned(worker, [claims[id] for id in mine])
            if lost := mine - owned:
                fetch(conn, "forget_settlements", worker=worker, tasks=list(lost))
            effect(conn, owned)
        before.clear()
        return [end for end in ended if end.task.id in owned | standing]

    def _owned(self, worker: int, ended: Sequence[Ended]) -> set[int]:
        owned = set[int]()
        self._shards.number({end.task.account_id for end in ended})
        for account, claims in _by_account([_claim(end) for end in ended]).items():
            first = self._shards.first(account)
            rows = json.dumps([[id - first, attempts] for _, id, attempts, _ in claims])
            found = json.loads(self._scripts.run("owned", account, "", worker, rows)) or []
            owned |= {first + int(n) for n in found}
        return owned

    def _apply(self, worker: int, claims: Sequence[_Claim], now: datetime | None) -> Counter[str]:
        """End claims in Redis, those still the worker's; how many by which verb."""
        counts: Counter[str] = Counter()
        self._shards.number({claim[0] for claim in claims})
        for account, those in _by_account(claims).items():
            first = self._shards.first(account)
            ways: dict[str, int] = {}
            rows = [[id - first, attempts, ways.setdefault(way, len(ways) + 1)] for _, id, attempts, way in those]
            troubled = any(not way.startswith(('["complete"', '["release"')) for way in ways)
            counts += Counter(
                json.loads(
                    self._scripts.run(
                        "settle", account, time_of(now), worker, json.dumps(rows), f"[{','.join(ways)}]",
                        self._host(worker) if troubled else "",
                    )
                )
            )  # fmt: skip
        return counts

    def _host(self, worker: int) -> str:
        if worker not in self._hosts:
            rows = self._db.fetch("worker_host", worker=worker)
            self._hosts[worker] = rows[0]["host"] if rows else ""
        return self._hosts[worker]

    # Rescue

    def rescue(self, *, now: datetime | None = None) -> int:
        self._relay()
        rescued, buried = 0, []
        with self._db.transaction() as conn:
            for row in lock_dead_workers(conn, now):
                number = self._rescue(row["id"], row["host"], now)
                if number is not None:
                    rescued += number
                    buried.append(row)
            if buried:
                fetch(conn, "bury_workers", workers=[row["id"] for row in buried])
        for row in buried:
            emit("worker.bury", level="warning", worker=row["id"], host=row["host"], pid=row["pid"])
        if now is not None or self._clock() >= self._sweep_at:
            rescued += self._sweep(now)
            self._sweep_at = self._clock() + _SWEEP
        if rescued:
            emit("task.rescue", level="warning", tasks=rescued)
        return rescued

    def _sweep(self, now: datetime | None) -> int:
        """The same for workers that nobody knows: they were given up while they still claimed."""
        holding = set(self.holders())
        settlers = {row["worker"] for row in self._db.fetch("unregistered_settlers")}
        known = {row["id"] for row in self._db.fetch("worker_ids")}
        return sum(self._rescue(worker, "", now) or 0 for worker in sorted((holding | settlers) - known))

    def _rescue(self, worker: int, host: str, now: datetime | None) -> int | None:
        """Take the claims of a dead worker back, or go on with how it has ended them; None while it is at that."""
        accounts = self._shards.everybody()
        calls = [("holdings", account, ("", worker)) for account in accounts]
        held = {
            account: claims
            for account, answer in zip(accounts, self._scripts.run_all(calls), strict=True)
            if (claims := json.loads(answer))
        }
        flat = [
            (self._shards.first(account) + int(n), attempts, account)
            for account, claims in held.items()
            for n, attempts in claims
        ]
        with self._db.transaction() as conn:
            (step,) = fetch(
                conn,
                "rescue_settlements",
                worker=worker,
                tasks=[id for id, _, _ in flat],
                attempts=[attempts for _, attempts, _ in flat],
                accounts=[account for _, _, account in flat],
            )
        if not step["free"]:
            return None
        found = self._db.fetch("settlements", worker=worker)
        self._shards.number({row["account_id"] for row in found})
        self._relay()
        if ends := [
            (row["account_id"], row["task"], row["attempts"], json.dumps(row["outcome"]))
            for row in found
            if row["outcome"] is not None
        ]:
            self._apply(worker, ends, now)
        rescued = 0
        for account, claims in held.items():
            rescued += self._scripts.run(
                "rescue", account, time_of(now), worker, json.dumps([[int(n), attempts] for n, attempts in claims]),
                host, MAX_RESCUES,
            )  # fmt: skip
        # Not what a worker that lives on has written meanwhile: the next rescue goes on with that.
        if found:
            self._db.fetch("forget_settlements", worker=worker, tasks=[row["task"] for row in found])
        return rescued


_Claim = tuple[UUID, int, int, str]
"""Account, id, attempts, and how it ends, as JSON."""


def _claim(end: Ended) -> _Claim:
    return end.task.account_id, end.task.id, end.task.attempts, _json_way(end.outcome)


def _by_account(claims: Iterable[_Claim]) -> dict[UUID, list[_Claim]]:
    found: dict[UUID, list[_Claim]] = {}
    for claim in claims:
        found.setdefault(claim[0], []).append(claim)
    return found


@lru_cache(maxsize=1024)
def _json_way(outcome: Outcome) -> str:
    return json.dumps(_way(outcome), ensure_ascii=False)


def _way(outcome: Outcome) -> list[Any]:
    """An outcome as queue.lua takes it."""
    if isinstance(outcome, Moved):
        return ["move"]
    verb = VERBS[type(outcome)]
    match outcome:
        case Complete():
            return [verb, outcome.result, outcome.note or ""]
        case Fail():
            return [verb, outcome.error, outcome.error_class]
        case Retry():
            return [verb, outcome.error, outcome.error_class, outcome.delay]
        case Snooze():
            return [verb, outcome.reason, outcome.wait]
        case _:
            return [verb]
