"""The roles without hosts: defaults and specs agree, files are small, what they write says what was meant."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
ROLES = sorted((ROOT / "ansible/roles").iterdir())
TASKS = sorted([*ROOT.glob("ansible/roles/*/tasks/*.yml"), *ROOT.glob("ansible/playbooks/**/*.yml")])
FAMILY = re.compile(r"os_family|distribution|pkg_mgr")
MAIN, CHILD = "11111111-aaaa-4aaa-8aaa-000000000001", "22222222-aaaa-4aaa-8aaa-000000000001"
ODD = [
    " 100% ",
    "a ; b",
    "it's",
    'say "no"',
    "back\\slash\\",
    "ключ ёж №1",
    "$HOME ${X}",
    "#1 #2",
    "%(ENV_X)s",
    "a\nb",
]

pytest.importorskip("ansible", reason="ansible-core is not installed")


def read(file: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(file.read_text("utf-8")) if file.exists() else {}


def script(path: str, name: str) -> ModuleType:
    """A Python file of the roles, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORKER = script("ansible/roles/worker/filter_plugins/worker.py", "worker_filters")
BUILD = script("ansible/roles/release/files/build.py", "release_build")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
class TestRole:
    """Of every role."""

    def test_defaults_are_those_of_the_specs(self, role: Path) -> None:
        """Each default has its option and the same value there; one that is computed has none to compare."""
        defaults = read(role / "defaults/main.yml")
        options = read(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]

        assert set(defaults) == set(options)
        plain = {name: value for name, value in defaults.items() if "{{" not in str(value)}
        assert plain == {name: options[name].get("default") for name in plain}
        assert {name for name in options if name not in plain and "default" in options[name]} == set()

    def test_every_option_is_described(self, role: Path) -> None:
        """In the specs, and by a comment above it in the defaults or above its neighbours."""
        for option in read(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"].values():
            assert option["description"]
        above = ""
        for line in (role / "defaults/main.yml").read_text("utf-8").splitlines():
            if re.match(r"\w", line):
                assert above, f"{role.name}: no comment above {line}"
            above = "" if not line else line if line.startswith("#") or above else ""

    def test_lists_and_maps_come_with_an_example(self, role: Path) -> None:
        """An empty default is followed by a commented full one."""
        lines = (role / "defaults/main.yml").read_text("utf-8").splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if re.search(r": (\[\]|\{\})$", line):
                assert following.startswith(f"# {line.split(':')[0]}:"), line

    def test_its_names_begin_with_its_own(self, role: Path) -> None:
        """Public ones with the role's name, internal ones with two underscores before it."""
        for file in role.glob("defaults/*.yml"):
            assert all(name.startswith(f"{role.name}_") for name in read(file))
        for file in role.glob("vars/*.yml"):
            assert all(name.startswith(f"__{role.name}_") for name in read(file))

    def test_it_has_a_readme(self, role: Path) -> None:
        """What it does, and where its variables are told."""
        text = (role / "README.md").read_text("utf-8")
        assert text.startswith(f"# {role.name}\n")
        assert "defaults/main.yml" in text

    def test_families_differ_in_vars_only(self, role: Path) -> None:
        """Tasks, templates and handlers ask for the family only to load its file."""
        for file in [*role.glob("tasks/*.yml"), *role.glob("templates/*"), *role.glob("handlers/*.yml")]:
            told = [line for line in file.read_text("utf-8").splitlines() if FAMILY.search(line)]
            assert [line for line in told if "include_vars" not in line] == [], file


@pytest.mark.parametrize("file", TASKS, ids=lambda file: str(file.relative_to(ROOT / "ansible")))
def test_task_files_are_short(file: Path) -> None:
    """A role's at most 60 lines; what rolls a fleet is one story and may be longer."""
    longest = 60 if "roles" in file.parts else 160
    assert len(file.read_text("utf-8").splitlines()) <= longest


@given(st.dictionaries(st.from_regex(r"\A[A-Z][A-Z0-9_]{0,9}\Z"), st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_value_comes_back_from_the_env_file(values: dict[str, str]) -> None:
    """Whatever it is: percent, semicolon, quotes, spaces, lines, any letter."""
    values = {name: value.replace("\0", "").replace("\r", "") for name, value in values.items()}
    text = "".join(f"{name}={WORKER.env_quote(value)}\n" for name, value in values.items())

    assert dotenv_values(stream=StringIO(text), interpolate=False) == values


NAMES = ["Shop 1", "shop-1", "SHOP_1", "Лавка", "Лавочка", "", "—", "%s;", 'a"b', "x" * 99, "x" * 99 + "y"]


def test_accounts_with_the_same_slug_are_told_apart() -> None:
    """Names of different accounts that come to the same plain letters make different programs, and legal ones."""
    accounts = [
        {"name": name, "id": f"{number:08x}-aaaa-4aaa-8aaa-000000000001"} for number, name in enumerate(NAMES)
    ]
    programs = WORKER.worker_programs("account", {}, {}, {}, accounts, {})

    assert len({program["name"] for program in programs}) == len(NAMES) + 1
    assert all(re.fullmatch(r"[a-z0-9-]{1,70}", program["name"]) for program in programs)
    assert len({program["queue"] for program in programs}) == len(NAMES) + 1


def test_accounts_that_cannot_be_told_apart_are_refused() -> None:
    """The same letters and the same beginning of the id: the message names both and says what to do."""
    accounts = [{"name": "A b", "id": MAIN}, {"name": "a-b", "id": MAIN.replace("aaaa", "bbbb")}]

    with pytest.raises(Exception, match="would both be the program moysklad-worker-a-b-11111111; give one of them"):
        WORKER.worker_programs("account", {}, {}, {}, accounts, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("accounts", {}, {}, {}, [], {}), "may be single, priority or account"),
        (("priority", {}, {"slep": 1}, {}, [], {}), "worker_high: slep is unknown"),
        (("account", {}, {}, {}, [{"name": "A", "id": "7"}], {}), "account 'A' has the id '7', which is no UUID"),
    ],
)
def test_a_wrong_topology_is_refused(words: tuple[Any, ...], message: str) -> None:
    """By the name of the variable to look at."""
    with pytest.raises(Exception, match=message):
        WORKER.worker_programs(*words)


@pytest.mark.parametrize("topology", ["single", "priority", "account"])
def test_every_queue_has_a_listener(topology: str) -> None:
    """Those of the topology, and those of the two others, where tasks may wait from before a change."""
    from worker.queues.routing import listens, route

    programs = WORKER.worker_programs(topology, {}, {}, {}, [{"name": "A", "id": CHILD}], {})
    patterns = ",".join(program["queue"] for program in programs).split(",")
    for other in ("single", "priority", "account"):
        for role, account in (("main", MAIN), ("child", CHILD)):
            for kind in ("product", "image"):
                queue = route(other, lambda _, role=role: role)(kind, account)  # type: ignore[arg-type]
                assert listens(patterns, queue), (topology, queue)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the worker's role as Ansible itself writes them, with odd values and accounts."""
    folder = tmp_path_factory.mktemp("rendered")
    settings = {f"ODD_{number}": value for number, value in enumerate(ODD)}
    accounts = [
        {"name": name, "id": f"{number:08x}-aaaa-4aaa-8aaa-000000000001"} for number, name in enumerate(NAMES)
    ]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "vars_files": [
            str(ROOT / "ansible/roles/worker/defaults/main.yml"),
            str(ROOT / "ansible/roles/worker/vars/main.yml"),
            str(folder / "values.json"),
        ],
        "tasks": [
            {"import_role": {"name": "worker", "tasks_from": "names"}},
            {
                "template": {
                    "src": str(ROOT / "ansible/roles/worker/templates/worker.env.j2"),
                    "dest": str(folder / "worker.env"),
                    "mode": "0600",
                }
            },
            {
                "template": {
                    "src": str(ROOT / "ansible/roles/worker/templates/program.ini.j2"),
                    "dest": f"{folder}/{{{{ item.name }}}}.ini",
                    "mode": "0600",
                },
                "loop": "{{ __worker_programs }}",
            },
        ],
    }
    # As from a vault: no templates in them, whatever they look like.
    (folder / "values.json").write_text(
        json.dumps(
            {
                "worker_topology": "account",
                "worker_accounts": accounts,
                "worker_settings": settings,
                "worker_secrets": {"KEY": "p%40s ;'"},
            }
        )
    )
    (folder / "play.yml").write_text(json.dumps([play]), "utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", folder / "play.yml"],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "ansible/roles"),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_env_file_holds_what_was_meant(rendered: Path) -> None:
    """Settings and secrets with odd values, as Ansible writes and the worker reads them."""
    found = dotenv_values(rendered / "worker.env", interpolate=False)

    assert [found[f"ODD_{number}"] for number in range(len(ODD))] == ODD
    assert found["KEY"] == "p%40s ;'"
    assert found["QUEUE_TOPOLOGY"] == "account"


