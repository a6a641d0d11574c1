"""Processes in milliseconds: one that has imported everything and forks others off, as many and as often as asked.

Parent: `Zygote(...)`, `start(key, ...)`, `ended()`. Starting a Python with all of the worker costs half a second of
processor; tests and measurements that kill hundreds of workers fork them from here instead. What is forked is an
ordinary process with connections, threads and signals of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worker.memory import freeze

ROOT = Path(__file__).parents[2]


class Zygote:
    """Forks off processes that run `FUNCTION(**keywords)` of a module and exit with what it returns."""

    def __init__(self, module: str, function: str, errors: Path) -> None:
        """`errors` is the file their stderr goes to."""
        with errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.queue.zygote", module, function],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self._told = threading.Condition()
        self._pids: dict[int, int] = {}
        self._number = 0
        self._alive: dict[int, str] = {}
        self._ended: list[tuple[str, int]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(self, key: str, **keywords: Any) -> int:
        """Start one; its process id."""
        assert self._process.stdin is not None
        with self._told:
            self._number += 1
            number = self._number
            self._process.stdin.write(json.dumps([number, key, keywords]) + "\n")
            self._process.stdin.flush()
            if not self._told.wait_for(lambda: number in self._pids, 30):
                raise RuntimeError("the zygote does not answer")
            return self._pids[number]

    def alive(self) -> dict[int, str]:
        """Process id → key of those that live."""
        with self._told:
            return dict(self._alive)

    def ended(self) -> list[tuple[str, int]]:
        """(key, exit code) of all that have ended, in order; negative is the signal that killed it."""
        with self._told:
            return list(self._ended)

    def wait(self, count: int, seconds: float = 30) -> None:
        """Wait until so many have ended."""
        with self._told:
            if not self._told.wait_for(lambda: len(self._ended) >= count, seconds):
                raise RuntimeError(f"only {len(self._ended)} of {count} have ended")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of them."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def close(self) -> None:
        """Kill all that live, and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._thread.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event, *values = json.loads(line)
            with self._told:
                if event == "started":
                    number, key, pid = values
                    self._pids[number] = pid
                    self._alive[pid] = key
                else:
                    pid, code = values
                    self._ended.append((self._alive.pop(pid), code))
                self._told.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _main() -> None:
    module, function = sys.argv[1:]
    work = getattr(importlib.import_module(module), function)
    freeze()  # else the first collection in each child copies every page there is
    pids: set[int] = set()
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.01)
        if ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                number, key, keywords = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _run(work, keywords)
                pids.add(pid)
                _tell("started", number, key, pid)
        while pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            pids.discard(pid)
            _tell("ended", pid, os.waitstatus_to_exitcode(status))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def _run(work: Callable[..., int | None], keywords: dict[str, Any]) -> None:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        code = work(**keywords) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell(*event: Any) -> None:
    os.write(1, (json.dumps(event) + "\n").encode())


if __name__ == "__main__":
    _main()
