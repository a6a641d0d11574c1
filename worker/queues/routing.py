"""Which queue a task goes to: one rule for producers and workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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


def resolve(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that match, in the order of the patterns; a pattern without `*` stands for itself."""
    resolved: dict[str, None] = {}
    for pattern in patterns:
        if "*" not in pattern:
            resolved[pattern] = None
        else:
            regex = re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
            resolved.update((name, None) for name in names if regex.fullmatch(name))
    return list(resolved)
