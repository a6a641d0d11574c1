#!/usr/bin/python
"""Ansible module: the releases of a host, and which of them may go."""

# ruff: noqa: E402  Ansible wants the documentation above the imports.

from __future__ import annotations

DOCUMENTATION = r"""
module: releases
short_description: Look at the releases of a host, prune them
description:
  - A release is a folder below C(ROOT/releases). It is ready when it holds a file C(.ready), bad when it holds
    C(.bad).
    C(ROOT/current) and C(ROOT/previous) are links to two of them.
  - With O(keep), removes what is beyond it, oldest first. The current release, the one before and any a process still
    runs from are never removed. Releases that never became ready do not count and all but the newest are removed.
options:
  root:
    description: The folder that holds C(releases) and C(current).
    type: path
    required: true
  keep:
    description: Number of ready releases to keep. Without it nothing is removed.
    type: int
attributes:
  check_mode:
    description: Says what would be removed.
    support: full
  diff_mode:
    description: Shows the releases before and after.
    support: full
author:
  - moysklad-worker
"""

EXAMPLES = r"""
- name: Keep five releases
  releases:
    root: /opt/moysklad-worker
    keep: 5
"""

RETURN = r"""
current:
  description: Name of the release C(current) points at, empty when it points at none.
  returned: always
  type: str
previous:
  description: Name of the release C(previous) points at, empty when it points at none.
  returned: always
  type: str
releases:
  description: Those there are, newest first, with C(id), C(ready), C(bad) (the reason, empty when it is not) and
    C(running).
  returned: always
  type: list
  elements: dict
removed:
  description: Those removed.
  returned: always
  type: list
  elements: str
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

Release = dict[str, Any]


def look(root: Path) -> list[Release]:
    """Every release, newest first; its age is that of its `.ready`, else of its folder."""
    running = names_in_use(root / "releases")
    found = []
    for folder in (root / "releases").iterdir() if (root / "releases").is_dir() else ():
        if folder.is_dir() and not folder.is_symlink():
            ready, bad = folder / ".ready", folder / ".bad"
            found.append({
                "id": folder.name,
                "ready": ready.exists(),
                "bad": (bad.read_text("utf-8").strip() or "unknown reason") if bad.exists() else "",
                "running": folder.name in running,
                "since": (ready if ready.exists() else folder).stat().st_mtime,
            })  # fmt: skip
    return sorted(found, key=lambda release: (release["since"], release["id"]), reverse=True)


def names_in_use(releases: Path) -> set[str]:
    """The releases whose folder is the working folder or holds the program of a live process."""
    found: set[str] = set()
    base = releases.resolve()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            found.update(name for path in paths_of(entry) for name in name_below(base, path))
    return found


def paths_of(process: Path) -> list[Path]:
    """Where a process works, and what it was started from; less when it has gone or its folder may not be seen."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        found += (Path(os.fsdecode(word)) for word in (process / "cmdline").read_bytes().split(b"\0")[:2])
    with contextlib.suppress(OSError):
        found.append(Path(os.readlink(process / "cwd")))  # noqa: PTH115 - the raw text of the link
    return found


def name_below(base: Path, path: Path) -> list[str]:
    """The first folder of `path` below `base`, if it is there."""
    return [path.relative_to(base).parts[0]] if path != base and path.is_relative_to(base) else []


def target(link: Path) -> str:
    """The name a link points at, empty when there is none."""
    return Path(os.readlink(link)).name if link.is_symlink() else ""  # noqa: PTH115


def superfluous(releases: list[Release], keep: int, protected: set[str]) -> list[str]:
    """Which of `releases` (newest first) go: ready ones beyond `keep`, and unfinished ones but the newest."""
    ready = [release for release in releases if release["ready"] and not release["bad"]]
    other = [release for release in releases if not release["ready"] or release["bad"]]
    candidates = ready[keep:] + other[1:]
    return [one["id"] for one in candidates if one["id"] not in protected and not one["running"]]


def main() -> None:
    """Look, prune, tell."""
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "required": True}, "keep": {"type": "int"}},
        supports_check_mode=True,
    )
    root, keep = Path(module.params["root"]), module.params["keep"]
    if keep is not None and keep < 1:
        module.fail_json(msg=f"keep is {keep}; at least the current release must stay")
    releases = look(root)
    current, previous = target(root / "current"), target(root / "previous")
    removed = superfluous(releases, keep, {current, previous}) if keep is not None else []
    if not module.check_mode:
        for name in removed:
            shutil.rmtree(root / "releases" / name)
    left = [release for release in releases if release["id"] not in removed]
    module.exit_json(
        changed=bool(removed),
        current=current,
        previous=previous,
        releases=left,
        removed=removed,
        diff={
            "before": "".join(f"{release['id']}\n" for release in releases),
            "after": "".join(f"{release['id']}\n" for release in left),
        },
    )


if __name__ == "__main__":
    main()