def test_program_files_are_what_supervisord_takes(rendered: Path) -> None:
    """All of them, by the check the role uses; each with the program's own queue and no setting's value in it."""
    files = sorted(rendered.glob("*.ini"))
    assert len(files) == len(NAMES) + 1
    queues = set()
    for file in files:
        check(file)
        parser = configparser.RawConfigParser()
        parser.read(file, "utf-8")
        (section,) = parser.sections()
        assert section == f"program:{file.stem}"
        queues.add(re.search(r"--queue (\S+)", parser[section]["command"])[1])  # type: ignore[index]
        assert not any(value in file.read_text("utf-8") for value in ODD)
    assert len(queues) == len(files)


def check(file: Path) -> str:
    """What check-supervisor-program says; empty when it takes the file."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "ansible/roles/supervisor/files/check-supervisor-program", file],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert bool(done.stderr) == bool(done.returncode), done
    return done.stderr


BAD = {
    "a percent sign that is no format": '[program:a]\ncommand=/bin/true\nenvironment=DSN="p%zz"\n',
    "a comment in a value": '[program:a]\ncommand=/bin/true\nenvironment=DSN="a ;b"\n',
    "processes of one name": "[program:a]\ncommand=/bin/true\nnumprocs=2\n",
    "a folder that is not there": "[program:a]\ncommand=/bin/true\nstdout_logfile=/nowhere/there.log\n",
    "no command": "[program:a]\numask=027\n",
    "a name with a colon": "[program:a:b]\ncommand=/bin/true\n",
    "no program": "[supervisord]\n",
    "no section": "command=/bin/true\n",
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_program_file_is_refused(fault: str, tmp_path: Path) -> None:
    """With a word on why; `validate:` keeps it from being installed."""
    (tmp_path / "bad.ini").write_text(BAD[fault])

    assert check(tmp_path / "bad.ini")


def test_a_good_program_file_is_taken(tmp_path: Path) -> None:
    """Without a word."""
    (tmp_path / "good.ini").write_text("[program:a]\ncommand=/bin/true\n")

    assert check(tmp_path / "good.ini") == ""


LOCKED = """\
plain==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
early==1.1 ; python_full_version < '3.11.3' \\
    --hash=sha256:cc
