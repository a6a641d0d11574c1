"""MoySklad's answers and what becomes of them; the client over real HTTP."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest

from tests.conftest import Vendor
from worker.accounts import Account
from worker.app import App
from worker.errors import Gone, RateLimited, Rejected, Retryable, TaskError, TooLarge, Unauthorized
from worker.limiter import Limiter
from worker.moysklad import PAGE, Answer, Client, decipher, error_of, id_of, item_error, wait_of

ACCOUNT = UUID(int=1)
TOKEN = "token-that-nobody-may-see"
ENTITY = {"meta": {"href": "x"}, "id": "1"}


def errors(*codes: int) -> bytes:
    """The vendor's error list with these codes."""
    return json.dumps({"errors": [{"error": "Нельзя", "code": code} for code in codes]}).encode()


# Reading answers


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, errors(1049), RateLimited),
        (429, errors(1073), RateLimited),
        (429, b"", RateLimited),
        (429, b"<html>", RateLimited),
        (429, b"[]", RateLimited),
        (400, errors(1049), RateLimited),
        (429, errors(1048), Unauthorized),
        (401, errors(1048), Unauthorized),
        (401, errors(1056), Unauthorized),
        (401, b"", Unauthorized),
        (401, b"[]", Unauthorized),
        (403, errors(1061), Unauthorized),
        (403, errors(1016), Unauthorized),
        (403, b"<html>no</html>", Unauthorized),
        (400, errors(30006), Unauthorized),
        (404, errors(1021), Gone),
        (404, b"", Gone),
        (410, b"", Gone),
        (400, errors(1021), Gone),
        (400, errors(2013), Gone),
        (413, b"", TooLarge),
        (413, errors(1044), TooLarge),
        (400, errors(1044), TooLarge),
        (400, errors(2007), TooLarge),
        (504, errors(1088), TooLarge),
        (500, errors(1999), Retryable),
        (500, b"", Retryable),
        (502, b"<html><body>Bad Gateway</body></html>", Retryable),
        (503, errors(1074), Retryable),
        (504, b"", Retryable),
        (400, errors(1065), Retryable),
        (200, b'{"rows": [', Retryable),
        (200, b"<html>login</html>", Retryable),
        (200, b"\xff\xfe", Retryable),
        (400, errors(2001), Rejected),
        (409, errors(1028), Rejected),
        (412, errors(3006), Rejected),
        (412, errors(3006, 3000), Rejected),
        (414, b"", Rejected),
        (415, b"", Rejected),
        (308, b"", Rejected),
        (400, b'{"errors": "none"}', Rejected),
        (400, b'{"errors": [7]}', Rejected),
    ],
)
def test_answers_that_are_errors(status: int, body: bytes, kind: type[TaskError]) -> None:
    """Each status and code is one type of error, whose message names the status or the vendor's words."""
    with pytest.raises(TaskError) as raised:
        decipher(Answer(status, {}, body))

    assert type(raised.value) is kind
    assert str(status) in str(raised.value) or "Нельзя" in str(raised.value)


@pytest.mark.parametrize(
    ("status", "body", "value"),
    [
        (200, b'{"id": 1}', {"id": 1}),
        (201, b"[]", []),
        (200, b"", None),
        (204, b"", None),
        (200, b"[" + json.dumps(ENTITY).encode() + b"]", [ENTITY]),
        (400, b"[" + errors(3006) + b"]", [json.loads(errors(3006))]),
        (412, b"[" + errors(3006) + b",{}]", [json.loads(errors(3006)), {}]),
    ],
)
def test_answers_that_are_values(status: int, body: bytes, value: Any) -> None:
    """An array is the result of each element, also where the status says 400."""
    assert decipher(Answer(status, {}, body)) == value


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-lognex-retry-after": "1500"}, 1.5),
        ({"x-lognex-retry-after": "0"}, 0.0),
        ({"x-lognex-retry-after": "-7"}, 0.0),
        ({"x-lognex-retry-after": "soon"}, 3.0),
        ({"retry-after": "9"}, 3.0),
        ({}, 3.0),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    """Milliseconds as the vendor says; a whole window where it says nothing, as for the parallel limit."""
    error = error_of(429, json.loads(errors(1049))["errors"], headers)

    assert isinstance(error, RateLimited)
    assert (error.wait, wait_of(headers)) == (seconds, seconds)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (ENTITY, None),
        (json.loads(errors(3006)), Rejected),
        (json.loads(errors(1021)), Gone),
        (json.loads(errors(1065)), Retryable),
        (json.loads(errors(1016)), Unauthorized),
        ({"errors": []}, Retryable),
        ({}, Retryable),
        (None, Retryable),
        ("text", Retryable),
    ],
)
def test_elements_of_a_bulk_answer(item: Any, kind: type[TaskError] | None) -> None:
    """An entity, an error, or something to be asked for again."""
    error = item_error(item)

    assert (type(error) if error else None) is kind


