"""Settings: what holds, what does not and how it is told, and that the documents tell all of it."""

from __future__ import annotations

import re
from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.fernet import Fernet

from worker.cli import cli
from worker.errors import ConfigError
from worker.links import LinkSettings
from worker.settings import ENV_FILE, Settings, is_loopback, without_password

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
KEY = Fernet.generate_key().decode()
GOOD = {"DATABASE_URL": "postgresql://worker:p4ssw0rd@db.example:5432/sync", "APP_KEY": KEY}


def refusal(**values: str) -> str:
    """What is said of settings that are good but for these."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(GOOD | values)
    return str(caught.value)


def test_two_settings_are_enough() -> None:
    """Everything but the database and the key has a default."""
    settings = Settings.from_env(GOOD)

    assert settings.DATABASE_URL.get_secret_value() == GOOD["DATABASE_URL"]
    assert (settings.QUEUE_CONNECTION, settings.LEASE_SECONDS) == ("database", 30)


def test_the_two_are_named_when_absent() -> None:
    """Both required settings are told at once, by name."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({})

    assert str(caught.value) == (
        "Settings in the environment do not hold:\n  DATABASE_URL: is not set\n  APP_KEY: is not set"
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DATABASE_URL", "mysql://worker:p4ssw0rd@db/sync", "must begin with postgresql://"),
        ("DATABASE_URL", "", "must begin with postgresql://"),
        ("DATABASE_URL", "postgresql://worker:p4ssw0rd@[::1/sync", "percent-encoded"),
        ("DATABASE_URL", "postgresql://worker:p4ssw0rd%zz@db/sync", "percent-encoded"),
        ("DATABASE_URL", "postgresql://worker:p4ssw0rd/2@db/sync", "percent-encoded"),
        ("DATABASE_URL", "postgresql://worker:x@p4ssw0rd@db/sync", "percent-encoded"),
        ("DATABASE_URL", "postgresql://worker:p4ssw0rd@db/sync?nonsense=1", "percent-encoded"),
        ("QUEUE_CONNECTION", "sqs", "'sqs'"),
        ("QUEUE_TOPOLOGY", "ring", "'ring'"),
        ("MOYSKLAD_API_URL", "ftp://x", "must be an http(s) address"),
        ("MOYSKLAD_API_URL", "api.moysklad.ru", "must be an http(s) address"),
        ("MOYSKLAD_API_URL", "https://", "must be an http(s) address"),
        ("APP_KEY", "p4ssw0rd", "`moysklad-worker key` prints one"),
        ("APP_KEY", "p4ssw0rdжжж", "`moysklad-worker key` prints one"),
        ("LOG_LEVEL", "loud", "'loud'"),
        ("API_PORT", "65536", "'65536'"),
        ("API_PORT", "-1", "'-1'"),
        ("API_PORT", "http", "'http'"),
        ("LEASE_SECONDS", "0.5", "'0.5'"),
        ("LEASE_SECONDS", "3601", "'3601'"),
        ("LEASE_SECONDS", "nan", "'nan'"),
        ("CONNECT_TIMEOUT", "0", "'0'"),
        ("CONNECT_TIMEOUT", "61", "'61'"),
        ("READ_TIMEOUT", "0", "'0'"),
        ("READ_TIMEOUT", "601", "'601'"),
        ("KEEP_COMPLETED_DAYS", "-1", "'-1'"),
        ("KEEP_COMPLETED_DAYS", "inf", "'inf'"),
        ("KEEP_FAILED_DAYS", "-0.1", "'-0.1'"),
        ("KEEP_FAILED_DAYS", "nan", "'nan'"),
    ],
)
def test_what_does_not_hold_is_named(name: str, value: str, words: str) -> None:
    """One bad value: its name, what is wrong and, unless it is a secret, what it is."""
    message = refusal(**{name: value})

    heading, told = message.split("\n")
    assert heading == "Settings in the environment do not hold:"
    assert told.startswith(f"  {name}: ")
    assert words in told
    assert "p4ssw0rd" not in message


