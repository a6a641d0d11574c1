"""setup-queue-worker.sh says what is wrong before it changes anything; inventories and playbooks fit together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "setup-queue-worker.sh"
SYSTEMS = {
    "ubuntu": 'ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME="Ubuntu 24.04"\n',
    "centos": 'ID=centos\nID_LIKE="rhel fedora"\nPRETTY_NAME="CentOS Stream 9"\n',
    "alpine": 'ID=alpine\nPRETTY_NAME="Alpine Linux"\n',
}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gets that far")


def run(tmp_path: Path, system: str, *, user: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The script on such a system; what it would install cannot be found, so that it changes nothing."""
    release = tmp_path / "os-release"
    release.write_text(SYSTEMS[system])
    release.chmod(0o644)
    tmp_path.chmod(0o755)
    words = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
    return subprocess.run(
        [*words, "bash"],
        input=SCRIPT.read_text("utf-8").replace('cd "$(dirname "$0")"', f"cd {tmp_path}"),
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OS_RELEASE": str(release), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    """With its name and those that are known."""
    done = run(tmp_path, "alpine")

    assert done.returncode == 1
    assert "Alpine Linux is neither of the Debian/Ubuntu nor of the CentOS family" in done.stderr


@as_root
def test_it_wants_root() -> None:
    """It says how to be it."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own nobody else may enter
        done = run(Path(folder), "ubuntu", user=65534)

    assert done.returncode == 1
    assert "run it as root: sudo" in done.stderr


@as_root
def test_the_centos_family_needs_a_postgresql(tmp_path: Path) -> None:
    """There is no role for its PostgreSQL; the message says how to name one."""
    (tmp_path / "inventory/local").mkdir(parents=True)
    done = run(tmp_path, "centos")

    assert done.returncode == 1
    assert "sudo DATABASE_URL=postgresql://" in done.stderr


@as_root
def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    """Told by its name."""
    done = run(tmp_path, "ubuntu", INVENTORY="inventory/nowhere")

    assert done.returncode == 1
    assert "INVENTORY=inventory/nowhere: there is no such inventory" in done.stderr


def ansible(name: str, *words: str, **env: str) -> str:
    """What an ansible command answers."""
    command = Path(sys.executable).with_name(name)
    if not command.exists():
        pytest.skip("ansible-core is not installed")
    done = subprocess.run(
        [command, *words], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("inventory", ["example", "local"])
def test_deploy_from_the_root(inventory: str) -> None:
    """`ansible-playbook deploy.yml -i inventory/...` finds roles, modules and its hosts."""
    told = ansible("ansible-playbook", "deploy.yml", "-i", f"inventory/{inventory}", "--list-hosts", "--list-tasks")

    hosts = {"example": "worker-1.example.org", "local": "localhost"}[inventory]
    assert told.count(hosts) >= 3
    assert "Bring the database to the release" in told


def test_local_secrets_are_made_once(tmp_path: Path) -> None:
    """A key the worker takes, the same at the second look, and readable by the owner alone."""
    shutil.copytree(ROOT / "inventory/local", tmp_path / "local")
    words = ("-i", str(tmp_path / "local"), "localhost", "-m", "debug", "-a", "var=worker_secrets", "-o")
    env = {"HOME": str(tmp_path), "ANSIBLE_HOME": str(tmp_path / ".ansible"), "ANSIBLE_NOCOLOR": "1"}
    first, second = (
        json.loads(re.sub(r"^localhost \| SUCCESS => ", "", ansible("ansible", *words, **env)))["worker_secrets"]
        for _ in range(2)
    )

    assert first == second
    assert first["DATABASE_URL"].endswith("@127.0.0.1/moysklad")
    assert len(first["APP_KEY"]) == 44
    modes = [file.stat().st_mode & 0o77 for file in (tmp_path / ".config/moysklad-worker").iterdir()]
    assert modes == [0, 0, 0]


def test_the_example_names_only_variables_that_there_are() -> None:
    """Set or commented out, each is a default of a role."""
    known = {
        name
        for file in ROOT.glob("ansible/roles/*/defaults/main.yml")
        for name in yaml.safe_load(file.read_text("utf-8")) or {}
    }
    used = {
        name
        for file in (ROOT / "inventory/example/group_vars").rglob("*.yml")
        for name in re.findall(r"^(?:# )?([a-z]+_[a-z_]+):", file.read_text("utf-8"), re.MULTILINE)
        if not name.startswith("vault_")
    }

    assert len(used) > 25
    assert used - known == set()
