"""Everything running as it does on a host, in one temporary folder, until the `with` block ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from uuid import UUID, uuid4

import requests
from cryptography.fernet import Fernet

from worker import db
from worker.app import App
from worker.demo.postgres import EmbeddedPostgres
from worker.links import LinkSettings
from worker.settings import ENV_FILE, Settings

_START = 60.0


class Stage:
    """PostgreSQL, the simulator, supervisord with workers and API, one seeded main account and its children."""

    def __init__(
        self,
        *,
        products: int = 1000,
        children: int = 3,
        workers: int = 2,
        latency_ms: int = 0,
        work_options: str = "--sleep 3 --tries 3 --max-time 3600 --timeout 300",
        seed: int = 1,
        env: Mapping[str, object] = MappingProxyType({}),
        port: int = 0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`port` is where the API listens if it is free; else, and with 0, anywhere."""
        self.products, self.number, self.workers = products, children, workers
        self._latency_ms, self._work_options, self._seed, self._tell = latency_ms, work_options, seed, tell
        self._env_more, self._port = env, port
        self._stack = contextlib.ExitStack()
        self.main: UUID = uuid4()
        self.children: list[UUID] = []
        self.token = secrets.token_urlsafe(24)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="moysklad-demo-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._tell("PostgreSQL")
        self.postgres = EmbeddedPostgres(self.folder)
        self.postgres.start()
        self._stack.callback(self.postgres.close)
        self._tell("simulated MoySklad")
        self.simulator = self._simulate()
        self._env = self._write_env()
        self.settings = Settings.from_env({}, self._env)
        db.migrate(self.settings.DATABASE_URL.get_secret_value())
        self.app = self._stack.enter_context(App(self.settings))
        self._tell(f"a catalogue of {self.products:,} goods")
        self._people()
        self._tell(f"supervisord with {self.workers} workers and the API")
        self._supervise()

    def _simulate(self) -> str:
        port_file = self.folder / "simulator.port"
        command = [sys.executable, "-m", "simulator", "--port", "0", "--port-file", str(port_file)]
        process = subprocess.Popen([*command, "--latency-ms", str(self._latency_ms)])
        self._stack.callback(_end, process)
        _wait(port_file.exists, "the simulator")
        return f"http://127.0.0.1:{port_file.read_text().strip()}"

    def _write_env(self) -> Path:
        env = self.folder / "worker.env"
        values = {
            "DATABASE_URL": self.postgres.url(),
            "MOYSKLAD_API_URL": f"{self.simulator}/api/remap/1.2",
            "APP_KEY": Fernet.generate_key().decode(),
            "LOG_DIR": self.folder / "logs",
            "API_PORT": self._stack.enter_context(reserve(self._port)).getsockname()[1],
            "API_TOKEN": self.token,
            **self._env_more,
        }
        env.touch(mode=0o600)
        env.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
        return env

    def _people(self) -> None:
        """One main account and its children, known to both sides; the catalogue in main."""
        for n in range(self.number + 1):
            role, name = ("main", "Main shop") if n == 0 else ("child", f"Franchise {n}")
            token = secrets.token_urlsafe(16)
            made = self.control("POST", "accounts", name=name, tokens=[{"token": token, "weight": 1}])
            id = UUID(made["id"])
            self.app.accounts.add(id, name, role, "solution", token)
            if n == 0:
                self.main = id
            else:
                self.children.append(id)
                self.app.accounts.link(self.main, id, LinkSettings(create_price_types=True))
        self.control("POST", "seed", account=str(self.main), products=self.products, seed=self._seed)
        self.control("POST", "ledger/reset")

    def _supervise(self) -> None:
        port_file = self.folder / "api.port"
        python = f"{shlex.quote(sys.executable)} -m worker".replace("%", "%%")
        conf = self.folder / "supervisord.conf"
        conf.write_text(
            f"""[supervisord]
nodaemon=true
logfile={self.folder}/supervisord.log
pidfile={self.folder}/supervisord.pid
childlogdir={self.folder}
environment={ENV_FILE}="{self._env}"

[unix_http_server]
file={self.folder}/supervisor.sock
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{self.folder}/supervisor.sock

[program:worker]
command={python} work --quiet {self._work_options}
process_name=%(program_name)s_%(process_num)02d
numprocs={self.workers}
autorestart=true
startsecs=0
stopwaitsecs=30
stdout_logfile={self.folder}/worker.out
redirect_stderr=true

[program:api]
command={python} serve --port-file {port_file}
autorestart=true
stdout_logfile={self.folder}/api.out
redirect_stderr=true
"""
        )
        log = (self.folder / "supervisord.out").open("wb")
        self._stack.callback(log.close)
        command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(conf)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self._stack.callback(_end, process)
        _wait(port_file.exists, "the API", process, self.folder / "api.out")
        self.api = f"http://127.0.0.1:{port_file.read_text().strip()}"

    def control(self, method: str, path: str, **body: Any) -> Any:
        """The simulator's other face, `/_control`."""
        url = f"{self.simulator}/_control/{path}"
        if method == "GET":
            response = requests.get(url, params=body, timeout=120)
        else:
            response = requests.request(method, url, json=body, timeout=120)
        response.raise_for_status()
        return response.json()

    def call(self, method: str, path: str) -> Any:
        """Our HTTP API, as a user calls it."""
        headers = {"Authorization": f"Bearer {self.token}"}
        response = requests.request(method, f"{self.api}{path}", headers=headers, timeout=30)
        response.raise_for_status()
        return response.json()

    def click(self) -> str:
        """Press *Sync All* of the main account; the run's id."""
        return str(self.call("POST", f"/api/sync/{self.main}/products/all")["run"])

    def difference(self) -> dict[str, int]:
        """missing, extra, different and duplicates, summed over the children, as the simulator sees them."""
        found = [self.control("GET", "diff", main=str(self.main), child=str(child)) for child in self.children]
        return {name: sum(one[name] for one in found) for name in ("missing", "extra", "different", "duplicates")}

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    environment = (entry / "environ").read_bytes()
                    if b"work" in command and os.fsencode(self._env) in environment:
                        pids.append(int(entry.name))
        return sorted(pids)


def peak_rss_mb(pid: int) -> int:
    """The most memory that process ever held, in MB; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 // 1_000_000
    return 0


def cpu_seconds(pid: int) -> float:
    """Processor time that process has used so far; 0 when it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def reserve(preferred: int) -> socket.socket:
    """Holds that port, or any when it is taken, for a server that will listen on it; closed, it is free again.

    Linux lets two sockets have one address while one of them at most listens and both allow its reuse.
    We allow it after binding only, as a server does before: so it may have the port, another stage not.
    """
    for port in (preferred, 0):
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
        else:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return held
    raise OSError("no free port")


def _wait(
    ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    until = time.monotonic() + _START
    while not ready():
        if time.monotonic() > until or (process is not None and process.poll() is not None):
            told = log.read_text(errors="replace")[-2000:] if log and log.exists() else ""
            raise RuntimeError(f"{what} did not start\n{told}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


__all__ = ["Stage", "cpu_seconds", "peak_rss_mb", "reserve"]
