"""One process on its way to a goal: what it needs next, from what was seen of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .options import Options
from .supervisord import (
    BACKOFF,
    DOWN,
    EXITED,
    FATAL,
    RESPAWN_SECONDS,
    RUNNING,
    STARTING,
    STOPPING,
    UNKNOWN,
    Process,
    Snapshot,
)

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

BLUR_SECONDS = 0.4  # from supervisord's SIGKILL to our look at what it left
KILL_SECONDS = 10.0  # from SIGKILL to the end of the process
HEALTH_PAUSE_SECONDS = 0.5
FAILED_STARTS = 3  # supervisord retries after 1, 2, 3 ... seconds; more than this is no accident


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


def unavailable(group: str, snapshot: Snapshot, units: Iterable[Unit]) -> frozenset[str]:
    """Names of the group's processes that do not serve: down though nobody stopped them, or in our hands."""
    down = {p.full for p in snapshot.values() if p.group == group and p.state != RUNNING and not p.idle}
    return frozenset(down | {u.name for u in units if u.before.group == group and u.phase in HELD})


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
        if process.exitstatus < 0 and 0 < process.stopwaitsecs <= now - unit.since + BLUR_SECONDS:
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
