"""supervisor_roll against a real supervisord: who is down when, who is asked what, what is said at the end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rolling import roll, unit
from tests.ansible.daemon import MODULE_UTILS, Daemon, Sampler, outcomes


@dataclass
class Rolled:
    """A fleet that was rolled from v1 to v2: two groups one by one, a third meanwhile by two."""

    daemon: Daemon
    sampler: Sampler
    report: Any
    by_two: Any
    before: dict[str, int]


@pytest.fixture(scope="module")
def rolled() -> Iterator[Rolled]:
    """Three workers of each group, rolled once while sampled."""
    groups = {name: {"numprocs": 3} for name in ("high", "low", "two")}
    with Daemon(groups, drain=0.3, release="v1") as daemon, ThreadPoolExecutor(1) as pool:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        daemon.behave(drain=0.3, release="v2")
        with Sampler(daemon) as sampler:
            by_two_later = pool.submit(daemon.roll, "two:*", max_unavailable=2)
            report = daemon.roll("high:*", "low:*", health=daemon.health, release="v2")
            by_two = by_two_later.result()
        yield Rolled(daemon, sampler, report, by_two, before)


def test_every_process_is_replaced_once(rolled: Rolled) -> None:
    """Each process has had two pids, the old and the new one, and the report names them."""
    after = rolled.daemon.pids()
    entries = [*rolled.report.processes, *rolled.by_two.processes]
    told = {f"{e['group']}:{e['name']}": (e["pid_before"], e["pid_after"]) for e in entries}

    assert rolled.report.failures == []
    assert rolled.report.changed
    assert set(outcomes(rolled.report).values()) == {"rolled"}
    assert {name: [rolled.before[name], after[name]] for name in after} == {
        name: rolled.sampler.pids(name) for name in after
    }
    assert {name: (rolled.before[name], after[name]) for name in after} == told


@pytest.mark.parametrize("group", ["high", "low"])
def test_one_of_a_group_is_down_at_a_time(rolled: Rolled, group: str) -> None:
    """At no sample is more than one process of a group not RUNNING, and at some sample one is."""
    assert max(rolled.sampler.down(group)) == 1


def test_groups_are_rolled_side_by_side(rolled: Rolled) -> None:
    """At some sample both groups have one process down: a class does not wait for another."""
    both = zip(rolled.sampler.down("high"), rolled.sampler.down("low"), strict=True)

    assert (1, 1) in set(both)


def test_nobody_is_cut_off(rolled: Rolled) -> None:
    """Every old process got one TERM and came to its own end; no new one got any."""
    old = sorted(rolled.before.values())

    assert old == sorted(rolled.daemon.ledger("term"))
    assert old == sorted(rolled.daemon.ledger("end"))


def test_a_second_run_changes_nothing(rolled: Rolled) -> None:
    """With skip_healthy a run with the same release touches nothing and says why."""
    before = rolled.daemon.pids()
    report = rolled.daemon.roll("low:*", health=rolled.daemon.health, release="v2", skip_healthy=True)

    assert set(outcomes(report).values()) == {"skipped"}
    assert not report.changed
    assert report.result()["diff"]["before"] == report.result()["diff"]["after"]
    assert {entry["reason"] for entry in report.processes} == {"runs v2 and is healthy"}
    assert before == rolled.daemon.pids()


@pytest.mark.parametrize("state", ["rolled", "stopped"])
def test_check_mode_touches_nothing(rolled: Rolled, state: str) -> None:
    """Check mode with diff says what would come and leaves every pid and every worker alone."""
    before, terms = rolled.daemon.pids(), len(rolled.daemon.ledger("term"))
    report = rolled.daemon.roll("low:*", check=True, state=state)
    result = report.result()

    assert result["changed"]
    assert outcomes(report) == {f"low:low_0{n}": state for n in range(3)}
    assert {e["pid_after"] for e in report.processes} == ({None} if state == "rolled" else {0})
    assert f"low:low_00 RUNNING pid {before['low:low_00']}\n" in result["diff"]["before"]
    assert ("RUNNING, new pid" if state == "rolled" else "low:low_00 STOPPED") in result["diff"]["after"]
    assert (before, terms) == (rolled.daemon.pids(), len(rolled.daemon.ledger("term")))


def test_check_mode_knows_the_healthy(rolled: Rolled) -> None:
    """Check mode asks the health command too, so that a dry run of a finished deploy says: nothing to do."""
    given = {"check": True, "skip_healthy": True, "health": rolled.daemon.health}
    same = rolled.daemon.roll("high:*", release="v2", **given)
    new = rolled.daemon.roll("high:*", release="v3", **given)

    assert not same.changed
    assert set(outcomes(new).values()) == {"rolled"}


def test_only_the_named_are_touched(rolled: Rolled) -> None:
    """Patterns choose by group:name, and a pattern that fits nothing is an error that lists what there is."""
    chosen = rolled.daemon.roll("*:low_0[12]", check=True)
    nothing = rolled.daemon.roll("lwo:*")

    assert list(outcomes(chosen)) == ["low:low_01", "low:low_02"]
    assert "no process fits ['lwo:*']" in nothing.msg
    assert "low:low_00" in nothing.msg


def test_max_unavailable_two(rolled: Rolled) -> None:
    """With max_unavailable=2 two of a group are down at some sample, and never three."""
    assert set(outcomes(rolled.by_two).values()) == {"rolled"}
    assert max(rolled.sampler.down("two")) == 2


def test_term_ignored() -> None:
    """A process that ignores TERM: by default it is reported and the rest left alone; with on_timeout=kill replaced.

    The failure names host, process, state, seconds, the end of the log without its secrets, and the next command.
    """
    with Daemon(
        {"w": {"numprocs": 2, "startsecs": 0}}, ignore_term=True, say="connecting with token=abc123 to db"
    ) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        failed = daemon.roll(drain_timeout=0.5)

        assert outcomes(failed) == {"w:w_00": "failed", "w:w_01": "skipped"}
        assert failed.changed  # one has a TERM that it did not have before
        assert f"{socket.gethostname()} w:w_00 RUNNING pid {before['w:w_00']}: did not end within 0.5 s" in failed.msg
        assert "waited 0." in failed.msg
        assert "End of its stderr:\nconnecting with token=*** to db" in failed.msg
        assert f"supervisorctl -s unix://{daemon.socket} tail -4000 w:w_00 stderr" in failed.msg
        assert "abc123" not in failed.msg
        assert before == daemon.pids()

        daemon.behave()
        with Sampler(daemon) as sampler:
            killed = daemon.roll(drain_timeout=0.5, on_timeout="kill")

        assert outcomes(killed) == {"w:w_00": "killed", "w:w_01": "killed"}
        assert max(sampler.down("w")) <= 1
        assert daemon.ledger("term") == [before["w:w_00"], before["w:w_01"]]  # the first has had its own before
        assert all(len(sampler.pids(name)) == 2 for name in before)


def test_release_that_dies_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process that dies before startsecs: after some tries the roll fails, the others were not asked to go."""
    monkeypatch.setattr(unit, "FAILED_STARTS", 2)
    with Daemon({"w": {"numprocs": 3}}) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        daemon.behave(die_after=0, say="ImportError: no module named late")
        with Sampler(daemon) as sampler:
            report = daemon.roll()

        assert outcomes(report) == {"w:w_00": "failed", "w:w_01": "skipped", "w:w_02": "skipped"}
        assert "ended 2 times while it started: Exited too quickly" in report.msg
        assert "ImportError: no module named late" in report.msg
        assert "not touched, because w:w_00 failed" in {entry["reason"] for entry in report.processes}
        assert [before["w:w_00"]] == daemon.ledger("term")
        assert max(sampler.down("w")) == 1


