"""Processes as supervisord sees them, and the few things asked of it: XML-RPC over its unix socket."""

from __future__ import annotations

import http.client
import os
import socket
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

from .excerpt import LOG_BYTES, last_lines

# Supervisor's states.
RUNNING = "RUNNING"
STARTING = "STARTING"
STOPPING = "STOPPING"
BACKOFF = "BACKOFF"
STOPPED = "STOPPED"
EXITED = "EXITED"
FATAL = "FATAL"
UNKNOWN = "UNKNOWN"
DOWN = (STOPPED, EXITED, FATAL)

# Supervisor's faults.
SHUTDOWN_STATE = 6
NO_FILE = 20
NOT_EXECUTABLE = 21
MOVED_ON = (40, 50, 60, 70)  # ABNORMAL_TERMINATION, SPAWN_ERROR, ALREADY_STARTED, NOT_RUNNING

RPC_SECONDS = 10.0
RESPAWN_SECONDS = 2  # autorestart acts within one second; what is EXITED for longer stays so


class Config(NamedTuple):
    """What the files said of a process when supervisord last read them; not necessarily what runs."""

    autostart: bool
    stopwaitsecs: int


UNCONFIGURED = Config(autostart=False, stopwaitsecs=0)  # removed from the files, still there


@dataclass(frozen=True)
class Process:
    """One process as supervisord saw it at one moment."""

    group: str
    name: str
    state: str
    pid: int = 0
    start: int = 0
    stop: int = 0
    now: int = 0
    exitstatus: int = 0
    spawnerr: str = ""
    stdout_logfile: str = ""
    stderr_logfile: str = ""
    autostart: bool = True
    stopwaitsecs: int = 10

    @classmethod
    def from_info(cls, info: Mapping[str, Any], config: Config) -> Process:
        """From getProcessInfo and what is known of its configuration."""
        times = ("start", "stop", "now")
        copied = ("group", "name", "pid", *times, "exitstatus", "spawnerr", "stdout_logfile", "stderr_logfile")
        return cls(state=info["statename"], **config._asdict(), **{name: info[name] for name in copied})

    @property
    def full(self) -> str:
        """The name supervisorctl knows it by."""
        return f"{self.group}:{self.name}"

    @property
    def idle(self) -> bool:
        """Stopped on purpose: by an operator, or never meant to start by itself."""
        return self.state == STOPPED and not self.about_to_start

    @property
    def about_to_start(self) -> bool:
        """Just added, or supervisord has just begun; its next loop starts it."""
        return self.state == STOPPED and self.start == 0 and self.autostart

    @property
    def respawning(self) -> bool:
        """Ended so recently that autorestart may still bring it back."""
        return self.state == EXITED and self.now - self.stop < RESPAWN_SECONDS

    def __str__(self) -> str:
        return f"{self.full} {self.state}" + (f" pid {self.pid}" if self.pid else "")


Snapshot = Mapping[str, Process]


class Unreachable(Exception):
    """supervisord does not answer; says where, why and what to do next."""

    def __init__(self, path: str, error: Exception) -> None:
        self.error = error
        super().__init__(_explain(path, error))

    @property
    def may_pass(self) -> bool:
        """It may be on its way down or up."""
        return not isinstance(self.error, (PermissionError, xmlrpc.client.ProtocolError, ExpatError))