def test_a_rejection_keeps_the_vendors_words() -> None:
    """Text, parameter and code of each error are in the message, the codes are data."""
    error = error_of(412, [{"error": "Пусто", "code": 3000, "parameter": "name"}, {"error": "Занято", "code": 3006}])

    assert isinstance(error, Rejected)
    assert str(error) == "Пусто (name) [3000]; Занято [3006]"
    assert (error.status, error.codes) == (412, {3000, 3006})


def test_ids_of_references() -> None:
    """The last part of the href, whatever follows; None for what is none."""
    id = uuid4()
    href = f"https://api.moysklad.ru/api/remap/1.2/entity/product/{id}"

    assert id_of({"meta": {"href": href}}) == id
    assert id_of({"meta": {"href": f"{href}?expand=supplier"}}) == id
    wrong: list[Any] = [None, {}, {"meta": None}, {"meta": {"href": "https://x/y/metadata"}}, "text"]
    assert [id_of(one) for one in wrong] == [None] * 5


# Over HTTP


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None cuts the connection."""


@dataclass
class Site:
    """Answers as told, the last answer for ever, and remembers what it was asked."""

    url: str = ""
    replies: list[Reply | Callable[[Asked], Reply]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def reply(self, asked: Asked) -> Reply:
        """The next answer."""
        self.asked.append(asked)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(asked) if callable(reply) else reply


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of this test's own."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = site.reply(Asked(self.command, parts.path, query, headers, body))
            if reply is None:
                self.close_connection = True
                return
            status, more, data = reply
            self.send_response(status)
            for name, value in (more | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do  # noqa: N815 - the names are the library's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join(10)


class Gate:
    """A limiter that lets everybody through and remembers: who came, and what was paused."""

    def __init__(self) -> None:
        self.passed = 0
        self.pauses: list[float] = []
        self.inside = False
        self.refusal: RateLimited | None = None

    @contextmanager
    def acquire(self, account: Account, *, fresh: bool = False) -> Iterator[None]:
        """Pass, unless there is a refusal."""
        if self.refusal:
            raise self.refusal
        self.passed += 1
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def pause(self, account: Account, wait: float) -> None:
        """Remember."""
        assert not self.inside
        self.pauses.append(wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The limiter of `client`; jitter always takes its lower end, so that nothing is slept."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    return Gate()


@pytest.fixture
def client(site: Site, gate: Gate) -> Iterator[Client]:
    """A client of the site."""
    with made(site, gate) as client:
        yield client


def made(site: Site, gate: Gate, **options: Any) -> Client:
    """A client with options of its own."""
    account = Account(ACCOUNT, "A", "child", "solution", 1, TOKEN)
    return Client(account, site.url, cast(Limiter, gate), **options)


def test_headers(client: Client, site: Site) -> None:
    """What MoySklad wants: gzip, its exact Accept, the token; a content type where there is content."""
    site.replies = [(200, {}, b"{}")]
    client.get("entity/product", filter="archived=true;archived=false")
    client.post("entity/product", [{"name": "Чай"}], repeatable=True)
    client.post("entity/product", b"[1]", repeatable=True)

    get, post, raw = site.asked
    for asked in site.asked:
        assert asked.headers["authorization"] == f"Bearer {TOKEN}"
        assert asked.headers["accept"] == "application/json;charset=utf-8"
        assert asked.headers["accept-encoding"] == "gzip"
        assert asked.headers["user-agent"] == "moysklad-worker"
    assert (get.method, get.path, get.query) == ("GET", "/entity/product", {"filter": "archived=true;archived=false"})
    assert "content-type" not in get.headers
    assert (post.headers["content-type"], post.body.decode()) == ("application/json", '[{"name":"Чай"}]')
    assert raw.body == b"[1]"


def test_a_netrc_replaces_no_token(
    client: Client, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever login the user's own file has for that host."""
    file = tmp_path / "netrc"
    file.write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(file))
    site.replies = [(200, {}, b"{}")]

    client.get("entity/product")

    assert site.asked[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_redirects_are_not_followed(client: Client, site: Site) -> None:
    """The token goes nowhere else."""
    site.replies = [(302, {"Location": f"{site.url}/elsewhere"}, b"")]

    with pytest.raises(Rejected):
        client.get("download/1")

    assert len(site.asked) == 1


@pytest.mark.parametrize("trouble", [None, (502, {}, b"<html>"), (500, {}, b""), (200, {}, b'{"rows": [')])
def test_an_unknown_outcome_is_repeated_only_where_it_does_no_harm(
    client: Client, site: Site, gate: Gate, trouble: Reply
) -> None:
    """GET and repeatable POST three times in all, each through the limiter; another POST once."""
    site.replies = [trouble]
    sent = []
    for send in (
        lambda: client.get("entity/product"),
        lambda: client.post("entity/product", [], repeatable=True),
        lambda: client.post("entity/uom", {}, repeatable=False),
    ):
        site.asked.clear()
        with pytest.raises(Retryable):
            send()
        sent.append(len(site.asked))

    assert sent == [3, 3, 1]
    assert (gate.passed, gate.pauses) == (7, [])


def test_a_repeated_request_brings_the_value(client: Client, site: Site) -> None:
    """Trouble that passes is not seen above."""
    site.replies = [None, (503, {}, b""), (200, {}, b"[1]")]

    assert client.post("entity/product", [], repeatable=True) == [1]
    assert [asked.body for asked in site.asked] == [b"[]"] * 3


@pytest.mark.parametrize(("status", "kind"), [(400, Rejected), (401, Unauthorized), (404, Gone), (413, TooLarge)])
def test_refusals_are_not_repeated(client: Client, site: Site, status: int, kind: type[TaskError]) -> None:
    """They would be refused again, and 200 identical errors a minute get the access switched off."""
    site.replies = [(status, {}, b"")]

    with pytest.raises(kind):
        client.get("entity/product")

    assert len(site.asked) == 1


def test_a_429_makes_the_principal_wait_then_is_repeated(client: Client, site: Site, gate: Gate) -> None:
    """1, 2, 4 seconds, never less than the header says; also for a POST that may not be sent twice."""
    refused = (429, {"X-Lognex-Retry-After": "300"}, errors(1049))
    long = (429, {"X-Lognex-Retry-After": "9500"}, errors(1049))
    site.replies = [refused, refused, long, (200, {}, b"{}")]

    assert client.post("entity/uom", {}, repeatable=False) == {}
    assert (gate.pauses, gate.passed) == ([1.0, 2.0, 9.5], 4)


def test_a_429_that_stays_is_given_up(client: Client, site: Site, gate: Gate) -> None:
    """After 1, 2, 4 and 8 seconds the task is put off; the principal waits once more."""
    site.replies = [(429, {}, errors(1073))]

    with pytest.raises(RateLimited) as raised:
        client.get("entity/product")

    assert gate.pauses == [3.0, 3.0, 4.0, 8.0, 16.0]
    assert raised.value.wait == 16.0


def test_a_long_wait_is_not_slept(client: Client, site: Site, gate: Gate) -> None:
    """A minute to wait: everybody waits, the task is put off at once."""
    site.replies = [(429, {"X-Lognex-Retry-After": "60000"}, errors(1049))]

    with pytest.raises(RateLimited) as raised:
        client.get("entity/product")

    assert (raised.value.wait, gate.pauses, len(site.asked)) == (60.0, [60.0], 1)


def test_a_wait_beyond_the_deadline_is_not_slept(site: Site, gate: Gate) -> None:
    """The batch would be over before."""
    site.replies = [(429, {"X-Lognex-Retry-After": "5000"}, errors(1049))]

    with made(site, gate, deadline=104.0, clock=lambda: 100.0) as client, pytest.raises(RateLimited):
        client.get("entity/product")

    assert (gate.pauses, len(site.asked)) == ([5.0], 1)


def test_the_limiters_own_refusal_pauses_nobody(client: Client, site: Site, gate: Gate) -> None:
    """It is passed on at once: nothing was sent, and the principal's other requests have their turns."""
    site.replies = [(200, {}, b"{}")]
    gate.refusal = RateLimited("wait", 12.0)

    with pytest.raises(RateLimited) as raised:
        client.get("entity/product")

    assert raised.value is gate.refusal
    assert (gate.pauses, site.asked) == ([], [])


def test_the_deadline_bounds_the_wait_for_an_answer(site: Site, gate: Gate) -> None:
    """An answer that does not come is waited for no longer than the task may take, nor asked for again."""
    over = threading.Event()

    def never(_: Asked) -> Reply:
        over.wait(60)
        return None

    site.replies = [never]
    began = time.monotonic()
    try:
        with made(site, gate, deadline=began + 1) as client, pytest.raises(Retryable, match="ReadTimeout"):
            client.get("entity/product")
    finally:
        over.set()

    assert time.monotonic() - began < 50
    assert len(site.asked) == 1


def test_no_answer_at_all(gate: Gate) -> None:
    """Nobody listens there: to be tried again later, said without the token."""
    with (
        made(Site("http://127.0.0.1:1"), gate) as client,
        pytest.raises(Retryable, match="ConnectionError") as raised,
    ):
        client.get("entity/product")

    assert gate.passed == 3
    assert TOKEN not in str(raised.value)


# Lists


def shelf(*ids: int, size: int | None = None) -> Callable[[Asked], Reply]:
    """A list of these rows that says it has `size`."""

    def page(asked: Asked) -> Reply:
        offset, limit = int(asked.query["offset"]), int(asked.query["limit"])
        rows = [{"id": str(id)} for id in ids[offset : offset + limit]]
        return 200, {}, json.dumps({"meta": {"size": len(ids) if size is None else size}, "rows": rows}).encode()

    return page


@pytest.mark.parametrize(("number", "requests"), [(0, 1), (1, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE, 3)])
def test_pages(client: Client, site: Site, number: int, requests: int) -> None:
    """All rows in a stable order, in as few requests as possible."""
    site.replies = [shelf(*range(number))]

    assert [row["id"] for row in client.rows("entity/product", filter="x=1")] == [str(n) for n in range(number)]
    assert [asked.query for asked in site.asked] == [
        {"limit": str(PAGE), "offset": str(n * PAGE), "order": "id", "filter": "x=1"} for n in range(requests)
    ]


@pytest.mark.parametrize(
    "page",
    [shelf(1, 2, size=3), shelf(1, 1), shelf(1, size=0), shelf(size=1)],
    ids=["fewer", "twice", "more", "none"],
)
def test_a_list_that_changed_while_it_was_read(client: Client, site: Site, page: Callable[[Asked], Reply]) -> None:
    """Rows missing or doubled: it has to be read again, later."""
    site.replies = [page]

    with pytest.raises(Retryable, match="the list changed"):
        client.rows("entity/product")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"rows": []}', b'{"rows": [], "meta": {"size": "many"}}'])
