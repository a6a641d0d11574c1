"""Units per window and parallel slots of each principal, shared by every process on every host."""

from worker.limiter.contract import (
    ACCOUNT_PARALLEL,
    BUDGET,
    FRESH_LAG,
    LAG,
    LONG,
    PARALLEL,
    WINDOW,
    Answer,
    Ask,
    Learned,
    Standing,
    Store,
)
from worker.limiter.core import Limiter, Turn
from worker.limiter.database import DatabaseStore

__all__ = [
    "ACCOUNT_PARALLEL",
    "BUDGET",
    "FRESH_LAG",
    "LAG",
    "LONG",
    "PARALLEL",
    "WINDOW",
    "Answer",
    "Ask",
    "DatabaseStore",
    "Learned",
    "Limiter",
    "Standing",
    "Store",
    "Turn",
]
