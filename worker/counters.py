"""What this process has counted, added to what the whole fleet has: the table `counters`, which /metrics tells.

Workers come and go, and no scraper finds them: each adds its counts with every heartbeat. One that is killed takes
those of its last seconds with it.
"""

from __future__ import annotations

import json

from worker.db import Connection, fetch
from worker.telemetry import COUNTED, Sample


class Counts:
    """What was counted here and not yet added to the fleet's counters."""

    def __init__(self) -> None:
        self._added: dict[Sample, float] = {}

    def add(self, conn: Connection) -> None:
        """Add it."""
        now = {series: value for counter in COUNTED for series, value in counter.samples().items()}
        grown = {series: value - self._added.get(series, 0.0) for series, value in now.items()}
        grown = {series: value for series, value in grown.items() if value}
        if grown:
            names = [name for name, _ in grown]
            labels = [json.dumps(dict(pairs), sort_keys=True) for _, pairs in grown]
            fetch(conn, "add_counters", names=names, labels=labels, values=list(grown.values()))
        self._added = now
