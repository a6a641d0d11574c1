"""Health commands, run beside the roll."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from .excerpt import LOG_BYTES, last_lines
from .options import Options
from .supervisord import Process

PARALLEL_PROBES = 4


@dataclass
class _Probe:
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    pid: int
    deadline: float


class Prober:
    """Health commands, a few at a time, without waiting for them."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._running: dict[str, _Probe] = {}
        self._ended: dict[str, tuple[int, bool]] = {}
        self.outputs: dict[str, str] = {}  # why the last one failed

    def verdict(self, process: Process) -> str:
        """running; passed or failed once, when it has ended; otherwise nothing."""
        self._reap()
        if process.full in self._running:
            if self._running[process.full].pid == process.pid:
                return "running"
            self._end(process.full, "")  # about a predecessor
        pid, passed = self._ended.pop(process.full, (0, False))
        return ("passed" if passed else "failed") if pid and pid == process.pid else ""

    def start(self, process: Process) -> None:
        """Begin, if there is room."""
        if len(self._running) >= PARALLEL_PROBES:
            return
        command, environment = self._options.command(process.name)
        output = tempfile.TemporaryFile()  # noqa: SIM115  closed in _end
        try:
            child = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            output.close()
            self._ended[process.full] = process.pid, False
            self.outputs[process.full] = f"{command[0]}: {error}"
            return
        deadline = self._clock() + self._options.ready_timeout
        self._running[process.full] = _Probe(child, output, process.pid, deadline)

    def close(self) -> None:
        """End what still runs."""
        for name in list(self._running):
            self._end(name, "")

    def _reap(self) -> None:
        for name, probe in list(self._running.items()):
            code = probe.process.poll()
            if code is not None:
                self._ended[name] = probe.pid, code == 0
                self._end(name, f"exit status {code}")
            elif self._clock() > probe.deadline:
                self._ended[name] = probe.pid, False
                self._end(name, "did not end in time")

    def _end(self, name: str, why: str) -> None:
        probe = self._running.pop(name)
        if probe.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(probe.process.pid, signal.SIGKILL)
            probe.process.wait()
        probe.output.seek(0)
        said = last_lines(probe.output.read()[-LOG_BYTES:].decode(errors="ignore"))
        probe.output.close()
        if why or name not in self.outputs:  # what the last complete one said is worth more than half a word
            self.outputs[name] = ", ".join(filter(None, [why or "was still running", said]))