def _explain(path: str, error: Exception) -> str:
    status = "systemctl status supervisor (Debian family) or supervisord (RHEL family)"
    if isinstance(error, FileNotFoundError):
        return (
            f"No socket at {path}: supervisord is not running, or its socket is elsewhere "
            f"(file= in [unix_http_server]). Next: {status}"
        )
    if isinstance(error, ConnectionRefusedError):
        return f"Nobody listens at {path}: supervisord died and left its socket behind. Next: {status}"
    if isinstance(error, PermissionError):
        return f"May not open {path}: only its owner may. Next: run the task with become: true"
    if isinstance(error, xmlrpc.client.Fault):
        return (
            f"supervisord at {path} is shutting down or restarting. "
            f"Next: wait until it is back (supervisorctl -s unix://{path} status), then run this again"
        )
    if isinstance(error, xmlrpc.client.ProtocolError):
        hint = "it asks for a password, which this module has not; its socket's mode 0700 is the protection"
        return f"supervisord at {path} answers HTTP {error.errcode}" + (f": {hint}" if error.errcode == 401 else "")
    return f"supervisord at {path} does not answer: {error or type(error).__name__}. Next: {status}"


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=RPC_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(RPC_SECONDS)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    """One connection per call, and never a call sent twice: a second TERM may mean "now" to a process."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _Connection(self._path)
        self._connection = host, connection
        return connection

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        try:
            return self.single_request(host, handler, request_body, verbose)
        finally:
            self.close()


class Supervisor:
    """The few things asked of supervisord."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Transport(path))
        self._configured: dict[str, Config] | None = None

    def call(self, method: str, *args: Any) -> Any:
        """One call; Fault when supervisord refuses, Unreachable when it does not answer or is on its way down."""
        try:
            return getattr(self._proxy, method)(*args)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTDOWN_STATE:
                raise Unreachable(self._path, fault) from None
            raise
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError) as error:
            raise Unreachable(self._path, error) from None

    def at_once(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Several calls between which nothing else happens in supervisord; the first fault is raised.

        Supervisor answers with bare values, so xmlrpc's own MultiCall cannot read them.
        """
        results: list[Any] = self.call(
            "system.multicall", [{"methodName": name, "params": list(params)} for name, *params in calls]
        )
        for result in results:
            if isinstance(result, dict) and "faultCode" in result:
                raise xmlrpc.client.Fault(result["faultCode"], result["faultString"])
        return results

    def configured(self) -> dict[str, Config]:
        """What the files said, by group:name."""
        if self._configured is None:
            infos = self.call("supervisor.getAllConfigInfo")
            self._configured = {
                f"{info['group']}:{info['name']}": Config(bool(info["autostart"]), info["stopwaitsecs"])
                for info in infos
            }
        return self._configured

    def snapshot(self) -> Snapshot:
        """All processes as they are now."""
        known = self.configured()
        infos = self.call("supervisor.getAllProcessInfo")
        seen = [Process.from_info(i, known.get(f"{i['group']}:{i['name']}", UNCONFIGURED)) for i in infos]
        return {process.full: process for process in seen}

    def reload(self) -> tuple[list[str], list[str], list[str]]:
        """Have the files read; names of the groups that are new, different and gone."""
        added, changed, removed = self.call("supervisor.reloadConfig")[0]
        self._configured = None
        return added, changed, removed

    def look_and_signal(self, name: str, signal_name: str) -> Mapping[str, Any]:
        """Signal a process; the process that got it."""
        info: Mapping[str, Any] = self.at_once(
            ("supervisor.getProcessInfo", name), ("supervisor.signalProcess", name, signal_name)
        )[0]
        return info

    def start(self, name: str) -> None:
        """Have it started, without waiting."""
        self.call("supervisor.startProcess", name, False)

    def stop(self, name: str) -> None:
        """Have it stopped, without waiting."""
        self.call("supervisor.stopProcess", name, False)

    def retry(self, name: str) -> None:
        """Start a process in BACKOFF now; it is not seen STOPPED in between, as if by an operator."""
        self.at_once(("supervisor.stopProcess", name, False), ("supervisor.startProcess", name, False))

    def add(self, group: str) -> None:
        """Add a group that the files name."""
        self.call("supervisor.addProcessGroup", group)

    def replace(self, group: str) -> None:
        """Give a group, all down, its new configuration."""
        self.at_once(("supervisor.removeProcessGroup", group), ("supervisor.addProcessGroup", group))

    def remove(self, group: str) -> None:
        """Forget a group, all down."""
        self.call("supervisor.removeProcessGroup", group)

    def log(self, process: Process, channel: str) -> str:
        """The end of a log. Through XML-RPC; from the file if supervisord cannot send it.

        It cannot send a log whose last bytes begin within a letter of two bytes, or hold a control character.
        """
        path = process.stdout_logfile if channel == "stdout" else process.stderr_logfile
        try:
            text: str = self.call(f"supervisor.readProcess{channel.capitalize()}Log", process.full, -LOG_BYTES, 0)
        except (xmlrpc.client.Fault, Unreachable):
            try:
                with Path(path or os.devnull).open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
                    text = file.read().decode(errors="ignore")
            except OSError:
                text = ""
        if len(text.encode()) >= LOG_BYTES - 3:  # a line cut in two may hold half a secret
            text = text.partition("\n")[2]
        return last_lines(text)