def test_release_that_cannot_be_spawned() -> None:
    """A command that is gone: whether supervisord gives up at once or we start it, the roll fails and names it."""
    with Daemon({"retried": {}, "tried": {"startretries": 0}}) as daemon:
        lone = daemon.folder / "command"
        lone.write_text(f"#!/bin/sh\nexec {sys.executable} -IS {daemon.folder}/worker.py {daemon.folder}\n")
        lone.chmod(0o755)
        daemon.configure(retried={"command": lone}, tried={"command": lone, "startretries": 0})
        report = daemon.roll(update=True)
        assert report.failures == []
        lone.unlink()
        report = daemon.roll("tried:*")

        assert outcomes(report) == {"tried:tried_00": "failed"}
        assert "supervisord gave up starting it: can't find command" in report.msg

        report = daemon.roll("tried:*")  # now FATAL before we begin

        assert "cannot be started: NO_FILE: can't find command" in report.msg
        assert daemon.processes()["retried:retried_00"][0] == "RUNNING"


def test_release_that_is_not_healthy() -> None:
    """RUNNING but not healthy: fails after ready_timeout with the health command's own words, redacted."""
    with Daemon({"w": {"numprocs": 2, "startsecs": 0}}, release="v1") as daemon:
        daemon.until_states("RUNNING")
        daemon.behave(release="v2", unhealthy=True)
        report = daemon.roll(health=daemon.health, release="v2", ready_timeout=1.0)

        assert outcomes(report) == {"w:w_00": "failed", "w:w_01": "skipped"}
        assert "was RUNNING but not healthy within 1 s" in report.msg
        assert "Its health command said: exit status 1, no: password=***" in report.msg


