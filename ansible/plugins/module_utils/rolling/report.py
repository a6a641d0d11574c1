"""What there is to say at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .unit import CHANGES


@dataclass
class Report:
    """What became of each process, and what the module answers with."""

    processes: list[dict[str, Any]] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    touched: bool = False

    def tell(
        self, full: str, pid_before: int, pid_after: int | None, outcome: str, reason: str, waited: float = 0.0
    ) -> None:
        """What became of one process."""
        group, name = full.split(":", 1)
        self.processes.append(
            {
                "name": name,
                "group": group,
                "pid_before": pid_before,
                "pid_after": pid_after,
                "waited": waited,
                "outcome": outcome,
                "reason": reason,
            }
        )

    @property
    def changed(self) -> bool:
        """Something was done, or would be."""
        return self.touched or any(entry["outcome"] in CHANGES for entry in self.processes)

    @property
    def msg(self) -> str:
        """One sentence, or why it failed."""
        if self.failures:
            return "\n\n".join(self.failures)
        counts = Counter(entry["outcome"] for entry in self.processes)
        said = [f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items()]
        return ", ".join([*said, *self.notes]) or "nothing to do"

    def result(self) -> dict[str, Any]:
        """For exit_json and fail_json."""
        diff = {side: "".join(f"{line}\n" for line in sorted(getattr(self, side))) for side in ("before", "after")}
        return {"changed": self.changed, "msg": self.msg, "processes": self.processes, "diff": diff}
