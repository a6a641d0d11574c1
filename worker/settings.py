"""Every setting, read once from the environment or one env file, validated, secrets hidden."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
from cryptography.fernet import Fernet
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from worker.errors import ConfigError

ENV_FILE = "MOYSKLAD_WORKER_ENV"
"""Names the env file when no `--env-file` is given."""

_PASSWORD = re.compile(r"(://[^:@/\s]*:)[^/\s]*(?=@)|([?&](?:ssl)?password=)[^&\s]*", re.IGNORECASE)
"""In an address, as libpq reads it: `#` and `?` may be part of a password."""


class Settings(BaseModel):
    """The whole configuration of one process; docs/configuration.md tells each of them."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True, allow_inf_nan=False)

    DATABASE_URL: SecretStr = Field(description="PostgreSQL 14 to 18, `postgresql://user:password@host/database`.")
    DATABASE_LISTEN_URL: SecretStr | None = Field(
        None,
        validate_default=True,
        description="The same database without a pooler in between, for LISTEN and the workers' session locks, where "
        "DATABASE_URL leads to PgBouncer or its like. Without it workers there poll, and a killed one is noticed "
        "after 12 seconds.",
    )
    QUEUE_CONNECTION: Literal["database", "redis", "sync"] = Field(
        "database",
        description="Where tasks live. `database`: the table `sync_queue`. `redis`: at REDIS_URL. `sync`: nowhere, "
        "for development: they run at enqueue in the caller, errors surface there, and there are no workers.",
    )
    QUEUE_TOPOLOGY: Literal["single", "priority", "account"] = Field(
        "single",
        description="How tasks are routed to queues: `single` → `default`; `priority` → `high` and `low`; "
        "`account` → `account-main-ID` and `account-child-ID`. Producers and workers must agree.",
    )
    LIMITER_STORE: Literal["database", "redis"] = Field(
        "database", description="Where the limiter's state lives; the same for all workers. `redis` needs REDIS_URL."
    )
    REDIS_URL: SecretStr | None = Field(
        None,
        validate_default=True,
        description="`redis://…`; for QUEUE_CONNECTION=redis (also a node of a cluster) and LIMITER_STORE=redis.",
    )
    MOYSKLAD_API_URL: str = Field(
        "https://api.moysklad.ru/api/remap/1.2", description="Base address of MoySklad's JSON API 1.2."
    )
    APP_KEY: SecretStr = Field(
        description="Key the accounts' tokens are encrypted with, 32 bytes in url-safe base64 (a Fernet key). "
        "`moysklad-worker key` prints a new one. Lost key = all tokens must be entered anew."
    )
    LOG_DIR: Path = Field(Path("logs"), description="Folder of `worker.log` and `sync.log`.")
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")
    API_HOST: str = Field("127.0.0.1", description="Address the HTTP API listens on.")
    API_PORT: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API; 0 takes a free one.")
    API_TOKEN: SecretStr | None = Field(
        None,
        validate_default=True,
        description="Bearer token of the HTTP API and page. Required unless API_HOST is loopback.",
    )
    LEASE_SECONDS: float = Field(
        30, ge=1, le=3600, description="A worker not heard of for so long is dead and its tasks go back."
    )
    CONNECT_TIMEOUT: float = Field(5, gt=0, le=60, description="Seconds to reach MoySklad or PostgreSQL.")
    READ_TIMEOUT: float = Field(
        300,
        gt=0,
        le=600,
        description="Seconds to wait for one answer; MoySklad works on a bulk request up to 300.",
    )
    EFFECT_SECONDS: float = Field(
        300,
        gt=0,
        le=3600,
        description="A request whose answer was lost may take effect for so long; until then a unit, country, "
        "currency, price type or folder it was to create is looked for, not created again.",
    )
    KEEP_COMPLETED_DAYS: float = Field(3, ge=0, description="Completed tasks are pruned after so many days.")
    KEEP_FAILED_DAYS: float = Field(90, ge=0, description="Failed tasks are pruned after so many days.")

    @field_validator("DATABASE_URL", "DATABASE_LISTEN_URL")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None or (info.field_name == "DATABASE_LISTEN_URL" and not value.get_secret_value()):
            return None
        if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        try:
            parts = conninfo_to_dict(value.get_secret_value())
        except psycopg.Error:
            parts = {"host": "@"}
        if "@" in str(parts.get("host", "")) or not re.fullmatch(r"[\d,]*", str(parts.get("port", ""))):
            # libpq would show in its message what it cannot read, and that may be the password.
            raise ValueError(
                "cannot be read: write postgresql://user:password@host:port/database, "
                "with / @ : ? # % in user and password percent-encoded"
            )
        return value

    @field_validator("MOYSKLAD_API_URL")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("must be an http(s) address such as https://api.moysklad.ru/api/remap/1.2")
        return value.rstrip("/")

    @field_validator("APP_KEY")
    @classmethod
    def _is_fernet_key(cls, value: SecretStr) -> SecretStr:
        try:
            Fernet(value.get_secret_value())
        except ValueError:
            raise ValueError("must be 32 url-safe base64 bytes; `moysklad-worker key` prints one") from None
        return value

    @field_validator("REDIS_URL", "API_TOKEN")
    @classmethod
    def _empty_is_none(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value and value.get_secret_value() else None

    @field_validator("REDIS_URL")
    @classmethod
    def _is_there_when_needed(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        for name in ("QUEUE_CONNECTION", "LIMITER_STORE"):
            if value is None and info.data.get(name) == "redis":
                raise ValueError(f"must be set when {name} is 'redis'")
        return value

    @field_validator("API_TOKEN")
    @classmethod
    def _no_open_door(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        host = info.data.get("API_HOST")
        if value is None and host is not None and not is_loopback(host):
            raise ValueError(
                f"must be set when API_HOST is {host!r}: without a token the API listens on 127.0.0.1 only"
            )
        return value

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = None) -> Settings:
        """Read the settings; a variable of the environment wins over the same one in the file.

        Raises ConfigError naming every setting that does not hold, never showing a secret's value.
        """
        environ = os.environ if environ is None else environ
        env_file = env_file or (Path(environ[ENV_FILE]) if environ.get(ENV_FILE) else None)
        values = {**_read(env_file), **{name: environ[name] for name in cls.model_fields if name in environ}}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error, values, env_file)) from None

    def shown(self) -> dict[str, str]:
        """Every setting as text, secrets hidden; of DATABASE_URL only the password is hidden."""
        shown = {name: _show(getattr(self, name)) for name in type(self).model_fields}
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


def _show(value: object) -> str:
    if isinstance(value, SecretStr):
        return "***"
    return "" if value is None else str(value)


def _explain(error: ValidationError, values: Mapping[str, Any], env_file: Path | None) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            message = "is not set"
        field = Settings.model_fields.get(name)
        if field is not None and name in values and "Secret" not in str(field.annotation):
            message += f" (it is {values[name]!r})"
        lines.append(f"  {name}: {message}" if name else f"  {message}")
    where = f"the environment or {env_file}" if env_file else "the environment"
    return f"Settings in {where} do not hold:\n" + "\n".join(lines)
