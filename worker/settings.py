"""Every setting, read once from the environment or one env file, validated, secrets hidden.

Without pydantic, which would be a fifth of a waiting worker's memory.
"""

from __future__ import annotations

import math
import os
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict

from worker.errors import ConfigError

ENV_FILE = "MOYSKLAD_WORKER_ENV"
"""Names the env file when no `--env-file` is given."""

_PASSWORD = re.compile(r"(://[^:@/\s]*:)[^/\s]*(?=@)|([?&](?:ssl)?password=)[^&\s]*", re.IGNORECASE)
"""In an address, as libpq reads it: `#` and `?` may be part of a password."""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value that no text shows."""

    _value: str

    def get_secret_value(self) -> str:
        """What it is."""
        return self._value

    def __repr__(self) -> str:
        return "***"


Read = Callable[[str], Any]
"""Makes a setting of its text; raises ValueError saying what it must be, and nothing that may be secret."""


def _postgresql(text: str) -> Secret:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    try:
        parts = conninfo_to_dict(text)
    except psycopg.Error:
        parts = {"host": "@"}
    if "@" in str(parts.get("host", "")) or not re.fullmatch(r"[\d,]*", str(parts.get("port", ""))):
        # libpq would show in its message what it cannot read, and that may be the password.
        raise ValueError(
            "cannot be read: write postgresql://user:password@host:port/database, "
            "with / @ : ? # % in user and password percent-encoded"
        )
    return Secret(text)


def _http(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("must be an http(s) address such as https://api.moysklad.ru/api/remap/1.2")
    return text.rstrip("/")


def _fernet_key(text: str) -> Secret:
    try:
        key = urlsafe_b64decode(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError("must be 32 url-safe base64 bytes; `moysklad-worker key` prints one")
    return Secret(text)


def _or_none(read: Read) -> Read:
    """The same, but an empty text is none."""
    return lambda text: read(text) if text else None


def _one_of(*words: str) -> Read:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return read


def _number(kind: type[int] | type[float], least: float, most: float = math.inf, *, more: bool = False) -> Read:
    """A number from `least`, or with `more` from above it, to `most`."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not (least <= number <= most and math.isfinite(number)) or (more and number == least):
            raise ValueError(f"must be a {what}")
        return number

    what = f"{'whole ' if kind is int else ''}number, {'more than' if more else 'at least'} {least:g}"
    what += f", at most {most:g}" if math.isfinite(most) else ""
    return read


def _redis_is_used(read: Mapping[str, Any]) -> str | None:
    names = (name for name in ("QUEUE_CONNECTION", "LIMITER_STORE") if read.get(name) == "redis")
    return next((f"must be set when {name} is 'redis'" for name in names), None)


def _door_is_open(read: Mapping[str, Any]) -> str | None:
    host = read.get("API_HOST")
    if host is None or is_loopback(host):
        return None
    return f"must be set when API_HOST is {host!r}: without a token the API listens on 127.0.0.1 only"


