"""Faults on order: cut connections, wrong bodies, error statuses, slow answers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

KINDS = (
    "status",
    "drop_before",
    "drop_after",
    "late",
    "timeout",
    "html",
    "truncate",
    "drip",
    "redirect",
    "delay",
    "wrong_json",
    "item_error",
)
CUT = frozenset({"drop_before", "drop_after", "late", "timeout"})
"""Kinds that end the connection without an answer."""


@dataclass
class Fault:
    """One rule: which requests it hits, how often, and what then goes wrong.

    `status`, `html`, `redirect`, `timeout` and `drop_before` leave no effect; with `effect` true those that
    answer, and `timeout`, come *after* it, like a gateway that lost patience. `drop_after`, `truncate`, `drip`
    and `wrong_json` follow it. `late` cuts the connection at once and takes effect `delay_ms` later: a server
    that goes on working for a client who has gone. `timeout` keeps silent for `delay_ms`, then cuts.
    `drip` sends one byte of the body every `delay_ms`, for ever or to its end.
    """

    kind: str
    status: int | None = None
    delay_ms: float = 0
    method: str | None = None
    path: str | None = None
    account: str | None = None
    count: int | None = None
    probability: float = 1.0
    seed: int = 1
    effect: bool = False
    items: list[int] = field(default_factory=list)
    code: int | None = None
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault kind {self.kind!r}, known: {', '.join(KINDS)}")
        self.random = random.Random(self.seed)

    def matches(self, method: str, path: str, account: str) -> bool:
        """Whether this rule speaks about this request and still has hits to give."""
        return (
            (self.count is None or self.hits < self.count)
            and (self.method is None or self.method == method)
            and (self.path is None or f"{path}/".startswith(f"{self.path.rstrip('/')}/"))
            and (self.account is None or self.account == account)
            and (self.probability >= 1.0 or self.random.random() < self.probability)
        )

    def as_json(self) -> dict[str, Any]:
        """The rule as it was ordered, with its hits so far."""
        return {key: value for key, value in vars(self).items() if key != "random"}


class Faults:
    """The rules in the order they were added; the first that matches wins."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []

    def add(self, order: dict[str, Any]) -> Fault:
        """One more rule; unknown keys and kinds are refused."""
        fault = Fault(**order)
        self.rules.append(fault)
        return fault

    def pick(self, method: str, path: str, account: str) -> Fault | None:
        """The fault this request shall suffer, already counted."""
        for rule in self.rules:
            if rule.matches(method, path, account):
                rule.hits += 1
                return rule
        return None
