"""`python -m simulator`: a free port, a port file, a clean end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulator.client import HEADERS, session

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends(tmp_path, end):
    """The port file holds the port of a simulator that answers, and the signal ends it with code 0."""
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "simulator", "--port", "0", "--port-file", str(port_file)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while not port_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        root = f"http://127.0.0.1:{int(port_file.read_text())}"
        with session() as client:
            order = {"name": "main", "tokens": [{"token": "t"}]}
            assert client.post(f"{root}/_control/accounts", json=order, timeout=30).ok
            headers = {**HEADERS, "Authorization": "Bearer t"}
            listed = client.get(f"{root}/api/remap/1.2/entity/uom", headers=headers, timeout=30)
            assert listed.json()["rows"][0]["meta"]["href"].startswith(root)
        process.send_signal(end)

        assert process.wait(timeout=15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert [one.name for one in tmp_path.iterdir()] == ["port"]
