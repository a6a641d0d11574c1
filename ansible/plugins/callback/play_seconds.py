"""Ansible callback: at the end of a run, how many seconds each play took."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: play_seconds
type: aggregate
short_description: Seconds per play at the end of a run
description:
  - Adds the batches of a play with C(serial) up. Plays of less than a tenth of a second are left out.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core has no types
    """A play ends where the next one begins."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "play_seconds"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._began: list[tuple[str, float]] = []

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play, or the next batch of one."""
        self._began.append((play.get_name(), time.monotonic()))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The end."""
        seconds: dict[str, float] = {}
        ends = [began for _, began in self._began[1:]] + [time.monotonic()]
        for (name, began), end in zip(self._began, ends, strict=True):
            seconds[name] = seconds.get(name, 0.0) + end - began
        self._display.banner("SECONDS")
        for name, taken in [*seconds.items(), ("all of it", sum(seconds.values()))]:
            if taken >= 0.1:
                self._display.display(f"{taken:7.1f}  {name}")
