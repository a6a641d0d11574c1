"""What a task is, what its payload holds and how it can end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any
from uuid import UUID

from worker.errors import Permanent


class Status(StrEnum):
    """Where a task stands; `completed` and `failed` are final."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class Priority:
    """The seed's three ranks; a higher number is claimed first."""

    USER = 10
    WEBHOOK = 5
    BACKGROUND = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Payload of (catalogue, plan): read main once, then have these children prepared; None means all."""

    children: tuple[UUID, ...] | None = None


@dataclass(frozen=True, slots=True)
class Prepare:
    """Payload of (catalogue, prepare): bring one child's references up to date, then enqueue its goods."""

    main: UUID


@dataclass(frozen=True, slots=True)
class SyncGoods:
    """Payload of (product, sync): send one of main's goods to a child.

    `searched` tells that the child was searched for it and has none, so that it is created without
    another look; `problem` is why it cannot be matched.
    """

    main: UUID
    searched: bool = False
    problem: str | None = None


Payload = Plan | Prepare | SyncGoods

KINDS: dict[tuple[str, str], type[Payload]] = {
    ("catalogue", "plan"): Plan,
    ("catalogue", "prepare"): Prepare,
    ("product", "sync"): SyncGoods,
}

_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to be enqueued.

    Raises Permanent when its kind and payload do not fit each other, or it has what not every driver can keep.
    """

    account_id: UUID
    entity_type: str
    operation: str
    payload: Payload
    entity_id: str = ""
    priority: int = Priority.BACKGROUND
    run_id: UUID | None = None
    max_attempts: int | None = None
    scheduled_at: datetime | None = None

    def __post_init__(self) -> None:
        expected = KINDS.get((self.entity_type, self.operation))
        if expected is None:
            raise Permanent(f"unknown kind of task {self.entity_type}/{self.operation}")
        if not isinstance(self.payload, expected):
            raise Permanent(
                f"{self.entity_type}/{self.operation} takes {expected.__name__}, not {type(self.payload).__name__}"
            )
        if "\0" in self.entity_id:  # ends a text in the protocol of PostgreSQL, and a name in Redis
            raise Permanent(f"entity_id {self.entity_id!r} of {self.entity_type}/{self.operation} has a NUL")
        if not -_MOST <= self.priority <= _MOST:
            raise Permanent(f"priority {self.priority} of {self.entity_type}/{self.operation} is beyond ±{_MOST}")
        if self.max_attempts is not None and not 1 <= self.max_attempts <= _MOST:
            raise Permanent(
                f"max_attempts {self.max_attempts} of {self.entity_type}/{self.operation} is not within 1 and {_MOST}"
            )


@dataclass(frozen=True, slots=True)
class Task:
    """A claimed task; it belongs to `worker` until it is ended or handed back."""

    id: int
    queue: str
    account_id: UUID
    entity_type: str
    entity_id: str
    operation: str
    priority: int
    payload: str
    """JSON, read by `decode` alone: most of a batch is often settled by less."""
    attempts: int
    max_attempts: int | None
    run_id: UUID | None
    worker: int
    waited: float

    def decode(self) -> Payload:
        """The payload as its dataclass. Raises Permanent naming what does not fit."""
        return decode(self.entity_type, self.operation, json.loads(self.payload))


def decode(entity_type: str, operation: str, payload: Mapping[str, Any]) -> Payload:
    """The payload of such a task as its dataclass. Raises Permanent naming what does not fit."""
    kind = KINDS.get((entity_type, operation))
    if kind is None:
        raise Permanent(f"unknown kind of task {entity_type}/{operation}")
    try:
        return kind(**{name: _decode(name, value) for name, value in payload.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise Permanent(f"the payload of {entity_type}/{operation} does not fit: {error}") from None


def encode(payload: Payload) -> dict[str, Any]:
    """The payload as JSON's own types, without what is at its default."""
    encoded: dict[str, Any] = {}
    for item in dataclasses.fields(payload):
        value = getattr(payload, item.name)
        if value != item.default:
            encoded[item.name] = _encode(value)
    return encoded


_TO_JSON = json.JSONEncoder(ensure_ascii=False).encode
"""`json.dumps` would make an encoder for each."""


@lru_cache(maxsize=4096)
def to_json(payload: Payload) -> str:
    """`encode` as text; remembered, since many tasks share one payload."""
    return _TO_JSON(encode(payload))


def _encode(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(name: str, value: Any) -> Any:
    if name == "main":
        return UUID(value)
    return tuple(UUID(item) for item in value) if name == "children" and value is not None else value


@dataclass(frozen=True, slots=True)
class Complete:
    """Done. `result` is what was done: created, updated, unchanged, skipped, ...; `note` says why or what else."""

    result: str
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Again after `delay` seconds, counting the attempt; a handler leaves the delay to the executor's backoff."""

    error: str
    delay: float = 0.0
    error_class: str = ""


@dataclass(frozen=True, slots=True)
class Snooze:
    """Again after `wait` seconds; the attempt is not counted."""

    wait: float
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Over, without success; `error_class` is the type of the error, as in `errors`."""

    error: str
    error_class: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Handed back as if never claimed."""


Outcome = Complete | Retry | Snooze | Fail | Release


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of one kind and one account, claimed together."""

    tasks: tuple[Task, ...]
    claimed_at: float = field(default=0.0, compare=False)
    announced: bool = False
    """Whether it is what the worker had been told of, taken without a look."""

    @property
    def first(self) -> Task:
        """Any of them: they share account, kind and queue."""
        return self.tasks[0]

    @property
    def kind(self) -> tuple[str, str]:
        """(entity_type, operation)."""
        return self.first.entity_type, self.first.operation
