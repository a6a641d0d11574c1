"""The control side: seeding, mutation, the ledger, tokens."""

import time

import pytest
import requests


def fill(sim, client, products=300, **more):
    return sim.control("POST", "/seed", account=client.account, products=products, **more)


def everything(client):
    return client.rows("/entity/product?filter=archived=true;archived=false")


def plain(product):
    names = ("name", "code", "article", "externalCode", "description", "barcodes", "weight", "pathName")
    return {name: product.get(name) for name in names}


def test_seed_is_a_catalogue_with_everything(sim, main):
    """Folders in levels, own units and countries, three currencies, three price types, varied products."""
    made = fill(sim, main, products=600)
    assert (made["product"], made["productfolder"], made["currency"]) == (600, 40, 3)

    products = everything(main)
    folders = main.rows("/entity/productfolder")
    assert max(one["pathName"].count("/") for one in folders) >= 1
    assert {one["isoCode"] for one in main.rows("/entity/currency")} == {"RUB", "USD", "EUR"}
    assert [one["name"] for one in main.get("/context/companysettings/pricetype")] == [
        "Цена продажи",
        "Оптовая",
        "VIP",
    ]
    assert sum("owner" in one for one in main.rows("/entity/uom")) == 2
    assert sum("owner" in one for one in main.rows("/entity/country")) == 1
    for name in ("name", "code", "externalCode"):
        assert len({one[name] for one in products}) == 600
    assert 5 <= sum(one["archived"] for one in products) <= 40
    assert {len(one.get("barcodes", [])) for one in products} == {0, 1, 2, 3}
    assert sum("packs" in one for one in products) > 30
    assert 0 < sum("article" not in one for one in products) < 60
    assert 0 < sum("productFolder" not in one for one in products) < 80
    assert {(one["useParentVat"], one["vatEnabled"], one.get("vat")) for one in products} == {
        (True, False, None),
        (False, False, None),
        (False, True, 10),
        (False, True, 20),
    }
    assert {price["currency"]["meta"]["href"] for one in products for price in one["salePrices"]} == {
        one["meta"]["href"] for one in main.rows("/entity/currency")
    }


def test_seed_repeats(sim, main, child):
    """Two accounts with one seed hold equal goods under different ids; another seed makes others."""
    fill(sim, main, seed=5)
    fill(sim, child, seed=5)
    mine, theirs = everything(main), everything(child)
    assert [plain(one) for one in mine] == [plain(one) for one in theirs]
    assert not {one["id"] for one in mine} & {one["id"] for one in theirs}

    fill(sim, child, seed=6)
    assert len(everything(child)) == 600
    assert len({one["code"] for one in everything(child)}) == 600
    assert len(main.rows("/entity/currency")) == len(child.rows("/entity/currency")) == 3


def test_seeded_goods_are_not_from_the_future(sim, main):
    """However many there are, what changes now is newer."""
    fill(sim, main, products=900)

    changed = main.post("/entity/product", {"name": "новый"})

    assert max(one["updated"] for one in everything(main)) == changed["updated"]
    assert changed["updated"][:16] == time.strftime("%Y-%m-%d %H:%M", time.gmtime(main.clock.now + 3 * 3600))


def test_mutate_changes_what_it_names(sim, main):
    """Exactly the named products are newer and different, the same ones for the same seed."""
    fill(sim, main)
    before = {one["id"]: one for one in everything(main)}
    main.clock.now += 10

    ids = sim.control("POST", "/mutate", account=main.account, count=40, seed=3)["ids"]

    after = {one["id"]: one for one in everything(main)}
    assert len(set(ids)) == 40
    assert {key for key in after if after[key] != before[key]} == set(ids)
    assert sum(after[key]["archived"] != before[key]["archived"] for key in ids) > 0


def test_ledger_counts(sim, main, child):
    """Requests, writes, units and statuses, in total and per account."""
    main.post("/entity/product", {"name": "x"})
    main.ask("POST", "/entity/product", {})
    key = main.rows("/entity/product")[0]["id"]
    main.put(f"/entity/product/{key}", {"name": "y"})
    child.get("/entity/uom")
    child.ask("GET", "/entity/uom", headers={"Authorization": None})

    ledger = sim.control("GET", "/ledger?entries=1")

    assert (ledger["requests"], ledger["writes"], ledger["units"]) == (6, 2, 5)
    assert ledger["by_status"] == {"200": 4, "412": 1, "401": 1}
    mine = ledger["accounts"][main.account]
    assert (mine["name"], mine["requests"], mine["writes"]) == ("main", 4, 2)
    assert mine["by_path"] == {
        "POST /entity/product": 2,
        "GET /entity/product": 1,
        "PUT /entity/product/{id}": 1,
    }
    assert ledger["accounts"][child.account]["requests"] == 1
    assert ledger["max_units_3s"] == 4
    assert [one["method"] for one in ledger["entries"]] == ["POST", "POST", "GET", "PUT", "GET", "GET"]

    sim.control("POST", "/ledger/reset")
    assert sim.control("GET", "/ledger")["requests"] == 0


def test_ledger_reset_keeps_the_window(sim, main):
    """Counting anew gives no new units."""
    for _ in range(45):
        main.ask("GET", "/context/employee", step=0)
    sim.control("POST", "/ledger/reset")

    assert main.ask("GET", "/context/employee", step=0).status == 429
    ledger = sim.control("GET", "/ledger")
    assert (ledger["responses_429"], ledger["units"]) == (1, 0)


def test_tokens_come_and_go(sim, main):
    """A revoked token is unknown at once, an added one works at once."""
    path = f"/accounts/{main.account}/tokens"
    sim.control("POST", path, revoke=["main"], add=[{"token": "fresh", "weight": 3}])

    assert main.ask("GET", "/entity/uom").status == 401
    main.token = "fresh"
    assert main.ask("GET", "/entity/uom").headers["X-RateLimit-Limit"] == "15"
    (account,) = sim.control("GET", "/accounts")
    assert [(one["token"], one["weight"]) for one in account["tokens"]] == [("fresh", 3)]


def test_raw_entities(sim, main):
    """Given ids are kept, defaults filled in, and types not modelled can be referred to."""
    entities = [{"id": "11111111-1111-4111-8111-111111111111", "name": "Склад"}]
    sim.control("POST", "/entities", account=main.account, type="product", entities=entities)

    found = main.get(f"/entity/product/{entities[0]['id']}")

    assert (found["name"], found["useParentVat"], len(found["salePrices"])) == ("Склад", True, 1)


def test_speed_per_item(sim, main):
    """A bulk request takes as long as its items are ordered to take."""
    sim.control("POST", "/speed", latency_ms=20, item_ms=5)
    main.post("/entity/product", [{"name": str(number)} for number in range(20)])

    (entry,) = sim.control("GET", "/ledger?entries=1")["entries"]
    assert entry["items"] == 20
    assert entry["duration_ms"] >= 110


def test_unknown_accounts_are_404(sim):
    """A typing error in a test must be loud."""
    with pytest.raises(requests.HTTPError):
        sim.control("POST", "/seed", account="nobody", products=1)


def test_reset_forgets_everything(sim, main):
    """Accounts, tokens, faults and counts."""
    sim.control("POST", "/faults", kind="status")
    sim.control("POST", "/reset")

    assert main.ask("GET", "/entity/uom").status == 401
    assert sim.control("GET", "/health") == {"status": "ok", "accounts": 0}
    assert sim.control("GET", "/faults") == []
