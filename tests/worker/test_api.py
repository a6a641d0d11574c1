"""The HTTP API: who may ask, what every route answers, and how the process serves and ends."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from fastapi.testclient import TestClient

from tests.conftest import Family
from worker import api
from worker.app import App
from worker.db import migrations
from worker.errors import ConfigError
from worker.settings import Settings

TOKEN = "Qm9yaW5nLXRva2Vu"
PASSWORD = "pa55-of-postgresql"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
ID = "8d0fa0a4-1d7c-11e4-8c21-0002a5d5c51b"
ROUTES = [
    ("POST", f"/api/sync/{ID}/products/all"),
    ("GET", f"/api/runs/{ID}"),
    ("GET", "/api/runs"),
    ("GET", "/api/queue"),
    ("GET", "/api/accounts"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]
COUNTS = ("pending", "processing", "completed", "failed", "created", "updated", "unchanged", "skipped")
ROOT = Path(__file__).parents[2]


def client_of(app: App, *, token: str | None = None, host: str = "127.0.0.1:8080") -> TestClient:
    """Speaks to the API of that app, which has that API_TOKEN."""
    values = {name: value for name, value in env_of(app.settings).items() if name != "API_TOKEN"}
    with_token = Settings.from_env(values | ({"API_TOKEN": token} if token else {}))
    app.settings = with_token
    return TestClient(api.create_api(app), base_url=f"http://{host}", headers={"Authorization": f"Bearer {token}"})


def env_of(settings: Settings) -> dict[str, str]:
    """The environment that gives these settings, secrets included."""
    values = {name: getattr(settings, name) for name in Settings.names()}
    return {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        for name, value in values.items()
        if value is not None
    }


@pytest.fixture
def client(app: App) -> Iterator[TestClient]:
    """One that has the token."""
    with client_of(app, token=TOKEN) as client:
        yield client


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[TestClient]:
    """One that has none, at a service that wants one; whoever is refused does not reach the database."""
    with app_without_postgresql(tmp_path) as app, client_of(app, token=TOKEN) as client:
        del client.headers["Authorization"]
        yield client


@pytest.fixture
def neighbour(app: App) -> Iterator[TestClient]:
    """One on this machine, at a service without a token."""
    with client_of(app) as client:
        del client.headers["Authorization"]
        yield client


@contextmanager
def app_without_postgresql(tmp_path: Path) -> Iterator[App]:
    """An app whose PostgreSQL refuses connections."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        settings = Settings.from_env(
            {
                "DATABASE_URL": f"postgresql://worker:{PASSWORD}@127.0.0.1:{unheard.getsockname()[1]}/worker",
                "APP_KEY": "0" * 43 + "=",
                "LOG_DIR": str(tmp_path / "logs"),
                "CONNECT_TIMEOUT": "0.3",
            }
        )
        with App(settings) as app:
            yield app


def add(app: App, role: str, name: str = "An account") -> UUID:
    """An account known to the app only."""
    id = uuid4()
    app.accounts.add(id, name, role, "solution", f"token-of-{id}")
    return id


def linked(app: App) -> tuple[UUID, UUID]:
    """A main account and its child."""
    main, child = add(app, "main", "Main"), add(app, "child", "Child")
    app.accounts.link(main, child)
    return main, child


# --- health ---


def test_health_tells_that_it_can_work(client: TestClient) -> None:
    """Open to everyone: ok, the schema's version, how many workers are alive and how old the oldest task is."""
    del client.headers["Authorization"]

    answer = client.get("/health")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "schema": migrations()[-1][0], "workers": 0, "oldest_seconds": None}


def test_health_tells_the_age_of_the_oldest_task(app: App, client: TestClient) -> None:
    """What waits makes itself felt."""
    main, _ = linked(app)
    app.start_sync(main, requested_by="test")

    assert 0 <= client.get("/health").json()["oldest_seconds"] < 60


def test_health_without_postgresql(tmp_path: Path) -> None:
    """503 and a reason, without the password."""
    with app_without_postgresql(tmp_path) as app, client_of(app, token=TOKEN) as client:
        answer = client.get("/health")

    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "PostgreSQL does not answer" in answer.json()["reason"]
    assert PASSWORD not in answer.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("delete from schema_migrations where version > 1", "run `moysklad-worker migrate`"),
        ("insert into schema_migrations (version, name, kind) values (9999, 'later', 'contract')", "or a newer one"),
        ("drop table schema_migrations", "run `moysklad-worker migrate`"),
        ("alter table workers rename to labourers", "run `moysklad-worker migrate`"),
    ],
)
def test_health_with_an_alien_schema(app: App, client: TestClient, change: str, reason: str) -> None:
    """An older, a newer, an empty, a damaged database: 503 and what to do."""
    with app.db.connection() as conn:
        conn.execute(change)

    answer = client.get("/health")

    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert reason in answer.json()["reason"]