def test_health_is_asked_until_it_passes() -> None:
    """A process that becomes healthy late holds its place until then, and is rolled."""
    with Daemon({"w": {"numprocs": 2, "startsecs": 0}}, release="v1") as daemon:
        daemon.until_states("RUNNING")
        daemon.behave(release="v2", unhealthy=True)

        def recover() -> None:
            daemon.until(lambda: len(daemon.ledger("start")) == 3)
            time.sleep(0.5)
            seen.append(len(daemon.ledger("term")))
            daemon.behave(release="v2")

        seen: list[int] = []
        thread = threading.Thread(target=recover)
        thread.start()
        report = daemon.roll(health=daemon.health, release="v2")
        thread.join()

        assert outcomes(report) == {"w:w_00": "rolled", "w:w_01": "rolled"}
        assert seen == [1]  # the second was not asked to go while the first was not healthy


def test_release_that_dies_before_it_is_healthy() -> None:
    """A process that comes up and dies during its health checks, again and again: fails, and says so."""
    with Daemon({"w": {"numprocs": 2, "startsecs": 0}}, release="v1") as daemon:
        daemon.until_states("RUNNING")
        daemon.behave(release="v2", die_after=0.2, exit=3, unhealthy=True)
        report = daemon.roll(health=daemon.health, release="v2")

        assert outcomes(report) == {"w:w_00": "failed", "w:w_01": "skipped"}
        assert "ended 3 times" in report.msg


def test_health_command_that_is_missing() -> None:
    """A health command that is not there is a failed check with its name in the message, not a crash."""
    with Daemon({"w": {"startsecs": 0}}) as daemon:
        daemon.until_states("RUNNING")
        report = daemon.roll(health=[f"{daemon.folder}/nothing", "{process}"], ready_timeout=0.5)

        assert f"{daemon.folder}/nothing: " in report.msg
        assert "No such file" in report.msg


def test_states_found() -> None:
    """What an operator stopped stays stopped; EXITED, FATAL and BACKOFF are started; one that runs is rolled.

    autorestart=unexpected leaves a drained process EXITED: it is started, with a warning that names the setting.
    So is one that exits with 3 when it drains and stays down.
    """
    broken = {
        "fatal_00": {"die_after": 0},
        "backoff_00": {"die_after": 0},
        "exited_00": {"die_after": 1.3},
        "three_00": {"exit": 3},
    }
    programs: dict[str, dict[str, Any]] = {
        "stopped": {},
        "never": {"autostart": "false"},
        "fatal": {"startretries": 0},
        "backoff": {},
        "exited": {"autorestart": "false"},
        "unexpected": {"autorestart": "unexpected"},
        "three": {"autorestart": "false"},
    }
    with Daemon(programs, only=broken) as daemon:
        daemon.until_states("RUNNING", of="stopped:")
        daemon.rpc.stopProcess("stopped:stopped_00")
        daemon.until_states("FATAL", of="fatal:")
        daemon.until_states("EXITED", of="exited:")
        daemon.until_states("RUNNING", of="unexpected:")
        daemon.until_states("RUNNING", of="three:")
        daemon.until_states("BACKOFF", of="backoff:")
        daemon.behave()
        report = daemon.roll()

        assert outcomes(report) == {
            "stopped:stopped_00": "left_stopped",
            "never:never_00": "left_stopped",
            "fatal:fatal_00": "started",
            "backoff:backoff_00": "started",
            "exited:exited_00": "started",
            "unexpected:unexpected_00": "rolled",
            "three:three_00": "rolled",
        }, report.msg
        assert {s for n, (s, _) in daemon.processes().items() if n[:5] not in ("stopp", "never")} == {"RUNNING"}
        assert any("unexpected_00 was EXITED (exit status 0)" in w and "autorestart" in w for w in report.warnings)
        assert any("three_00" in warning and "exit status 3" in warning for warning in report.warnings)


