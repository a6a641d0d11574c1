"""`bin/molecule` refuses a net or a prefix that another run or checkout has: with real networks and containers.

Nothing is started: a container that is only made is one, and MOLECULE_IMAGES of no known kind ends a run that nothing
refuses before its first image.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PREFIX = f"refusals-{os.getpid()}"
NET, OTHER_NET = (f"10.{second}.{200 + os.getpid() % 50}" for second in (89, 90))

needed = all(shutil.which(name) for name in ("podman", "runc", "ssh", "ssh-keygen"))
pytestmark = pytest.mark.skipif(
    not needed or subprocess.run(["podman", "info"], capture_output=True, check=False).returncode != 0,
    reason="podman cannot work here",
)


def podman(*words: str) -> None:
    """It has to go well."""
    subprocess.run(["podman", *words], check=True, capture_output=True, timeout=60)


def run() -> str:
    """What bin/molecule has to say; a run that goes on would need images of no known kind."""
    done = subprocess.run(
        [ROOT / "bin/molecule", "no-such-scenario"],
        env={**os.environ, "MOLECULE_NET": NET, "MOLECULE_PREFIX": PREFIX, "MOLECULE_IMAGES": "none"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Nothing of a test stays."""
    yield
    podman("rm", "--force", "--ignore", f"{PREFIX}-host")
    subprocess.run(["podman", "network", "rm", PREFIX, f"{PREFIX}-molecule"], check=False, capture_output=True)
    for name in (NET, PREFIX):
        Path(f"/tmp/molecule-{name}.lock").unlink(missing_ok=True)


@pytest.mark.parametrize("name", [NET, PREFIX], ids=["net", "prefix"])
def test_another_run_with_the_net_or_prefix_is_refused(name: str) -> None:
    """As long as that run lives, and no longer."""
    with Path(f"/tmp/molecule-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"={name}: set MOLECULE_NET" in run()
    assert "cannot be built from none" in run()


@pytest.mark.parametrize(
    ("checkout", "said"), [("/elsewhere", "another checkout's hosts"), (str(ROOT), "cannot be built from none")]
)
def test_hosts_of_another_checkout_are_refused_and_ones_own_are_not(checkout: str, said: str, tmp_path: Path) -> None:
    """Whatever their prefix is."""
    podman("create", "--name", f"{PREFIX}-host", "--label", f"molecule.net={NET}",
           "--label", f"molecule.checkout={checkout}", "--rootfs", str(tmp_path), "true")  # fmt: skip
    answer = run()
    assert said in answer
    assert (f"{PREFIX}-host" in answer) == (said == "another checkout's hosts")


def test_a_network_that_has_the_net_is_refused() -> None:
    """Another's network of that net, and one's own of another; with how to get rid of it."""
    podman("network", "create", "--subnet", f"{NET}.0/24", PREFIX)
    assert f"podman network rm {PREFIX}\n" in run()
    podman("network", "rm", PREFIX)

    podman("network", "create", "--subnet", f"{OTHER_NET}.0/24", f"{PREFIX}-molecule")
    answer = run()
    assert f"is {OTHER_NET}.0/24 and not MOLECULE_NET" in answer
    assert f"podman network rm {PREFIX}-molecule\n" in answer
