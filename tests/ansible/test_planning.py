"""What supervisor_roll decides, with no process but made-up ones: a supervisord of numbers and a clock of its own."""

from __future__ import annotations

import ast
import random
import re
import sys
import xmlrpc.client
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import rolling
from rolling.convergence import converge
from rolling.excerpt import LOG_BYTES, redact
from rolling.options import Options
from rolling.plan import changes_of
from rolling.roll import Roll
from rolling.supervisord import Process, Supervisor, _Transport
from rolling.unit import Unit, unavailable
from tests.ansible.daemon import MODULE, MODULE_UTILS

STARTSECS = 1.0
ROLLING = re.findall(r"^([a-z]+)  +\S", rolling.__doc__ or "", re.MULTILINE)  # its files, in their order


def imports(file: Path) -> list[ast.Import | ast.ImportFrom]:
    """All imports of a file, as Python 3.9 reads it."""
    tree = ast.parse(file.read_text(), feature_version=(3, 9))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_python_of_the_hosts() -> None:
    """Python 3.9 can parse the module, which imports nothing but Python, Ansible and rolling."""
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports(MODULE)]
    ours = {name for name in names if name and name.split(".")[0] not in sys.stdlib_module_names}

    assert ours <= {"ansible.module_utils.basic", *(f"ansible.module_utils.rolling.{name}" for name in ROLLING)}


def test_floors_of_rolling() -> None:
    """Its first page names every file; each is Python 3.9 and imports only Python and what is named above it."""
    assert {f"{name}.py" for name in ROLLING} == {p.name for p in (MODULE_UTILS / "rolling").glob("[!_]*")}

    for floor, name in enumerate(ROLLING):
        for node in imports(MODULE_UTILS / f"rolling/{name}.py"):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in ROLLING[:floor], name
            else:
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert (module or "").split(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"max_unavailable": 0}, "at least 1"),
        ({"drain_timeout": 0.0}, "drain_timeout must be more than 0"),
        ({"update": True, "state": "stopped"}, "ask for one"),
        ({"health": ["check", "{release}"]}, "release is empty"),
        ({"skip_healthy": True, "health": ["check"], "release": "v2"}, "skip old releases too"),
    ],
)
def test_contradictions(params: dict[str, Any], words: str) -> None:
    """Parameters that cannot be meant are refused before anything is looked at."""
    with pytest.raises(ValueError, match=words):
        Options.from_params({"socket": "/s", "processes": ["*"], **params})


def test_health_command() -> None:
    """Only {process} and {release} are replaced; other braces and per cent signs survive."""
    options = Options("/s", ["*"], health=["c", "{process}", "%s {x} {}"], health_environment={"R": "{release}"})

    assert replace(options, release="v2").command("p_00") == (
        ["c", "p_00", "%s {x} {}"],
        {"R": "v2"},
    )


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("password=hunter2 next", "password=*** next"),
        ('{"api_token": "abc def", "n": 1}', '{"api_token": ***, "n": 1}'),
        ("APP_KEY: s3cret", "APP_KEY: ***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        ("sent Bearer abcdefgh1234", "sent Bearer ***"),
        ("postgresql://worker:p%40ss@db/x", "postgresql://worker:***@db/x"),
        ("key zxcvbnmasdfghjklqwertyuiop1234567890ABCDEF=", "key ***"),
        ("task 0f8fad5b-d9cb-469f-a165-70867728950e done", "task 0f8fad5b-d9cb-469f-a165-70867728950e done"),
        ("File worker/queues/postgres.py, line 12", "File worker/queues/postgres.py, line 12"),
        ("\x1b[31mОшибка\x1b[0m", "Ошибка"),
    ],
)
def test_redaction(text: str, safe: str) -> None:
    """What looks like a secret is not shown, what helps to find a fault is."""
    assert safe == redact(text)


