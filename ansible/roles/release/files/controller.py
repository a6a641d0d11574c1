"""Who holds a deploy's lock, seen from the controller: this run of ansible-playbook, and whether another still lives.

`controller.py` prints this run as JSON. `controller.py HOLDER` prints `gone` when the run described by the JSON text
HOLDER ended without giving its lock back, `alive` when it still runs, `unknown` when it ran on another machine.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from pathlib import Path


def main() -> None:
    """Print the answer."""
    if len(sys.argv) == 1:
        pid = playbook()
        run = {"user": getpass.getuser(), "host": socket.gethostname(), "pid": pid, "started": started(pid)}
        print(json.dumps(run))  # noqa: T201
        return
    try:
        holder = json.loads(sys.argv[1])
        there, pid, when = holder["host"], int(holder["pid"]), holder["started"]
    except (ValueError, TypeError, KeyError):
        there, pid, when = "", 0, ""
    if there != socket.gethostname():
        print("unknown")  # noqa: T201
    else:
        print("alive" if started(pid) == when != "" else "gone")  # noqa: T201


def playbook() -> int:
    """The ansible-playbook this script was called by: above it the worker that called it, then the run itself.

    Whatever called that run, perhaps another ansible-playbook, is none of its business.
    """
    pid, found = os.getpid(), 0
    while pid > 1:
        mine = b"ansible-playbook" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
        if found and not mine:
            break
        found = pid if mine else 0
        pid = int(stat(pid)[1])
    return found or os.getppid()


def started(pid: int) -> str:
    """When a process began, in ticks since boot; empty when there is none of that number."""
    try:
        return stat(pid)[19]
    except OSError:
        return ""


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …"""
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    main()
