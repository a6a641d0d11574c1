"""A process of a measurement: prepared first, let go together, counted while it works.

Parent: `Child(...)`, `ready()`, `go()`, `result()` or `stop()`. In the process: `python -m bench.queue.child
MODULE FUNCTION {keywords}` calls `FUNCTION(Stand(...), **keywords)`, which calls `stand.gate()` once it is prepared.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self
from uuid import UUID

ROOT = Path(__file__).parents[2]
_RECORD = struct.Struct("<d16sId")
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """Tasks of one account that were started together: when, how many, and when the first was sent."""

    at: float
    account: UUID
    tasks: int
    sent: float


class Stand:
    """What a process of a measurement is given: the gate, the count of started tasks, and a trace of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = os.open(folder / "count", os.O_RDWR)
        self._count = memoryview(mmap.mmap(file, 8)).cast("q")
        self._trace = os.open(folder / "trace", os.O_WRONLY | os.O_APPEND)

    def gate(self) -> None:
        """Say that everything is prepared, and wait until told to go."""
        print("ready", flush=True)
        sys.stdin.readline()

    def count(self, tasks: int = 1) -> None:
        """So many more tasks were started."""
        self._count[0] += tasks

    def trace(self, tasks: int, account: UUID = UUID(int=0), sent: float = 0.0) -> None:
        """The same, with the time and whose they are."""
        os.write(self._trace, _RECORD.pack(time.monotonic(), account.bytes, tasks, sent))
        self.count(tasks)


def started(folder: Path) -> int:
    """Tasks that the child of this folder has started so far."""
    return int.from_bytes((folder / "count").read_bytes(), sys.byteorder)


class Child:
    """One such process, as its parent sees it."""

    def __init__(self, module: ModuleType | str, function: str, **keywords: Any) -> None:
        name = module if isinstance(module, str) else module.__name__
        self._temporary = tempfile.TemporaryDirectory(prefix="bench-child-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        (self.folder / "count").write_bytes(bytes(8))
        (self.folder / "trace").touch()
        self._errors = (self.folder / "stderr").open("wb")
        command = [sys.executable, "-m", "bench.queue.child", name, function, str(self.folder), json.dumps(keywords)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.what = f"{name}.{function}"
        self.pid = self._process.pid

    def ready(self) -> None:
        """Wait until it is prepared."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{self.what} did not start:\n{self._told()}")

    def go(self) -> None:
        """Let it work."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    @property
    def started(self) -> int:
        """Tasks started so far."""
        return started(self.folder)

    def starts(self) -> list[Start]:
        """The trace so far."""
        data = (self.folder / "trace").read_bytes()
        whole = len(data) // _RECORD.size * _RECORD.size
        return [
            Start(at, UUID(bytes=account), tasks, sent)
            for at, account, tasks, sent in _RECORD.iter_unpack(data[:whole])
        ]

    def alive(self) -> None:
        """Raises RuntimeError, with what it said, when it is no longer there."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.what} ended with {self._process.returncode}:\n{self._told()}")

    def result(self) -> Any:
        """Wait for its end; what its function returned."""
        answer, _ = self._process.communicate(timeout=_PATIENCE)
        if self._process.returncode:
            raise RuntimeError(f"{self.what} failed:\n{self._told()}")
        return json.loads(answer.splitlines()[-1])

    def stop(self) -> float:
        """End it as Supervisor does; seconds that took."""
        began = time.monotonic()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def _told(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")[-3000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()
        self._temporary.cleanup()


@contextmanager
def together(number: int, module: ModuleType | str, function: str, **keywords: Any) -> Iterator[list[Child]]:
    """So many alike, all prepared."""
    children = [Child(module, function, **keywords) for _ in range(number)]
    try:
        for child in children:
            child.ready()
        yield children
    finally:
        for child in children:
            child.__exit__(None, None, None)


def _main() -> None:
    module, function, folder, keywords = sys.argv[1:]
    work = getattr(importlib.import_module(module), function)
    print(json.dumps(work(Stand(Path(folder)), **json.loads(keywords))), flush=True)


if __name__ == "__main__":
    _main()