def test_half_a_line_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A log cut in the middle of a line loses that line: the name that marks a secret may be in the other half."""
    log = "token=" + "s3 " * 2000 + "\nthe end"
    supervisor = Supervisor(str(tmp_path / "s"))
    monkeypatch.setattr(supervisor, "call", lambda *_: log[-LOG_BYTES:])

    assert supervisor.log(Process("g", "p", "RUNNING"), "stdout") == "the end"


def test_a_call_is_never_sent_twice(tmp_path: Any) -> None:
    """A connection that breaks after the request is an error, not a second TERM."""
    sent: list[str] = []
    transport = _Transport(str(tmp_path / "s"))

    def breaks(*_: Any) -> None:
        sent.append("call")
        raise ConnectionResetError

    transport.single_request = breaks
    proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport)
    with pytest.raises(ConnectionResetError):
        proxy.supervisor.signalProcess("g:p", "TERM")

    assert sent == ["call"]


def test_backoff_is_started_in_one_breath(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop and start are one call: cut off in between, a process would stay STOPPED as if by an operator."""
    calls: list[tuple[Any, ...]] = []
    supervisor = Supervisor("/s")
    monkeypatch.setattr(supervisor, "call", lambda *call: calls.append(call) or [])
    supervisor.retry("g:p")

    assert [name for name, *_ in calls] == ["system.multicall"]
    assert [part["methodName"].split(".")[1] for part in calls[0][1]] == ["stopProcess", "startProcess"]


def test_deliberate_stops_do_not_count() -> None:
    """What an operator stopped is not unavailable; what is down otherwise is, and what is in our hands too."""
    seen = {
        p.full: p
        for p in (
            Process("g", "runs", "RUNNING", pid=1, start=1),
            Process("g", "ours", "RUNNING", pid=2, start=1),
            Process("g", "halted", "STOPPED", start=1),
            Process("g", "manual", "STOPPED", autostart=False),
            Process("g", "new", "STOPPED"),
            Process("g", "gone", "FATAL", start=1),
            Process("other", "gone", "FATAL", start=1),
        )
    }
    unit = Unit(seen["g:ours"], "rolled", phase="drain")

    assert unavailable("g", seen, [unit]) == {"g:ours", "g:new", "g:gone"}


def test_which_groups_are_ours() -> None:
    """A changed group is ours if the patterns name a process it has or will have."""
    changes = changes_of(
        (["new", "foreign"], ["changed"], ["gone"]),
        ["new:a", "foreign:a", "changed:b"],
        ["changed:a", "gone:a"],
        ["new:*", "changed:a", "gone:*"],
    )

    assert changes == (["new"], ["changed"], ["gone"], ["foreign"])


# A supervisord of numbers


@dataclass
class Fake:
    """One process of the made-up supervisord."""

    group: str
    name: str
    state: str
    pid: int
    start: float
    drain: float
    autorestart: bool = True
    stop: float = 0.0
    ends: float = float("inf")
    terms: int = 0