def test_stop_and_start() -> None:
    """Stopping asks all at once and lets each finish; stopping and starting again change nothing."""
    with Daemon({"w": {"numprocs": 3, "startsecs": 0}}, drain=0.5) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        with Sampler(daemon) as sampler:
            stopped = daemon.roll(state="stopped")

        assert set(outcomes(stopped).values()) == {"stopped"}
        assert max(sampler.down("w")) == 3
        assert sorted(before.values()) == sorted(daemon.ledger("end"))
        assert set(daemon.processes().values()) == {("STOPPED", 0)}
        assert not daemon.roll(state="stopped").changed
        assert set(outcomes(daemon.roll(check=True, state="started")).values()) == {"started"}

        started = daemon.roll(state="started")

        assert set(outcomes(started).values()) == {"started"}
        assert {state for state, _ in daemon.processes().values()} == {"RUNNING"}
        assert not daemon.roll(state="started").changed


def test_stopwaitsecs() -> None:
    """A drain longer than stopwaitsecs is not cut off by a roll: TERM is a signal, not a stop.

    A stop is: supervisord kills and calls it a success. Here it is called killed, and why.
    """
    programs: dict[str, dict[str, Any]] = {"roll": {"stopwaitsecs": 1, "startsecs": 0}, "stop": {"stopwaitsecs": 1}}
    with Daemon(programs, drain=1.5, only={"stop_00": {"drain": 30}}) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        rolled = daemon.roll("roll:*")
        stopped = daemon.roll("stop:*", state="stopped")

        assert outcomes(rolled) == {"roll:roll_00": "rolled"}
        assert daemon.ledger("end") == [before["roll:roll_00"]]
        assert outcomes(stopped) == {"stop:stop_00": "killed"}
        assert stopped.processes[0]["reason"] == "supervisord killed it after stopwaitsecs=1"


def test_update() -> None:
    """New groups are added, a changed one is drained and replaced, a removed one drained and removed, others left.

    Nothing is cut off, the unchanged group is not stopped, and a second run with nothing changed is no change.
    """
    fast = {"startsecs": 0}
    programs = {"same": fast, "changed": {**fast, "numprocs": 2}, "gone": fast, "foreign": fast}
    with Daemon(programs, drain=0.3) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        new = {**programs, "changed": {**fast, "numprocs": 3}, "fresh": fast, "foreign": {**fast, "numprocs": 2}}
        del new["gone"]
        daemon.configure(**new)
        patterns = ["same:*", "changed:*", "gone:*", "fresh:*"]
        foreseen = daemon.roll(*patterns, check=True, update=True, state="started")

        assert before == daemon.pids()

        report = daemon.roll(*patterns, update=True, state="started")
        after = daemon.processes()

        assert outcomes(report) == {
            "fresh:fresh_00": "started",
            "changed:changed_00": "rolled",
            "changed:changed_01": "rolled",
            "changed:changed_02": "started",
            "gone:gone_00": "stopped",
            "same:same_00": "skipped",
        }, report.msg
        assert outcomes(report) == outcomes(foreseen)
        assert "added fresh, replaced changed, removed gone" in report.msg
        assert any("foreign" in warning for warning in report.warnings)
        assert "gone:gone_00" in report.result()["diff"]["before"]
        assert "gone:gone_00" not in report.result()["diff"]["after"]
        assert "gone:gone_00" not in after
        assert {s for s, _ in after.values()} == {"RUNNING"}
        assert before["same:same_00"] == after["same:same_00"][1]
        assert before["foreign:foreign_00"] == after["foreign:foreign_00"][1]
        assert sorted(daemon.ledger("term")) == sorted(daemon.ledger("end"))
        assert not daemon.roll(*patterns, update=True, state="started").changed


def test_update_of_broken_files() -> None:
    """Files that supervisord cannot read: nothing is touched, its own words and the next command are told."""
    with Daemon({"w": {"startsecs": 0}}) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        daemon.configure(w={"command": "%(nonsense)s"})
        report = daemon.roll(update=True)

        assert not report.changed
        assert "supervisord refused: CANT_REREAD" in report.msg
        assert f"supervisorctl -s unix://{daemon.socket} reread" in report.msg
        assert before == daemon.pids()


def test_update_that_fails_removes_nothing() -> None:
    """If a new group does not come up, changed and removed ones are not touched: somebody still listens."""
    with Daemon({"old": {}}) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        daemon.configure(new={"startretries": 0, "command": "/bin/false"})
        report = daemon.roll(update=True)

        assert outcomes(report)["new:new_00"] == "failed"
        assert before["old:old_00"] == daemon.pids()["old:old_00"]


