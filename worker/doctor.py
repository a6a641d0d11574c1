"""What is wrong with the whole system, and what to do about each: read-only, for an operator or a monitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from worker.accounts import Accounts
from worker.db import Database, require_schema
from worker.errors import NotFound, SchemaMismatch, Unauthorized
from worker.monitor import Monitor
from worker.queues import Queue
from worker.queues.routing import Route, listens


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: `what` for scripts, a sentence, and what to do."""

    level: Literal["warning", "error"]
    what: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something counts as wrong."""

    wait: float = 900
    """Seconds a due task may wait while nothing holds its account or queue back."""
    tick: float = 120
    """Seconds since `schedule run`, which cron calls every minute."""
    transaction: float = 300
    """Seconds a transaction may be open."""
    dead_rows: int = 200_000
    """Dead rows in the queue's table that are more than its live ones."""
    skew: float = 2
    """Seconds this host's clock may differ from the server's."""


def exit_code(findings: Sequence[Finding]) -> int:
    """0 all is well, 1 warnings only, 2 errors."""
    return max((2 if finding.level == "error" else 1 for finding in findings), default=0)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for scripts."""
    return {"code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}


class Doctor:
    """Looks at everything once."""

    def __init__(
        self,
        db: Database,
        queue: Queue,
        accounts: Accounts,
        monitor: Monitor,
        route: Route,
        *,
        limits: Limits | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db, self._queue, self._accounts, self._monitor, self._route = db, queue, accounts, monitor, route
        self._limits = limits or Limits()
        self._clock = clock

    def examine(self) -> list[Finding]:
        """Everything that is wrong, errors first; with a schema that does not fit nothing else can be asked."""
        try:
            require_schema(self._db)
        except SchemaMismatch as error:
            return [Finding("error", "schema", str(error), "Migrate, or install the release that fits.")]
        snapshot = self._monitor.snapshot(failures=0)
        checks = (
            self._listeners(snapshot),
            self._releases(snapshot),
            self._held_back(snapshot),
            self._waiting(snapshot),
            self._routes(),
            self._tick(),
            self._transactions(),
            self._dead_rows(),
            self._skew(),
            self._tokens(),
        )
        return sorted((finding for check in checks for finding in check), key=lambda finding: finding.level)

    def _listeners(self, snapshot: dict[str, Any]) -> Iterator[Finding]:
        for queue in snapshot["unheard"]:
            yield Finding(
                "error",
                "unheard",
                f"queue {queue} has pending tasks and no live worker listens to it",
                "Start the workers (`supervisorctl status`), give one a --queue that covers it, or, after a change "
                "of QUEUE_TOPOLOGY, `moysklad-worker queue reroute`.",
            )
        if not snapshot["workers"] and not snapshot["unheard"]:
            yield Finding("warning", "workers", "no worker is alive", "`supervisorctl status`, then start them.")

    def _releases(self, snapshot: dict[str, Any]) -> Iterator[Finding]:
        releases: dict[str, list[str]] = {}
        for worker in snapshot["workers"]:
            who = f"{worker['name'] or worker['pid']} on {worker['host']}"
            releases.setdefault(worker["release"], []).append(who)
        if len(releases) > 1:
            told = "; ".join(f"{release}: {', '.join(sorted(here))}" for release, here in sorted(releases.items()))
            yield Finding(
                "warning",
                "releases",
                f"workers run different releases: {told}",
                "Finish or roll back the deploy; `moysklad-worker queue restart` has each start what `current` is.",
            )

    def _held_back(self, snapshot: dict[str, Any]) -> Iterator[Finding]:
        for row in snapshot["paused"]:
            yield Finding(
                "warning",
                "paused",
                f"queue {row['queue']} is paused until {row['until']}: {row['reason']}",
                f"`moysklad-worker queue resume '{row['queue']}'` when it may go on.",
            )
        for row in snapshot["parked"]:
            yield Finding(
                "warning",
                "parked",
                f"account {row['name']} ({row['account']}) is parked until {row['until']}: {row['reason']}",
                f"Mend the cause, then `moysklad-worker accounts unpark {row['account']}`, or "
                f"`accounts token {row['account']}` where the token is refused.",
            )

    def _waiting(self, snapshot: dict[str, Any]) -> Iterator[Finding]:
        paused = [row["queue"] for row in snapshot["paused"]]
        parked = {row["account"] for row in snapshot["parked"]}
        late: dict[str, float] = {}
        for row in self._queue.stats():
            age, queue = row["oldest_seconds"] or 0.0, row["queue"]
            held = str(row["account_id"]) in parked or listens(paused, queue) or queue in snapshot["unheard"]
            if not held and age > self._limits.wait:
                late[queue] = max(age, late.get(queue, 0.0))
        for queue, age in sorted(late.items()):
            yield Finding(
                "warning",
                "waiting",
                f"in queue {queue} a due task has waited {age:.0f} s, more than {self._limits.wait:.0f} s",
                "`moysklad-worker monitor`: where workers are all busy start more; where `remaining=` in sync.log is "
                "near 0 MoySklad's limit is the bound.",
            )

    def _routes(self) -> Iterator[Finding]:
        astray: dict[tuple[str, str], None] = {}
        for row in self._db.fetch("routes"):
            try:
                target = self._route(row["entity_type"], row["account_id"])
            except NotFound:
                target = row["queue"]
            if target != row["queue"]:
                astray[row["queue"], target] = None
        for queue, target in sorted(astray)[:10]:
            yield Finding(
                "warning",
                "astray",
                f"tasks wait in queue {queue} that QUEUE_TOPOLOGY sends to {target} now",
                "When QUEUE_TOPOLOGY is the same on every host: `moysklad-worker queue reroute`.",
            )

    def _tick(self) -> Iterator[Finding]:
        seconds = self._db.fetch("last_tick", now=self._clock())[0]["seconds"]
        if seconds is None or seconds > self._limits.tick:
            since = "has never run" if seconds is None else f"ran last {seconds:.0f} s ago, on no host since"
            yield Finding(
                "error",
                "tick",
                f"`schedule run` {since}",
                "See that cron runs and calls `moysklad-worker schedule run` every minute on every host.",
            )

    def _transactions(self) -> Iterator[Finding]:
        for row in self._db.fetch("long_transactions", seconds=self._limits.transaction):
            age = "" if row["seconds"] is None else f", open for {row['seconds']:.0f} s"
            about = " ".join(word for word in (row["application"], row["state"]) if word)
            advice = {
                "session": f"End it where it was begun, or `select pg_terminate_backend({row['who']})`.",
                "prepared transaction": f"`commit prepared` or `rollback prepared '{row['who']}'`.",
                "replication slot": f"Start its reader, or `select pg_drop_replication_slot('{row['who']}')`.",
            }[row["kind"]]
            yield Finding(
                "warning",
                "transaction",
                f"{row['kind']} {row['who']} ({about}){age} keeps VACUUM from removing dead rows",
                advice,
            )

    def _dead_rows(self) -> Iterator[Finding]:
        for row in self._db.fetch("dead_rows"):
            if row["dead"] > max(self._limits.dead_rows, row["live"]):
                yield Finding(
                    "warning",
                    "dead-rows",
                    f"sync_queue has {row['dead']} dead rows beside {row['live']} live ones, last vacuumed "
                    f"{row['vacuumed_at'] or 'never'}",
                    "See that autovacuum is on and nothing holds it back (`transaction` above); `vacuum sync_queue`.",
                )

    def _skew(self) -> Iterator[Finding]:
        before = self._clock()
        theirs: datetime = self._db.fetch("clock")[0]["now"]
        after = self._clock()
        skew = max((before - theirs).total_seconds(), (theirs - after).total_seconds())
        if skew > self._limits.skew:
            yield Finding(
                "warning",
                "skew",
                f"this host's clock and PostgreSQL's differ by {skew:.1f} s",
                "Run a time service (chrony) on both; tasks go by PostgreSQL's clock, logs by this one.",
            )

    def _tokens(self) -> Iterator[Finding]:
        for row in self._accounts.overview():
            try:
                self._accounts.get(row["id"])
            except Unauthorized as error:
                yield Finding("error", "token", str(error), "Set the APP_KEY that all hosts share.")
