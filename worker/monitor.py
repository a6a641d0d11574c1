"""A read-only look at everything, for the command line, the API and the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from worker.db import Database
from worker.pauses import Pauses
from worker.queues import Queue
from worker.queues.routing import listens

_LONG = 0.2
"""Seconds of counting from which on a count is shown for a while."""
_SHARE = 20
"""... for so many times what it took."""
STATUSES = ("pending", "processing", "completed", "failed")


class Monitor:
    """What is waiting, running, done and failed; who is alive; what went wrong last."""

    def __init__(self, db: Database, queue: Queue, pauses: Pauses) -> None:
        self._db = db
        self._queue = queue
        self._pauses = pauses
        self._lock = threading.Lock()
        self._seen: list[dict[str, Any]] = []
        self._look_at = 0.0

    def snapshot(self, *, failures: int = 10) -> dict[str, Any]:
        """JSON-ready: `totals` by status, `queues` and `accounts` (the same with `oldest_seconds`, the age
        of the oldest due pending task, and accounts with `parked_reason`), `workers`, `failures`,
        `unheard` (queues with pending tasks that no live worker listens to), `paused` (queue, until, reason)
        and `parked` (account, name, until, reason)."""
        rows = self._stats()
        holders = self._queue.holders()
        workers = [_plain(row | {"processing": holders[row["id"]]}) for row in self._db.fetch("workers")]
        names = {str(row["id"]): row for row in self._db.fetch("accounts")}
        accounts = _grouped(rows, "account_id")
        for entry in accounts:
            known = names.get(entry["account_id"], {})
            entry["name"] = known.get("name", "")
            entry["parked_reason"] = parked_reason(known)
        queues = _grouped(rows, "queue")
        return {
            "totals": {status: sum(row["tasks"] for row in rows if row["status"] == status) for status in STATUSES},
            "queues": queues,
            "accounts": accounts,
            "workers": workers,
            "failures": [_plain(row) for row in self._queue.peek("failed", limit=failures)],
            "unheard": [q["queue"] for q in queues if q["pending"] and not _heard(q["queue"], workers)],
            "paused": [_plain(row) for row in self._pauses.current()],
            "parked": [
                {"account": id, "name": row["name"], "until": str(row["parked_until"]), "reason": reason}
                for id, row in names.items()
                if (reason := parked_reason(row)) is not None
            ],
        }

    def _stats(self) -> list[dict[str, Any]]:
        """`stats`, which reads the whole table: where that takes long, one for all, as seldom as _SHARE says."""
        with self._lock:
            began = time.monotonic()
            if began >= self._look_at:
                self._seen = self._queue.stats()
                took = time.monotonic() - began
                self._look_at = began + took + (_SHARE * took if took > _LONG else 0)
            return self._seen

    def pulse(self) -> dict[str, Any]:
        """`workers` alive and `oldest_seconds`, the age of the oldest due pending task: cheap, for probes."""
        return {"workers": len(self._db.fetch("workers")), "oldest_seconds": self._queue.oldest()}

    def absence(self, host: str, process: str = "", release: str = "") -> str | None:
        """Why no live worker of that host, of that name and release if given, can be found; None when one is."""
        here = [row for row in self._db.fetch("workers") if row["host"] == host]
        named = [row for row in here if not process or row["name"] == process]
        if not named:
            wanted = f"worker {process}" if process else "worker"
            alive = ", ".join(row["name"] or str(row["id"]) for row in here) or "none"
            return f"no {wanted} of {host} is alive; alive are: {alive}"
        if release and all(row["release"] != release for row in named):
            return f"{process or 'every worker'} of {host} runs {named[0]['release']}, not {release}"
        return None


def parked_reason(account: Mapping[str, Any]) -> str | None:
    """Why none of the account's tasks is claimed now, or None; takes a row of `Accounts.overview`."""
    until = account.get("parked_until")
    return account["parked_reason"] if until and until > datetime.now(UTC) else None


def _grouped(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = str(row[key])
        group = groups.setdefault(name, {key: name, **dict.fromkeys(STATUSES, 0), "oldest_seconds": None})
        group[row["status"]] += row["tasks"]
        if row["oldest_seconds"] is not None:
            group["oldest_seconds"] = max(group["oldest_seconds"] or 0.0, row["oldest_seconds"])
    return list(groups.values())


def _heard(queue: str, workers: list[dict[str, Any]]) -> bool:
    return any(listens(worker["queues"], queue) for worker in workers)


def _plain(row: Any) -> dict[str, Any]:
    return {name: value if isinstance(value, int | float | str | list | dict | None) else str(value)
            for name, value in row.items()}  # fmt: skip