# --- the button ---


def test_sync_all_starts_a_run(app: App, client: TestClient) -> None:
    """202 with the run and where to look at it."""
    main, _ = linked(app)

    answer = client.post(f"/api/sync/{main}/products/all")

    assert answer.status_code == 202
    run = answer.json()["run"]
    url = f"/api/runs/{run}"
    assert answer.json() == {"run": run, "joined": False, "account": str(main), "url": url}
    assert answer.headers["Location"] == url
    assert client.get(url).json()["requested_by"] == "api"


def test_a_second_press_joins(app: App, client: TestClient) -> None:
    """The same run, told to be joined; so for the child that main's run covers; nothing is enqueued twice."""
    main, child = linked(app)
    run = client.post(f"/api/sync/{main}/products/all").json()["run"]

    seconds = [client.post(f"/api/sync/{id}/products/all") for id in (main, child)]

    assert [answer.status_code for answer in seconds] == [202, 202]
    assert [(answer.json()["run"], answer.json()["joined"]) for answer in seconds] == [(run, True), (run, True)]
    assert client.get("/api/queue").json()["totals"]["pending"] == 1


def test_sync_of_an_unknown_account(client: TestClient) -> None:
    """404 and which accounts there are."""
    answer = client.post(f"/api/sync/{ID}/products/all")

    assert answer.status_code == 404
    assert answer.json() == {"error": f"there is no account {ID}; `accounts list` shows those known"}


@pytest.mark.parametrize("role", ["main", "child"])
def test_sync_of_an_account_without_a_link(app: App, client: TestClient, role: str) -> None:
    """409 and how to link it."""
    id = add(app, role)

    answer = client.post(f"/api/sync/{id}/products/all")

    assert answer.status_code == 409
    assert f"{role} account {id} has no" in answer.json()["error"]
    assert "accounts link" in answer.json()["error"]


@pytest.mark.parametrize("word", ["42", "not-a-uuid", f"{ID}x"])
def test_sync_of_what_is_no_uuid(client: TestClient, word: str) -> None:
    """422, what was sent, what an id looks like and where to find one."""
    answer = client.post(f"/api/sync/{word}/products/all")

    assert answer.status_code == 422
    assert answer.json()["error"] == (
        f"accountId {word!r} is not a UUID such as {ID}; /api/accounts lists the accounts"
    )


# --- runs ---


def test_a_run_under_way_and_done(family: Family) -> None:
    """Status and counts of a run from its start to its end."""
    client = client_of(family.app, token=TOKEN)
    url = client.post(f"/api/sync/{family.main}/products/all").json()["url"]

    before = client.get(url).json()
    family.work()
    after = client.get(url).json()

    assert (before["status"], before["finished_at"], before["problems"]) == ("running", None, [])
    assert before["counts"] == dict.fromkeys(COUNTS, 0) | {"pending": 1}
    assert (after["status"], after["account_id"], after["problems"]) == ("completed", str(family.main), [])
    assert after["finished_at"] > after["created_at"]
    assert after["counts"]["created"] == 120
    assert (after["counts"]["pending"], after["counts"]["failed"]) == (0, 0)
    assert client.get("/api/runs").json()[0]["counts"] == after["counts"]


def test_a_run_with_failures(family: Family) -> None:
    """`failed`, and each problem with account, good and reason; the failure is in the queue's last failures too."""
    child = family.children[0]
    fault = {"kind": "item_error", "method": "POST", "items": [3], "code": 3000, "path": "/entity/product"}
    family.simulator.control("POST", "/faults", **fault, account=str(child), count=1)
    run = family.sync()
    client = client_of(family.app, token=TOKEN)

    seen = client.get(f"/api/runs/{run['id']}").json()

    assert seen["status"] == "failed"
    assert (seen["counts"]["failed"], seen["counts"]["created"]) == (1, 119)
    (problem,) = seen["problems"]
    assert set(problem) == {
        "account_id", "entity_type", "entity_id", "operation", "status", "result", "attempts", "error"
    }  # fmt: skip
    assert (problem["account_id"], problem["status"]) == (str(child), "failed")
    assert "3000" in problem["error"]
    assert client.get("/api/runs").json()[0]["status"] == "failed"
    (failure,) = client.get("/api/queue").json()["failures"]
    assert (failure["entity_id"], failure["error"]) == (problem["entity_id"], problem["error"])


