"""The commands of docs/operations.md: blocks of ```sh run on a live system, those of ```sh host on a host.

`python tests/runbook.py host` prints the latter as a list in JSON; the molecule scenario onebox runs them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs/operations.md"


class Block(NamedTuple):
    """The commands of one block, where they are to run (`live` or `host`), and the section they stand in."""

    section: str
    where: str
    commands: str


def blocks(page: Path = PAGE) -> list[Block]:
    """Every block of commands, in order."""
    section, found = "", []
    for heading, where, commands in re.findall(
        r"^## ([^\n]+)$|^```sh ?(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        if heading:
            section = heading
        else:
            found.append(Block(section, where or "live", commands))
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps([block.commands for block in blocks() if block.where == sys.argv[1]]) + "\n")
