"""What every test may ask for: a real PostgreSQL, the simulator under contract, accounts known to both.

PostgreSQL is the embedded one unless TEST_DATABASE_URL names a server whose user may create databases.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import requests
from cryptography.fernet import Fernet

from tests import redis_servers
from tests.contract.contract import simulator_under_contract
from tests.redis_servers import RedisServer
from worker import db, telemetry
from worker.app import App
from worker.demo.postgres import EmbeddedPostgres
from worker.links import LinkSettings
from worker.loop import Options
from worker.settings import Settings

_NUMBER = count(1)
_TEMPLATE = "moysklad_worker_template"


@dataclass
class Server:
    """A PostgreSQL server; `url(database)` names one of its databases."""

    url: Callable[[str], str]
    embedded: EmbeddedPostgres | None = None

    def create(self, template: str | None = None) -> str:
        """A new database, empty or a copy of the template; its DATABASE_URL."""
        name = f"moysklad_worker_{os.getpid()}_{next(_NUMBER)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute(f"create database {name}" + (f" template {template}" if template else ""))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        name = urlsplit(url).path.lstrip("/")
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute(f"drop database if exists {name} with (force)")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One PostgreSQL for the session."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield Server(lambda name: urlunsplit(urlsplit(given)._replace(path=f"/{name}")))
        return
    with tempfile.TemporaryDirectory(prefix="moysklad-test-", ignore_cleanup_errors=True) as folder:
        embedded = EmbeddedPostgres(Path(folder))
        embedded.start()
        with psycopg.connect(embedded.url(), autocommit=True) as conn:
            # Nothing here outlives the session; a database for each test is then made three times as fast.
            conn.execute("alter system set fsync = off")
            conn.execute("select pg_reload_conf()")
        try:
            yield Server(embedded.url, embedded)
        finally:
            embedded.close()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """Name of a migrated database to copy."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute(f"drop database if exists {_TEMPLATE} with (force)")
        conn.execute(f"create database {_TEMPLATE}")
    db.migrate(server.url(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the session; who uses it empties it."""
    with redis_servers.one() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[list[RedisServer]]:
    """Three masters for the session."""
    with redis_servers.cluster() as servers:
        yield servers


@pytest.fixture
def database_url(server: Server, template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    url = server.create(template)
    yield url
    server.drop(url)


@pytest.fixture
def empty_database_url(server: Server) -> Iterator[str]:
    """A database of this test's own that nobody has migrated."""
    url = server.create()
    yield url
    server.drop(url)


@dataclass
class Vendor:
    """The simulated MoySklad."""

    url: str
    control: Callable[..., Any]
    violations: list[str]


@pytest.fixture
def simulator() -> Iterator[Vendor]:
    """A simulated MoySklad; at the end nothing it was asked or answered may break the vendor's contract."""
    with simulator_under_contract() as under_contract:
        yield Vendor(under_contract.url, under_contract.control, under_contract.violations)
        assert under_contract.violations == []


@pytest.fixture
def settings(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """Settings for this test's database and, where it asks for one, its simulator."""
    values = {
        "DATABASE_URL": database_url,
        "APP_KEY": Fernet.generate_key().decode(),
        "LOG_DIR": str(tmp_path / "logs"),
    }
    if "simulator" in request.fixturenames:
        values["MOYSKLAD_API_URL"] = request.getfixturevalue("simulator").url
    return Settings.from_env(values)


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    """The wired app."""
    telemetry.configure(settings, console=False)
    with App(settings) as app:
        yield app


@dataclass
class Family:
    """A main account with a catalogue and its linked children, known to the app and to the simulator."""

    app: App
    simulator: Vendor
    main: UUID
    children: list[UUID] = field(default_factory=list)
    tokens: dict[UUID, str] = field(default_factory=dict)

    def add(self, role: str, name: str, link: LinkSettings | None = None) -> UUID:
        """One more account."""
        token = f"token-{uuid4()}"
        made = self.simulator.control("POST", "/accounts", name=name, tokens=[{"token": token, "weight": 1}])
        id = UUID(made["id"])
        self.tokens[id] = token
        self.app.accounts.add(id, name, role, "solution", token)
        if role == "child":
            self.children.append(id)
            self.app.accounts.link(self.main, id, link or LinkSettings(create_price_types=True))
        return id

    def seed(self, products: int, seed: int = 1) -> None:
        """Fill main's catalogue."""
        self.simulator.control("POST", "/seed", account=str(self.main), products=products, seed=seed, folders=12)

    def sync(self, account: UUID | None = None) -> dict[str, Any]:
        """Press the button and work until nothing is due; the run."""
        run, _ = self.app.start_sync(account or self.main, requested_by="test")
        self.work()
        return self.app.runs.get(run)

    def work(self, **options: Any) -> int:
        """One worker, until nothing is there; its exit code."""
        return self.app.worker(Options(**{"stop_when_empty": True, "memory": 4096, **options})).run()

    def due_now(self) -> None:
        """Let the time pass until everything put back for later is due."""
        with self.app.db.connection() as conn:
            conn.execute("update sync_queue set scheduled_at = now() where status = 'pending'")

    def ledger(self) -> dict[str, Any]:
        """What the simulator has seen since the last look."""
        seen: dict[str, Any] = self.simulator.control("GET", "/ledger")
        self.simulator.control("POST", "/ledger/reset")
        return seen

    def difference(self, child: UUID) -> dict[str, int]:
        """missing, extra, different, duplicates of a child, as the simulator sees them; samples when any."""
        diff = self.simulator.control("GET", f"/diff?main={self.main}&child={child}")
        names = ("missing", "extra", "different", "duplicates")
        return {name: diff[name] for name in (*names, *(["samples"] if diff["samples"] else []))}

    def vendor(self, account: UUID, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """Speak to the simulated MoySklad as a person in that account would."""
        response = requests.request(
            method,
            f"{self.simulator.url}/{path}",
            json=body,
            params=params,
            headers={
                "Authorization": f"Bearer {self.tokens[account]}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
            },
            timeout=30,
        )
        response.raise_for_status()
        return response.json() if response.content else None


EQUAL = {"missing": 0, "extra": 0, "different": 0, "duplicates": 0}


@pytest.fixture
def family(app: App, simulator: Vendor) -> Family:
    """A main account with 60 goods and two children."""
    family = Family(app, simulator, uuid4())
    family.main = family.add("main", "Main")
    family.add("child", "First")
    family.add("child", "Second")
    family.seed(60)
    family.ledger()
    return family
