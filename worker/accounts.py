"""Accounts, their tokens (encrypted at rest), the links main → child and what a link copies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.types.json import Jsonb

from worker.db import Connection, Database, fetch, fetch_one
from worker.errors import ConfigError, Conflict, NotFound, Unauthorized
from worker.telemetry import emit

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

    from worker.links import LinkSettings

BULK_LATELY = 600.0
"""Seconds for which the size of an array that was refused is taken for a limit."""
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)

WEIGHTS: dict[str, tuple[tuple[date, int], ...]] = {
    "solution": ((date(2026, 2, 16), 1),),
    "user": ((date(2026, 5, 12), 2), (date(2026, 9, 1), 3), (date(2026, 12, 1), 4)),
}
"""Units a request costs, from which day on, by kind of token: md/_restrictions.md."""


def weight_of(auth: str, day: date) -> int:
    """Units one request of such a token costs on that day."""
    return [weight for since, weight in WEIGHTS[auth] if since <= day or since == WEIGHTS[auth][0][0]][-1]


@dataclass(frozen=True, slots=True)
class Account:
    """One MoySklad account and the token it is reached with."""

    id: UUID
    name: str
    role: str
    auth: str
    weight: int | None
    token: str = field(repr=False)
    bulk: int = 1000
    """Elements per array that its requests are known to bear."""

    @property
    def principal(self) -> str:
        """What MoySklad counts requests by: this token in this account."""
        return f"{self.id}:{hashlib.sha256(self.token.encode()).hexdigest()[:12]}"

    def units(self, day: date) -> int:
        """Units one of its requests costs on that day."""
        return self.weight or weight_of(self.auth, day)


@dataclass(frozen=True, slots=True)
class Link:
    """Child receives from main."""

    main: UUID
    child: UUID
    settings: LinkSettings


class Accounts:
    """The accounts known here."""

    def __init__(self, db: Database, app_key: str) -> None:
        self._db = db
        self._app_key = app_key

    @cached_property
    def _fernet(self) -> Fernet:
        """What tokens are sealed with; imported with the first of them, see `app`."""
        from cryptography.fernet import Fernet

        return Fernet(self._app_key)

    def add(self, id: UUID, name: str, role: str, auth: str, token: str, weight: int | None = None) -> None:
        """Raises Conflict when the account exists already."""
        added = self._db.fetch(
            "add_account", id=id, name=name, role=role, auth=auth, weight=weight, token=self._seal(token)
        )
        if not added:
            raise Conflict(f"account {id} exists already; `accounts token {id}` gives it a new token")
        emit("account.add", account=id, role=role)

    def get(self, id: UUID) -> Account:
        """Raises NotFound, or Unauthorized when its token cannot be decrypted with this APP_KEY."""
        rows = self._db.fetch("account", id=id)
        if not rows:
            raise NotFound(f"there is no account {id}; `accounts list` shows those known")
        from cryptography.fernet import InvalidToken

        row = rows[0]
        try:
            token = self._fernet.decrypt(row["token"].encode()).decode()
        except InvalidToken:
            raise Unauthorized(
                f"the token of account {id} was encrypted with another APP_KEY: restore that key, "
                f"or enter the token anew with `accounts token {id}`"
            ) from None
        return Account(row["id"], row["name"], row["role"], row["auth"], row["weight"], token, row["bulk"])

    def role_of(self, id: UUID) -> str:
        """`main` or `child`. Raises NotFound."""
        rows = self._db.fetch("account", id=id)
        if not rows:
            raise NotFound(f"there is no account {id}; `accounts list` shows those known")
        return str(rows[0]["role"])

    def overview(self) -> list[dict[str, Any]]:
        """Rows of id, name, role, auth, weight, concurrency, parked_until, parked_reason, children, mains."""
        return self._db.fetch("accounts")

    def set_token(self, id: UUID, token: str) -> None:
        """Replace the token and un-park the account. Raises NotFound."""
        if not self._db.fetch("set_token", id=id, token=self._seal(token)):
            raise NotFound(f"there is no account {id}; `accounts list` shows those known")
        emit("account.set_token", account=id)

    def remove(self, id: UUID, conn: Connection) -> None:
        """Forget the account and what is known of its goods; MoySklad is not touched. Raises NotFound."""
        if not fetch(conn, "remove_account", id=id):
            raise NotFound(f"there is no account {id}; `accounts list` shows those known")
        emit("account.remove", account=id)

    def park(self, id: UUID, reason: str, until: datetime = FOREVER) -> None:
        """Claim none of its tasks before `until`."""
        self._db.fetch("park_account", id=id, until=until, reason=reason)
        emit("account.park", level="warning", account=id, reason=reason)

    def set_concurrency(self, id: UUID, workers: int | None) -> None:
        """How many workers may serve the account at once; None: any number. Raises NotFound."""
        if not self._db.fetch("set_concurrency", id=id, concurrency=workers):
            raise NotFound(f"there is no account {id}; `accounts list` shows those known")
        emit("account.set_concurrency", account=id, workers=workers or 0)

    def pause(self, id: UUID, wait: float, reason: str) -> None:
        """The same for `wait` seconds."""
        self._db.fetch("pause_account", id=id, wait=wait, reason=reason)

    def unpark(self, id: UUID) -> None:
        """Have its tasks be claimed again at once, whatever it was parked for. Raises NotFound."""
        if not self._db.fetch("unpark_account", id=id):
            raise NotFound(f"there is no account {id}; `accounts list` shows those known")
        emit("account.unpark", account=id)

    def shrink_bulk(self, id: UUID, size: int, *, refused: bool) -> int:
        """An array of `size` elements was too much for it (or only too slow); how long they may be now."""
        rows = self._db.fetch("shrink_bulk", id=id, size=size, refused=refused)
        bulk = int(rows[0]["bulk"]) if rows else max(1, size // 2)
        emit("bulk.shrink", level="warning", account=id, size=bulk)
        return bulk

    def grow_bulk(self, id: UUID, size: int) -> int:
        """It has borne a full array of `size` elements well; how long they may be now."""
        rows = self._db.fetch("grow_bulk", id=id, size=size, lately=BULK_LATELY)
        if not rows:
            return size
        emit("bulk.grow", account=id, size=rows[0]["bulk"])
        return int(rows[0]["bulk"])

    def restore_bulk(self, id: UUID, size: int) -> int:
        """It was one element, not their number, that was too much; how long arrays may be now."""
        self._db.fetch("restore_bulk", id=id, size=size)
        return size

    def link(self, main: UUID, child: UUID, settings: LinkSettings | None = None) -> LinkSettings:
        """Have `child` receive from `main`. Raises NotFound, or Conflict when the roles do not fit."""
        if main == child:
            raise Conflict(f"account {main} cannot receive from itself")
        for id, role in ((main, "main"), (child, "child")):
            if self.role_of(id) != role:
                raise Conflict(f"account {id} is not a {role} account")
        from worker.links import LinkSettings

        settings = settings or LinkSettings()
        with self._db.transaction() as conn:
            # A statement of its own: only the next one sees what was recorded while it waited.
            fetch_one(conn, "lock_link_to_change", main=main, child=child)
            fetch_one(conn, "link", main=main, child=child, settings=Jsonb(settings.model_dump()))
        emit("account.link", main=main, child=child)
        return settings

    def unlink(self, main: UUID, child: UUID) -> None:
        """Have `child` no longer receive from `main`; what it has stays. Raises NotFound."""
        if not self._db.fetch("unlink", main=main, child=child):
            raise NotFound(f"account {child} does not receive from {main}; `accounts list` shows the links")
        emit("account.unlink", main=main, child=child)

    def links(self, main: UUID | None = None) -> Sequence[Link]:
        """The links of one main account, or of all."""
        return [_link(row) for row in self._db.fetch("links", main=main)]

    def links_of_child(self, child: UUID) -> Sequence[Link]:
        """Where a child receives from."""
        return [_link(row) for row in self._db.fetch("links_of_child", child=child)]

    def link_between(self, main: UUID, child: UUID) -> Link:
        """Raises NotFound when the two are not linked (any more)."""
        for link in self.links_of_child(child):
            if link.main == main:
                return link
        raise NotFound(f"account {child} does not receive from {main}; `accounts link {main} {child}` would make it")

    def _seal(self, token: str) -> str:
        token = token.strip()
        if not token:
            raise ConfigError("the token is empty")
        if not (token.isascii() and token.isprintable()):
            raise ConfigError("the token has characters that no token has: copy it anew, as plain text")
        return self._fernet.encrypt(token.encode()).decode()


def still_so(conn: Connection, link: Link) -> bool:
    """Whether the link has the same settings now, which then stay until the transaction ends."""
    row = fetch_one(conn, "lock_link", main=link.main, child=link.child)
    return row is not None and _settings(row) == link.settings


def _link(row: dict[str, Any]) -> Link:
    return Link(row["main_id"], row["child_id"], _settings(row))


def _settings(row: dict[str, Any]) -> LinkSettings:
    from worker.links import LinkSettings  # with pydantic, which no worker needs before its first task

    return LinkSettings.parse(row["settings"])
