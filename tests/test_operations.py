"""The runbook: each command of docs/operations.md on a live system, with the trouble its section is about."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runbook import PAGE, Block, blocks
from worker.demo.stage import Stage

ROOT = Path(__file__).parents[1]
LIVE = [block for block in blocks() if block.where == "live"]
SECTIONS = list(dict.fromkeys(block.section for block in LIVE))
# Its exit code 3 says that a program does not run, which is no fault of the command.
STATUS = 'supervisorctl() { command supervisorctl "$@" || { code=$?; [ "$1 $code" = "status 3" ]; }; }\n'
BAD, GOOD = "no-such-token", "a-token-made-for-the-runbook"


class Operator:
    """Somebody at a shell of a host, with the runbook open."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.child = str(stage.children[0])
        # As on a host: the command line knows release and settings, supervisorctl its daemon and the programs' names.
        commands = {
            "moysklad-worker": f"exec {shlex.quote(sys.executable)} -m worker --env-file {stage.folder}/worker.env",
            "supervisorctl": 'set -- $(printf "%s " "$@" | sed s/moysklad-//g); exec '
            f"{shlex.quote(sys.executable)} -W ignore -m supervisor.supervisorctl -c {stage.folder}/supervisord.conf",
        }
        for name, command in commands.items():
            (folder / name).write_text(f'#!/bin/sh\nset -f\ncd {ROOT}\n{command} "$@"\n')
            (folder / name).chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "LOGS": str(stage.settings.LOG_DIR),
            "MAIN": str(stage.main),
            "CHILD": self.child,
            "TOKEN": GOOD,
            "COLUMNS": "200",
        }

    def run(self, commands: str) -> str:
        """All of them, each of which must end well; what they said."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", STATUS + commands],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, command: str) -> Any:
        """The answer of a command with --json."""
        return json.loads(self.run(command))

    def refused(self, commands: str) -> str:
        """A command that must fail; what it said."""
        done = subprocess.run(["bash", "-c", commands], env=self.env, capture_output=True, text=True, timeout=100)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def monitor(self) -> Any:
        """What there is."""
        return self.json("moysklad-worker monitor --once --json")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Look until it is so."""
        end = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < end, what
            time.sleep(0.1)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One, and a live system that has synced once."""
    with Stage(products=30, children=2, workers=2, work_options="--sleep 0.2", env={"LEASE_SECONDS": 5}) as stage:
        operator = Operator(stage, tmp_path_factory.mktemp("bin"))
        stage.control("POST", f"accounts/{operator.child}/tokens", add=[{"token": GOOD}])
        run = operator.json(f"moysklad-worker sync {stage.main} --wait --json")
        operator.env["RUN"] = run["id"]
        operator.env["TASK"] = str(operator.json("moysklad-worker queue peek completed --json")[0]["id"])
        yield operator


def stop_the_workers(operator: Operator) -> None:
    """Issue 1."""
    operator.run("supervisorctl stop worker:*")
    operator.wait_until(lambda: operator.monitor()["workers"] == [], "the workers did not end")


def kill_a_worker(operator: Operator) -> None:
    """Issue 2."""
    for pid in operator.stage.worker_pids():
        os.kill(pid, signal.SIGKILL)


def fail_a_task(operator: Operator) -> None:
    """Issue 3: a good MoySklad refuses."""
    with operator.stage.app.db.connection() as conn:
        conn.execute(
            "update sync_queue set status = 'failed', error = 'no such unit' where id = "
            "(select id from sync_queue where account_id = %s and status = 'completed' and entity_type = 'product' "
            "limit 1)",
            [operator.child],
        )


def break_a_token(operator: Operator) -> None:
    """Issue 4: there are new goods, and the account is parked by the first request that is refused."""
    operator.stage.control("POST", "seed", account=str(operator.stage.main), products=5, seed=2)
    operator.run(f"printf %s {BAD} | moysklad-worker accounts token {operator.child} --token-file -")
    operator.refused(f"timeout 60 moysklad-worker sync {operator.child} --wait")
    (account,) = [one for one in operator.monitor()["accounts"] if one["account_id"] == operator.child]
    assert account["parked_reason"]


TROUBLE = {
    "Issue 1: the workers do not run": stop_the_workers,
    "Issue 2: tasks stay in pending or processing": kill_a_worker,
    "Issue 3: tasks fail": fail_a_task,
    "Issue 4: MoySklad refuses: 429, 401, 403": break_a_token,
}


def test_every_issue_has_its_trouble() -> None:
    """Each section that begins with `Issue` is run with what it is about; there are five."""
    issues = [section for section in SECTIONS if section.startswith("Issue")]
    assert len(issues) == 5
    assert set(TROUBLE) == set(issues[:4])
    assert all(block.commands.strip() for block in blocks())
    assert PAGE.read_text("utf-8").count("```sh") == len(blocks())


@pytest.mark.parametrize("section", SECTIONS)
def test_section(operator: Operator, section: str) -> None:
    """All its commands end well, and then the system is sound: workers alive, nothing failed, nothing parked."""
    if section in TROUBLE:
        TROUBLE[section](operator)

    for block in LIVE:
        if block.section == section:
            operator.run(block.commands)

    operator.run("moysklad-worker health --wait 30")
    operator.wait_until(lambda: len(operator.monitor()["workers"]) == 2, "not both workers came back")
    operator.wait_until(lambda: operator.monitor()["totals"]["pending"] == 0, "tasks wait")
    found = operator.monitor()
    assert found["totals"]["failed"] == found["totals"]["processing"] == 0
    assert [one["name"] for one in found["accounts"] if one["parked_reason"]] == []
    equal = operator.stage.control("GET", "diff", main=str(operator.stage.main), child=operator.child)
    assert equal["missing"] + equal["extra"] + equal["different"] + equal["duplicates"] == 0, equal


def test_blocks_are_found() -> None:
    """Live ones and those for hosts, each under its heading."""
    assert Block("Disk", "host", blocks()[-1].commands) == blocks()[-1]
    assert len(LIVE) >= 20
    assert len([block for block in blocks() if block.where == "host"]) >= 3
