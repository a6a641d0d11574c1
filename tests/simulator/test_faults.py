"""Faults on order: each goes wrong in its own way, and the effect is as promised."""

import time

import pytest
import requests

from tests.simulator.client import Client

BODY = {"name": "Бананы"}


def count(client):
    return client.get("/entity/product?limit=1")["meta"]["size"]


def order(sim, **fault):
    return sim.control("POST", "/faults", **fault)


def test_drop_before_leaves_no_effect(sim, main):
    """The connection is cut and nothing was made."""
    order(sim, kind="drop_before", count=1)

    with pytest.raises(requests.ConnectionError):
        main.ask("POST", "/entity/product", BODY)

    assert count(main) == 0


def test_drop_after_leaves_the_effect(sim, main):
    """The connection is cut, but the product was made: the case syncId is for."""
    order(sim, kind="drop_after", method="POST", count=1)

    with pytest.raises(requests.ConnectionError):
        main.ask("POST", "/entity/product", BODY)

    assert count(main) == 1
    ledger = sim.control("GET", "/ledger?entries=1")
    assert (ledger["writes"], ledger["by_status"]["0"]) == (1, 1)
    assert ledger["entries"][0]["status"] == 0


def test_truncate_breaks_the_body(sim, main):
    """The promised length never arrives, the effect stays."""
    order(sim, kind="truncate", count=1)

    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        main.ask("POST", "/entity/product", BODY)

    assert count(main) == 1


def test_status_comes_instead_of_the_effect(sim, main):
    """503 and nothing made; with `effect` the product is made and the answer still wrong."""
    order(sim, kind="status", status=503, count=1)
    assert main.ask("POST", "/entity/product", BODY).status == 503
    assert count(main) == 0

    order(sim, kind="status", status=504, count=1, effect=True)
    assert main.ask("POST", "/entity/product", BODY).status == 504
    assert count(main) == 1


def test_a_fault_may_be_a_429(sim, main):
    """With the code and the wait of a real one."""
    order(sim, kind="status", status=429, delay_ms=1500, count=1)

    answer = main.ask("GET", "/entity/uom")

    assert (answer.status, answer.codes) == (429, [1049])
    assert answer.headers["X-Lognex-Retry-After"] == "1500"


def test_html_is_no_json(sim, main):
    """What a gateway in front of the service would say."""
    order(sim, kind="html", count=1)

    with pytest.raises(requests.exceptions.JSONDecodeError):
        main.ask("POST", "/entity/product", BODY)

    assert count(main) == 0


def test_wrong_json_comes_after_the_effect(sim, main):
    """Status 200, a body that does not parse, and the product made."""
    order(sim, kind="wrong_json", count=1)

    with pytest.raises(requests.exceptions.JSONDecodeError):
        main.ask("POST", "/entity/product", BODY)

    assert count(main) == 1


def test_delay_only_delays(sim, main):
    """The answer is right, and late."""
    order(sim, kind="delay", delay_ms=200, count=1)

    answer = main.ask("POST", "/entity/product", BODY)

    assert answer.status == 200
    entry = sim.control("GET", "/ledger?entries=1")["entries"][0]
    assert entry["duration_ms"] >= 190


def test_item_errors(sim, main):
    """The named items of the next bulk fail with the named code, the others are applied."""
    order(sim, kind="item_error", items=[0, 2], code=3006, count=1)

    made = main.post("/entity/product", [BODY] * 3, status=400)

    assert [one["errors"][0]["code"] if "errors" in one else 0 for one in made] == [3006, 0, 3006]
    assert count(main) == 1


def test_faults_choose_their_requests(sim, main, child):
    """By method, path prefix, account, count and probability."""
    order(sim, kind="status", method="POST", path="/entity/product", account=child.account, count=1)

    assert main.ask("POST", "/entity/product", BODY).status == 200
    assert child.ask("GET", "/entity/product").status == 200
    assert child.ask("POST", "/entity/uom", BODY).status == 200
    assert child.ask("POST", "/entity/product", BODY).status == 503
    assert child.ask("POST", "/entity/product", BODY).status == 200
    assert [one["hits"] for one in sim.control("GET", "/faults")] == [1]