def test_what_is_no_list_page(client: Client, site: Site, body: bytes) -> None:
    """Said as such, and to be tried again."""
    site.replies = [(200, {}, body)]

    with pytest.raises(Retryable, match="not a list page"):
        client.rows("entity/product")


# Against the simulated MoySklad, with the real limiter


@pytest.fixture
def live(app: App, simulator: Vendor) -> Iterator[Client]:
    """A client of an account there."""
    made = simulator.control("POST", "/accounts", name="A", tokens=[{"token": TOKEN, "weight": 1}])
    app.accounts.add(UUID(made["id"]), "A", "main", "solution", TOKEN)
    simulator.control("POST", "/seed", account=made["id"], products=5, seed=1, folders=2)
    simulator.control("POST", "/ledger/reset")
    with app.client(UUID(made["id"])) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "requests"), [("drop_before", 2), ("drop_after", 2), ("html", 2), ("wrong_json", 2), ("truncate", 2)]
)
def test_faults_that_pass(live: Client, simulator: Vendor, kind: str, requests: int) -> None:
    """One more request, and the rows are there."""
    simulator.control("POST", "/faults", kind=kind, path="/entity/product", count=1)

    assert len(live.rows("entity/product")) == 5
    assert simulator.control("GET", "/ledger")["requests"] == requests


