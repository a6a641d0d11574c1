"""Stops an account's requests long before MoySklad would: failures counted fleet-wide, in PostgreSQL.

MoySklad disables the API of whoever keeps knocking, and only its support restores it (md/_restrictions.md): more
than 200 identical failing requests, 200 answers 429 or 100 PUTs to one entity in a minute. At a quarter of that
the breaker opens: the account is parked, with the reason, for a minute, then 2, 4, ... 15. It opens too, for 10 to 30
seconds, when nothing comes back any more: while MoySklad is away no task shall lose its attempts. Then one
request is tried; its success closes the breaker, its failure opens it for longer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from worker.accounts import Account
from worker.db import Database, fetch, fetch_one
from worker.errors import RateLimited
from worker.telemetry import emit

WINDOW = 60.0
"""Seconds in which MoySklad counts."""
ALIKE = 50
"""Failing requests of one method, path and status in the window; MoySklad bears 200."""
THROTTLED = 50
"""Answers 429 in the window; MoySklad bears 200."""
PUTS = 25
"""PUT requests to one entity in the window, whatever their outcome; MoySklad bears 100."""
IN_A_ROW = 5
"""Requests of one process, one after the other, that found MoySklad away (no answer, 5xx)."""

COUNTED_WAIT = 60.0
"""Seconds it stays open after one of the counts was reached: MoySklad's minute has then passed."""
AWAY_WAIT = 10.0
"""The same where MoySklad was away."""
LONGEST_WAIT = 900.0
"""Each wait is twice the one before, up to this."""
LONGEST_AWAY = 30.0
"""The same where MoySklad was away: two probes in a minute harm nobody, and shops wait for its return."""
LATELY = 600.0
"""Seconds after which an opening no longer prolongs the next one."""
PROBE = 30.0
"""Seconds one prober has; then another may try."""


class Breaker:
    """The breakers of all accounts. Only failures are written; what this process saw in a row is in memory."""

    def __init__(self, db: Database, *, clock: Callable[[], datetime | None] = lambda: None) -> None:
        """`clock` replaces the server's in tests."""
        self._db = db
        self._now = clock
        self._in_a_row: dict[str, int] = {}

    def admit(self, account: Account) -> bool:
        """Whether requests may be sent; False: one, as a probe, whose outcome goes to `probed`.

        Raises RateLimited while it is open, or somebody else is trying.
        """
        who = {"account": account.id, "principal": account.principal, "now": self._now()}
        rows = self._db.fetch("breaker", **who)
        if not rows:
            return True
        if rows[0]["wait"] > 0:
            raise RateLimited(rows[0]["reason"], rows[0]["wait"])
        if self._db.fetch("take_probe", **who, seconds=PROBE):
            return False
        raise RateLimited(f"{rows[0]['reason']}; whether it is over is being tried", 1.0)

    def probed(self, account: Account, error: str | None) -> None:
        """Close it, or, when the probe found an error, open it for longer. Raises RateLimited then."""
        self._in_a_row.pop(account.principal, None)
        if error is None:
            self._db.fetch("close_breaker", account=account.id, principal=account.principal)
            emit("breaker.close", account=account.id)
            return
        wait = self._open(account, f"MoySklad is still away: {error}", AWAY_WAIT, LONGEST_AWAY)
        raise RateLimited(f"MoySklad is still away: {error}", wait)

    def succeeded(self, account: Account, method: str, path: str) -> None:
        """A request was answered well. Costs nothing, but for a PUT, which is counted whatever comes of it."""
        self._in_a_row.pop(account.principal, None)
        if method == "PUT":
            self._count(account, f"PUT {path}", False, PUTS)

    def failed(self, account: Account, method: str, path: str, status: int, reason: str) -> bool:
        """Count a request that ended with `status` (0: no answer); whether the breaker is open now."""
        away = status == 0 or status >= 500
        row = self._in_a_row.get(account.principal, 0) + 1 if away else 0
        self._in_a_row[account.principal] = row
        opened = self._count(account, f"{method} {path} {status}", status == 429, ALIKE)
        if method == "PUT":
            opened = self._count(account, f"PUT {path}", False, PUTS) or opened
        if not opened and row >= IN_A_ROW:
            self._in_a_row[account.principal] = 0
            said = f"MoySklad is away, {row} requests in a row failed, the last: {reason}"
            self._open(account, said, AWAY_WAIT, LONGEST_AWAY)
            opened = True
        return opened

    def _count(self, account: Account, key: str, throttled: bool, limit: int) -> bool:
        who = {"principal": account.principal, "now": self._now()}
        with self._db.transaction() as conn:
            row = fetch_one(conn, "lock_breaker", account=account.id, principal=account.principal)
            fetch(conn, "record_failure", **who, key=key, throttled=throttled, window=WINDOW)
            counts = fetch_one(conn, "count_failures", **who, key=key, window=WINDOW)
        assert row
        assert counts
        if row["open"]:
            return True
        if throttled and counts["throttled"] >= THROTTLED:
            self._open(account, f"{counts['throttled']} answers 429 in a minute", COUNTED_WAIT)
        elif not throttled and counts["alike"] >= limit:
            self._open(account, f"{counts['alike']} times in a minute: {key}", COUNTED_WAIT)
        else:
            return False
        return True

    def _open(self, account: Account, reason: str, base: float, longest: float = LONGEST_WAIT) -> float:
        """Open it and park the account; for how many seconds."""
        reason = f"stopped before MoySklad disables the account: {reason}"
        with self._db.transaction() as conn:
            fetch(conn, "lock_breaker", account=account.id, principal=account.principal)
            fetch(conn, "forget_failures", principal=account.principal)
            row = fetch_one(
                conn, "open_breaker", account=account.id, reason=reason, now=self._now(),
                base=base, longest=longest, lately=LATELY,
            )  # fmt: skip
            if row is None:  # somebody else was faster
                return base
            fetch(conn, "pause_account", id=account.id, wait=row["wait"], reason=reason)
        emit("breaker.open", level="warning", account=account.id, wait=row["wait"], reason=reason)
        return float(row["wait"])
