"""Tasks at a steady rate, as a day's webhooks come."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from bench.queue.child import Stand


def pulse(stand: Stand, send: Callable[[float], object], rate: float, seconds: float, seed: int) -> int:
    """Call `send(now)` at that rate, each a little early or late, whatever the one before took; how many."""
    rng = random.Random(seed)
    number = int(rate * seconds)
    send(time.monotonic())  # connections are made and statements are planned
    stand.gate()
    began = time.monotonic()
    for n in range(number):
        time.sleep(max(0.0, began + (n + rng.uniform(0.1, 0.9)) / rate - time.monotonic()))
        send(time.monotonic())
    return number
