"""Events: what a line reads, what is never in it, where it goes, and that logrotate may move the files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from cryptography.fernet import Fernet

from worker import telemetry
from worker.settings import Settings
from worker.telemetry import EVENTS, context, emit, emit_request, redact


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Path]:
    """LOG_DIR of a configured process."""
    configure(tmp_path / "deep" / "logs")
    yield tmp_path / "deep" / "logs"
    configure(tmp_path / "other")


def configure(folder: Path, *, console: bool = False, **values: str) -> None:
    """Have events go there."""
    needed = {"DATABASE_URL": "postgresql://h/db", "APP_KEY": Fernet.generate_key().decode()}
    telemetry.configure(Settings.from_env({**needed, "LOG_DIR": str(folder), **values}), console=console)


def lines(file: Path) -> list[str]:
    """The file's lines without their moment, which must be there."""
    texts = file.read_text("utf-8").splitlines() if file.exists() else []
    return [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", "", text) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("authorization='bearer abc'", "authorization='bearer ***'"),
        ("Basic dXNlcjpwYXNz", "Basic ***"),
        ("token=abc other=1", "token=*** other=1"),
        ("API_TOKEN=abc", "API_TOKEN=***"),
        ('{"token": "abc", "a": 1}', '{"token": "***", "a": 1}'),
        ("{'password': 'abc', 'a': 1}", "{'password': '***', 'a': 1}"),
        ('{"password": "a b\'c, d"}', '{"password": "***"}'),
        ("password='a b'", "password='***'"),
        ("APP_KEY: abc", "APP_KEY: ***"),
        ("client_secret=abc&x=1", "client_secret=***&x=1"),
        ("postgresql://u:p#w@h:5432/db is away", "postgresql://u:***@h:5432/db is away"),
        ("redis://:abc@h:6379/0", "redis://:***@h:6379/0"),
        ("dbname=x password=abc host=h", "dbname=x password=*** host=h"),
        ("token", "token"),
        ("the token is refused", "the token is refused"),
        ("tokens are kept: see docs", "tokens are kept: see docs"),
        ("GET entity/product 401", "GET entity/product 401"),
        ("at 12:30, ask anna@example", "at 12:30, ask anna@example"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    """What looks like a credential becomes stars; all else stays as it is."""
    assert redact(text) == expected


def test_a_line(logs: Path) -> None:
    """Moment in UTC, level, event, then the fields in the order given."""
    emit("task.complete", worker=7, account="a-b", seconds=1.23456, tasks=500)

    assert lines(logs / "worker.log") == ["INFO task.complete worker=7 account=a-b seconds=1.235 tasks=500"]


def test_values_that_need_quotes_have_them(logs: Path) -> None:
    """A line stays one line, and a field one field, whatever its value."""
    emit("a.b", empty="", blank="x y", two="x\ny", equal="x=y", quote="it's", none=None)

    assert lines(logs / "worker.log") == [
        r"""INFO a.b empty='' blank='x y' two='x\ny' equal='x=y' quote="it's" none=None"""
    ]


def test_secrets_are_in_no_line(logs: Path) -> None:
    """Neither in a field, nor inside its text, nor in a traceback."""
    try:
        raise RuntimeError("Authorization: Bearer hidden-one")
    except RuntimeError as error:
        emit("a.fail", level="error", error=error, token="hidden-two", said="password=hidden-three x")
    emit_request("REQUEST", url="postgresql://u:hidden-four@h/db")

    text = (logs / "worker.log").read_text("utf-8") + (logs / "sync.log").read_text("utf-8")
    assert "hidden" not in text
    assert "RuntimeError: Authorization: Bearer ***" in text
    assert "token=*** " in text


def test_context_is_added_inside_its_block_only(logs: Path) -> None:
    """Fields of the surrounding blocks come first, the inner ones win; threads do not share them."""
    with context(worker=1, account="a"):
        with context(account="b"):
            emit("x.in", n=1)
        emit("x.out", worker=2)
        thread = Thread(target=emit, args=["x.other"])
        thread.start()
        thread.join()
    emit("x.after")

    assert lines(logs / "worker.log") == [
        "INFO x.in worker=1 account=b n=1",
        "INFO x.out worker=2 account=a",
        "INFO x.other",
        "INFO x.after",
    ]


def test_context_ends_with_an_error_too(logs: Path) -> None:
    """A block left by an error leaves nothing behind."""
    with pytest.raises(ZeroDivisionError), context(worker=1):
        raise ZeroDivisionError

    emit("x.after")

    assert lines(logs / "worker.log") == ["INFO x.after"]


def test_requests_go_to_their_own_file(logs: Path) -> None:
    """REQUEST and RESPONSE lines are in sync.log only, events in worker.log only."""
    emit("a.b")
    emit_request("REQUEST", method="GET")

    assert lines(logs / "worker.log") == ["INFO a.b"]
    assert lines(logs / "sync.log") == ["INFO REQUEST method=GET"]


def test_the_level_counts(tmp_path: Path, logs: Path) -> None:
    """Nothing below LOG_LEVEL is written; it is counted all the same."""
    configure(tmp_path / "quiet", LOG_LEVEL="warning")
    series = ("moysklad_worker_events_total", (("event", "quiet.event"), ("level", "info")))
    before = EVENTS.samples().get(series, 0)

    emit("quiet.event")
    emit("loud.event", level="error")

    assert lines(tmp_path / "quiet" / "worker.log") == ["ERROR loud.event"]
    assert EVENTS.samples()[series] == before + 1


def test_both_files_are_reopened_when_moved(logs: Path) -> None:
    """After logrotate has moved them, new lines are in new files under the old names."""
    emit("a.before")
    emit_request("REQUEST", n=1)
    for name in ("worker.log", "sync.log"):
        (logs / name).rename(logs / f"{name}.1")

    emit("a.after")
    emit_request("REQUEST", n=2)

    assert [lines(logs / name) for name in ("worker.log.1", "worker.log")] == [["INFO a.before"], ["INFO a.after"]]
    assert [lines(logs / name) for name in ("sync.log.1", "sync.log")] == [["INFO REQUEST n=1"], ["INFO REQUEST n=2"]]


def test_a_line_that_cannot_be_written_goes_to_stderr(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not lost while LOG_DIR is gone; once it is back, so are the files."""
    gone = logs.rename(logs.parent / "gone")
    emit("a.one")
    emit("a.two", level="error")
    assert [line.split("Z ")[1] for line in capsys.readouterr().err.splitlines()] == ["INFO a.one", "ERROR a.two"]

    gone.rename(logs)
    (logs / "worker.log").rename(logs / "worker.log.1")
    emit("a.three")

    assert lines(logs / "worker.log") == ["INFO a.three"]
    assert capsys.readouterr().err == ""


def test_before_any_configuration_warnings_are_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """What a program does that uses the queue as a library."""
    log = telemetry.Log()
    log.write("warning", "a.b")

    assert capsys.readouterr().err.split("Z ")[1] == "WARNING a.b\n"
    assert log.level == 30


def test_the_console_has_events_but_no_requests(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `console` events are on stderr as well, nothing on stdout."""
    configure(tmp_path / "x", console=True)
    emit("a.b", n=1)
    emit_request("REQUEST")

    seen = capsys.readouterr()
    assert seen.out == ""
    assert [line.split("Z ")[1] for line in seen.err.splitlines()] == ["INFO a.b n=1"]


def test_configured_twice_writes_once(tmp_path: Path, logs: Path) -> None:
    """The files of the first configuration get nothing more, those of the second each line once."""
    configure(tmp_path / "second")

    emit("a.b")

    assert lines(logs / "worker.log") == []
    assert lines(tmp_path / "second" / "worker.log") == ["INFO a.b"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Told at the start, not with the first line."""
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "sync.log").mkdir(parents=True)

    with pytest.raises(OSError, match="file"):
        configure(tmp_path / "file")
    with pytest.raises(OSError, match="taken"):
        configure(tmp_path / "taken")
