"""docs/events.md against the source: every event with its fields, and none that nobody tells of."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from worker.queues.contract import VERBS

ROOT = Path(__file__).parents[2]
DEFAULT = {"event"}
"""Names of parameters that hold an event's name; where it is given is another literal."""


def documented() -> dict[str, set[str]]:
    """Event → its fields."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \|", (ROOT / "docs/events.md").read_text("utf-8"), re.MULTILINE)
    return {name: set(fields.split(", ")) - {"…"} for name, fields in rows}


def emitted() -> dict[str, set[str]]:
    """The same from the calls of `emit` in worker/; events whose name is put together, as a pattern with `*`."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            fields = {word.arg for word in node.keywords if word.arg} - {"level", "error"}
            if getattr(node.func, "id", "") in ("emit", "emit_request"):
                name = name_of(node.args[0])
                if name not in DEFAULT:
                    found.setdefault(name, set()).update(fields)
            for word in node.keywords:
                if word.arg == "event" and isinstance(word.value, ast.Constant):
                    found.setdefault(str(word.value.value), set())
    return found


def name_of(node: ast.expr) -> str:
    """A literal; an f-string with `*` for what is put in; else the variable's name."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return ast.unparse(node)


def test_every_event_is_documented() -> None:
    """With all its fields; the verbs of `settle` one by one."""
    told = documented()
    source = emitted()
    fields = source.pop("task.*")
    source |= {f"task.{verb}": fields for verb in (*VERBS.values(), "lost")}

    missing = {name: sorted(fields - told.get(name, set())) for name, fields in source.items()}

    assert {name: fields for name, fields in missing.items() if fields or name not in told} == {}
    assert sorted(told.keys() - source.keys()) == []


def test_each_is_told_once_and_with_a_reason() -> None:
    """No event stands there twice; each row says when."""
    rows = re.findall(r"^\| `([^`]+)` \| .+? \| (.+) \|$", (ROOT / "docs/events.md").read_text("utf-8"), re.MULTILINE)

    assert len(rows) == len({name for name, _ in rows}) >= 50
    assert [name for name, when in rows if not when.strip()] == []
