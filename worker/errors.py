"""What can go wrong, decided by type where it is noticed.

WorkerError
├── ConfigError               the settings do not hold; nothing was started
├── SchemaMismatch            the database is older or newer than this code
├── NotFound                  no such account, run or task
├── Conflict                  the request contradicts what exists (duplicate account, wrong role, ...)
├── QueueAway                 Redis cannot be reached, or has just gone: the work may be repeated
└── TaskError                 how one task ends when it does not succeed
    ├── Retryable             again later, counting an attempt
    │   ├── Unreachable       ... and nothing was sent: no connection, or no time left
    │   └── Slow              ... the answer was not there, or not whole, in time
    ├── RateLimited(wait)     again after `wait` seconds, counting no attempt
    ├── Unauthorized          the account's token is refused: park the account, count no attempt
    ├── Skipped(reason)       nothing to do, and the reason is worth telling
    └── Permanent             never again by itself
        ├── Rejected          the vendor refused this very request or item; carries its errors
        │   ├── Gone          ... because the object addressed no longer exists (404, 1021)
        │   └── TooLarge      ... because of its size or duration (413, 1044, 1088): send less at once
        └── Ambiguous         several objects of the child match one of main

Interrupted                   this process was told to stop, or the task's time is over
└── TimedOut                  ... the latter
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class WorkerError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(WorkerError):
    """The settings do not hold; the message names each one and what to do."""


class SchemaMismatch(WorkerError):
    """The database's schema is not the one this code was written for."""


class NotFound(WorkerError):
    """There is no such account, run or task."""


class Conflict(WorkerError):
    """The request contradicts what already exists."""


class QueueAway(WorkerError):
    """Where the tasks live cannot be reached, or has just gone; what was asked for may have happened."""


class Interrupted(BaseException):
    """The process is stopping; unfinished tasks go back untouched.

    It comes from a signal, at any statement, also of a library: no Exception, so that no `except Exception`
    there (logging has one) takes it for an error of its own.
    """


class TimedOut(Interrupted):
    """The batch ran longer than `--timeout`."""


class TaskError(WorkerError):
    """How one task ends when it does not succeed."""


class Retryable(TaskError):
    """Worth another attempt later (network, 5xx, conflict)."""


class Unreachable(Retryable):
    """Nothing was sent: no connection could be made, or there was no time left for it."""


class Slow(Retryable):
    """The answer did not come, or not to its end, in time; the request may still take effect."""


class RateLimited(TaskError):
    """The principal must wait `wait` seconds before its next request.

    `parallel` tells that it had too many under way at once, not too many in a time.
    """

    def __init__(self, message: str, wait: float, *, parallel: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.parallel = parallel


class Unauthorized(TaskError):
    """The account's token is refused or lacks rights; every further request would fail alike."""


class Skipped(TaskError):
    """Nothing is to be done for this task; the message is the reason."""


class Permanent(TaskError):
    """Trying again cannot help."""


class Rejected(Permanent):
    """The vendor refused the request or the item.

    `status` is the HTTP status (0 for an item inside an array), `errors` the vendor's own list of
    `{"error", "code"?, "parameter"?, "moreInfo"?}`.
    """

    def __init__(self, status: int, errors: Sequence[dict[str, Any]]) -> None:
        self.status = status
        self.errors = list(errors)
        super().__init__("; ".join(_sentence(error) for error in self.errors) or f"HTTP {status}")

    @property
    def codes(self) -> frozenset[int]:
        """The vendor's error codes, see md/_errors.md."""
        return frozenset(error["code"] for error in self.errors if isinstance(error.get("code"), int))


class Gone(Rejected):
    """The object addressed, or one it refers to, does not exist in this account."""


class TooLarge(Rejected):
    """Too many items, too many bytes or too much time for one request."""


class Ambiguous(Permanent):
    """One of main's goods matches several of the child's, or several match one."""


def _sentence(error: dict[str, Any]) -> str:
    text = str(error.get("error") or error.get("error_message") or "error without text")
    code = f" [{error['code']}]" if "code" in error else ""
    where = f" ({error['parameter']})" if error.get("parameter") else ""
    return f"{text}{where}{code}"
