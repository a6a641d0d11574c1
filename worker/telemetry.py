"""Named events with fields: `emit` writes the log line and moves the counter; redaction lives here.

A line reads `2026-11-24T13:06:46.120Z INFO task.complete worker=7 account=… tasks=500`.
Events are named `thing.verb`, with the same verb as the function that causes them.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from pathlib import Path
from traceback import format_exception
from types import MappingProxyType
from typing import Any

from worker.settings import Settings, without_password

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A series: its name, and its labels by name."""


class Counter:
    """Counts by labels. Not Prometheus' own: a worker's counts go to the table `counters`, and only who is scraped
    speaks Prometheus, whose library comes with web servers."""

    type = "counter"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.text, self._labels = name, text, labels
        self._counts: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, amount: float, *values: str) -> None:
        """So many more, under these values of the labels."""
        with self._lock:
            self._counts[values] += amount

    def samples(self) -> dict[Sample, float]:
        """What was counted so far."""
        with self._lock:
            return {(f"{self.name}_total", self._series(values)): count for values, count in self._counts.items()}

    def _series(self, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(zip(self._labels, values, strict=True)))


class Histogram(Counter):
    """Counts how often an amount was not more than each of these bounds."""

    type = "histogram"

    def __init__(self, name: str, text: str, *labels: str, bounds: Sequence[float]) -> None:
        super().__init__(name, text, *labels)
        self._bounds = bounds
        self._found: dict[tuple[str, ...], list[int]] = {}

    def add(self, amount: float, *values: str) -> None:
        """One more of that amount."""
        with self._lock:
            found = self._found.get(values) or self._found.setdefault(values, [0] * (len(self._bounds) + 1))
            found[bisect_left(self._bounds, amount)] += 1
            self._counts[values] += amount

    def samples(self) -> dict[Sample, float]:
        """What was counted so far, of each bound all that lies below it."""
        samples: dict[Sample, float] = {}
        with self._lock:
            for values, found in self._found.items():
                series = self._series(values)
                *below, number = accumulate(found)
                for bound, count in zip((*self._bounds, "+Inf"), (*below, number), strict=True):
                    samples[f"{self.name}_bucket", (*series, ("le", str(bound)))] = float(count)
                samples[f"{self.name}_count", series] = float(number)
                samples[f"{self.name}_sum", series] = self._counts[values]
        return samples