def test_the_limiter_in_redis_needs_a_redis() -> None:
    """LIMITER_STORE=redis without REDIS_URL does not hold; with it, or in the database, it does."""
    assert "REDIS_URL: must be set when LIMITER_STORE is 'redis'" in refusal(LIMITER_STORE="redis")
    assert "LIMITER_STORE: " in refusal(LIMITER_STORE="memory")
    both = {"LIMITER_STORE": "redis", "REDIS_URL": "redis://localhost"}
    assert Settings.from_env(GOOD | both).LIMITER_STORE == "redis"
    assert Settings.from_env(GOOD).LIMITER_STORE == "database"


def test_all_problems_are_told_at_once() -> None:
    """Three bad values and an open door: four lines."""
    message = refusal(API_PORT="x", LOG_LEVEL="loud", APP_KEY="short", API_HOST="0.0.0.0")

    assert [line.split(":")[0].strip() for line in message.split("\n")[1:]] == [
        "APP_KEY",
        "LOG_LEVEL",
        "API_PORT",
        "API_TOKEN",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "worker.example"])
def test_no_open_door(host: str) -> None:
    """Beyond loopback the API needs a token, and an empty one is none."""
    assert "API_TOKEN: must be set when API_HOST is" in refusal(API_HOST=host)
    assert "API_TOKEN: must be set when API_HOST is" in refusal(API_HOST=host, API_TOKEN=" ")
    shown = Settings.from_env(GOOD | {"API_HOST": host, "API_TOKEN": "t"}).shown()
    assert (shown["API_HOST"], shown["API_TOKEN"]) == (host, "***")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    """Only what cannot be reached from elsewhere is loopback."""
    assert is_loopback(host) is expected


def test_secrets_are_never_seen() -> None:
    """Neither in what `check` prints, nor in the repr, nor in the text of an error."""
    settings = Settings.from_env(GOOD | {"REDIS_URL": "redis://:s3cret@h", "API_TOKEN": "d00r"})

    for text in (repr(settings), str(settings), str(settings.shown())):
        assert [word for word in ("p4ssw0rd", KEY, "s3cret", "d00r") if word in text] == []
    shown = settings.shown()
    assert shown["DATABASE_URL"] == "postgresql://worker:***@db.example:5432/sync"
    assert (shown["APP_KEY"], shown["REDIS_URL"], shown["API_TOKEN"]) == ("***", "***", "***")
    assert Settings.from_env(GOOD).shown()["API_TOKEN"] == ""
    assert set(shown) == set(Settings.names())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p#4?s@h/db", "postgresql://u:***@h/db"),
        ("postgres://u:p@ss@h:1/db", "postgres://u:***@h:1/db"),
        ("postgresql://h/db?user=u&password=p&a=b", "postgresql://h/db?user=u&password=***&a=b"),
        ("postgresql://h/db?sslpassword=p", "postgresql://h/db?sslpassword=***"),
        ("postgresql://u@h:5432/db", "postgresql://u@h:5432/db"),
        ("said of postgresql://u:p@[::1]/db that it is away", "said of postgresql://u:***@[::1]/db that it is away"),
        ("no address: nothing@all", "no address: nothing@all"),
    ],
)
def test_without_password(text: str, expected: str) -> None:
    """Addresses keep everything but the password, also inside a sentence, as libpq would read them."""
    assert without_password(text) == expected


def test_a_file_and_the_environment_over_it(tmp_path: Path) -> None:
    """The file's values count where the environment has none; other variables are no concern."""
    file = tmp_path / "env"
    file.write_text(f"# ours\nAPP_KEY={KEY}\nexport LOG_LEVEL=debug\nAPI_PORT='9000'\nPATH=/x\nNOTHING\n")
    environ = {"DATABASE_URL": GOOD["DATABASE_URL"], "LOG_LEVEL": "error", "HOME": "/nowhere"}

    settings = Settings.from_env(environ, file)

    assert (settings.LOG_LEVEL, settings.API_PORT) == ("error", 9000)
    assert Settings.from_env(environ | {ENV_FILE: str(file)}) == settings


