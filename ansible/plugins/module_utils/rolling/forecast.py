"""What a run would do, if nothing goes wrong: check mode."""

from __future__ import annotations

from .plan import Plan, group_of
from .report import Report
from .roll import Roll
from .supervisord import DOWN, RUNNING, STARTING, STOPPING, Process
from .unit import HALTED, LEFT_STOPPED, ROLLED, SKIPPED, STARTED


def foretell(plan: Plan, roll: Roll, report: Report) -> None:
    """Tell what would become of each process; only health commands are run."""
    for name in sorted({*plan.first, *plan.configured}):
        if group_of(name) in plan.changes.groups:
            was = plan.first.get(name)
            outcome = _update(plan, name, was)
            _tell(report, name, was, outcome, "its configuration changed", gone=outcome == HALTED)
    chosen = [plan.first[name] for name in plan.chosen]
    healthy = _healthy(chosen, roll)
    for process in chosen:
        outcome, reason = foresee(process, roll.options.state)
        if outcome == ROLLED and process.full in healthy:
            outcome, reason = SKIPPED, f"runs {roll.options.release} and is healthy"
        _tell(report, process.full, process, outcome, reason)


def foresee(process: Process, goal: str) -> tuple[str, str]:
    """Outcome and reason a run would have for a process."""
    if goal == HALTED:
        return (SKIPPED, f"was {process.state}") if process.state in DOWN else (HALTED, "")
    if goal == STARTED:
        return (SKIPPED, f"was {process.state}") if process.state in (RUNNING, STARTING) else (STARTED, "")
    if process.idle or process.state == STOPPING:
        return LEFT_STOPPED, f"was {process.state}"
    return (ROLLED, "") if process.state in (RUNNING, STARTING) else (STARTED, f"was {process.state}")


def _update(plan: Plan, name: str, was: Process | None) -> str:
    if group_of(name) in plan.changes.removed or name not in plan.configured:
        return HALTED
    if was is not None and was.state not in DOWN:
        return ROLLED
    return STARTED if plan.configured[name].autostart else LEFT_STOPPED


def _healthy(processes: list[Process], roll: Roll) -> set[str]:
    """Which of them need no rolling."""
    asked = roll.options.skip_healthy and roll.options.state == ROLLED
    pending = [process for process in processes if asked and process.state == RUNNING]
    healthy: set[str] = set()
    while pending:
        for process in list(pending):
            verdict = roll.prober.verdict(process)
            if verdict in ("passed", "failed"):
                pending.remove(process)
                healthy |= {process.full} if verdict == "passed" else set()
            elif not verdict:
                roll.prober.start(process)
        roll.pause()
    return healthy


def _tell(report: Report, name: str, was: Process | None, outcome: str, reason: str, gone: bool = False) -> None:
    before = was.pid if was else 0
    after = None if outcome in (ROLLED, STARTED) else 0 if outcome == HALTED else before
    report.tell(name, before, after, outcome, reason)
    if not gone:
        state = "RUNNING, new pid" if after is None else "STOPPED"
        report.after.append(str(was) if after else f"{name} {state}")
