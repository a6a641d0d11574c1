"""MoySklad's answers and what becomes of them; the client over real HTTP."""

from __future__ import annotations

import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import Vendor
from worker.accounts import Account
from worker.app import App
from worker.errors import (
    Gone,
    RateLimited,
    Rejected,
    Retryable,
    Slow,
    TaskError,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from worker.limiter import Limiter
from worker.moysklad import PAGE, Answer, Client, decipher, error_of, id_of, item_error, wait_of

ACCOUNT = UUID(int=1)
TOKEN = "token-that-nobody-may-see"
ENTITY = {"meta": {"href": "x"}, "id": str(UUID(int=1))}


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
        (200, b"[" * 100_000, Retryable),
        (200, b"null", Retryable),
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
        ({"x-lognex-retry-after": "soon"}, 0.0),
        ({"x-lognex-retry-after": "nan"}, 0.0),
        ({"x-lognex-retry-after": "inf"}, 0.0),
        ({"retry-after": "9"}, 0.0),
        ({}, 0.0),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    """Milliseconds as the vendor says; 0 where it says nothing: the limiter knows for how long then."""
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
        ({"meta": {}}, Retryable),
        ({"meta": {}, "id": 7}, Retryable),
        ({"meta": {}, "id": "x"}, Retryable),
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
    """A limiter that lets everybody through and remembers: who came, what was paused, shrunk and observed."""

    def __init__(self) -> None:
        self.passed = 0
        self.pauses: list[float] = []
        self.shrinks = 0
        self.observed: list[tuple[int | None, int | None]] = []
        self.asked: list[dict[str, Any]] = []
        self.series: list[float] = []
        self.inside = False
        self.refusal: RateLimited | None = None

    @contextmanager
    def acquire(self, account: Account, **options: Any) -> Iterator[Gate]:
        """Pass, unless there is a refusal."""
        if self.refusal:
            raise self.refusal
        self.passed += 1
        self.asked.append(options)
        self.inside = True
        try:
            yield self
        finally:
            self.inside = False

    def observe(self, limit: int | None, remaining: int | None) -> None:
        """Remember."""
        assert self.inside
        self.observed.append((limit, remaining))

    def pause(self, account: Account, wait: float) -> float:
        """Remember; the wait is the series' next one, if that is longer."""
        assert not self.inside
        self.pauses.append(wait)
        return max(wait, self.series.pop(0) if self.series else 0.0)

    def shrink(self, account: Account) -> float:
        """Remember."""
        assert not self.inside
        self.shrinks += 1
        return 0.0


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
    """GET and repeatable POST six times in all, each through the limiter; another POST once."""
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

    assert sent == [6, 6, 1]
    assert (gate.passed, gate.pauses) == (13, [])


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
    """The limiter is told what the header says; a POST that may not be sent twice was refused, so it may, too."""
    refused = (429, {"X-Lognex-Retry-After": "300"}, errors(1049))
    silent = (429, {}, errors(1049))
    site.replies = [refused, silent, refused, (200, {}, b"{}")]

    assert client.post("entity/uom", {}, repeatable=False) == {}
    assert (gate.pauses, gate.shrinks, gate.passed) == ([0.3, 0.0, 0.3], 0, 4)


def test_too_many_at_once_makes_nobody_wait(client: Client, site: Site, gate: Gate) -> None:
    """1073: fewer requests at once, and this one again."""
    site.replies = [(429, {}, errors(1073)), (429, {}, errors(1073)), (200, {}, b"{}")]

    assert client.get("entity/uom") == {}
    assert (gate.pauses, gate.shrinks, gate.passed) == ([], 2, 3)


def test_a_429_that_stays_is_given_up(client: Client, site: Site, gate: Gate) -> None:
    """After five of them the task is put off for as long as the limiter says."""
    site.replies = [(429, {}, errors(1049))]
    gate.series = [1.0, 2.0, 4.0, 8.0, 8.5]

    with pytest.raises(RateLimited) as raised:
        client.get("entity/product")

    assert (len(gate.pauses), raised.value.wait, len(site.asked)) == (5, 8.5, 5)


def test_a_long_wait_is_not_slept(client: Client, site: Site, gate: Gate) -> None:
    """A minute to wait: everybody waits, the task is put off at once."""
    site.replies = [(429, {"X-Lognex-Retry-After": "60000"}, errors(1049))]

    with pytest.raises(RateLimited) as raised:
        client.get("entity/product")

    assert (raised.value.wait, gate.pauses, len(site.asked)) == (60.0, [60.0], 1)


def test_the_limiter_is_told_what_the_headers_say(client: Client, site: Site, gate: Gate) -> None:
    """Of every answer that is no 429: the limit and what remains, as they came; None for what is no number."""
    headers = {"X-RateLimit-Limit": "15", "X-RateLimit-Remaining": "7"}
    site.replies = [
        (200, headers, b"{}"),
        (429, headers, errors(1073)),
        (200, {"X-RateLimit-Remaining": "many"}, b"{}"),
        (412, headers, errors(3000)),
    ]
    client.get("entity/uom")
    client.get("entity/uom")
    with pytest.raises(Rejected):
        client.get("entity/uom")

    assert gate.observed == [(15, 7), (None, None), (15, 7)]


def test_urgent_work_goes_first_and_nobody_waits_beyond_his_time(site: Site, gate: Gate) -> None:
    """The limiter is told both; a connection that was used lately is not fresh."""
    site.replies = [(200, {}, b"{}")]
    now = [100.0]
    with made(site, gate, deadline=107.0, clock=lambda: now[0]) as client:
        client.get("entity/uom")
        client.urgent = True
        client.get("entity/uom")
        now[0] = 102.0
        client.get("entity/uom")

    told = [(one["fresh"], one["urgent"], round(one["longest"], 3)) for one in gate.asked]
    assert told == [(True, False, 6.3), (False, True, 6.3), (False, True, 4.3)]


def test_a_task_without_time_sends_nothing(site: Site, gate: Gate) -> None:
    """Not even one request that could not be waited for."""
    with (
        made(site, gate, deadline=100.0, clock=lambda: 100.0) as client,
        pytest.raises(Unreachable, match="not sent"),
    ):
        client.get("entity/uom")

    assert gate.passed == 0


def test_a_wait_beyond_the_deadline_is_not_slept(site: Site, gate: Gate) -> None:
    """The batch would be over before."""
    site.replies = [(429, {"X-Lognex-Retry-After": "5000"}, errors(1049))]

    with made(site, gate, deadline=105.0, clock=lambda: 100.0) as client, pytest.raises(RateLimited):
        client.get("entity/product")

    assert (gate.pauses, len(site.asked)) == ([5.0], 1)  # of which half a second is kept to record the outcome


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
        with made(site, gate, deadline=began + 1) as client, pytest.raises(Slow, match="ReadTimeout"):
            client.get("entity/product")
    finally:
        over.set()

    assert time.monotonic() - began < 50
    assert len(site.asked) == 1


def test_no_answer_at_all(gate: Gate) -> None:
    """Nobody listens there: to be tried again later, said without the token."""
    with (
        made(Site("http://127.0.0.1:1"), gate) as client,
        pytest.raises(Unreachable, match="ConnectionError") as raised,
    ):
        client.get("entity/product")

    assert gate.passed == 6
    assert TOKEN not in str(raised.value)


def test_a_redirect_tells_where_to(client: Client, site: Site) -> None:
    """308 is no answer to what was asked: refused, with the address that would be right, which is not asked."""
    site.replies = [(308, {"Location": f"{site.url}/entity/product/1"}, b"")]

    with pytest.raises(Rejected, match=r"HTTP 308 to http://.*/entity/product/1"):
        client.get("entity/product/x")

    assert len(site.asked) == 1


@pytest.mark.parametrize("value", [b"{}", b"[]", b'[{"meta":{}}]', b'"text"', b"7"])
def test_an_array_that_is_not_as_long_as_what_was_sent(client: Client, site: Site, value: bytes) -> None:
    """Nobody can say whose results these are: repeated where that does no harm, then given up."""
    site.replies = [(200, {}, value)]

    with pytest.raises(Retryable, match="2 elements were sent"):
        client.post_all("entity/product", [b"1", b"2"], repeatable=True)
    with pytest.raises(Retryable):
        client.post_all("entity/uom", [b"1", b"2"], repeatable=False)

    assert [asked.body for asked in site.asked] == [b"[1,2]"] * 7


@pytest.mark.parametrize("where", ["status", "headers", "body", "chunks"])
def test_a_drip_is_cut_off(gate: Gate, where: str) -> None:
    """A byte every 20 ms begins no new patience: after `read_timeout` seconds in all the request is over."""
    with dripping(where) as url:
        began = time.monotonic()
        with made(Site(url), gate, read_timeout=0.4, tries=1) as client, pytest.raises(Slow):
            client.get("entity/product")

    assert time.monotonic() - began < 20  # the drip itself lasts a minute


@pytest.mark.parametrize("drips", [False, True])
def test_tls_is_as_punctual(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drips: bool) -> None:
    """Over an encrypted connection, too: what comes in time is read, what drips is cut off."""
    context = certified(tmp_path, monkeypatch)
    with (
        dripping("body" if drips else "nowhere", context) as url,
        made(Site(url.replace("http://127.0.0.1", "https://localhost")), gate, read_timeout=2, tries=1) as client,
    ):
        if drips:
            with pytest.raises(Slow):
                client.get("entity/product")
        else:
            assert client.get("entity/product") == {"size": 1}
            assert client.get("entity/product") == {"size": 1}


def certified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS, whose certificate for localhost the clients of this test trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def test_a_server_that_takes_nothing_in_is_given_up(gate: Gate) -> None:
    """A body that cannot be sent to its end is bounded like an answer that does not come."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        site = Site(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with made(site, gate, read_timeout=0.4, tries=1) as client, pytest.raises(Slow):
            client.post("entity/product", b"0" * 50_000_000, repeatable=True)

    assert time.monotonic() - began < 20


def test_slow_posts_are_not_sent_again(gate: Gate) -> None:
    """Half of it has better hopes; what could only be asked again, is."""
    with dripping("body") as url, made(Site(url), gate, read_timeout=0.2, tries=3) as client:
        with pytest.raises(Slow):
            client.post("entity/product", b"[]", repeatable=True)
        assert gate.passed == 1
        with pytest.raises(Slow):
            client.get("entity/product")
        assert gate.passed == 4


@contextmanager
def dripping(where: str, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose answer comes byte by byte from `where` on, for a minute; nowhere: it comes at once."""
    parts = {
        "nowhere": (b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"size":1}', b""),
        "status": (b"", b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 3000),
        "headers": (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 3000),
        "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n", b" " * 3000),
        "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 3000),
    }
    at_once, slowly = parts[where]
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), tls.wrap_socket(connection, server_side=True) if tls else connection as connection:
            connection.recv(65536)
            connection.sendall(at_once)
            if not slowly:
                serve_again(connection)
            for n in range(len(slowly)):
                if over.wait(0.02):
                    return
                connection.sendall(slowly[n : n + 1])

    def serve_again(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(at_once)

    def listen(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, args=(server,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


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
    "fault",
    [
        {"kind": "drop_before"},
        {"kind": "drop_after"},
        {"kind": "late", "delay_ms": 50},
        {"kind": "timeout", "delay_ms": 1500},
        {"kind": "drip", "delay_ms": 500},
        {"kind": "html"},
        {"kind": "wrong_json"},
        {"kind": "truncate"},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 503},
    ],
    ids=lambda fault: fault.get("status", fault["kind"]),
)
def test_faults_that_pass(live: Client, simulator: Vendor, fault: dict[str, Any]) -> None:
    """One more request, and the rows are there."""
    simulator.control("POST", "/faults", path="/entity/product", count=1, **fault)
    live.read_timeout = 1

    assert len(live.rows("entity/product")) == 5
    until = time.monotonic() + 30
    while (counted := others(simulator)) + live_ones(fault) != 1 and time.monotonic() < until:
        time.sleep(0.05)  # the ledger counts a silent request when the silence is over
    assert counted + live_ones(fault) == 1


def others(simulator: Vendor) -> int:
    """How many requests the ledger has counted that were not answered well."""
    by_status = simulator.control("GET", "/ledger")["by_status"]
    assert by_status.pop("200") >= 1
    return sum(by_status.values())


def live_ones(fault: dict[str, Any]) -> int:
    """How many of the fault's requests the ledger calls answered well."""
    return int(fault["kind"] in ("drip", "wrong_json", "truncate"))


@pytest.mark.parametrize(
    ("fault", "kind", "made"),
    [
        ({"kind": "drop_before"}, Retryable, 0),
        ({"kind": "drop_after"}, Retryable, 1),
        ({"kind": "timeout", "delay_ms": 3000}, Slow, 0),
        ({"kind": "drip", "delay_ms": 500}, Slow, 1),
        ({"kind": "html", "status": 502, "effect": True}, Retryable, 1),
        ({"kind": "wrong_json"}, Retryable, 1),
        ({"kind": "truncate"}, Retryable, 1),
        ({"kind": "status", "status": 500}, Retryable, 0),
        ({"kind": "status", "status": 504, "effect": True}, TooLarge, 1),
        ({"kind": "status", "status": 413}, TooLarge, 0),
        ({"kind": "status", "status": 401}, Unauthorized, 0),
        ({"kind": "redirect"}, Rejected, 0),
    ],
    ids=lambda value: value.get("status", value["kind"]) if isinstance(value, dict) else "",
)
def test_a_create_without_key_is_sent_once(
    live: Client, simulator: Vendor, fault: dict[str, Any], kind: type[TaskError], made: int
) -> None:
    """Whether it took effect or not: who asked is told what kind of trouble it was, nothing is made twice."""
    simulator.control("POST", "/faults", method="POST", **fault)
    live.read_timeout = 1

    with pytest.raises(kind) as raised:
        live.post("entity/uom", [{"name": "ящик"}], repeatable=False)

    assert type(raised.value) is kind
    simulator.control("DELETE", "/faults")
    assert len([row for row in live.rows("entity/uom") if row["name"] == "ящик"]) == made


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


def test_a_refused_token_that_was_replaced_meanwhile(live: Client, simulator: Vendor, app: App) -> None:
    """The task goes on at once, with the new one; the account is not parked for the old one's refusal, which is
    met once."""
    simulator.control("POST", f"/accounts/{live.account.id}/tokens", revoke=[TOKEN])
    app.accounts.set_token(live.account.id, "newer")

    with pytest.raises(RateLimited, match="a newer one has come") as raised:
        live.get("entity/product")

    assert raised.value.wait == 0
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
