"""Who is let in, and with which headers (md/_general.md, md/_restrictions.md, md/_errors.md)."""

import base64
import json

import pytest


def basic(login, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}


@pytest.mark.parametrize("header", [None, "Bearer nobody", "Basic bm9ib2R5OngK", "Basic ???", "Digest x"])
def test_unknown_credentials_are_401(main, header):
    """Without a known token or login the answer is 401 with code 1056."""
    answer = main.ask("GET", "/entity/uom", headers={"Authorization": header})

    assert answer.status == 401
    assert answer.codes == [1056]


@pytest.mark.parametrize("encoding", [None, "identity", "br"])
def test_without_gzip_the_answer_is_415_and_empty(main, encoding):
    """Accept-Encoding must name gzip; the refusal has no body at all."""
    answer = main.ask("GET", "/entity/uom", headers={"Accept-Encoding": encoding or "identity"})

    assert answer.status == 415
    assert answer.body is None


def test_large_answers_are_gzipped(main):
    """What is larger than a kilobyte comes compressed."""
    assert main.ask("GET", "/entity/uom").headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in main.ask("GET", "/context/companysettings/pricetype").headers


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "application/json;charset=cp1251"])
def test_other_accept_is_1062(main, accept):
    """Only JSON can be accepted."""
    answer = main.ask("GET", "/entity/uom", headers={"Accept": accept})

    assert answer.status == 400
    assert answer.codes == [1062]


@pytest.mark.parametrize("accept", ["application/json", "application/json; charset=utf-8"])
def test_json_accept_is_let_in(sim, main, accept):
    """All spellings of JSON that the vendor's own clients send."""
    assert main.ask("GET", "/entity/uom", headers={"Accept": accept}).status == 200
    sim.violations.clear()  # the description knows fewer spellings than the server


def test_body_must_be_json(main):
    """Content-Type other than JSON is 415, a body that is no JSON is 2001, one that is a number 2005."""
    wrong_type = main.ask("POST", "/entity/uom", data=b"{}", headers={"Content-Type": "text/plain"})
    assert (wrong_type.status, wrong_type.codes) == (415, [1037])

    assert main.ask("POST", "/entity/uom", data=b"{").codes == [2001]
    assert main.ask("POST", "/entity/uom", data=b'{"name": NaN}').codes == [2001]
    assert main.ask("POST", "/entity/uom", data=b"3").codes == [2005]


def test_nesting_deeper_than_10_is_2006(main):
    """Ten levels pass the check, eleven do not, a thousand do no harm."""
    deep = json.dumps({"name": "x", "attributes": json.loads("[" * 10 + "]" * 10)})
    assert main.ask("POST", "/entity/product", data=deep.encode()).codes == [2006]

    endless = b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert main.ask("POST", "/entity/product", data=endless).codes[0] in (2001, 2006)


def test_headers_with_url_beyond_8_kb_are_414(main):
    """The limit counts URL and headers together."""
    answer = main.ask("GET", "/entity/product?filter=" + "externalCode=" + "x" * 8200)

    assert answer.status == 414


def test_body_beyond_10_mb_is_1044(main):
    """The stricter of the vendor's two figures holds."""
    body = b'[{"name":"' + b"x" * (10 * 1024 * 1024) + b'"}]'

    answer = main.ask("POST", "/entity/product", data=body)

    assert (answer.status, answer.codes) == (413, [1044])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, 1002),
        ("GET", "/entity/product/x/y/z", 404, 1002),
        ("GET", "/entity/spaceship", 404, 1005),
        ("GET", "/entity/product/00000000-0000-4000-8000-000000000000", 404, 1021),
        ("PATCH", "/entity/product", 405, 1039),
        ("PUT", "/entity/product", 405, 1039),
    ],
)
def test_unknown_places(main, method, path, status, code):
    """Paths, types, ids and methods that do not exist each have their code."""
    answer = main.ask(method, path)

    assert (answer.status, answer.codes) == (status, [code])


def test_basic_login_and_new_token(sim, open_account):
    """A login works by itself and can fetch a token; a new token revokes the earlier one of that user."""
    account = open_account("main", login="admin@shop", password="secret")
    login = basic("admin@shop", "secret")
    assert account.ask("GET", "/entity/uom", headers=login).status == 200
    assert account.ask("GET", "/entity/uom", headers=basic("admin@shop", "wrong")).status == 401

    first = account.ask("POST", "/security/token", headers=login).body["access_token"]
    assert account.ask("GET", "/entity/uom", headers={"Authorization": f"Bearer {first}"}).status == 200
    second = account.ask("POST", "/security/token", headers=login).body["access_token"]

    assert account.ask("GET", "/entity/uom", headers={"Authorization": f"Bearer {first}"}).status == 401
    assert account.ask("GET", "/entity/uom", headers={"Authorization": f"Bearer {second}"}).status == 200
    assert account.ask("GET", "/entity/uom").status == 200
    assert account.ask("POST", "/security/token").status == 401


def test_tokens_choose_the_account(main, child):
    """Two tokens see two catalogues."""
    main.post("/entity/product", {"name": "Бананы"})

    assert len(main.rows("/entity/product")) == 1
    assert child.rows("/entity/product") == []


def test_hrefs_carry_the_address_that_was_asked(sim, main):
    """Hrefs lead back to this simulator and can be followed as they are."""
    href = main.post("/entity/product", {"name": "Бананы"})["meta"]["href"]

    assert href.startswith(sim.url + "/entity/product/")
    assert main.get(href.removeprefix(sim.url))["name"] == "Бананы"