def test_a_run_that_waits_for_an_account(family: Family) -> None:
    """Over for all but the parked account: `waiting`, with what is pending."""
    family.app.accounts.park(family.children[1], "its token is refused")
    run = family.sync()

    seen = client_of(family.app, token=TOKEN).get(f"/api/runs/{run['id']}").json()

    assert seen["status"] == "waiting"
    assert (seen["counts"]["pending"], seen["counts"]["created"]) == (1, 60)


def test_an_unknown_run(client: TestClient) -> None:
    """404, and 422 for what is no UUID."""
    unknown, wrong = client.get(f"/api/runs/{ID}"), client.get("/api/runs/latest")

    assert (unknown.status_code, wrong.status_code) == (404, 422)
    assert unknown.json()["error"] == f"there is no run {ID}; `runs` lists the newest"
    assert "runId 'latest' is not a UUID" in wrong.json()["error"]
    assert "/api/runs lists the newest runs" in wrong.json()["error"]


def test_the_newest_runs(app: App, client: TestClient) -> None:
    """Newest first, of all accounts or of one, at most `limit`; counts are null while under way."""
    families = [linked(app) for _ in range(3)]
    runs = [client.post(f"/api/sync/{main}/products/all").json()["run"] for main, _ in families]

    everyone = client.get("/api/runs").json()
    of_one = client.get("/api/runs", params={"account": str(families[0][0])}).json()
    of_none = client.get("/api/runs", params={"account": ID}).json()

    assert [run["id"] for run in everyone] == runs[::-1]
    assert {(run["status"], run["counts"]) for run in everyone} == {("running", None)}
    assert [run["id"] for run in of_one] == [runs[0]]
    assert of_none == []
    assert [run["id"] for run in client.get("/api/runs?limit=2").json()] == runs[:0:-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=many", "account=42"])
def test_runs_asked_wrongly(client: TestClient, query: str) -> None:
    """422, naming the parameter and its value."""
    name, _, value = query.partition("=")

    answer = client.get(f"/api/runs?{query}")

    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"{name} {value!r} ")


# --- queue and accounts ---


def test_the_queue(family: Family) -> None:
    """Totals, queues, accounts by name, workers and what no worker listens to."""
    client = client_of(family.app, token=TOKEN)
    client.post(f"/api/sync/{family.main}/products/all")

    seen = client.get("/api/queue").json()

    assert set(seen) == {"totals", "queues", "accounts", "workers", "failures", "unheard", "paused", "parked"}
    assert seen["totals"] == {"pending": 1, "processing": 0, "completed": 0, "failed": 0}
    assert [(queue["queue"], queue["pending"]) for queue in seen["queues"]] == [("default", 1)]
    assert [(account["name"], account["pending"]) for account in seen["accounts"]] == [("Main", 1)]
    assert (seen["workers"], seen["failures"], seen["unheard"]) == ([], [], ["default"])


def test_steering_the_queue(family: Family) -> None:
    """Tasks are seen, cancelled and retried; a queue and an account are paused and go on."""
    client = client_of(family.app, token=TOKEN)
    client.post(f"/api/sync/{family.main}/products/all")
    (task,) = client.get("/api/tasks?status=pending").json()
    account = str(family.children[0])

    assert client.post("/api/queue/pause", json={"queue": "def*", "reason": "why"}).json() == {"paused": "def*"}
    assert client.post("/api/queue/pause", json={"account": account}).json() == {"paused": account}
    seen = client.get("/api/queue").json()
    assert [(row["queue"], row["reason"]) for row in seen["paused"]] == [("def*", "why")]
    assert [(row["account"], row["reason"]) for row in seen["parked"]] == [(account, "paused through the API")]
    assert family.app.queue.claim(["*"], 1) is None
    assert client.post("/api/queue/resume", json={"queue": "def*"}).json() == {"resumed": "def*"}
    assert client.post("/api/queue/resume", json={"account": account}).json() == {"resumed": account}
    assert client.post("/api/queue/cancel", json={"ids": [task["id"]]}).json() == {"cancelled": 1, "processing": 0}
    assert client.get(f"/api/tasks/{task['id']}").json()["history"][0]["how"] == "cancel"
    assert client.post("/api/queue/retry", json={}).json() == {"retried": 0}
    assert client.post("/api/queue/retry", json={"error_class": "Cancelled"}).json() == {"retried": 1}
    assert client.post("/api/queue/restart").json() == {"workers": []}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("cancel", {}, 400),
        ("cancel", {"idz": [1]}, 422),
        ("retry", {"since": "soon"}, 422),
        ("pause", {}, 400),
        ("pause", {"account": str(UUID(int=5))}, 404),
        ("resume", {"queue": "default"}, 404),
        ("resume", {}, 400),
    ],
)
def test_steering_without_saying_what(client: TestClient, path: str, body: dict[str, Any], status: int) -> None:
    """Refused with a sentence, and nothing is done."""
    answer = client.post(f"/api/queue/{path}", json=body)

    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert client.get("/api/tasks/1").status_code == 404


