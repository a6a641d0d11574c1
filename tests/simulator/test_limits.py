"""Units per window, parallel requests, and the switch that turns access off (md/_restrictions.md)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from simulator.limits import Principal, Window
from tests.simulator.client import Client, session


def burst(client, count, step=0.0):
    return [client.ask("GET", "/context/companysettings/pricetype", step=step) for _ in range(count)]


@pytest.mark.parametrize(("weight", "fit"), [(1, 45), (2, 22), (3, 15), (4, 11)])
def test_window_holds_45_units(open_account, weight, fit):
    """As many requests as fit into 45 units pass at once, the next is 429 with code 1049 and a wait in ms."""
    answers = burst(open_account("main", weight=weight), fit + 1)

    assert [answer.status for answer in answers] == [200] * fit + [429]
    assert answers[-1].codes == [1049]
    assert answers[-1].headers["X-Lognex-Retry-After"] == "3000"
    assert answers[-1].headers["X-Lognex-Reset"] == "3000"


def test_window_slides(main):
    """Units come back three seconds after they were spent, not at the turn of a period."""
    burst(main, 30)
    main.clock.now += 2
    burst(main, 15)

    main.clock.now += 0.999
    assert burst(main, 1)[0].headers["X-Lognex-Retry-After"] == "1"
    main.clock.now += 0.002
    answers = burst(main, 31)
    assert [answer.status for answer in answers] == [200] * 30 + [429]


def test_refused_requests_cost_no_units(main):
    """Hammering does not prolong the wait."""
    burst(main, 45 + 20)
    main.clock.now += 3

    assert [answer.status for answer in burst(main, 45)] == [200] * 45


def test_success_tells_what_is_left(open_account):
    """Limit and Remaining count requests; the interval and the waits are in milliseconds."""
    first, second = burst(open_account("main", weight=3), 2)

    assert first.headers["X-RateLimit-Limit"] == "15"
    assert first.headers["X-RateLimit-Remaining"] == "14"
    assert first.headers["X-Lognex-Retry-TimeInterval"] == "3000"
    assert first.headers["X-Lognex-Reset"] == "3000"
    assert first.headers["X-Lognex-Retry-After"] == "0"
    assert second.headers["X-RateLimit-Remaining"] == "13"


def test_headers_may_count_units(open_account):
    """Whether the vendor means units is not documented, so an account can be told to say units."""
    (answer,) = burst(open_account("main", weight=3, settings={"rateHeaders": "units"}), 1)

    assert answer.headers["X-RateLimit-Limit"] == "45"
    assert answer.headers["X-RateLimit-Remaining"] == "42"


def test_tokens_do_not_compete(sim, main):
    """The bucket belongs to the token, not to the account."""
    sim.control("POST", f"/accounts/{main.account}/tokens", add=[{"token": "other"}])
    burst(main, 45)

    assert burst(Client(sim, main.clock, main.account, "other"), 1)[0].status == 200
    assert burst(main, 1)[0].status == 429


def parallel(client, count):
    """`count` requests at the same moment, each over a connection of its own."""
    gate = threading.Barrier(count)

    def one(_):
        with session() as own:
            gate.wait()
            url = client.sim.url + "/context/companysettings/pricetype"
            headers = {"Authorization": f"Bearer {client.token}", "Accept": "application/json"}
            return own.get(url, headers=headers, timeout=30)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_five_run_in_parallel(sim, main):
    """The sixth request of one token is 429 with code 1073 and no Retry-After; later it passes again."""
    sim.control("POST", "/speed", latency_ms=400)

    answers = parallel(main, 6)

    refused = [answer for answer in answers if answer.status_code == 429]
    assert [answer.json()["errors"][0]["code"] for answer in refused] == [1073]
    assert "X-Lognex-Retry-After" not in refused[0].headers
    assert sim.control("GET", "/ledger")["max_parallel"] == 5
    assert burst(main, 1)[0].status == 200


def test_twenty_run_in_parallel_per_account(sim, main):
    """Five tokens with five requests each: twenty pass, five are refused."""
    names = [f"t{number}" for number in range(5)]
    sim.control("POST", f"/accounts/{main.account}/tokens", add=[{"token": name} for name in names])
    sim.control("POST", "/speed", latency_ms=1500)
    clients = [Client(sim, main.clock, main.account, name) for name in names]

    with ThreadPoolExecutor(5) as pool:
        groups = list(pool.map(lambda client: parallel(client, 5), clients))

    statuses = sorted(answer.status_code for group in groups for answer in group)
    assert statuses == [200] * 20 + [429] * 5


def test_kill_switch_after_200_throttled_in_a_minute(sim, main):
    """The 201st answer 429 within a minute turns the token off, and waiting does not turn it on again."""
    for _ in range(45):
        burst(main, 1)
    for _ in range(200):
        assert burst(main, 1)[0].status == 429
    assert sim.control("GET", "/ledger")["kill_switch"] == []

    burst(main, 1)

    (event,) = sim.control("GET", "/ledger")["kill_switch"]
    assert (event["account"], event["principal"]) == (main.account, "main")
    main.clock.now += 3600
    answer = burst(main, 1)[0]
    assert (answer.status, answer.codes) == (403, [1061])


def test_support_restores_access(sim, main):
    """After `enable` the token works as before."""
    sim.world.tokens["main"].disabled = "test"
    assert burst(main, 1)[0].status == 403

    sim.control("POST", f"/accounts/{main.account}/tokens", enable=["main"])

    assert burst(main, 1)[0].status == 200


@pytest.mark.parametrize("status", [400, 404, 412])
def test_kill_switch_after_200_identical_failures(status):
    """200 equal failing requests within a minute are borne, the 201st is not; other paths count apart."""
    principal = Principal("token", "account")
    for index in range(200):
        assert principal.judge(index * 0.1, "POST", "/entity/product", status) is None
        assert principal.judge(index * 0.1, "GET", f"/entity/product/{index}", status) is None

    assert principal.judge(20, "POST", "/entity/product", status) is not None
    assert principal.disabled


def test_failures_spread_over_minutes_are_borne():
    """200 per minute is a rate: the same number over a longer time harms nobody."""
    principal = Principal("token", "account")

    assert all(principal.judge(index * 0.31, "POST", "/x", 412) is None for index in range(1000))


def test_kill_switch_after_100_puts_to_one_entity():
    """The 101st PUT to one entity in a minute turns access off, even if all succeeded."""
    principal = Principal("token", "account")
    for index in range(100):
        assert principal.judge(index * 0.1, "PUT", "/entity/product/1", 200) is None

    assert principal.judge(10, "PUT", "/entity/product/2", 200) is None
    assert principal.judge(10, "PUT", "/entity/product/1", 200) is not None


def test_a_neighbour_uses_the_same_window(sim, main):
    """30 of its units in 3 s leave 15 to us; its requests are not in our count, and it gets its 429s itself."""
    sim.control("POST", "/neighbour", token="main", units_per_second=10, weight=1)
    main.clock.now += 2.95

    answers = burst(main, 16)

    assert [answer.status for answer in answers] == [200] * 15 + [429]
    assert answers[0].headers["X-RateLimit-Remaining"] == "14"
    ledger = sim.control("GET", "/ledger")
    assert (ledger["units"], ledger["neighbour_units"], ledger["responses_429"]) == (15, 30, 1)


def test_a_neighbour_leaves(sim, main):
    """At 0 units a second the window is ours again; who is greedy fills it alone."""
    sim.control("POST", "/neighbour", token="main", units_per_second=1000, weight=4)
    main.clock.now += 1
    assert burst(main, 2)[-1].status == 429

    sim.control("POST", "/neighbour", token="main", units_per_second=0)
    main.clock.now += 3

    assert [answer.status for answer in burst(main, 45)] == [200] * 45
    with pytest.raises(requests.HTTPError):
        sim.control("POST", "/neighbour", token="nobody", units_per_second=1)


def test_wait_is_until_enough_units_are_back():
    """With weight 4 several small spendings must leave the window first."""
    window = Window()
    for moment in (0.0, 0.5, 1.0):
        assert window.take(moment, 15)

    assert window.wait(1.0, 4) == pytest.approx(2.0)
    assert not window.take(2.999, 4)
    assert window.take(3.0, 4)
