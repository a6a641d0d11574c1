"""Who has been asked to end, kept beyond the run that asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .supervisord import Process, Snapshot


class Marks:
    """Who has been asked to end and has not yet: pid and start by group:name, in a file that outlives the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem = ""

    def asked(self, process: Process) -> bool:
        """This very process has its TERM."""
        return self._read().get(process.full) == [process.pid, process.start]

    def ask(self, name: str, pid: int, start: int) -> None:
        """It has been sent."""
        self._write({**self._read(), name: [pid, start]})

    def tidy(self, snapshot: Snapshot) -> None:
        """Forget those that have ended."""
        asked = self._read()
        live = {n: who for n, who in asked.items() if n in snapshot and self.asked(snapshot[n])}
        if live != asked:
            self._write(live)

    def _read(self) -> dict[str, list[int]]:
        try:
            asked = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return asked if isinstance(asked, dict) else {}

    def _write(self, asked: dict[str, list[int]]) -> None:
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            if asked:
                new.write_text(json.dumps(asked))
                new.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            self.problem = f"{self._path} cannot be written ({error}): a next run may send a second TERM"
