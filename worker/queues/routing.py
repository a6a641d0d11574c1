"""Which queue a task goes to: one rule for producers and workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from uuid import UUID

HIGH = frozenset({"product", "variant", "bundle", "service", "order", "catalogue"})
"""Entity types of the `high` queue in the `priority` topology; the rest goes to `low`."""

Route = Callable[[str, UUID], str]
"""(entity_type, account_id) → queue name."""


def route(topology: str, role_of: Callable[[UUID], str]) -> Route:
    """The routing of a topology; `role_of` tells whether an account is `main` or `child`."""
    if topology == "account":
        return lambda _, account_id: f"account-{role_of(account_id)}-{account_id}"
    if topology == "priority":
        return lambda entity_type, _: "high" if entity_type in HIGH else "low"
    return lambda *_: "default"


def listens(patterns: Sequence[str], queue: str) -> bool:
    """Whether a worker told `patterns` serves that queue; `*` stands for any characters, nothing else does."""
    return any(_listens(pattern, queue) for pattern in patterns)


@lru_cache(maxsize=4096)
def _listens(pattern: str, queue: str) -> bool:
    return bool(re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), queue, re.DOTALL))


def like(pattern: str) -> str:
    """The pattern as SQL's LIKE reads it."""
    return re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%")