def test_accounts_without_secrets(app: App, client: TestClient) -> None:
    """Ids, names, roles, links and why one is parked; neither the tokens nor what they are kept as."""
    main, child = linked(app)
    app.accounts.park(child, "its token is refused")

    answer = client.get("/api/accounts")

    assert sorted(answer.json(), key=lambda account: str(account["name"])) == [
        {
            "id": str(child), "name": "Child", "role": "child", "children": [], "mains": [str(main)],
            "parked_reason": "its token is refused",
        },
        {
            "id": str(main), "name": "Main", "role": "main", "children": [str(child)], "mains": [],
            "parked_reason": None,
        },
    ]  # fmt: skip
    with app.db.connection() as conn:
        kept = [row["token"] for row in conn.execute("select token from accounts")]
    assert [secret for secret in (*kept, "token-of-") if secret in answer.text] == []


# --- who may ask ---


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "send the header"),
        ("", "is not this service's"),
        (f"Bearer {TOKEN}x", "is not this service's"),
        ("Bearer", "is not this service's"),
        ("Bearer ключ", "is not this service's"),
        (f"Basic {TOKEN}", "is not this service's"),
        (TOKEN, "is not this service's"),
    ],
)
def test_without_the_right_token(stranger: TestClient, given: str | None, sentence: str) -> None:
    """401 with WWW-Authenticate, whether the route exists or not, and it says what to send."""
    headers = {} if given is None else {"Authorization": given.encode()}
    routes = [*ROUTES, ("GET", "/nowhere"), ("DELETE", "/api/runs"), ("GET", "/health/")]

    answers = [stranger.request(method, path, headers=headers) for method, path in routes]

    assert {(answer.status_code, answer.headers["WWW-Authenticate"]) for answer in answers} == {(401, "Bearer")}
    assert all(sentence in answer.json()["error"] and "API_TOKEN" in answer.json()["error"] for answer in answers)


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN}"])
def test_with_the_right_token(client: TestClient, header: str) -> None:
    """Whoever has it gets through, from anywhere: a browser cannot send it without knowing it."""
    headers = {"Authorization": header, "Host": "sync.example.org", "Origin": "https://elsewhere.example"}

    answers = [client.request(method, path, headers=headers) for method, path in ROUTES]

    assert [answer.status_code for answer in answers] == [404, 404, 200, 200, 200, 200, 200]


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "127.0.0.1", "localhost:8080", "[::1]:8080", "127.8.9.10"])
def test_without_a_token_this_machine_may_ask(neighbour: TestClient, host: str) -> None:
    """By any of its loopback names, also to press the button on the page there."""
    headers = {"Host": host, "Origin": f"http://{host}"}

    answers = [neighbour.request(method, path, headers=headers) for method, path in [*ROUTES, ("GET", "/")]]

    assert {answer.status_code for answer in answers} <= {200, 404}


@pytest.mark.parametrize("host", ["sync.example.org", "127.0.0.1.nip.example:8080", "192.168.1.5", "", "[::1"])
def test_without_a_token_a_foreign_host_name_may_not(tmp_path: Path, host: str) -> None:
    """A name that was made to point here: 400, and nothing is told."""
    with app_without_postgresql(tmp_path) as app, client_of(app) as client:
        answers = [client.get(path, headers={"Host": host}) for path in ("/", "/health", "/api/accounts")]

    sentence = f"host {host!r} is not this machine: set API_TOKEN, or ask for 127.0.0.1 or localhost"
    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(400, sentence)] * 3