def test_probability_is_seeded(sim, main):
    """The same seed hits the same requests."""

    def hits():
        sim.control("DELETE", "/faults")
        order(sim, kind="status", probability=0.3, seed=7)
        return [main.ask("GET", "/entity/uom").status for _ in range(30)]

    first = hits()
    assert 3 < first.count(503) < 20
    assert hits() == first


def test_clearing_ends_them(sim, main):
    """After DELETE everything works again."""
    order(sim, kind="status")
    sim.control("DELETE", "/faults")

    assert main.ask("GET", "/entity/uom").status == 200
    assert sim.control("GET", "/faults") == []


@pytest.mark.parametrize("fault", [{"kind": "earthquake"}, {"kind": "status", "colour": 1}])
def test_unknown_orders_are_refused(sim, fault):
    """A misspelt fault must not pass for one that never hit."""
    with pytest.raises(requests.HTTPError):
        order(sim, **fault)


def test_slots_come_back_after_a_cut(sim, main):
    """A dropped connection does not keep its parallel slot."""
    order(sim, kind="drop_before", count=8)
    for _ in range(8):
        with pytest.raises(requests.ConnectionError):
            main.ask("GET", "/entity/uom")

    assert Client(sim, main.clock, main.account, "main").ask("GET", "/entity/uom").status == 200


def test_late_takes_effect_after_the_cut(sim, main):
    """The client is cut off at once; the product appears when its time has come, and counts as a write."""
    order(sim, kind="late", delay_ms=300, count=1)

    with pytest.raises(requests.ConnectionError):
        main.ask("POST", "/entity/product", BODY)
    before = count(main)
    wait_for(lambda: count(main) == 1)

    assert before == 0
    assert sim.control("GET", "/ledger")["writes"] == 1


@pytest.mark.parametrize(("effect", "made"), [(False, 0), (True, 1)])
def test_timeout_keeps_silent(sim, main, effect, made):
    """No answer for as long as ordered, then a cut; the effect only if ordered."""
    order(sim, kind="timeout", delay_ms=200, effect=effect, count=1)

    with pytest.raises(requests.ConnectionError):
        main.ask("POST", "/entity/product", BODY)

    assert sim.control("GET", "/ledger?entries=1")["entries"][-1]["duration_ms"] >= 190
    assert count(main) == made


def test_a_drip_comes_byte_by_byte(sim, main):
    """The answer is right, and each of its bytes takes its time."""
    order(sim, kind="drip", path="/context/companysettings/pricetype", delay_ms=1, count=1)
    began = time.monotonic()

    answer = main.ask("GET", "/context/companysettings/pricetype")

    assert answer.body[0]["name"] == "Цена продажи"
    assert time.monotonic() - began >= len(answer.body) / 1000


def test_a_drip_ends_with_its_client(sim, main):
    """Who hangs up is no longer served: all five parallel requests of the token are free again."""
    order(sim, kind="drip", path="/entity/uom", delay_ms=3_600_000, count=5)
    for _ in range(5):
        with pytest.raises(requests.ConnectionError):
            main.ask("GET", "/entity/uom", timeout=0.5)

    end = time.monotonic() + 60
    while (answer := main.ask("GET", "/entity/uom")).status == 429 and time.monotonic() < end:
        time.sleep(0.1)

    assert answer.status == 200


def test_a_redirect(sim, main):
    """308 with the address that would be right, and nothing made."""
    order(sim, kind="redirect", count=1)

    answer = main.ask("POST", "/entity/product", BODY, allow_redirects=False)

    assert (answer.status, answer.headers["Location"]) == (308, f"{sim.url}/entity/product")
    assert count(main) == 0


@pytest.mark.parametrize(
    ("status", "code", "told"), [(413, None, 1044), (504, None, 1088), (429, 1073, 1073), (503, None, 1074)]
)
def test_an_ordered_status_has_its_code(sim, main, status, code, told):
    """The vendor's code for that status, or the one that was ordered; 1073 comes without a wait."""
    order(sim, kind="status", status=status, code=code, count=1)

    answer = main.ask("GET", "/entity/uom")

    assert (answer.status, answer.codes) == (status, [told])
    assert ("X-Lognex-Retry-After" in answer.headers) == (told != 1073)


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
