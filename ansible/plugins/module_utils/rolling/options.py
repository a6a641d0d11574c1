"""What was asked for, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    socket: str
    processes: list[str]
    state: str = "rolled"
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
        options._validate()
        return options

    def _validate(self) -> None:
        if self.max_unavailable < 1:
            raise ValueError("max_unavailable must be at least 1, or nothing can be replaced")
        for name in ("drain_timeout", "ready_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        if self.update and self.state == "stopped":
            raise ValueError("update starts processes and state=stopped stops them: ask for one of the two")
        names_release = any("{release}" in text for text in (*self.health, *self.health_environment.values()))
        if names_release and not self.release:
            raise ValueError("health names {release}, but release is empty")
        if self.skip_healthy and not names_release:
            raise ValueError("skip_healthy needs {release} in health, or it would skip old releases too")

    def command(self, process: str) -> tuple[list[str], dict[str, str]]:
        """The health command and its environment for one process."""

        def filled(text: str) -> str:
            return text.replace("{process}", process).replace("{release}", self.release)

        return [filled(word) for word in self.health], {k: filled(v) for k, v in self.health_environment.items()}
