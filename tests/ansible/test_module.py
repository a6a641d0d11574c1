"""supervisor_roll as Ansible runs it, `ansible localhost -m supervisor_roll`, against a real supervisord."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.daemon import MODULE, MODULE_UTILS, Daemon

pytest.importorskip("ansible.module_utils.basic", reason="ansible-core is not installed")


def ansible(folder: Path, *options: str, **params: Any) -> dict[str, Any]:
    """Run the module; what Ansible printed of it."""
    command = [str(Path(sys.executable).with_name("ansible"))]
    (folder / "ansible.cfg").touch()  # not the project's
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_LIBRARY": str(MODULE.parent),
        "ANSIBLE_MODULE_UTILS": str(MODULE_UTILS),
        "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
        "ANSIBLE_STDOUT_CALLBACK": "minimal",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_NOCOLOR": "1",
    }
    target = ["localhost", "-i", "localhost,", "-c", "local", "-m", "supervisor_roll", "-a", json.dumps(params)]
    done = subprocess.run(
        [*command, *target, *options], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    start = done.stdout.find("=> {")
    assert start >= 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start + 3 :])[0]
    return {**answer, "rc": done.returncode, "printed": done.stdout + done.stderr}


def test_through_ansible(tmp_path: Path) -> None:
    """Check mode with diff says what would come and does nothing; the run does it; a failure fails the task.

    Numbers, lists and a dictionary arrive as what they are, and the failed result carries the processes too.
    """
    with Daemon({"w": {"numprocs": 2, "startsecs": 0}}, release="v1") as daemon:
        daemon.until_states("RUNNING")
        before = daemon.pids()
        daemon.behave(release="v2")
        given = {
            "socket": daemon.socket,
            "processes": ["w:*"],
            "health": [*daemon.health[:-1], "v2"],
            "health_environment": {"N": 1},
            "drain_timeout": 20,
            "ready_timeout": 20,
        }
        dry = ansible(tmp_path, "--check", "--diff", **given)

        assert (dry["changed"], dry["rc"]) == (True, 0)
        assert dry["msg"] == "2 rolled"
        assert "+w:w_00 RUNNING, new pid" in dry["printed"]
        assert before == daemon.pids()

        wet = ansible(tmp_path, **given)

        assert (wet["changed"], wet["rc"]) == (True, 0)
        assert [e["outcome"] for e in wet["processes"]] == ["rolled", "rolled"]
        assert {f"{e['group']}:{e['name']}": e["pid_after"] for e in wet["processes"]} == daemon.pids()

        daemon.behave(release="v3")
        bad = ansible(tmp_path, **{**given, "ready_timeout": 2})

        assert bad["rc"] == 2
        assert [e["outcome"] for e in bad["processes"]] == ["failed", "skipped"]
        assert "Its health command said: exit status 1, runs v3" in bad["msg"]


def test_parameters_are_checked(tmp_path: Path) -> None:
    """A contradiction is a failed task with one sentence, not a traceback."""
    answer = ansible(tmp_path, socket="/nowhere", processes=["w:*"], max_unavailable=0)

    assert answer["msg"] == "max_unavailable must be at least 1, or nothing can be replaced"
    assert answer["rc"] == 2


def test_documentation() -> None:
    """The documentation names exactly the parameters the module takes, with their defaults and choices."""
    import ansible.module_utils
    import yaml

    with pytest.MonkeyPatch.context() as patch:  # as Ansible packs it: beside its own
        patch.setattr(ansible.module_utils, "__path__", [*ansible.module_utils.__path__, str(MODULE_UTILS)])
        spec = importlib.util.spec_from_file_location("supervisor_roll", MODULE)
        assert spec is not None
        assert spec.loader is not None
        supervisor_roll = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(supervisor_roll)
    documented = yaml.safe_load(supervisor_roll.DOCUMENTATION)["options"]
    taken: dict[str, Any] = {}

    class Taken(Exception):
        pass

    def module(argument_spec: dict[str, Any], **_: Any) -> None:
        taken.update(argument_spec)
        raise Taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor_roll, "AnsibleModule", module)
        with pytest.raises(Taken):
            supervisor_roll.main()

    assert taken == {
        name: {key: value for key, value in option.items() if key != "description"}
        for name, option in documented.items()
    }