EVENTS = Counter("moysklad_worker_events", "Events by name and level.", "event", "level")
TASKS = Counter("moysklad_worker_tasks", "Tasks by transition and kind.", "verb", "kind")
BATCH_SECONDS = Histogram(
    "moysklad_worker_batch_seconds",
    "Seconds a batch ran.",
    "kind",
    bounds=(0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
WAIT_SECONDS = Histogram(
    "moysklad_worker_queue_wait_seconds",
    "Seconds the oldest task of a claimed batch had been due.",
    "kind",
    bounds=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0),
)
COUNTED = (EVENTS, TASKS, BATCH_SECONDS, WAIT_SECONDS)
"""What every process counts; `metrics` adds it up."""

_CONTEXT: ContextVar[Mapping[str, Any]] = ContextVar("context", default=MappingProxyType({}))
_SECRET = re.compile(
    r"""(?i)((?:bearer|basic)\s+|(?:token|password|secret|app_key)["']?\s*[=:]\s*)"""
    r"""(?:(["'])(?:\\.|(?!\2).)*\2?|[^\s"',&]+)"""
)
_TELLTALES = ("bearer", "basic", "token", "password", "secret", "app_key", "://")
"""One of these, in lower case, is in every text that `redact` changes."""
_ODD = re.compile(r"[\s\"'=]")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Lines to a file, which is reopened when logrotate has moved it, and to stderr.

    Not logging's: between its claim and its start a task would wait for it longer than for its line itself.
    """

    def __init__(self, file: Path | None = None, *, console: bool = True, level: str = "warning") -> None:
        """Raises OSError when the file cannot be written."""
        self._file, self._console = file, console
        self.level = _LEVELS[level]
        self._lock = threading.Lock()
        self._second, self._stamp = -1, ""
        self._number = -1
        self._place: tuple[int, int] | None = None
        if file:
            self._open(file)

    def write(self, level: str, text: str) -> None:
        """Add one line; to stderr where the file cannot be written just now."""
        now = time.time()
        with self._lock:
            second = int(now)
            if second != self._second:
                self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
                self._second = second
            line = f"{self._stamp}.{int(now % 1 * 1000):03d}Z {level.upper()} {text}\n"
            told = self._file is not None and self._add(self._file, line)
        if self._console or not told:
            sys.stderr.write(line)
            sys.stderr.flush()

    def _add(self, file: Path, line: str) -> bool:
        try:
            if self._number < 0 or self._place != self._place_of(file):
                self.close()
                self._open(file)
            data = line.encode("utf-8", "backslashreplace")
            return os.write(self._number, data) == len(data)  # at once: other processes add to it as well
        except OSError:
            return False

    def _open(self, file: Path) -> None:
        self._number = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._place = self._place_of(file)

    @staticmethod
    def _place_of(file: Path) -> tuple[int, int] | None:
        try:
            found = os.stat(file)  # noqa: PTH116 - a hot path
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Close the file."""
        number, self._number = self._number, -1  # first: a time limit may end this anywhere
        if number >= 0:
            os.close(number)


_LOGS = {"worker": Log(), "sync": Log()}
"""Until `configure`, warnings go to stderr."""


def configure(settings: Settings, *, console: bool) -> None:
    """Send events to LOG_DIR/worker.log, requests to LOG_DIR/sync.log, and events to stderr when `console`.

    The files are reopened when logrotate moves them. Raises OSError when LOG_DIR cannot be written.
    """
    settings.LOG_DIR.mkdir(parents=True, exist_ok=True)
    for name, told in (("worker", console), ("sync", False)):
        log = Log(settings.LOG_DIR / f"{name}.log", console=told, level=settings.LOG_LEVEL)
        _LOGS[name].close()
        _LOGS[name] = log


def emit(event: str, *, level: str = "info", error: BaseException | None = None, **fields: Any) -> None:
    """Tell that `event` happened: one log line, a step of what counts it; `error` adds its traceback."""
    EVENTS.add(1, event, level)
    around = _CONTEXT.get()
    if around:
        fields = {**around, **fields}
    _count(event, fields)
    _write(_LOGS["worker"], event, level, error, fields)


def emit_request(event: str, **fields: Any) -> None:
    """The same for REQUEST and RESPONSE lines, which go to sync.log."""
    EVENTS.add(1, event, "info")
    _write(_LOGS["sync"], event, "info", None, {**_CONTEXT.get(), **fields})


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Add `fields` to every event emitted inside the block by this thread."""
    token = _CONTEXT.set({**_CONTEXT.get(), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def redact(text: str) -> str:
    """The text with whatever looks like a credential replaced by stars."""
    low = text.lower()
    if not any(word in low for word in _TELLTALES):
        return text
    return _SECRET.sub(r"\1\2***\2", without_password(text))


def _count(event: str, fields: Mapping[str, Any]) -> None:
    if event[:5] == "task." and "tasks" in fields:
        TASKS.add(fields["tasks"], event[5:], fields.get("kind", ""))
        if event == "task.claim":
            WAIT_SECONDS.add(max(0.0, fields["waited"]), fields.get("kind", ""))
    elif event == "batch.end":
        BATCH_SECONDS.add(fields["seconds"], fields.get("kind", ""))


def _write(log: Log, event: str, level: str, error: BaseException | None, fields: Mapping[str, Any]) -> None:
    if _LEVELS[level] < log.level:
        return
    text = redact(" ".join([event, *[f"{name}={_value(value)}" for name, value in fields.items()]]))
    if error:
        text = f"{text}\n{redact(''.join(format_exception(error)).rstrip())}"
    log.write(level, text)


def _value(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return repr(text) if not text or _ODD.search(text) else text
