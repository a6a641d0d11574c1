"""The floors, borders and owners that docs/architecture.md draws, read from the source."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from worker.queues import DatabaseQueue, Queue, SyncQueue
from worker.queues.redis import RedisQueue

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "worker"

UNLISTED = {"worker": 0, "worker.release": 0, "worker.__main__": 7}
"""Modules the table of floors does not name."""


def module_of(file: Path) -> str:
    """The name a file is imported by."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for package in ("worker", "simulator") for file in (ROOT / package).rglob("*.py")}


def imports(module: str, *, late: bool = True) -> set[str]:
    """Modules of this repository that a module imports; with `late` also inside functions."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            inner = {f"{base}.{name.name}" for name in node.names if f"{base}.{name.name}" in MODULES}
            found |= inner
            if len(inner) < len(node.names):
                found.add(base)
    return {name for name in found if name in MODULES}


def floors() -> dict[str, int]:
    """Module or package → its floor, from the table in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    found = dict(UNLISTED)
    for floor, names in re.findall(r"^\| (\d) \| (.+?) \|", text, re.MULTILINE):
        for name in re.findall(r"`([\w/]+)`", names):
            found[f"worker.{name.strip('/').replace('/', '.')}"] = int(floor)
    return found


FLOORS = floors()


def floor_of(module: str) -> int | None:
    """The floor of a module, else of the package it is in."""
    while module not in FLOORS or module == "worker":
        if module == "worker":
            return FLOORS[module]
        module = module.rpartition(".")[0]
        if module == "worker":
            return None
    return FLOORS[module]


IN_WORKER = sorted(name for name in MODULES if name.partition(".")[0] == "worker")


def test_every_module_has_a_floor() -> None:
    """A new module is drawn on the map, and the map shows nothing that does not exist."""
    assert [name for name in IN_WORKER if floor_of(name) is None] == []
    assert sorted(name for name in FLOORS if name not in MODULES) == []


@pytest.mark.parametrize("module", IN_WORKER)
def test_imports_go_down(module: str) -> None:
    """No module imports from a floor above its own, not even late, inside a function."""
    own = floor_of(module)
    assert own is not None
    assert sorted(name for name in imports(module) if (floor_of(name) or 0) > own) == []


@pytest.mark.parametrize("package", ["worker", "simulator"])
def test_no_cycles(package: str) -> None:
    """No two modules need each other, however indirectly; a package's `__init__` may gather its modules."""
    graph = {
        name: {other for other in imports(name) if other != name}
        for name in MODULES
        if name.partition(".")[0] == package
    }
    for name, needed in graph.items():
        needed -= {other for other in needed if name.startswith(f"{other}.")}
    try:
        list(TopologicalSorter(graph).static_order())
        cycle: list[str] = []
    except CycleError as error:
        cycle = error.args[1]
    assert cycle == []


@pytest.mark.parametrize(("package", "other"), [("worker", "simulator"), ("simulator", "worker")])
def test_worker_and_simulator_share_no_code(package: str, other: str) -> None:
    """Neither imports the other, so that no mistake is made twice in the same way."""
    mine = [name for name in MODULES if name.partition(".")[0] == package]
    strangers = {name: {n for n in imports(name) if n.partition(".")[0] == other} for name in mine}
    assert {name: found for name, found in strangers.items() if found} == {}


def test_only_the_queue_writes_tasks() -> None:
    """Tasks are written by sql/queue.sql alone."""
    write = re.compile(
        r"(insert\s+into|update|delete\s+from|copy|truncate)\s+(?:only\s+)?sync_queue\b[^;]*", re.IGNORECASE
    )
    found = [
        (file.name, " ".join(match[0].split()))
        for file in [*WORKER.rglob("*.sql"), *WORKER.rglob("*.py")]
        if file.name != "queue.sql" and file.parent.name != "migrations"
        for match in write.finditer(file.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("file", "tables"),
    [
        ("mappings.sql", ("mappings", "snapshots")),
        ("limiter.sql", ("limiter_principals", "limiter_grants", "limiter_tickets")),
        ("workers.sql", ("workers",)),
    ],
)
def test_each_table_has_its_writer(file: str, tables: tuple[str, ...]) -> None:
    """Besides its own file only an account's removal or link, and a worker's burial, write to a table."""
    write = re.compile(rf"(?:insert\s+into|update|delete\s+from)\s+({'|'.join(tables)})\b", re.IGNORECASE)
    allowed = {("accounts.sql", "mappings"), ("accounts.sql", "snapshots"), ("workers.sql", "limiter_grants")}
    found = {
        (sql.name, match[1])
        for sql in (WORKER / "sql").glob("*.sql")
        if sql.name != file
        for match in write.finditer(sql.read_text("utf-8"))
    }
    assert found - allowed == set()


def test_sql_stands_in_sql_files() -> None:
    """Python calls SQL by name; the few words it speaks itself are about sessions, not tables."""
    words = re.compile(r"\b(select .+ from|insert into|delete from|update \w+ set)\b", re.IGNORECASE)
    found = [
        (name, node.value)
        for name in IN_WORKER
        for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if words.search(node.value) and not node.value.startswith("Delete")
    ]
    assert found == []


DRIVERS = {
    "DatabaseQueue": "Queue",
    "DatabaseRecords": "Queue",
    "Directed": "Queue",
    "RedisQueue": "Queue",
    "RedisRecords": "Queue",
    "RedisSettlements": "Queue",
    "SyncQueue": "Queue",
    "DatabaseStore": "Store",
    "RedisStore": "Store",
}
"""Classes whose methods are told by the contract they fulfil."""


def undocumented(module: str) -> list[str]:
    """Public things of a module without a docstring."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    missing = [] if ast.get_docstring(tree) or module.endswith("__main__") else [module]

    def look(body: list[ast.stmt], where: str, inherited: bool) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                is_class = isinstance(node, ast.ClassDef)
                if not ast.get_docstring(node) and not (inherited and not is_class):
                    missing.append(f"{where}.{node.name}")
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{where}.{node.name}", node.name in DRIVERS)

    look(tree.body, module, False)
    return missing


@pytest.mark.parametrize("module", IN_WORKER)
def test_everything_public_says_what_it_is(module: str) -> None:
    """Every public module, class, function and method has a docstring."""
    assert undocumented(module) == []


@pytest.mark.parametrize("driver", [RedisQueue, DatabaseQueue, SyncQueue])
def test_a_driver_has_the_contracts_methods_only(driver: type[Queue]) -> None:
    """What has no docstring of its own is told in the contract: a driver fulfils it and adds nothing."""
    methods = {name for of in driver.__mro__ for name, it in vars(of).items() if callable(it) and name[0] != "_"}
    public = {name for name, it in vars(Queue).items() if callable(it) and name[0] != "_"}
    assert methods - public == set()
    assert not driver.__abstractmethods__
