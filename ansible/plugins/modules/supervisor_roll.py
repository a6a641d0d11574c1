#!/usr/bin/python
"""Ansible module: replace Supervisor's processes one at a time.

From the outside in: `main` speaks Ansible, `converge` decides what is asked of which process, `Roll` looks and acts
until all have reached their end, `step` says what one process needs next. Below `Roll` nothing reads a clock, a
socket or a process table: `step`, `foresee`, `unavailable`, `select` and `changes_of` are functions of what was seen.
"""

# ruff: noqa: E402  Ansible wants the documentation above the imports.

from __future__ import annotations

DOCUMENTATION = r"""
module: supervisor_roll
short_description: Roll, stop or start processes of Supervisor without a gap
description:
  - Supervisor has no rolling restart. C(supervisorctl restart GROUP:*) and C(supervisorctl update) stop every process
    of a group, wait for the slowest, and start them all again.
  - This module asks one process after another to end (TERM, sent as a signal, so that Supervisor's own SIGKILL clock
    does not run), lets it finish its work, waits until supervisord has replaced it and the new one is RUNNING and
    healthy, and only then goes to the next. Of one group (a C([program:x]) section is a group) never more than
    O(max_unavailable) processes are not RUNNING. Groups are rolled side by side.
  - It speaks XML-RPC to supervisord's unix socket and needs neither C(supervisorctl) nor a Python library. Supervisor
    4.2.1 or newer.
  - When one process fails, no further one is touched, those in hand are seen through, and the module fails.
options:
  socket:
    description:
      - Path of supervisord's socket, C(file) in C([unix_http_server]).
    type: path
    required: true
  processes:
    description:
      - Shell patterns on C(group:name), as C(supervisorctl status) prints it.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(rolled) replaces what is RUNNING and starts what is EXITED, FATAL or in BACKOFF. What an operator has
        STOPPED stays so.
      - V(started) starts whatever is not RUNNING, all at once.
      - V(stopped) asks all to stop at once, so that the whole takes as long as the slowest. Here supervisord's own
        C(stopwaitsecs) applies, after which it kills.
    type: str
    choices: [rolled, started, stopped]
    default: rolled
  max_unavailable:
    description:
      - How many processes of one group may be not RUNNING (or not yet healthy) at a time while rolling. Those an
        operator has STOPPED do not count; those of the group that O(processes) does not name do.
    type: int
    default: 1
  drain_timeout:
    description:
      - Seconds a process may take to end after TERM. Longer than its longest task.
    type: float
    default: 300
  ready_timeout:
    description:
      - Seconds its successor may take to be RUNNING and healthy.
    type: float
    default: 60
  on_timeout:
    description:
      - What to do with a process that has not ended after O(drain_timeout).
      - V(fail) leaves it alone; it has its TERM, and supervisord will replace it whenever it ends.
      - V(kill) sends SIGKILL and goes on. It is sent as a signal, not as a stop, so that the process comes back even
        if the controller is lost at that moment; C(killasgroup) has no effect on it.
    type: str
    choices: [fail, kill]
    default: fail
  health:
    description:
      - Command, as a list, that ends with 0 when the process works. V({process}) becomes the name of the process,
        V({release}) the O(release). Repeated until O(ready_timeout).
      - It must only look; with O(skip_healthy) it is run in check mode too.
    type: list
    elements: str
  health_environment:
    description:
      - Environment variables for O(health), added to the module's own. The same two words are replaced in the values.
        No place for secrets.
    type: dict
    default: {}
  release:
    description:
      - The release the processes must run after this.
    type: str
    default: ''
  skip_healthy:
    description:
      - Leave a process alone if O(health) says that it already runs O(release). A second run, after one that was cut
        off, then rolls only the rest. Needs O(health) with V({release}) in it, and O(release).
    type: bool
    default: false
  update:
    description:
      - Have supervisord read its files again and put the changes of the groups that O(processes) names into effect,
        before anything is rolled. Other groups are left alone.
      - New groups are added and must become healthy, then changed ones are replaced one group at a time, then removed
        ones are drained and removed. Supervisor can change a group only as a whole, so all processes of a changed
        group drain at once, under C(stopwaitsecs), and an operator's stop does not outlive the change.
      - Not with O(state=stopped).
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what would be done. Signals, starts and stops nothing; O(update) has the files read, no more.
    support: full
  diff_mode:
    description: Shows name, state and pid before and after.
    support: full
notes:
  - Two of these at once on one host do not know of each other. Hold a lock around a deploy.
  - A process gets one TERM, also from a run that follows one that was cut off or has timed out, because to many
    programs a second one means "at once". Who has been asked is kept in a file beside the socket, C(SOCKET.roll),
    for as long as the process lives.
  - It is silent while it waits. Set C(ServerAliveInterval) for ssh, or use C(async).
author:
  - moysklad-worker
"""