def test_cut_off_in_the_middle() -> None:
    """After a module killed with -9 in mid-roll a second run rolls only the rest.

    Every old process has had one TERM and come to its own end, even one that still drained when the second run began:
    to our workers a second TERM means "at once". Nothing is left beside the socket.
    """
    with Daemon({"w": {"numprocs": 3, "startsecs": 0}}, drain=1.0, release="v1") as daemon:
        daemon.until_states("RUNNING")
        old = sorted(daemon.pids().values())
        daemon.behave(drain=1.0, release="v2")
        marks = daemon.folder / "s.roll"
        given: dict[str, Any] = {
            "health": daemon.health,
            "release": "v2",
            "drain_timeout": 20.0,
            "ready_timeout": 20.0,
            "skip_healthy": True,
        }
        code = (
            "import json, sys; sys.path.insert(0, sys.argv[1])\n"
            "from rolling.convergence import Roll, converge\n"
            "from rolling.options import Options\n"
            "converge(Roll.of(Options.from_params(json.loads(sys.argv[2]))), False)"
        )
        command = [
            sys.executable,
            "-c",
            code,
            str(MODULE_UTILS),
            json.dumps({**given, "socket": daemon.socket, "processes": ["*"]}),
        ]
        with subprocess.Popen(command) as run:
            daemon.until(lambda: marks.exists() and len(json.loads(marks.read_text())) == 2)
            run.kill()
        with Sampler(daemon) as sampler:
            report = daemon.roll(**given)

        assert sorted(outcomes(report).values()) == ["rolled", "rolled", "skipped"]
        assert old == sorted(daemon.ledger("term"))
        assert old == sorted(daemon.ledger("end"))
        assert len(daemon.ledger("start")) == 6
        assert max(sampler.down("w")) <= 1
        assert not marks.exists()
        assert not daemon.roll(**given).changed


def test_restart_of_supervisord_in_mid_roll() -> None:
    """supervisord restarts while a process drains: the roll waits for it and ends well, or fails and says why."""
    with Daemon({"w": {"numprocs": 2, "startsecs": 0}}, drain=0.5) as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()

        def restart() -> None:
            daemon.until(lambda: len(daemon.ledger("term")) == 1)
            daemon.rpc.restart()

        thread = threading.Thread(target=restart)
        thread.start()
        report = daemon.roll()
        thread.join()

        assert set(outcomes(report).values()) == {"rolled"}, report.msg
        assert not set(before.values()) & set(daemon.pids().values())
        assert set(before.values()) <= set(daemon.ledger("end"))


def test_supervisord_that_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """In SHUTDOWN nothing is asked of it, and the message says what it does and what to do then."""
    monkeypatch.setattr(roll, "PATIENCE_SECONDS", 0.3)
    with Daemon({"w": {"startsecs": 0}}, drain=3) as daemon:
        daemon.until_states("RUNNING")
        daemon.rpc.shutdown()
        report = daemon.roll()

        assert "is shutting down or restarting" in report.msg
        assert f"supervisorctl -s unix://{daemon.socket} status" in report.msg
        assert not report.changed


def test_no_supervisord(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No socket, a socket nobody listens at: each is told apart, with the path and the next command."""
    monkeypatch.setattr(roll, "PATIENCE_SECONDS", 0.3)
    with Daemon() as daemon:
        missing = daemon.roll()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(daemon.socket)
        refused = daemon.roll()

    assert f"No socket at {daemon.socket}: supervisord is not running" in missing.msg
    assert f"Nobody listens at {daemon.socket}" in refused.msg
    assert "systemctl status supervisor" in missing.msg


@pytest.mark.parametrize("text", ["ж" * 4000 + "x", "\x1b[31mred\x1b[0m"], ids=["cyrillic", "colour"])
def test_logs_that_supervisord_cannot_send(text: str) -> None:
    """Its XML-RPC breaks on half a letter and on control characters: the log is read all the same."""
    with Daemon({"w": {"startsecs": 0}}, ignore_term=True, say=f"{text}\nlast words of it") as daemon:
        daemon.until(lambda: len(daemon.ledger("start")) == 1)
        report = daemon.roll(drain_timeout=0.2)

        assert "last words of it" in report.msg
        assert "\x1b" not in report.msg
