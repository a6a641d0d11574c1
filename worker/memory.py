"""Memory of this process: what it holds, and what the garbage collector need not look at again."""

from __future__ import annotations

import gc
import resource


def rss_mb() -> int:
    """Memory this process holds now, in MB."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - a hot path, and not a file
            return int(file.read().split()[1]) * resource.getpagesize() // 1_000_000
    except OSError:
        return peak_rss_mb()


def peak_rss_mb() -> int:
    """The most memory this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000


def freeze() -> None:
    """Take what is there now for permanent: modules, settings, connections.

    Each full collection would look through it, 10 ms and more at a time, wherever the process just is.
    """
    gc.collect()
    gc.freeze()