class World:
    """Time, processes and the rules of Supervisor's states, as far as a roll meets them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.pid = 100
        self.signalled: list[int] = []
        self.worst: dict[str, int] = {}
        self.fakes: dict[str, Fake] = {}
        for group in range(self.random.randint(1, 3)):
            for number in range(self.random.randint(1, 5)):
                self._make(f"g{group}", f"p{number}")

    def _make(self, group: str, name: str) -> None:
        state = self.random.choice(["RUNNING"] * 6 + ["STARTING", "STOPPED"])
        self.pid += 1
        fake = Fake(group, name, state, 0 if state == "STOPPED" else self.pid, 900.0, self.random.uniform(0, 20))
        fake.start = self.now if state == "STARTING" else fake.start
        fake.autorestart = self.random.random() < 0.8
        if state == "RUNNING" and self.random.random() < 0.3:
            fake.ends = self.now + self.random.uniform(0, 40)  # --max-time
        self.fakes[f"{group}:{name}"] = fake

    def clock(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        for fake in self.fakes.values():
            if fake.state in ("RUNNING", "STARTING") and self.now >= fake.ends:
                fake.state, fake.pid, fake.stop, fake.ends = "EXITED", 0, self.now, float("inf")
            elif fake.state == "EXITED" and fake.autorestart:
                self._spawn(fake)
            elif fake.state == "STARTING" and self.now - fake.start > STARTSECS:
                fake.state = "RUNNING"

    def _spawn(self, fake: Fake) -> None:
        self.pid += 1
        fake.state, fake.pid, fake.start = "STARTING", self.pid, self.now

    # what Roll asks of its supervisor

    def snapshot(self) -> Any:
        """All processes; counts who is down, the best moment for it."""
        for group in {fake.group for fake in self.fakes.values()}:
            asked = [f for f in self.fakes.values() if f.group == group and f.state != "STOPPED" and self._ours(f)]
            self.worst[group] = max(self.worst.get(group, 0), len(asked))
        return {
            name: Process(fake.group, fake.name, fake.state, fake.pid, int(fake.start), int(fake.stop), int(self.now))
            for name, fake in self.fakes.items()
        }

    def _ours(self, fake: Fake) -> bool:
        """It has our TERM, and its successor does not run yet."""
        return fake.terms > 0 and (fake.state != "RUNNING" or fake.pid in self.signalled)

    def look_and_signal(self, name: str, signal: str) -> Any:
        """TERM: it ends after its drain."""
        fake = self.fakes[name]
        if fake.state not in ("RUNNING", "STARTING"):
            raise xmlrpc.client.Fault(70, "NOT_RUNNING")
        assert fake.state == "RUNNING", "a TERM before startsecs is a failed start"
        fake.terms += 1
        fake.ends = min(fake.ends, self.now + fake.drain)
        self.signalled.append(fake.pid)
        return {"pid": fake.pid, "start": int(fake.start)}

    def log(self, process: Any, channel: str) -> str:
        """Nobody said anything."""
        return ""

    def start(self, name: str) -> None:
        """Start what is down."""
        fake = self.fakes[name]
        if fake.state in ("RUNNING", "STARTING"):
            raise xmlrpc.client.Fault(60, "ALREADY_STARTED")
        self._spawn(fake)


class Healthy:
    """Every process is, at once."""

    def __init__(self) -> None:
        self.outputs: dict[str, str] = {}

    def verdict(self, process: Any) -> str:
        """No command is running."""
        return ""

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("seed", range(60))
def test_any_fleet(seed: int, tmp_path: Any) -> None:
    """Whatever drains how long, ends by itself or was stopped: the bound holds, one TERM each, all are replaced."""
    world = World(seed)
    bound = world.random.randint(1, 2)
    before = {name: (fake.state, fake.pid) for name, fake in world.fakes.items()}
    options = Options(str(tmp_path / "s"), ["*"], max_unavailable=bound, drain_timeout=60.0)
    roll = Roll(world, Healthy(), options, world.clock, world.sleep)
    report = converge(roll, False)

    assert report.failures == []
    assert max(world.worst.values()) <= bound
    assert len(world.signalled) == len(set(world.signalled))
    for name, (state, pid) in before.items():
        fake = world.fakes[name]
        assert fake.terms <= 1
        assert (fake.state, fake.pid) == ("STOPPED", 0) if state == "STOPPED" else fake.pid > pid
    assert {e["outcome"] for e in report.processes} <= {"rolled", "left_stopped"}


def test_blocked_by_a_stranger(tmp_path: Any) -> None:
    """If a process that was not named is down, the group is not touched, and the message says whom to look at."""
    world = World(0)
    world.fakes = {
        "g:a": Fake("g", "a", "RUNNING", 1, 900.0, 0.0),
        "g:b": Fake("g", "b", "FATAL", 0, 900.0, 0.0),
    }
    options = Options(str(tmp_path / "s"), ["g:a"])
    report = converge(Roll(world, Healthy(), options, world.clock, world.sleep), False)

    assert world.signalled == []
    assert "could not be touched while g:b is down" in report.msg