def test_a_429_is_waited_for(live: Client, simulator: Vendor, app: App) -> None:
    """The request is repeated when the principal may send again, not before."""
    simulator.control("POST", "/faults", kind="status", status=429, delay_ms=200, count=1)
    began = time.monotonic()

    assert len(live.rows("entity/product")) == 5

    assert time.monotonic() - began >= 1
    assert simulator.control("GET", "/ledger")["by_status"] == {"200": 1, "429": 1}


def test_a_revoked_token(live: Client, simulator: Vendor) -> None:
    """Asked once, refused once."""
    simulator.control("POST", f"/accounts/{live.account.id}/tokens", revoke=[TOKEN])

    with pytest.raises(Unauthorized, match="1056"):
        live.get("entity/product")

    assert simulator.control("GET", "/ledger")["by_status"] == {"401": 1}


def test_sync_log_tells_every_request(live: Client, simulator: Vendor, app: App) -> None:
    """REQUEST and RESPONSE with method, path, account, status and milliseconds; the token is nowhere."""
    simulator.control("POST", "/faults", kind="drop_before", path="/entity/product", count=1)
    live.rows("entity/product", filter=f"name={TOKEN[:5]}")

    lines = (app.settings.LOG_DIR / "sync.log").read_text("utf-8").splitlines()
    words = [line.split()[2:] for line in lines]
    assert [line[0] for line in words] == ["REQUEST", "RESPONSE", "REQUEST", "RESPONSE"]
    for line in words:
        told = dict(word.split("=", 1) for word in line[1:])
        assert (told["method"], told["path"]) == ("GET", "entity/product")
        assert told["account"] == str(live.account.id)
        if line[0] == "RESPONSE":
            assert int(told["ms"]) >= 0
            assert told["status"] in ("ConnectionError", "200")
    whole = "\n".join(lines) + (app.settings.LOG_DIR / "worker.log").read_text("utf-8")
    assert TOKEN not in whole