def test_without_a_token_a_foreign_page_may_not_press(app: App, neighbour: TestClient) -> None:
    """403, and nothing is started."""
    main, _ = linked(app)
    origins = ["https://elsewhere.example", "http://127.0.0.1:9999", "null", "http://[::1", ""]

    answers = [neighbour.post(f"/api/sync/{main}/products/all", headers={"Origin": origin}) for origin in origins]

    assert [answer.status_code for answer in answers] == [403] * 5
    for origin, answer in zip(origins, answers, strict=True):
        assert f"origin {origin!r} is not this page" in answer.json()["error"]
    assert app.runs.newest() == []


# --- the page ---


def test_the_page_may_run_its_own_script_only(stranger: TestClient) -> None:
    """Its policy allows exactly its script and its style, by their hashes, and asking this service."""
    answer = stranger.get("/")

    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "script-src": _hash_of("script", answer.text),
        "style-src": _hash_of("style", answer.text),
        "frame-ancestors": "'none'",
    }
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert re.findall(r"\sstyle=|\son\w+=|javascript:", answer.text) == []


def _hash_of(tag: str, html: str) -> str:
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- every answer ---


def test_no_secret_in_any_answer(family: Family) -> None:
    """No token, key or password in any body or header, of whatever route, with or without an error."""
    app = family.app
    fault = {"kind": "status", "status": 401, "path": "/entity/product", "account": str(family.children[0])}
    family.simulator.control("POST", "/faults", **fault, count=5)
    run = family.sync()
    client = client_of(app, token=TOKEN)
    with app.db.connection() as conn:
        kept = [row["token"] for row in conn.execute("select token from accounts")]
    secrets = [TOKEN, app.settings.APP_KEY.get_secret_value(), *family.tokens.values(), *kept]

    answers = [client.request(method, path) for method, path in [*ROUTES, ("GET", "/"), ("GET", "/health")]]
    answers += [client.get(f"/api/runs/{run['id']}"), client.post(f"/api/sync/{family.main}/products/all")]
    answers += [client.get("/api/runs?limit=x"), client.get("/nowhere"), client.delete("/api/runs")]
    answers += [client.get("/api/accounts", headers={"Authorization": "Bearer wrong"})]

    told = "\n".join(f"{answer.headers}\n{answer.text}" for answer in answers)
    assert [secret for secret in secrets if secret in told] == []


def test_nothing_is_kept_or_guessed(client: TestClient) -> None:
    """No answer may be cached, or taken for something else than it says."""
    paths = ["/", "/health", "/api/accounts", f"/api/runs/{ID}", "/nowhere"]
    answers = [client.get(path) for path in paths] + [client.get("/api/queue", headers={"Authorization": "no"})]

    kept = {(answer.headers["Cache-Control"], answer.headers["X-Content-Type-Options"]) for answer in answers}
    assert kept == {("no-store", "nosniff")}


def test_an_unknown_path_and_a_wrong_method(client: TestClient) -> None:
    """404 and 405 with a sentence, the latter with the methods there are."""
    unknown, wrong = client.get("/nowhere"), client.delete("/api/queue")

    assert (unknown.status_code, unknown.json()) == (
        404,
        {"error": "GET /nowhere: Not Found; /openapi.json lists the routes"},
    )
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "GET")
    assert wrong.json()["error"].startswith("DELETE /api/queue: Method Not Allowed")


@pytest.mark.parametrize(("method", "path"), ROUTES[:-1])
def test_without_postgresql(tmp_path: Path, method: str, path: str) -> None:
    """503 and a sentence without the password."""
    with app_without_postgresql(tmp_path) as app, client_of(app, token=TOKEN) as client:
        answer = client.request(method, path)

    assert answer.status_code == 503
    assert answer.json() == {
        "error": "PostgreSQL does not answer; ask again in a few seconds, /health tells when it is back"
    }
    assert PASSWORD not in str(answer.headers)


@pytest.mark.parametrize(("method", "path"), [*ROUTES[1:5]])
def test_on_an_empty_database(empty_database_url: str, settings: Settings, method: str, path: str) -> None:
    """503 and the command that mends it."""
    with App(Settings.from_env(env_of(settings) | {"DATABASE_URL": empty_database_url})) as app:
        answer = client_of(app, token=TOKEN).request(method, path)

    assert answer.status_code == 503
    assert answer.json() == {
        "error": "the database's schema does not fit this release: run `moysklad-worker migrate`"
    }