def test_values_of_the_file_are_taken_as_they_are(tmp_path: Path) -> None:
    """A dollar in a password is a dollar: nothing is put in its place."""
    file = tmp_path / "env"
    file.write_text(f"APP_KEY={KEY}\nDATABASE_URL=postgresql://u:a${{HOME}}b@h/db\n")

    settings = Settings.from_env({}, file)

    assert settings.DATABASE_URL.get_secret_value() == "postgresql://u:a${HOME}b@h/db"


def test_an_explicit_file_wins_over_the_named_one(tmp_path: Path) -> None:
    """--env-file counts, MOYSKLAD_WORKER_ENV is then not read."""
    file = tmp_path / "env"
    file.write_text("API_PORT=1\n")

    assert Settings.from_env(GOOD | {ENV_FILE: str(tmp_path / "none")}, file).API_PORT == 1


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Absent, a folder, or no text: one sentence that names the file."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"APP_KEY=\xff\xfe\n")
    expected = {
        tmp_path / "none": "No such file or directory",
        tmp_path: "Is a directory",
        binary: "not UTF-8",
    }

    for file, words in expected.items():
        with pytest.raises(ConfigError) as caught:
            Settings.from_env(GOOD, file)
        assert str(caught.value) == f"env file {file}: {words}"


def test_the_message_names_the_file(tmp_path: Path) -> None:
    """Where to look for what does not hold."""
    file = tmp_path / "env"
    file.write_text("API_PORT=x\n")

    with pytest.raises(ConfigError, match=re.escape(f"Settings in the environment or {file} do not hold")):
        Settings.from_env(GOOD, file)


def test_settings_do_not_change() -> None:
    """They are read once."""
    with pytest.raises(FrozenInstanceError):
        Settings.from_env(GOOD).API_PORT = 1  # type: ignore[misc]


def test_small_things_are_forgiven() -> None:
    """Blanks around a value and a slash at the end of an address."""
    settings = Settings.from_env(GOOD | {"MOYSKLAD_API_URL": " http://h/api/ ", "API_TOKEN": " t ", "REDIS_URL": ""})

    assert settings.MOYSKLAD_API_URL == "http://h/api"
    assert settings.API_TOKEN is not None
    assert settings.API_TOKEN.get_secret_value() == "t"
    assert settings.REDIS_URL is None


# -- docs/configuration.md --------------------------------------------------------------------------------


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading: first column → the others, as text."""
    section = DOCUMENT.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.split("\n") if line.startswith("| `")
    ]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def shown(default: Any) -> str:
    """How the document writes a default."""
    if default is MISSING:
        return "required"
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


@pytest.mark.parametrize(
    ("heading", "defaults"),
    [
        ("Settings", {item.name: item.default for item in fields(Settings)}),
        ("Links", LinkSettings().model_dump()),
    ],
)
def test_every_setting_is_documented(heading: str, defaults: dict[str, Any]) -> None:
    """docs/configuration.md has each setting, no other, with its default and what it means."""
    documented = table(heading)

    assert {name: cells[0] for name, cells in documented.items()} == {
        name: shown(default) for name, default in defaults.items()
    }
    assert [name for name, cells in documented.items() if not cells[-1]] == []


def test_every_option_of_work_is_documented() -> None:
    """docs/configuration.md has each option of `work`, no other, with its default."""
    work = typer.main.get_command(cli).commands["work"]  # type: ignore[attr-defined]
    expected = {}
    for option in work.params:
        default = "" if option.is_flag or option.default == "" else str(option.default)
        expected["` (`".join(option.opts) + ("`)" if option.opts[1:] else "")] = default

    documented = table("`work`")

    assert {name: cells[0].strip("`") for name, cells in documented.items()} == expected
    assert [name for name, cells in documented.items() if not cells[-1]] == []
