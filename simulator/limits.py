"""Request limits of one principal and the switch that turns its access off (md/_restrictions.md).

A refused request costs no units: the vendor does not say, and a client that keeps hammering is punished by
the kill-switch instead. Every refusal is still in the ledger.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

UNITS = 45
PERIOD = 3.0
PARALLEL_PER_PRINCIPAL = 5
PARALLEL_PER_ACCOUNT = 20

MINUTE = 60.0
MAX_THROTTLED = 200  # 429 answers per minute
MAX_IDENTICAL = 200  # identical failing requests per minute
MAX_PUTS = 100  # PUT requests to one entity per minute


class Window:
    """Units spent in the last `PERIOD` seconds, exact to the request."""

    def __init__(self) -> None:
        self.spent: deque[tuple[float, int]] = deque()
        self.used = 0

    def expire(self, now: float) -> None:
        """Give back what has left the window."""
        while self.spent and self.spent[0][0] + PERIOD <= now:
            self.used -= self.spent.popleft()[1]

    def take(self, now: float, units: int) -> bool:
        """Spend `units` if they still fit; False leaves the window as it was."""
        self.expire(now)
        if self.used + units > UNITS:
            return False
        self.spent.append((now, units))
        self.used += units
        return True

    def wait(self, now: float, units: int) -> float:
        """Seconds until `units` will fit, 0 if they fit now."""
        self.expire(now)
        missing = self.used + units - UNITS
        for moment, freed in self.spent:
            if missing <= 0:
                break
            missing -= freed
            if missing <= 0:
                return moment + PERIOD - now
        return 0.0

    def reset(self, now: float) -> float:
        """Seconds until the oldest units come back, 0 if none are spent."""
        self.expire(now)
        return self.spent[0][0] + PERIOD - now if self.spent else 0.0


class Rate:
    """Counts keyed events of the last minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.events: deque[tuple[float, str]] = deque()
        self.counts: Counter[str] = Counter()

    def exceeded(self, now: float, key: str) -> bool:
        """Note one event; True once there are more than `limit` with this key in a minute."""
        while self.events and self.events[0][0] + MINUTE <= now:
            _, old = self.events.popleft()
            self.counts[old] -= 1
            if not self.counts[old]:
                del self.counts[old]
        self.events.append((now, key))
        self.counts[key] += 1
        return self.counts[key] > self.limit


@dataclass
class Neighbour:
    """Somebody else who uses the same token: `units` spent evenly, `rate` a second, `weight` at once."""

    rate: float
    weight: int
    next: float
    """When it sends again."""

    def due(self, now: float) -> Iterator[float]:
        """The moments until now at which it has sent."""
        while self.next <= now:
            yield self.next
            self.next += self.weight / self.rate


@dataclass
class Principal:
    """One token or login: its weight, its window, its running requests, its neighbour and its misdeeds."""

    name: str
    account: str
    weight: int = 1
    window: Window = field(default_factory=Window)
    running: int = 0
    neighbour: Neighbour | None = None
    disabled: str | None = None
    throttled: Rate = field(default_factory=lambda: Rate(MAX_THROTTLED))
    identical: Rate = field(default_factory=lambda: Rate(MAX_IDENTICAL))
    puts: Rate = field(default_factory=lambda: Rate(MAX_PUTS))

    def admit_neighbour(self, now: float) -> int:
        """Let the neighbour spend what it had sent by now, at its moments; how many units fitted."""
        if self.neighbour is None:
            return 0
        weight = self.neighbour.weight
        return sum(weight for moment in self.neighbour.due(now) if self.window.take(moment, weight))

    def judge(self, now: float, method: str, path: str, status: int) -> str | None:
        """Note one answered request; the reason if it was the one that turned access off."""
        reason = None
        if status == 429:
            if self.throttled.exceeded(now, ""):
                reason = f"more than {MAX_THROTTLED} answers 429 in a minute"
        elif status >= 400 and self.identical.exceeded(now, f"{method} {path} {status}"):
            reason = f"more than {MAX_IDENTICAL} identical failing requests in a minute"
        if method == "PUT" and self.puts.exceeded(now, path):
            reason = f"more than {MAX_PUTS} PUT requests to one entity in a minute"
        if reason is None or self.disabled:
            return None
        self.disabled = reason
        return reason

    def forgive(self) -> None:
        """Restore access, as the vendor's support would."""
        self.disabled = None
        self.throttled, self.identical, self.puts = Rate(MAX_THROTTLED), Rate(MAX_IDENTICAL), Rate(MAX_PUTS)