def test_a_fault_of_the_service(app: App, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with a sentence that tells nothing of the inside; the log has it, without the secret in it."""

    def fail() -> None:
        raise RuntimeError("password=hunter2 and more")

    monkeypatch.setattr(app.accounts, "overview", fail)

    answer = client.get("/api/accounts")

    assert answer.status_code == 500
    assert answer.json() == {"error": "this is a fault of the service; its log tells more under api.crash"}
    assert answer.headers["Cache-Control"] == "no-store"
    log = (app.settings.LOG_DIR / "worker.log").read_text()
    assert "api.crash path=/api/accounts" in log
    assert "RuntimeError: password=***" in log
    assert "hunter2" not in log


def test_every_route_is_described(client: TestClient) -> None:
    """/openapi.json lists what there is."""
    routes = {
        (method.upper(), path)
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }

    assert routes == {
        ("GET", "/health"),
        ("POST", "/api/sync/{accountId}/products/all"),
        ("GET", "/api/runs/{runId}"),
        ("GET", "/api/runs"),
        ("GET", "/api/queue"),
        ("GET", "/api/accounts"),
        ("GET", "/metrics"),
        ("GET", "/api/tasks"),
        ("GET", "/api/tasks/{taskId}"),
        ("POST", "/api/queue/retry"),
        ("POST", "/api/queue/cancel"),
        ("POST", "/api/queue/pause"),
        ("POST", "/api/queue/resume"),
        ("POST", "/api/queue/restart"),
    }


# --- the process ---


def test_a_busy_port(app: App) -> None:
    """ConfigError, naming address and port and what to do."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        app.settings = Settings.from_env(env_of(app.settings) | {"API_PORT": str(port)})

        with pytest.raises(ConfigError, match=f"API_HOST '127.0.0.1', API_PORT {port}: Address already in use"):
            api.serve(app)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "192.0.2.1"])
def test_an_address_that_is_not_ours(app: App, host: str) -> None:
    """ConfigError, naming it."""
    app.settings = Settings.from_env(env_of(app.settings) | {"API_HOST": host, "API_TOKEN": TOKEN})

    with pytest.raises(ConfigError, match=re.escape(f"cannot listen on API_HOST {host!r}")):
        api.serve(app)


def test_a_port_file_that_cannot_be_written(app: App, tmp_path: Path) -> None:
    """ConfigError, naming the file."""
    app.settings = Settings.from_env(env_of(app.settings) | {"API_PORT": "0"})
    file = tmp_path / "no" / "such" / "folder"

    with pytest.raises(ConfigError, match=f"cannot write {re.escape(str(file))}: No such file or directory"):
        api.serve(app, port_file=file)


@contextmanager
def served(settings: Settings, port_file: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """`moysklad-worker serve` as a process that accepts connections."""
    command = [sys.executable, "-m", "worker", "serve", "--port-file", str(port_file)]
    env = os.environ | env_of(settings) | {"API_PORT": "0"} | environ
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while not port_file.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends(settings: Settings, tmp_path: Path, end: signal.Signals) -> None:
    """On a free port, told in the file, with the token; the signal ends it with code 0, client connected or not."""
    port_file = tmp_path / "port"
    with served(settings, port_file, API_TOKEN=TOKEN) as process, requests.Session() as session:
        url = f"http://127.0.0.1:{port_file.read_text()}"
        health = session.get(f"{url}/health", timeout=10)
        refused = session.get(f"{url}/api/accounts", timeout=10)
        accounts = session.get(f"{url}/api/accounts", headers=RIGHT, timeout=10)
        process.send_signal(end)

        assert process.wait(timeout=15) == 0
        assert process.stderr is not None
        log = process.stderr.read()

    assert (health.status_code, refused.status_code, accounts.status_code) == (200, 401, 200)
    assert "Server" not in health.headers
    assert accounts.json() == []
    assert "api.start host=127.0.0.1" in log
    assert "api.stop" in log
    assert TOKEN not in log
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["port"]


def test_presses_at_once_make_one_run(family: Family, tmp_path: Path) -> None:
    """Twenty people press at the same moment: one run is new, all others join it."""
    port_file = tmp_path / "port"
    with served(family.app.settings, port_file, API_TOKEN=TOKEN):
        url = f"http://127.0.0.1:{port_file.read_text()}/api/sync/{family.main}/products/all"
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(requests.post, url, headers=RIGHT, timeout=30) for _ in range(20)]
        answers = [one.result().json() for one in asked]

    assert len(answers) == 20
    assert len({answer["run"] for answer in answers}) == 1
    assert [answer["joined"] for answer in answers].count(False) == 1
    assert family.app.monitor.snapshot()["totals"]["pending"] == 1
