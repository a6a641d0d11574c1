"""Where tasks are in Redis: every account has keys of its own and a number, of which its tasks' ids are made."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from worker.db import Database
from worker.queues.scripts import Scripts

PLACES = 10**10
"""Ids of one account; a task's id is its account's number times this, plus its place."""
AT_ONCE = 500
"""Tasks that one script adds or changes."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Shards:
    """The accounts that have tasks in Redis, as far as this process has heard of them: PostgreSQL numbers them."""

    def __init__(self, db: Database, scripts: Scripts) -> None:
        self._db = db
        self._scripts = scripts
        self._numbers: dict[UUID, int] = {}
        self._accounts: dict[int, UUID] = {}

    def number(self, accounts: Iterable[UUID]) -> None:
        """Have these numbered, whether they have tasks yet or not."""
        missing = [account for account in accounts if account not in self._numbers]
        if missing:
            self.learn(self._db.fetch("number_accounts", accounts=missing))

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over numbers that PostgreSQL has told."""
        for row in rows:
            self._numbers[row["account_id"]] = row["number"]
            self._accounts[row["number"]] = row["account_id"]

    def known(self) -> list[UUID]:
        """The accounts heard of until now."""
        return list(self._accounts.values())

    def everybody(self) -> list[UUID]:
        """All accounts that ever had a task."""
        self.learn(self._db.fetch("gates", known=0, now=None))
        return self.known()

    def first(self, account: UUID) -> int:
        """What the place of a task of this account, which has been numbered, is added to for its id."""
        return self._numbers[account] * PLACES

    def locate(self, ids: Sequence[int]) -> dict[UUID, list[int]]:
        """Accounts of these tasks, and their places there."""
        if any(id // PLACES not in self._accounts for id in ids):
            self.everybody()
        found: dict[UUID, list[int]] = defaultdict(list)
        for id in ids:
            if id // PLACES in self._accounts:
                found[self._accounts[id // PLACES]].append(id % PLACES)
        return found

    def each(
        self, name: str, accounts: Sequence[UUID], now: datetime | None, *values: Any
    ) -> Iterator[tuple[UUID, Any]]:
        """Account after account, what a script that looks through many says of it."""
        answers = [json.loads(answer) for answer in self._scripts.each(name, accounts, time_of(now), *values)]
        yield from zip(accounts, [of or [] for answer in answers for of in answer], strict=True)


def time_of(now: datetime | None) -> int | str:
    """The time as a script takes it; of None it looks at the server's clock."""
    return "" if now is None else to_micros(now)


def to_micros(at: datetime) -> int:
    """A moment as it is kept, in microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND


def to_moment(micros: str) -> datetime | None:
    """... and back; 0 is none."""
    return _EPOCH + int(micros) * _MICROSECOND if int(micros) else None
