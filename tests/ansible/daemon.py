"""A real supervisord of a test's own, workers that behave as told, and a sampler that watches both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xmlrpc.client
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from rolling import roll, unit
from rolling.convergence import converge
from rolling.options import Options

REPOSITORY = Path(__file__).parents[2]
MODULE = REPOSITORY / "ansible/plugins/modules/supervisor_roll.py"
MODULE_UTILS = REPOSITORY / "ansible/plugins/module_utils"

# Reads how to behave when it starts, so that a test can switch the "release" under a running fleet.
WORKER = """\
import json, os, signal, sys, time
folder, name = sys.argv[1], os.environ["SUPERVISOR_PROCESS_NAME"]
how = json.load(open(folder + "/behaviour.json"))
how = {**how, **how.get("only", {}).get(name, {})}

def tell(event):
    line = f"{event} {name} {os.getpid()} {how.get('release', '-')}\\n"
    ledger = os.open(folder + "/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, line.encode())
    os.close(ledger)

def on_term(*_):
    tell("term")
    global end
    if not how.get("ignore_term"):
        end = time.monotonic() + how.get("drain", 0.0)

end = time.monotonic() + how["die_after"] if "die_after" in how else float("inf")
signal.signal(signal.SIGTERM, on_term)
if how.get("say"):
    print(how["say"], flush=True)
    print(how["say"], file=sys.stderr, flush=True)
tell("start")
while time.monotonic() < end:
    time.sleep(0.02)
tell("end")
sys.exit(how.get("exit", 0))
"""

# Healthy when the newest process of that name has the release, and behaviour.json does not say otherwise.
HEALTH = """\
import json, sys
folder, name, release = sys.argv[1:]
if json.load(open(folder + "/behaviour.json")).get("unhealthy"):
    sys.exit("no: password=hunter2")
lines = [line.split() for line in open(folder + "/ledger")]
newest = [line for line in lines if line[0] == "start" and line[1] == name][-1]
sys.exit(0 if newest[3] == release else f"runs {newest[3]}")
"""

MAIN = """\
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
[unix_http_server]
file={folder}/s
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[include]
files={folder}/*.ini
"""


roll.POLL_SECONDS = 0.05  # tests are in a hurry; nothing depends on it
unit.HEALTH_PAUSE_SECONDS = 0.1


class Daemon:
    """supervisord with programs; every program runs WORKER unless it says otherwise."""

    def __init__(self, programs: dict[str, dict[str, Any]] | None = None, **behaviour: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="roll-"))  # a socket's path may have 107 letters, no more
        self.socket = str(self.folder / "s")
        (self.folder / "worker.py").write_text(WORKER)
        (self.folder / "health.py").write_text(HEALTH)
        (self.folder / "ledger").touch()
        (self.folder / "main.conf").write_text(MAIN.format(folder=self.folder))
        self.behave(**behaviour)
        self._process: subprocess.Popen[bytes] | None = None
        if programs is not None:
            self.configure(**programs)
            self.start()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def rpc(self) -> Any:
        """A client that shares nothing with the module."""
        return xmlrpc.client.ServerProxy(
            "http://localhost", SupervisorTransport(None, None, f"unix://{self.socket}")
        ).supervisor

    @property
    def health(self) -> list[str]:
        """A health command for the module."""
        return [sys.executable, "-IS", str(self.folder / "health.py"), str(self.folder), "{process}", "{release}"]

    def behave(self, **behaviour: Any) -> None:
        """How workers that start from now on behave."""
        new = self.folder / "behaviour.new"
        new.write_text(json.dumps(behaviour))
        new.rename(self.folder / "behaviour.json")

    def configure(self, **programs: dict[str, Any]) -> None:
        """Write the programs' sections; nothing is told to supervisord."""
        sections = []
        for name, given in programs.items():
            values = {
                "command": f"{sys.executable} -IS {self.folder}/worker.py {self.folder}",
                "process_name": "%(program_name)s_%(process_num)02d",
                "autorestart": "true",
                "startsecs": 1,
                "startretries": 100,
                "stopwaitsecs": 60,
                **given,
            }
            sections.append(f"[program:{name}]\n" + "".join(f"{k}={v}\n" for k, v in values.items()))
        (self.folder / "programs.ini").write_text("".join(sections))

    def start(self) -> None:
        """Start supervisord and wait until it answers."""
        command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", f"{self.folder}/main.conf"]
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder)

        def answers() -> bool:
            with suppress(OSError, xmlrpc.client.Error):
                return bool(self.rpc.getState()["statecode"] == 1)
            return False

        self.until(answers)

    def close(self) -> None:
        """Kill supervisord and its workers, quickly."""
        pids = []
        with suppress(OSError, xmlrpc.client.Error):
            pids = [pid for _, pid in self.processes().values() if pid]
        if self._process:
            self._process.kill()
            self._process.wait()
        for pid in pids:
            subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> dict[str, tuple[str, int]]:
        """State and pid by group:name."""
        return {f"{i['group']}:{i['name']}": (i["statename"], i["pid"]) for i in self.rpc.getAllProcessInfo()}

    def pids(self) -> dict[str, int]:
        """Pid by group:name."""
        return {name: pid for name, (_, pid) in self.processes().items()}

    def until(self, reached: Callable[[], bool], seconds: float = 30) -> None:
        """Wait, within bounds."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.03)

    def until_states(self, *states: str, of: str = "") -> None:
        """Wait until all processes (whose name begins so) are in one of the states; what RUNS listens to TERM."""

        def reached() -> bool:
            told = {*self.ledger("start"), 0}
            seen = [seen for name, seen in self.processes().items() if name.startswith(of)]
            return all(state in states and (state != "RUNNING" or pid in told) for state, pid in seen)

        self.until(reached)

    def ledger(self, event: str) -> list[int]:
        """Pids of the workers that told of an event, in its order."""
        lines = [line.split() for line in (self.folder / "ledger").read_text().splitlines()]
        return [int(pid) for told, _, pid, _ in lines if told == event]

    def story(self) -> str:
        """For a failing test: what supervisord said."""
        return "".join(p.read_text() for p in (self.folder / "supervisord.log", self.folder / "output") if p.exists())

    def roll(self, *patterns: str, check: bool = False, **params: Any) -> Any:
        """Run the module's work; its report."""
        given = {"drain_timeout": 20.0, "ready_timeout": 20.0, **params}
        options = Options.from_params({"socket": self.socket, "processes": list(patterns) or ["*"], **given})
        return converge(roll.Roll.of(options), check)


def outcomes(report: Any) -> dict[str, str]:
    """group:name → outcome."""
    return {f"{entry['group']}:{entry['name']}": entry["outcome"] for entry in report.processes}


class Sampler:
    """Looks at a supervisord every 50 ms."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.samples: list[dict[str, tuple[str, int]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        over = False
        while not over:
            over = self._over.wait(0.05)  # then once more: how it ended
            with suppress(OSError, xmlrpc.client.Error):
                self.samples.append(self._daemon.processes())

    def down(self, group: str) -> list[int]:
        """How many processes of the group were not RUNNING, sample by sample."""
        return [
            sum(state != "RUNNING" for name, (state, _) in sample.items() if name.startswith(f"{group}:"))
            for sample in self.samples
        ]

    def pids(self, name: str) -> list[int]:
        """The pids a process has had, in their order."""
        seen: list[int] = []
        for sample in self.samples:
            pid = sample.get(name, ("", 0))[1]
            if pid and pid not in seen:
                seen.append(pid)
        return seen
