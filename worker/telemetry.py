"""Named events with fields: `emit` writes the log line and moves the counter; redaction lives here.

A line reads `2026-11-24T13:06:46.120Z INFO task.complete worker=7 account=… tasks=500`.
Events are named `thing.verb`, with the same verb as the function that causes them.
"""

from __future__ import annotations

import logging
import logging.handlers
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

_LOG = logging.getLogger("moysklad_worker")
_SYNC = logging.getLogger("moysklad_worker.sync")
_CONTEXT: ContextVar[Mapping[str, Any]] = ContextVar("context", default=MappingProxyType({}))
_SECRET = re.compile(
    r"""(?i)((?:bearer|basic)\s+|(?:token|password|secret|app_key)["']?\s*[=:]\s*)"""
    r"""(?:(["'])(?:\\.|(?!\2).)*\2?|[^\s"',&]+)"""
)
_TELLTALES = ("bearer", "basic", "token", "password", "secret", "app_key", "://")
"""One of these, in lower case, is in every text that `redact` changes."""
_ODD = re.compile(r"[\s\"'=]")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(settings: Settings, *, console: bool) -> None:
    """Send events to LOG_DIR/worker.log, requests to LOG_DIR/sync.log, and to stderr when `console`.

    The files are reopened when logrotate moves them. Raises OSError when LOG_DIR cannot be written.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line tells of them
    settings.LOG_DIR.mkdir(parents=True, exist_ok=True)
    for logger, name in ((_LOG, "worker.log"), (_SYNC, "sync.log")):
        handlers: list[logging.Handler] = [_file(settings.LOG_DIR / name)]
        if console and logger is _LOG:
            handlers.append(logging.StreamHandler(sys.stderr))
        for handler in handlers:
            handler.setFormatter(_Line())
        for old in logger.handlers:
            old.close()
        logger.handlers = handlers
        logger.propagate = False
        logger.setLevel(_LEVELS[settings.LOG_LEVEL])


def emit(event: str, *, level: str = "info", error: BaseException | None = None, **fields: Any) -> None:
    """Tell that `event` happened: one log line, a step of what counts it; `error` adds its traceback."""
    EVENTS.add(1, event, level)
    around = _CONTEXT.get()
    if around:
        fields = {**around, **fields}
    _count(event, fields)
    _write(_LOG, event, level, error, fields)


def emit_request(event: str, **fields: Any) -> None:
    """The same for REQUEST and RESPONSE lines, which go to sync.log."""
    EVENTS.add(1, event, "info")
    _write(_SYNC, event, "info", None, {**_CONTEXT.get(), **fields})


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


def _write(
    logger: logging.Logger, event: str, level: str, error: BaseException | None, fields: dict[str, Any]
) -> None:
    number = _LEVELS[level]
    if logger.isEnabledFor(number):
        words = [event, *(f"{name}={_value(value)}" for name, value in fields.items())]
        text = redact(" ".join(words))
        cause = (type(error), error, error.__traceback__) if error else None
        # As `logger.log` would, without a look at who has called.
        logger.handle(logging.LogRecord(logger.name, number, "", 0, text, None, cause))


def _value(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return repr(text) if not text or _ODD.search(text) else text


def _file(path: Path) -> logging.Handler:
    return logging.handlers.WatchedFileHandler(path, encoding="utf-8")


class _Line(logging.Formatter):
    """A record as one line, with its traceback below: half of what the library's own way costs."""

    def __init__(self) -> None:
        super().__init__()
        self._second, self._stamp = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        line = f"{self._stamp}.{int(record.msecs):03d}Z {record.levelname} {record.msg}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return redact(super().formatException(ei))
