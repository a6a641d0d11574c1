"""Looking and acting: the loop that brings processes to their ends."""

from __future__ import annotations

import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path

from .health import Prober
from .marks import Marks
from .options import Options
from .supervisord import MOVED_ON, NO_FILE, NOT_EXECUTABLE, Process, Snapshot, Supervisor, Unreachable
from .unit import (
    DONE,
    DRAIN,
    FAILED,
    HELD,
    KILL,
    PROBE,
    RETRY,
    ROLLED,
    SKIPPED,
    START,
    STOP,
    TERM,
    WAIT,
    Look,
    Unit,
    step,
    unavailable,
)

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0  # for a supervisord that does not answer: it may be restarting


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
        self._sleep = sleep

    @classmethod
    def of(cls, options: Options) -> Roll:
        """With the supervisord that listens at the socket."""
        return cls(Supervisor(options.socket), Prober(options), options)

    def pause(self) -> None:
        """Until the next look."""
        self._sleep(POLL_SECONDS)

    def look(self) -> Snapshot:
        """A snapshot, with patience for a supervisord that restarts."""
        until = self.clock() + PATIENCE_SECONDS
        while True:
            try:
                return self.supervisor.snapshot()
            except Unreachable as error:
                if not error.may_pass or self.clock() >= until:
                    raise
            self.pause()

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
                    self.pause()
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
                self.prober.start(process)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in (NO_FILE, NOT_EXECUTABLE):
                unit.end(FAILED, self.clock(), f"cannot be started: {fault.faultString}")
            elif action == STOP:
                unit.phase = WAIT  # it has just ended by itself, and autorestart may bring it back
            elif fault.faultCode not in MOVED_ON:
                unit.warnings.append(f"{unit.name}: supervisord refused {action}: {fault.faultString}")
