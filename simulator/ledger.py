"""What was asked and answered: the evidence tests and benchmarks read."""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any

_ID = re.compile(r"/[0-9a-fA-F]{8}-[0-9a-fA-F-]{20,}")
KEPT = 5000


@dataclass(frozen=True)
class Entry:
    """One request as it ended; `status` 0 means the connection was cut without an answer."""

    t: float
    account: str | None
    principal: str | None
    method: str
    path: str
    query: str
    status: int
    units: int
    items: int
    duration_ms: float
    applied: bool  # whether the handler ran to its end, so that a write took effect


def is_write(method: str, path: str) -> bool:
    """Whether such a request changes what the account has."""
    return method != "GET" and path.startswith(("/entity/", "/context/"))


@dataclass
class Totals:
    """Counters of one account, or of all of them."""

    requests: int = 0
    writes: int = 0
    units: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_path: Counter[str] = field(default_factory=Counter)
    neighbour_units: int = 0
    """Spent by somebody else who uses the same token."""
    max_units_3s: int = 0
    max_parallel: int = 0

    def as_json(self) -> dict[str, Any]:
        """All counters."""
        counters = {"by_status": dict(self.by_status), "by_path": dict(self.by_path)}
        return {**vars(self), **counters}

    def add(self, entry: Entry) -> None:
        """Count one ended request."""
        self.requests += 1
        self.units += entry.units
        self.by_status[str(entry.status)] += 1
        self.by_path[f"{entry.method} {_ID.sub('/{id}', entry.path)}"] += 1
        if entry.applied and is_write(entry.method, entry.path):
            self.writes += 1

    def peak(self, units: int, parallel: int) -> None:
        """Remember the highest window use and parallelism seen when a request was let in."""
        self.max_units_3s = max(self.max_units_3s, units)
        self.max_parallel = max(self.max_parallel, parallel)


class Ledger:
    """All requests since the last reset, counted; the newest `KEPT` also one by one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything counted; limits and their windows live elsewhere."""
        self.total = Totals()
        self.accounts: dict[str, Totals] = {}
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self.kill_switch: list[dict[str, Any]] = []

    def of(self, account: str) -> Totals:
        """The counters of one account."""
        return self.accounts.setdefault(account, Totals())

    def granted(self, account: str, units: int, parallel: int) -> None:
        """A request was let in: `units` used in its principal's window, `parallel` running there."""
        self.total.peak(units, parallel)
        self.of(account).peak(units, parallel)

    def neighbour(self, account: str, units: int) -> None:
        """Somebody else has spent units of a token's window."""
        self.total.neighbour_units += units
        self.of(account).neighbour_units += units

    def add(self, entry: Entry) -> None:
        """A request ended."""
        self.entries.append(entry)
        self.total.add(entry)
        if entry.account:
            self.of(entry.account).add(entry)

    def applied_late(self, account: str, method: str, path: str) -> None:
        """A request that is down as cut off took effect after all."""
        if is_write(method, path):
            self.total.writes += 1
            self.of(account).writes += 1

    def switched_off(self, t: float, account: str, principal: str, reason: str) -> None:
        """A principal lost its access."""
        self.kill_switch.append({"t": t, "account": account, "principal": principal, "reason": reason})

    def as_json(self, names: dict[str, str], entries: bool = False) -> dict[str, Any]:
        """The whole ledger; `names` gives every account its name."""
        result: dict[str, Any] = self.total.as_json()
        result["responses_429"] = self.total.by_status.get("429", 0)
        result["kill_switch"] = list(self.kill_switch)
        result["accounts"] = {
            key: {"name": name, **self.accounts.get(key, Totals()).as_json()} for key, name in names.items()
        }
        if entries:
            result["entries"] = [asdict(entry) for entry in self.entries]
        return result