old==1.2 ; python_full_version < '3.12' \\
    --hash=sha256:dd
old==2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:ee
elsewhere==1.3 ; sys_platform == 'win32' or platform_machine == 'aarch64' \\
    --hash=sha256:ff
"""


@pytest.mark.parametrize(
    ("python", "machine", "names"),
    [
        ("3.11", "x86_64", ["plain==1.0", "early==1.1", "old==1.2"]),
        ("3.12", "x86_64", ["plain==1.0", "old==2.0"]),
        ("3.12", "aarch64", ["plain==1.0", "old==2.0", "elsewhere==1.3"]),
    ],
)
def test_a_release_brings_what_its_hosts_need_whatever_the_controller_is(
    python: str, machine: str, names: list[str]
) -> None:
    """Markers speak of the hosts: any patch release of their Python, and their machine; hashes stay."""
    wanted = BUILD.applying(LOCKED, python, machine)
    assert [line.split()[0] for line in wanted] == names
    assert wanted[0] == "plain==1.0 --hash=sha256:aa --hash=sha256:bb"


def test_a_run_ends_with_the_seconds_of_each_play(tmp_path: Path) -> None:
    """The batches of a play are added up, in the order of the plays."""
    plays = [
        {
            "name": name,
            "hosts": hosts,
            "gather_facts": False,
            "serial": 1,
            "tasks": [{"pause": {"seconds": 1}, "delegate_to": "localhost"}],
        }
        for name, hosts in (("First", "a,b"), ("Second", "a"))
    ]
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "a,b,", "-c", "local", tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "NO_COLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )

    lines = [line.split(maxsplit=1) for line in done.stdout.partition("SECONDS ***")[2].splitlines()[1:] if line]
    assert [name for _, name in lines] == ["First", "Second", "all of it"], done.stdout + done.stderr
    first, second, whole = (float(seconds) for seconds, _ in lines)
    assert first >= 2
    assert second >= 1
    assert whole == pytest.approx(first + second, abs=0.2)


@pytest.mark.parametrize("config", [".ansible-lint", ".yamllint"])
def test_lint_skips_nothing(config: str) -> None:
    """No rule is switched off for everybody, and none in a line."""
    assert not {"skip_list", "warn_list", "exclude_paths"} & set(read(ROOT / config))
    files = [*ROOT.glob("ansible/**/*.yml"), *ROOT.glob("molecule/**/*.yml"), *ROOT.glob("inventory/**/*.yml")]
    assert len(files) > 60
    assert [
        file for file in files if re.search(r"#\s*(noqa|yamllint disable)|skip_ansible_lint", file.read_text("utf-8"))
    ] == []