EXAMPLES = r"""
- name: Replace the workers one by one
  supervisor_roll:
    socket: /var/run/supervisor.sock
    processes: ["moysklad-*:*"]
    drain_timeout: 600
    release: "{{ release_id }}"
    health: [/opt/moysklad/current/venv/bin/moysklad-worker, health, --process, "{process}", --release, "{release}"]
    skip_healthy: true

- name: Put a changed configuration into effect, then roll what it did not touch
  supervisor_roll:
    socket: /run/supervisor/supervisor.sock
    processes: ["moysklad-*:*"]
    update: true

- name: Stop all workers and let each finish its task
  supervisor_roll:
    socket: /run/supervisor/supervisor.sock
    processes: ["moysklad-*:*"]
    state: stopped
    drain_timeout: 600
"""

RETURN = r"""
msg:
  description: What was done, in a sentence; on failure one paragraph per process with the end of its log.
  returned: always
  type: str
  sample: "3 rolled, 1 left stopped"
processes:
  description: What became of each selected process.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the process.
      type: str
    group:
      description: Its group.
      type: str
    pid_before:
      description: Its pid at the beginning, 0 when there was none.
      type: int
    pid_after:
      description: Its pid at the end, 0 when there is none, null in check mode when it would be a new one.
      type: int
    waited:
      description: Seconds from the first thing done to it until its end was reached.
      type: float
    outcome:
      description: What was done. V(killed) is a process that was replaced (or stopped) by force.
      type: str
      sample: rolled
      choices: [rolled, skipped, started, stopped, left_stopped, killed, failed]
    reason:
      description: Why, where the outcome alone does not say it.
      type: str
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

from ansible.module_utils.basic import AnsibleModule

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

# Outcomes; the first three are goals too.
ROLLED = "rolled"
STARTED = "started"
HALTED = "stopped"
SKIPPED = "skipped"
LEFT_STOPPED = "left_stopped"
KILLED = "killed"
FAILED = "failed"
CHANGES = (ROLLED, STARTED, HALTED, KILLED)

# Phases of a process in our hands: not yet touched, asked to end, its successor should run, should be healthy.
WAIT = "wait"
DRAIN = "drain"
RISE = "rise"
CHECK = "check"
DONE = "done"
HELD = (DRAIN, RISE, CHECK)

# What a step asks for.
NOTHING = "nothing"
TERM = "term"
KILL = "kill"
START = "start"
RETRY = "retry"
STOP = "stop"
PROBE = "probe"

POLL_SECONDS = 0.2
RPC_SECONDS = 10.0
PATIENCE_SECONDS = 5.0  # for a supervisord that does not answer: it may be restarting
RESPAWN_SECONDS = 2  # autorestart acts within one second; what is EXITED for longer stays so
KILL_SECONDS = 10.0  # from SIGKILL to the end of the process
HEALTH_PAUSE_SECONDS = 0.5
PARALLEL_PROBES = 4
FAILED_STARTS = 3  # supervisord retries after 1, 2, 3 ... seconds; more than this is no accident
LOG_BYTES = 4000
LOG_LINES = 10


# ---------------------------------------------------------------------------------------------------------------
# Values


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    socket: str
    processes: list[str]
    state: str = ROLLED
    max_unavailable: int = 1
    drain_timeout: float = 300.0
    ready_timeout: float = 60.0
    on_timeout: str = "fail"
    health: list[str] = field(default_factory=list)
    health_environment: dict[str, str] = field(default_factory=dict)
    release: str = ""
    skip_healthy: bool = False
    update: bool = False

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Options:
        """From Ansible's parameters; ValueError when they contradict each other."""
        given = {name: value for name, value in params.items() if value is not None}
        given["health_environment"] = {k: str(v) for k, v in given.get("health_environment", {}).items()}
        options = cls(**given)
        options.validate()
        return options

    def validate(self) -> None:
        """ValueError when something cannot be meant."""
        if self.max_unavailable < 1:
            raise ValueError("max_unavailable must be at least 1, or nothing can be replaced")
        for name in ("drain_timeout", "ready_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        if self.update and self.state == HALTED:
            raise ValueError("update starts processes and state=stopped stops them: ask for one of the two")
        names_release = any("{release}" in text for text in (*self.health, *self.health_environment.values()))
        if names_release and not self.release:
            raise ValueError("health names {release}, but release is empty")
        if self.skip_healthy and not names_release:
            raise ValueError("skip_healthy needs {release} in health, or it would skip old releases too")

    def command(self, process: Process) -> tuple[list[str], dict[str, str]]:
        """The health command and its environment for one process."""

        def filled(text: str) -> str:
            return text.replace("{process}", process.name).replace("{release}", self.release)

        return [filled(word) for word in self.health], {k: filled(v) for k, v in self.health_environment.items()}


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
        known = ("group", "name", "pid", "start", "stop", "now", "exitstatus", "spawnerr")
        logs = ("stdout_logfile", "stderr_logfile")
        values = {name: info[name] for name in (*known, *logs)}
        return cls(state=info["statename"], autostart=config.autostart, stopwaitsecs=config.stopwaitsecs, **values)

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


@dataclass
class Unit:
    """One process on its way to a goal."""

    before: Process
    goal: str
    phase: str = WAIT
    since: float = 0.0  # when the phase began
    begun: float | None = None  # when something was first done to it
    old_pid: int = 0  # the pid that has to go
    old_start: int = 0
    pid: int = 0  # the pid under health check
    failed_starts: set[int] = field(default_factory=set)
    next_probe: float = 0.0
    probed: bool = False
    killed: bool = False
    outcome: str = ""
    reason: str = ""
    waited: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.old_pid, self.old_start = self.before.pid, self.before.start

    @property
    def name(self) -> str:
        """group:name."""
        return self.before.full

    def enter(self, phase: str, now: float) -> None:
        """Go to a phase."""
        self.phase, self.since = phase, now

    def touch(self, now: float) -> None:
        """Something is being done to it."""
        self.begun = now if self.begun is None else self.begun

    def end(self, outcome: str, now: float, reason: str = "") -> str:
        """Reach the end."""
        self.phase, self.outcome, self.reason = DONE, outcome, reason
        self.waited = round(now - (self.since if self.begun is None else self.begun), 1)
        return NOTHING

    def succeed(self, now: float) -> str:
        """Reach the goal; killing and doing nothing have names of their own."""
        if self.killed:
            return self.end(KILLED, now, "it did not end after TERM and was killed")
        if self.begun is None:
            return self.end(SKIPPED, now, f"was {self.before.state}")
        return self.end(STARTED if self.goal == ROLLED and not self.before.pid else self.goal, now)


class Look(NamedTuple):
    """What a step may know beside its unit."""

    process: Process
    now: float
    options: Options
    verdict: str = ""  # of a health command that has just ended: passed or failed; "running" while it runs
    unavailable: frozenset[str] = frozenset()  # of its group
    held: bool = False  # one of the unavailable is in our hands, so waiting for it is ours to bound


class Changes(NamedTuple):
    """Groups whose configuration is not what runs."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    others: list[str]  # of any of the three kinds, but not selected


# ---------------------------------------------------------------------------------------------------------------
# Planning: functions of what was seen


def select(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that any of the patterns fits, in their order."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def unavailable(group: str, snapshot: Snapshot, units: Iterable[Unit]) -> frozenset[str]:
    """Names of the group's processes that do not serve: down though nobody stopped them, or in our hands."""
    down = {p.full for p in snapshot.values() if p.group == group and p.state != RUNNING and not p.idle}
    return frozenset(down | {u.name for u in units if u.before.group == group and u.phase in HELD})


def changes_of(
    reloaded: tuple[list[str], list[str], list[str]],
    configured: Iterable[str],
    known: Iterable[str],
    patterns: list[str],
) -> Changes:
    """Which of supervisord's added, changed and removed groups are ours: those with a process the patterns name."""
    ours = {name.split(":")[0] for name in select([*configured, *known], patterns)}
    kinds = [[group for group in groups if group in ours] for groups in reloaded]
    others = [group for groups in reloaded for group in groups if group not in ours]
    return Changes(kinds[0], kinds[1], kinds[2], others)


def foresee(process: Process, goal: str) -> tuple[str, str]:
    """Outcome and reason a run would have for a process, if nothing goes wrong."""
    if goal == HALTED:
        return (SKIPPED, f"was {process.state}") if process.state in DOWN else (HALTED, "")
    if goal == STARTED:
        return (SKIPPED, f"was {process.state}") if process.state in (RUNNING, STARTING) else (STARTED, "")
    if process.idle or process.state == STOPPING:
        return LEFT_STOPPED, f"was {process.state}"
    return (ROLLED, "") if process.state in (RUNNING, STARTING) else (STARTED, f"was {process.state}")


def step(unit: Unit, look: Look) -> str:
    """What the process needs now; moves the unit on."""
    if look.process.state == UNKNOWN:
        return unit.end(FAILED, look.now, "supervisord has lost track of it (state UNKNOWN)")
    return {WAIT: _wait, DRAIN: _drain, RISE: _rise, CHECK: _check}[unit.phase](unit, look)


def _wait(unit: Unit, look: Look) -> str:
    """Nothing has been done to it yet."""
    process, now = look.process, look.now
    if unit.goal == ROLLED and unit.old_pid and process.pid != unit.old_pid:
        unit.touch(now)  # it ended by itself since we first looked: its successor is as new as ours would be
        unit.enter(RISE, now)
        return _rise(unit, look)
    if process.state == STOPPING and unit.goal == HALTED:
        unit.enter(DRAIN, now)
        return NOTHING
    if process.state == STOPPING or process.about_to_start or process.respawning:
        return _expect_change(unit, look)
    return {ROLLED: _wait_to_roll, STARTED: _wait_to_start, HALTED: _wait_to_stop}[unit.goal](unit, look)


def _wait_to_roll(unit: Unit, look: Look) -> str:
    process, now, options = look.process, look.now, look.options
    if process.idle:
        return unit.end(LEFT_STOPPED, now, "was STOPPED")
    if process.state in (EXITED, FATAL, BACKOFF):
        return _start(unit, look)
    if process.state == STARTING:  # a TERM now would be an exit before startsecs: a failed start
        return _expect_change(unit, look)
    if options.skip_healthy and not unit.probed:
        if look.verdict == "passed":
            return unit.end(SKIPPED, now, f"runs {options.release} and is healthy")
        unit.probed = look.verdict == "failed"
        if not unit.probed:
            return NOTHING if look.verdict == "running" else PROBE
    if len(look.unavailable) >= options.max_unavailable:
        if look.held:
            unit.since = now
        elif now - unit.since > options.drain_timeout + options.ready_timeout:
            return unit.end(FAILED, now, f"could not be touched while {', '.join(sorted(look.unavailable))} is down")
        return NOTHING
    unit.touch(now)
    unit.enter(DRAIN, now)
    return TERM


def _wait_to_start(unit: Unit, look: Look) -> str:
    if look.process.state == RUNNING:
        return unit.succeed(look.now)
    if look.process.state == STARTING:
        unit.old_pid = 0
        unit.enter(RISE, look.now)
        return NOTHING
    return _start(unit, look)


def _wait_to_stop(unit: Unit, look: Look) -> str:
    if look.process.state in DOWN:
        return unit.end(SKIPPED, look.now, f"was {look.process.state}")
    unit.touch(look.now)
    unit.enter(DRAIN, look.now)
    return STOP


def _expect_change(unit: Unit, look: Look) -> str:
    """A state that passes by itself, within bounds."""
    options, state = look.options, look.process.state
    bound = options.drain_timeout if state == STOPPING else options.ready_timeout
    if look.now - unit.since > bound + RESPAWN_SECONDS:
        return unit.end(FAILED, look.now, f"stayed {state} for {look.now - unit.since:.0f} s before it was touched")
    return NOTHING


def _start(unit: Unit, look: Look) -> str:
    """Have it started; one in BACKOFF waits for its next try, which is made to come now."""
    process = look.process
    if process.state == EXITED:
        unit.warnings.append(
            f"{unit.name} was EXITED (exit status {process.exitstatus}) and nothing started it again. "
            "Set autorestart=true: the default, unexpected, leaves a process down after an exit with 0."
        )
    unit.touch(look.now)
    if unit.phase == WAIT:
        unit.enter(RISE, look.now)
    return RETRY if process.state == BACKOFF else START


def _drain(unit: Unit, look: Look) -> str:
    """It was asked to end."""
    process, now, options = look.process, look.now, look.options
    if unit.goal == HALTED and process.state in DOWN:
        if process.exitstatus < 0 and 0 < process.stopwaitsecs <= now - unit.since + 2 * POLL_SECONDS:
            return unit.end(KILLED, now, f"supervisord killed it after stopwaitsecs={process.stopwaitsecs}")
        return unit.succeed(now)
    if unit.goal == ROLLED and process.pid != unit.old_pid:
        if process.state == EXITED and process.exitstatus:
            status = f"with exit status {process.exitstatus}" if process.exitstatus > 0 else "by a signal"
            unit.warnings.append(f"{unit.name} (pid {unit.old_pid}) ended {status} when it was asked to drain")
        unit.enter(RISE, now)
        return _rise(unit, look)
    if now - unit.since <= (KILL_SECONDS if unit.killed else options.drain_timeout):
        return NOTHING
    if options.on_timeout == "kill" and not unit.killed:
        unit.touch(now)
        unit.killed, unit.since = True, now
        return KILL
    asked = f"{KILL_SECONDS:g} s after SIGKILL" if unit.killed else f"{options.drain_timeout:g} s after TERM"
    return unit.end(FAILED, now, f"did not end within {asked}")


def _rise(unit: Unit, look: Look) -> str:
    """Its successor should become RUNNING."""
    process, now, options = look.process, look.now, look.options
    if process.state == RUNNING:
        if not options.health:
            return unit.succeed(now)
        unit.phase, unit.pid, unit.next_probe = CHECK, process.pid, now
        return NOTHING
    if process.idle or process.state == STOPPING:
        unit.warnings.append(f"{unit.name} was stopped by someone else meanwhile")
        return unit.end(LEFT_STOPPED, now, "was stopped by someone else meanwhile")
    if process.state == FATAL:
        return unit.end(FAILED, now, f"supervisord gave up starting it: {process.spawnerr or 'see its log'}")
    if process.state in (BACKOFF, EXITED) and process.start != unit.old_start:
        unit.failed_starts.add(process.start)
        if len(unit.failed_starts) >= FAILED_STARTS:
            why = process.spawnerr or f"exit status {process.exitstatus}"
            return unit.end(FAILED, now, f"ended {FAILED_STARTS} times while it started: {why}")
    if now - unit.since > options.ready_timeout:
        return unit.end(FAILED, now, f"was not RUNNING within {options.ready_timeout:g} s")
    if process.state == EXITED and not process.respawning:
        return _start(unit, look)
    return NOTHING


def _check(unit: Unit, look: Look) -> str:
    """It is RUNNING and should say that it is healthy."""
    process, now, options = look.process, look.now, look.options
    if process.state != RUNNING or process.pid != unit.pid:
        unit.failed_starts.add(-unit.pid)
        unit.phase = RISE
        if len(unit.failed_starts) >= FAILED_STARTS:
            return unit.end(FAILED, now, f"ended {FAILED_STARTS} times before it was healthy")
        return _rise(unit, look)
    if look.verdict == "passed":
        return unit.succeed(now)
    if look.verdict == "failed":
        unit.next_probe = now + HEALTH_PAUSE_SECONDS
    if now - unit.since > options.ready_timeout:
        return unit.end(FAILED, now, f"was RUNNING but not healthy within {options.ready_timeout:g} s")
    return PROBE if look.verdict != "running" and now >= unit.next_probe else NOTHING


_KEYS = r"[\w.-]*(?:passw|passwd|pwd|secret|token|api_?key|app_?key|private_?key|credential|authorization)[\w.-]*"
_SECRETS = [
    # an Authorization header: all of the line
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*)[^\n]+"), r"\1***"),
    # token=..., "password": "...", SECRET: ...
    (re.compile(rf"(?i)([\"']?{_KEYS}[\"']?\s*(?:=>|[:=])\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&}}]+)"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
    # scheme://user:password@host
    (re.compile(r"(://[^\s:/@]*:)[^\s/]+@"), r"\1***@"),
    # anything long that mixes letters and figures; a UUID has 36 characters and stays
    (re.compile(r"(?=[A-Za-z_=+-]*\d)(?=[\d_=+-]*[A-Za-z])[A-Za-z0-9_=+-]{38,}"), "***"),
]
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def redact(text: str) -> str:
    """Text without what looks like a password, a token or a terminal's colour."""
    text = _CONTROL.sub("", text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def last_lines(text: str, count: int = LOG_LINES) -> str:
    """The end of a text, safe to show."""
    return "\n".join(line.rstrip() for line in redact(text).strip().splitlines()[-count:])


# ---------------------------------------------------------------------------------------------------------------
# The edge: supervisord, the health command


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
        self.path = path
        self._proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Transport(path))
        self._configured: dict[str, Config] | None = None

    def call(self, method: str, *args: Any) -> Any:
        """One call; Fault when supervisord refuses, Unreachable when it does not answer or is on its way down."""
        try:
            return getattr(self._proxy, method)(*args)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTDOWN_STATE:
                raise Unreachable(self.path, fault) from None
            raise
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError) as error:
            raise Unreachable(self.path, error) from None

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


class Marks:
    """Who has been asked to end and has not yet: pid and start by group:name, in a file that outlives the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem = ""

    def asked(self, process: Process) -> bool:
        """This very process has its TERM."""
        return self._read().get(process.full) == [process.pid, process.start]

    def ask(self, name: str, pid: int, start: int) -> None:
        """It has been sent."""
        self._write({**self._read(), name: [pid, start]})

    def tidy(self, snapshot: Snapshot) -> None:
        """Forget those that have ended."""
        asked = self._read()
        live = {n: who for n, who in asked.items() if n in snapshot and self.asked(snapshot[n])}
        if live != asked:
            self._write(live)

    def _read(self) -> dict[str, list[int]]:
        try:
            asked = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return asked if isinstance(asked, dict) else {}

    def _write(self, asked: dict[str, list[int]]) -> None:
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            if asked:
                new.write_text(json.dumps(asked))
                new.replace(self._path)
            else:
                self._path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.problem = f"{self._path} cannot be written ({error}): a next run may send a second TERM"


@dataclass
class _Probe:
    process: subprocess.Popen[bytes]
    output: Any
    pid: int
    deadline: float


class Prober:
    """Health commands, a few at a time, without waiting for them."""

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._running: dict[str, _Probe] = {}
        self._ended: dict[str, tuple[int, bool]] = {}
        self.outputs: dict[str, str] = {}  # why the last one failed

    def verdict(self, process: Process) -> str:
        """running; passed or failed once, when it has ended; otherwise nothing."""
        self._reap()
        if process.full in self._running:
            if self._running[process.full].pid == process.pid:
                return "running"
            self._end(process.full, "")  # about a predecessor
        pid, passed = self._ended.pop(process.full, (0, False))
        return ("passed" if passed else "failed") if pid and pid == process.pid else ""

    def start(self, process: Process, timeout: float) -> None:
        """Begin, if there is room."""
        if len(self._running) >= PARALLEL_PROBES:
            return
        command, environment = self._options.command(process)
        output = tempfile.TemporaryFile()  # noqa: SIM115  closed in _end
        try:
            child = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            output.close()
            self._ended[process.full] = process.pid, False
            self.outputs[process.full] = f"{command[0]}: {error}"
            return
        self._running[process.full] = _Probe(child, output, process.pid, self._clock() + timeout)

    def close(self) -> None:
        """End what still runs."""
        for name in list(self._running):
            self._end(name, "")

    def _reap(self) -> None:
        for name, probe in list(self._running.items()):
            code = probe.process.poll()
            if code is not None:
                self._ended[name] = probe.pid, code == 0
                self._end(name, f"exit status {code}")
            elif self._clock() > probe.deadline:
                self._ended[name] = probe.pid, False
                self._end(name, "did not end in time")

    def _end(self, name: str, why: str) -> None:
        probe = self._running.pop(name)
        if probe.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(probe.process.pid, signal.SIGKILL)
            probe.process.wait()
        probe.output.seek(0)
        said = last_lines(probe.output.read()[-LOG_BYTES:].decode(errors="ignore"))
        probe.output.close()
        if why or name not in self.outputs:  # what the last complete one said is worth more than half a word
            self.outputs[name] = ", ".join(filter(None, [why or "was still running", said]))


# ---------------------------------------------------------------------------------------------------------------
# Acting


class Roll:
    """Looks at supervisord and acts on units until each has reached its end."""

    def __init__(
        self,
        supervisor: Supervisor,
        prober: Prober,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.marks = Marks(Path(f"{options.socket}.roll"))
        self.supervisor = supervisor
        self.prober = prober
        self.options = options
        self.clock = clock
        self.sleep = sleep

    def look(self) -> Snapshot:
        """A snapshot, with patience for a supervisord that restarts."""
        until = self.clock() + PATIENCE_SECONDS
        while True:
            try:
                return self.supervisor.snapshot()
            except Unreachable as error:
                if not error.may_pass or self.clock() >= until:
                    raise
            self.sleep(POLL_SECONDS)

    def run(self, units: list[Unit]) -> None:
        """Bring all units to their end. After a failure no further process is touched; those in hand go on."""
        for unit in units:
            unit.since = self.clock()
            if unit.goal == ROLLED and self.marks.asked(unit.before):
                unit.begun, unit.phase = unit.since, DRAIN  # by a run that was cut off
        try:
            while any(unit.phase != DONE for unit in units):
                snapshot = self.look()
                for unit in units:
                    if unit.phase != DONE:
                        self._advance(unit, units, snapshot)
                if any(unit.phase != DONE for unit in units):
                    self.sleep(POLL_SECONDS)
        except Unreachable as error:
            for unit in units:
                if unit.phase in HELD:
                    unit.end(FAILED, self.clock(), str(error))
                elif unit.phase == WAIT:
                    unit.end(SKIPPED, self.clock(), "not touched: supervisord does not answer")
            raise

    def _advance(self, unit: Unit, units: list[Unit], snapshot: Snapshot) -> None:
        now = self.clock()
        broken = next((u for u in units if u.outcome == FAILED), None)
        if broken and unit.phase == WAIT and unit.goal == ROLLED:
            unit.end(SKIPPED, now, f"not touched, because {broken.name} failed")
            return
        process = snapshot.get(unit.name)
        if process is None:
            unit.end(FAILED, now, "supervisord no longer knows it: its group was removed meanwhile")
            return
        group = unit.before.group
        held = any(u.phase in HELD and u.before.group == group for u in units)
        verdict = self.prober.verdict(process)
        look = Look(process, now, self.options, verdict, unavailable(group, snapshot, units), held)
        self._act(step(unit, look), unit, process)

    def _act(self, action: str, unit: Unit, process: Process) -> None:
        """Do it. Most faults say that the process has moved on since we looked: the next look will show."""
        try:
            if action in (TERM, KILL):
                got = self.supervisor.look_and_signal(unit.name, action.upper())
                unit.old_pid, unit.old_start = got["pid"], got["start"]
                self.marks.ask(unit.name, unit.old_pid, unit.old_start)
            elif action == START:
                self.supervisor.start(unit.name)
            elif action == RETRY:
                self.supervisor.retry(unit.name)
            elif action == STOP:
                self.supervisor.stop(unit.name)
            elif action == PROBE:
                self.prober.start(process, self.options.ready_timeout)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in (NO_FILE, NOT_EXECUTABLE):
                unit.end(FAILED, self.clock(), f"cannot be started: {fault.faultString}")
            elif action == STOP:
                unit.phase = WAIT  # it has just ended by itself, and autorestart may bring it back
            elif fault.faultCode not in MOVED_ON:
                unit.warnings.append(f"{unit.name}: supervisord refused {action}: {fault.faultString}")


@dataclass
class Report:
    """What there is to say at the end."""

    processes: list[dict[str, Any]] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    touched: bool = False

    @property
    def changed(self) -> bool:
        """Something was done, or would be."""
        return self.touched or any(entry["outcome"] in CHANGES for entry in self.processes)

    @property
    def msg(self) -> str:
        """One sentence, or why it failed."""
        if self.failures:
            return "\n\n".join(self.failures)
        counts: dict[str, int] = {}
        for entry in self.processes:
            counts[entry["outcome"]] = counts.get(entry["outcome"], 0) + 1
        said = [f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items()]
        return ", ".join([*said, *self.notes]) or "nothing to do"

    def result(self) -> dict[str, Any]:
        """For exit_json and fail_json."""
        diff = {side: "".join(f"{line}\n" for line in sorted(getattr(self, side))) for side in ("before", "after")}
        return {"changed": self.changed, "msg": self.msg, "processes": self.processes, "diff": diff}


def converge(options: Options, check: bool, roll: Roll) -> Report:
    """All of it: what is there, what changes in the configuration, what is rolled, what is to be said."""
    report = Report()
    units: list[Unit] = []
    try:
        _converge(options, check, roll, report, units)
    except Unreachable as error:
        report.failures.append(f"{socket.gethostname()}: {error}")
    except xmlrpc.client.Fault as fault:
        report.failures.append(
            f"{socket.gethostname()}: supervisord refused: {fault.faultString}. "
            f"Next: supervisorctl -s unix://{options.socket} reread"
        )
    finally:
        roll.prober.close()
    if not check:
        _conclude(roll, report, units)
    return report


def _converge(options: Options, check: bool, roll: Roll, report: Report, units: list[Unit]) -> None:
    first = roll.look()
    changes = Changes([], [], [], [])
    configured: Mapping[str, Config] = {}
    if options.update:
        reloaded = roll.supervisor.reload()
        configured = roll.supervisor.configured()
        changes = changes_of(reloaded, configured, first, options.processes)
        if changes.others:
            report.warnings.append(f"groups that also differ from their files, not named here: {changes.others}")
    updating = [*changes.added, *changes.changed, *changes.removed]
    report.touched = bool(updating)
    report.notes += [
        f"{verb} {group}"
        for verb, groups in (("added", changes.added), ("replaced", changes.changed), ("removed", changes.removed))
        for group in groups
    ]
    own = [name for name in first if first[name].group in updating]
    chosen = [name for name in select(first, options.processes) if name not in own]
    report.before = [str(first[name]) for name in first if name in own or name in chosen]
    if not report.before and not updating and options.state != HALTED:
        nothing = f"no process fits {options.processes}; supervisord knows {list(first) or 'none'}"
        (report.warnings if check else report.failures).append(nothing)
        return
    plan = [Unit(first[name], options.state) for name in chosen]
    if check:
        _foresee_update(changes, configured, first, report)
        _foresee_roll(plan, options, roll, report)
        return
    try:
        if _update(changes, configured, first, roll, units):
            roll.run(plan)
    finally:
        for unit in plan:
            if unit.phase == WAIT:
                unit.end(SKIPPED, unit.since, "not touched, because the update failed")
        units += plan


def _update(
    changes: Changes, configured: Mapping[str, Config], first: Snapshot, roll: Roll, units: list[Unit]
) -> bool:
    """Group by group; new listeners come before old ones go. False at the first failure."""

    def run(some: list[Unit]) -> bool:
        units.extend(some)
        roll.run(some)
        return not any(unit.outcome == FAILED for unit in some)

    def members(group: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.split(":")[0] == group]

    def rising(group: str) -> list[Unit]:
        """The processes that should run now: those that start by themselves, and those that ran before."""
        now, seen = roll.clock(), roll.look()
        some = [Unit(seen[name], STARTED) for name in members(group, seen)]
        for unit in some:
            unit.touch(now)
            if configured[unit.name].autostart:
                unit.old_pid, unit.old_start = 0, -1
                unit.enter(RISE, now)
            elif unit.name not in first or first[unit.name].state not in (RUNNING, STARTING, BACKOFF):
                unit.end(LEFT_STOPPED, now, "does not start by itself")
        return some

    for group in changes.added:
        roll.supervisor.add(group)
        if not run(rising(group)):
            return False
    for group in changes.changed:
        if not run([Unit(first[name], HALTED) for name in members(group, first)]):
            return False
        roll.supervisor.replace(group)
        if not run(rising(group)):
            return False
    for group in changes.removed:
        if not run([Unit(first[name], HALTED) for name in members(group, first)]):
            return False
        roll.supervisor.remove(group)
    return True


def _foresee_update(changes: Changes, configured: Mapping[str, Config], first: Snapshot, report: Report) -> None:
    for name in sorted({*first, *configured}):
        group = name.split(":")[0]
        was = first.get(name)
        if group not in (*changes.added, *changes.changed, *changes.removed):
            continue
        rises = group not in changes.removed and name in configured
        was_up = was is not None and was.state not in DOWN
        if rises and (configured[name].autostart or was_up):
            outcome, pid = (ROLLED if was_up else STARTED), None
            report.after.append(f"{name} RUNNING, new pid")
        elif rises:
            outcome, pid = LEFT_STOPPED, 0
            report.after.append(f"{name} STOPPED")
        else:
            outcome, pid = HALTED, 0
        report.processes.append(_entry(name, was.pid if was else 0, pid, outcome, "its configuration changed"))


def _foresee_roll(plan: list[Unit], options: Options, roll: Roll, report: Report) -> None:
    healthy = _healthy([u.before for u in plan if u.before.state == RUNNING], options, roll)
    for unit in plan:
        before = unit.before
        outcome, reason = foresee(before, options.state)
        if outcome == ROLLED and before.full in healthy:
            outcome, reason = SKIPPED, f"runs {options.release} and is healthy"
        renewed = outcome in (ROLLED, STARTED)
        pid = None if renewed else 0 if outcome == HALTED else before.pid
        report.after.append(
            f"{before.full} RUNNING, new pid" if renewed else f"{before.full} STOPPED" if pid == 0 else str(before)
        )
        report.processes.append(_entry(before.full, before.pid, pid, outcome, reason))


def _healthy(processes: list[Process], options: Options, roll: Roll) -> set[str]:
    """Which of them need no rolling."""
    healthy: set[str] = set()
    pending = list(processes) if options.skip_healthy and options.state == ROLLED else []
    while pending:
        for process in list(pending):
            verdict = roll.prober.verdict(process)
            if verdict in ("passed", "failed"):
                pending.remove(process)
                healthy |= {process.full} if verdict == "passed" else set()
            elif not verdict:
                roll.prober.start(process, options.ready_timeout)
        roll.sleep(POLL_SECONDS)
    return healthy


def _entry(
    full: str, pid_before: int, pid_after: int | None, outcome: str, reason: str = "", waited: float = 0.0
) -> dict[str, Any]:
    group, name = full.split(":", 1)
    return {
        "name": name,
        "group": group,
        "pid_before": pid_before,
        "pid_after": pid_after,
        "waited": waited,
        "outcome": outcome,
        "reason": reason,
    }


def _conclude(roll: Roll, report: Report, units: list[Unit]) -> None:
    """What became of each; a process of a replaced group has had two units."""
    report.touched = report.touched or any(unit.begun is not None for unit in units)
    last: Snapshot = {}
    with contextlib.suppress(Unreachable, xmlrpc.client.Fault):
        last = roll.supervisor.snapshot() if units else {}
    if last:
        roll.marks.tidy(last)
    report.warnings += [roll.marks.problem] if roll.marks.problem else []
    merged: dict[str, Unit] = {}
    for unit in units:
        report.warnings += unit.warnings
        earlier = merged.get(unit.name)
        if earlier is not None and unit.outcome == STARTED:
            outcome = KILLED if earlier.outcome == KILLED else ROLLED if earlier.before.pid else STARTED
            reason = earlier.reason if outcome == KILLED else "its configuration changed"
            unit = replace(unit, outcome=outcome, reason=reason, waited=round(earlier.waited + unit.waited, 1))
        merged[unit.name] = replace(unit, before=earlier.before) if earlier else unit
    for name, unit in merged.items():
        process = last.get(name)
        report.processes.append(
            _entry(name, unit.before.pid, process.pid if process else 0, unit.outcome, unit.reason, unit.waited)
        )
        if process:
            report.after.append(str(process))
        if unit.outcome == FAILED:
            report.failures.append(_failure(roll, unit, process))


def _failure(roll: Roll, unit: Unit, process: Process | None) -> str:
    """Everything one needs to know about a process that failed, and where to look further."""
    path = roll.supervisor.path
    text = [f"{socket.gethostname()} {unit.name}: {unit.reason} (waited {unit.waited} s)."]
    if process:
        text[0] = f"{socket.gethostname()} {process}: {unit.reason} (waited {unit.waited} s)."
        said = roll.prober.outputs.get(unit.name, "")
        if said and "healthy" in unit.reason:
            text.append(f"Its health command said: {said}")
        for channel in ("stderr", "stdout"):
            tail = roll.supervisor.log(process, channel)
            if tail:
                text.append(f"End of its {channel}:\n{tail}")
    channel = "stderr" if process and process.stderr_logfile else "stdout"
    text.append(f"Look further: supervisorctl -s unix://{path} tail -{LOG_BYTES} {unit.name} {channel}")
    return "\n".join(text)


def main() -> None:
    """Speak Ansible."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "processes": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": [ROLLED, STARTED, HALTED], "default": ROLLED},
            "max_unavailable": {"type": "int", "default": 1},
            "drain_timeout": {"type": "float", "default": 300},
            "ready_timeout": {"type": "float", "default": 60},
            "on_timeout": {"type": "str", "choices": ["fail", "kill"], "default": "fail"},
            "health": {"type": "list", "elements": "str"},
            "health_environment": {"type": "dict", "default": {}},
            "release": {"type": "str", "default": ""},
            "skip_healthy": {"type": "bool", "default": False},
            "update": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        options = Options.from_params(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error))
    roll = Roll(Supervisor(options.socket), Prober(options, time.monotonic), options)
    report = converge(options, module.check_mode, roll)
    for warning in report.warnings:
        module.warn(warning)
    if report.failures:
        module.fail_json(**report.result())
    module.exit_json(**report.result())


if __name__ == "__main__":
    main()