def _setting(
    read: Read, default: Any = MISSING, *, needed: Callable[[Mapping[str, Any]], str | None] = lambda _: None
) -> Any:
    """`needed(settings read so far)` tells why this one may not be absent, if so."""
    return field(default=default, metadata={"read": read, "needed": needed})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration of one process; docs/configuration.md tells each of them."""

    DATABASE_URL: Secret = _setting(_postgresql)
    """PostgreSQL 14 to 18, `postgresql://user:password@host/database`."""
    DATABASE_LISTEN_URL: Secret | None = _setting(_or_none(_postgresql), None)
    """The same database without a pooler in between, for LISTEN and the workers' session locks, where DATABASE_URL
    leads to PgBouncer or its like. Without it workers there poll, and a killed one is noticed after 9 seconds."""
    QUEUE_CONNECTION: Literal["database", "redis", "sync"] = _setting(
        _one_of("database", "redis", "sync"), "database"
    )
    """Where tasks live. `database`: the table `sync_queue`. `redis`: at REDIS_URL. `sync`: nowhere, for development:
    they run at enqueue in the caller, errors surface there, and there are no workers."""
    QUEUE_TOPOLOGY: Literal["single", "priority", "account"] = _setting(
        _one_of("single", "priority", "account"), "single"
    )
    """How tasks are routed to queues: `single` → `default`; `priority` → `high` and `low`; `account` →
    `account-main-ID` and `account-child-ID`. Producers and workers must agree."""
    LIMITER_STORE: Literal["database", "redis"] = _setting(_one_of("database", "redis"), "database")
    """Where the limiter's state lives; the same for all workers. `redis` needs REDIS_URL."""
    REDIS_URL: Secret | None = _setting(_or_none(Secret), None, needed=_redis_is_used)
    """`redis://…`; for QUEUE_CONNECTION=redis (also a node of a cluster) and LIMITER_STORE=redis."""
    MOYSKLAD_API_URL: str = _setting(_http, "https://api.moysklad.ru/api/remap/1.2")
    """Base address of MoySklad's JSON API 1.2."""
    APP_KEY: Secret = _setting(_fernet_key)
    """Key the accounts' tokens are encrypted with, 32 bytes in url-safe base64 (a Fernet key). `moysklad-worker key`
    prints a new one. Lost key = all tokens must be entered anew."""
    LOG_DIR: Path = _setting(Path, Path("logs"))
    """Folder of `worker.log` and `sync.log`."""
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = _setting(
        _one_of("debug", "info", "warning", "error"), "info"
    )
    """Least level written."""
    API_HOST: str = _setting(str, "127.0.0.1")
    """Address the HTTP API listens on."""
    API_PORT: int = _setting(_number(int, 0, 65535), 8080)
    """Port of the HTTP API; 0 takes a free one."""
    API_TOKEN: Secret | None = _setting(_or_none(Secret), None, needed=_door_is_open)
    """Bearer token of the HTTP API and page. Required unless API_HOST is loopback."""
    LEASE_SECONDS: float = _setting(_number(float, 1, 3600), 30)
    """A worker not heard of for so long is dead and its tasks go back."""
    CONNECT_TIMEOUT: float = _setting(_number(float, 0, 60, more=True), 5)
    """Seconds to reach MoySklad or PostgreSQL."""
    READ_TIMEOUT: float = _setting(_number(float, 0, 600, more=True), 300)
    """Seconds to wait for one answer; MoySklad works on a bulk request up to 300."""
    EFFECT_SECONDS: float = _setting(_number(float, 0, 3600, more=True), 300)
    """A request whose answer was lost may take effect for so long; until then a unit, country, currency, price type
    or folder it was to create is looked for, not created again."""
    KEEP_COMPLETED_DAYS: float = _setting(_number(float, 0), 3)
    """Completed tasks are pruned after so many days."""
    KEEP_FAILED_DAYS: float = _setting(_number(float, 0), 90)
    """Failed tasks are pruned after so many days."""

    @classmethod
    def names(cls) -> list[str]:
        """The variables of the environment that are read."""
        return [item.name for item in fields(cls)]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = None) -> Settings:
        """Read the settings; a variable of the environment wins over the same one in the file.

        Raises ConfigError naming every setting that does not hold, never showing a secret's value.
        """
        environ = os.environ if environ is None else environ
        env_file = env_file or (Path(environ[ENV_FILE]) if environ.get(ENV_FILE) else None)
        given = {**_read(env_file), **{name: environ[name] for name in cls.names() if name in environ}}
        read: dict[str, Any] = {}
        problems = []
        for item in fields(cls):
            name, text = item.name, given.get(item.name)
            try:
                if text is None and item.default is MISSING:
                    raise ValueError("is not set")
                value = item.default if text is None else item.metadata["read"](text.strip())
                if value is None and (why := item.metadata["needed"](read)):
                    raise ValueError(why)
                read[name] = value
            except ValueError as error:
                is_shown = text is not None and "Secret" not in str(item.type)
                problems.append(f"  {name}: {error}" + (f" (it is {text!r})" if is_shown else ""))
        if problems:
            where = f"the environment or {env_file}" if env_file else "the environment"
            raise ConfigError(f"Settings in {where} do not hold:\n" + "\n".join(problems))
        return cls(**read)

    def shown(self) -> dict[str, str]:
        """Every setting as text, secrets hidden; of DATABASE_URL only the password is hidden."""
        values = {name: getattr(self, name) for name in self.names()}
        shown = {name: "" if value is None else str(value) for name, value in values.items()}
        return shown | {"DATABASE_URL": without_password(self.DATABASE_URL.get_secret_value())}


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_password(text: str) -> str:
    """The text with the password of every address in it replaced by stars."""
    return _PASSWORD.sub(r"\1\2***", text)


def _read(env_file: Path | None) -> dict[str, Any]:
    if env_file is None:
        return {}
    try:
        text = env_file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"env file {env_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"env file {env_file}: not UTF-8") from None
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}
