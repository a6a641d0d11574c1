"""A run: look, plan, update, roll, conclude."""

from __future__ import annotations

import contextlib
import socket
import xmlrpc.client
from dataclasses import replace

from .excerpt import LOG_BYTES
from .forecast import foretell
from .plan import Plan, members
from .report import Report
from .roll import Roll
from .supervisord import BACKOFF, RUNNING, STARTING, Process, Snapshot, Unreachable
from .unit import FAILED, HALTED, KILLED, LEFT_STOPPED, RISE, ROLLED, SKIPPED, STARTED, WAIT, Unit


def converge(roll: Roll, check: bool) -> Report:
    """All of it; in check mode what it would be."""
    report = Report()
    units: list[Unit] = []
    try:
        plan = _plan(roll)
        nothing = _open(report, plan, roll)
        if nothing:
            (report.warnings if check else report.failures).append(nothing)
        elif check:
            foretell(plan, roll, report)
        else:
            _carry_out(plan, roll, units)
    except Unreachable as error:
        report.failures.append(f"{socket.gethostname()}: {error}")
    except xmlrpc.client.Fault as fault:
        report.failures.append(
            f"{socket.gethostname()}: supervisord refused: {fault.faultString}. "
            f"Next: supervisorctl -s unix://{roll.options.socket} reread"
        )
    finally:
        roll.prober.close()
    if not check:
        _conclude(roll, report, units)
    return report


def _plan(roll: Roll) -> Plan:
    first, patterns = roll.look(), roll.options.processes
    if not roll.options.update:
        return Plan.of(first, patterns)
    return Plan.of(first, patterns, roll.supervisor.reload(), roll.supervisor.configured())


def _open(report: Report, plan: Plan, roll: Roll) -> str:
    """Begin the report; why there is nothing to do, if that must be a mistake."""
    changes, options = plan.changes, roll.options
    if changes.others:
        report.warnings.append(f"groups that also differ from their files, not named here: {changes.others}")
    report.touched = bool(changes.groups)
    report.notes += changes.notes
    report.before = plan.before
    if report.before or changes.groups or options.state == HALTED:
        return ""
    return f"no process fits {options.processes}; supervisord knows {list(plan.first) or 'none'}"


def _carry_out(plan: Plan, roll: Roll, units: list[Unit]) -> None:
    chosen = [Unit(plan.first[name], roll.options.state) for name in plan.chosen]
    try:
        if _update(plan, roll, units):
            roll.run(chosen)
    finally:
        for unit in chosen:
            if unit.phase == WAIT:
                unit.end(SKIPPED, unit.since, "not touched, because the update failed")
        units += chosen


def _update(plan: Plan, roll: Roll, units: list[Unit]) -> bool:
    """Group by group; new listeners come before old ones go. False at the first failure."""

    def run(some: list[Unit]) -> bool:
        units.extend(some)
        roll.run(some)
        return not any(unit.outcome == FAILED for unit in some)

    def drain(group: str) -> bool:
        return run([Unit(plan.first[name], HALTED) for name in members(group, plan.first)])

    for group in plan.changes.added:
        roll.supervisor.add(group)
        if not run(_rising(group, plan, roll)):
            return False
    for group in plan.changes.changed:
        if not drain(group):
            return False
        roll.supervisor.replace(group)
        if not run(_rising(group, plan, roll)):
            return False
    for group in plan.changes.removed:
        if not drain(group):
            return False
        roll.supervisor.remove(group)
    return True


def _rising(group: str, plan: Plan, roll: Roll) -> list[Unit]:
    """The group's processes, of which those should run that start by themselves, and those that ran before."""
    now, seen = roll.clock(), roll.look()
    units = [Unit(seen[name], STARTED) for name in members(group, seen)]
    for unit in units:
        unit.touch(now)
        was = plan.first.get(unit.name)
        if plan.configured[unit.name].autostart:
            unit.old_pid, unit.old_start = 0, -1
            unit.enter(RISE, now)
        elif was is None or was.state not in (RUNNING, STARTING, BACKOFF):
            unit.end(LEFT_STOPPED, now, "does not start by itself")
    return units


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
        merged[unit.name] = _as_one(earlier, unit) if earlier else unit
    for name, unit in merged.items():
        process = last.get(name)
        report.tell(name, unit.before.pid, process.pid if process else 0, unit.outcome, unit.reason, unit.waited)
        if process:
            report.after.append(str(process))
        if unit.outcome == FAILED:
            report.failures.append(_failure(roll, unit, process))


def _as_one(earlier: Unit, unit: Unit) -> Unit:
    if unit.outcome == STARTED:
        outcome = KILLED if earlier.outcome == KILLED else ROLLED if earlier.before.pid else STARTED
        reason = earlier.reason if outcome == KILLED else "its configuration changed"
        unit = replace(unit, outcome=outcome, reason=reason, waited=round(earlier.waited + unit.waited, 1))
    return replace(unit, before=earlier.before)


def _failure(roll: Roll, unit: Unit, process: Process | None) -> str:
    """Everything one needs to know about a process that failed, and where to look further."""
    text = [f"{socket.gethostname()} {process or unit.name}: {unit.reason} (waited {unit.waited} s)."]
    if process:
        said = roll.prober.outputs.get(unit.name, "")
        if said and "healthy" in unit.reason:
            text.append(f"Its health command said: {said}")
        for channel in ("stderr", "stdout"):
            tail = roll.supervisor.log(process, channel)
            if tail:
                text.append(f"End of its {channel}:\n{tail}")
    channel = "stderr" if process and process.stderr_logfile else "stdout"
    tail = f"tail -{LOG_BYTES} {unit.name} {channel}"
    text.append(f"Look further: supervisorctl -s unix://{roll.options.socket} {tail}")
    return "\n".join(text)
