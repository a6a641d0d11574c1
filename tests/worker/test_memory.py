"""Memory of this process."""

from __future__ import annotations

import subprocess
import sys

from worker.memory import peak_rss_mb, rss_mb


def test_what_this_process_holds() -> None:
    """In MB, and never more than it ever held; 40 MB more when it takes 40 MB more."""
    before = rss_mb()
    much = b"x" * 40_000_000
    assert before + 35 < rss_mb() <= peak_rss_mb() + 1
    assert len(much) == 40_000_000


def test_what_is_frozen_is_not_looked_at_again() -> None:
    """What is there is permanent, what is garbage by then is gone, and what comes later is collected as ever; in a
    process of its own, as it cannot be undone."""
    code = """
import gc, weakref
from worker.memory import freeze

class Ring:
    def __init__(self): self.me = self

old, gone = Ring(), weakref.ref(Ring())
freeze()
assert gone() is None
frozen = gc.get_freeze_count()
assert frozen > 1000
assert len(gc.get_objects()) < 1000, "looked at again"
late = weakref.ref(Ring())
gc.collect()
assert late() is None
assert gc.get_freeze_count() == frozen
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
