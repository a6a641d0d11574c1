"""What is to be done, made of one look at supervisord."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from .supervisord import Config, Snapshot


class Changes(NamedTuple):
    """Groups whose configuration is not what runs."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    others: list[str]  # of any of the three kinds, but not selected

    @property
    def groups(self) -> list[str]:
        """Those that an update puts into effect."""
        return [*self.added, *self.changed, *self.removed]

    @property
    def notes(self) -> list[str]:
        """What becomes of each, in words."""
        kinds = (("added", self.added), ("replaced", self.changed), ("removed", self.removed))
        return [f"{verb} {group}" for verb, groups in kinds for group in groups]


class Plan(NamedTuple):
    """First the groups whose configuration changes, each as a whole; then the processes that were chosen."""

    first: Snapshot  # before anything is done
    configured: Mapping[str, Config]  # as the files say now; empty when no update was asked for
    changes: Changes
    chosen: list[str]

    @classmethod
    def of(
        cls,
        first: Snapshot,
        patterns: list[str],
        reloaded: tuple[list[str], list[str], list[str]] = ([], [], []),
        configured: Mapping[str, Config] | None = None,
    ) -> Plan:
        """What the patterns name. A process of a changing group is not chosen: the update brings it up new."""
        changes = changes_of(reloaded, configured or {}, first, patterns)
        chosen = [name for name in select(first, patterns) if group_of(name) not in changes.groups]
        return cls(first, configured or {}, changes, chosen)

    @property
    def before(self) -> list[str]:
        """All processes it may touch, as they are."""
        return [
            str(process)
            for name, process in self.first.items()
            if name in self.chosen or process.group in self.changes.groups
        ]


def group_of(name: str) -> str:
    """The group in group:name."""
    return name.split(":")[0]


def members(group: str, names: Iterable[str]) -> list[str]:
    """Those of the names that are of the group."""
    return [name for name in names if group_of(name) == group]


def select(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that any of the patterns fits, in their order."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def changes_of(
    reloaded: tuple[list[str], list[str], list[str]],
    configured: Iterable[str],
    known: Iterable[str],
    patterns: list[str],
) -> Changes:
    """Which of supervisord's added, changed and removed groups are ours: those with a process the patterns name."""
    ours = {group_of(name) for name in select([*configured, *known], patterns)}
    kinds = [[group for group in groups if group in ours] for groups in reloaded]
    others = [group for groups in reloaded for group in groups if group not in ours]
    return Changes(kinds[0], kinds[1], kinds[2], others)
