"""Synchronisation: what is read from main, and how it becomes the same thing in a child."""

from __future__ import annotations

from worker.executor import Handler
from worker.sync import mirror, plan

HANDLERS: dict[tuple[str, str], Handler] = {
    ("catalogue", "plan"): plan.plan,
    ("catalogue", "prepare"): plan.prepare,
    ("product", "sync"): mirror.sync,
}
"""What does the tasks of each kind."""
