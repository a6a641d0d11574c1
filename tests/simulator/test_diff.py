"""The comparison of two accounts finds every class of difference, and nothing in equal ones."""

import pytest


@pytest.fixture
def pair(sim, main, child):
    """Two accounts with equal goods under different ids."""
    for client in (main, child):
        sim.control("POST", "/seed", account=client.account, products=60, seed=2)
    return main, child


def compare(pair):
    main, child = pair
    return main.sim.control("GET", f"/diff?main={main.account}&child={child.account}")


def counts(pair):
    found = compare(pair)
    return {kind: found[kind] for kind in ("missing", "extra", "different", "duplicates") if found[kind]}


def a_product(client, *fields, lacking=()):
    """One live product that has all `fields` and none of those it shall lack."""
    found = client.rows("/entity/product")
    return next(one for one in found if all(f in one for f in fields) and not any(f in one for f in lacking))


def test_equal_accounts_are_equal(pair):
    """Ids differ everywhere, content nowhere."""
    found = compare(pair)

    assert counts(pair) == {}
    assert found["products"] == 60
    assert found["samples"] == []


def test_missing(pair):
    """A main product without a counterpart, live or archived."""
    main, child = pair
    child.ask("DELETE", f"/entity/product/{child.rows('/entity/product')[0]['id']}")
    main.post("/entity/product", {"name": "архив", "archived": True})

    assert counts(pair) == {"missing": 2}


def test_extra(pair):
    """A live child product without a counterpart; an archived one is where deleted goods end."""
    _, child = pair
    child.post("/entity/product", [{"name": "лишний"}, {"name": "лишний в архиве", "archived": True}])

    assert counts(pair) == {"extra": 1}


def test_doubled_products(pair):
    """Two child products for one main product."""
    _, child = pair
    one = child.rows("/entity/product")[0]
    child.post("/entity/product", {"name": "двойник", "externalCode": one["externalCode"]})

    assert counts(pair) == {"duplicates": 1}


def test_counterparts_by_code_and_name(pair):
    """A lost externalCode is a difference, not a missing product, while code or name still tell."""
    _, child = pair
    first, second = child.rows("/entity/product?limit=2")
    child.put(f"/entity/product/{first['id']}", {"externalCode": "lost-1"})
    child.put(f"/entity/product/{second['id']}", {"externalCode": "lost-2", "code": ""})

    assert counts(pair) == {"different": 2}


def price_of(client, product, **change):
    price = product["salePrices"][0]
    return {**price, "priceType": {"meta": price["priceType"]["meta"]}, **change}


CHANGES = {
    "name": lambda client, one: {"name": "x"},
    "code": lambda client, one: {"code": "x"},
    "article": lambda client, one: {"article": "x"},
    "description": lambda client, one: {"description": "x"},
    "archived": lambda client, one: {"archived": True},
    "weight": lambda client, one: {"weight": one["weight"] + 1},
    "volume": lambda client, one: {"volume": one["volume"] + 1},
    "vat": lambda client, one: {"vat": 7},
    "uom": lambda client, one: {"uom": client.named("uom", "дюйм")},
    "country": lambda client, one: {"country": None},
    "folder": lambda client, one: {"productFolder": None},
    "salePrices": lambda client, one: {"salePrices": [price_of(client, one, value=1)]},
    "buyPrice": lambda client, one: {"buyPrice": {**one["buyPrice"], "value": 1}},
    "minPrice": lambda client, one: {"minPrice": {"value": 0}},
    "barcodes": lambda client, one: {"barcodes": []},
    "packs": lambda client, one: {"packs": []},
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_counts(pair, field):
    """A change in any compared field is one difference, and the sample names it."""
    _, child = pair
    full = {
        "name": "полный",
        "code": "f",
        "article": "f",
        "externalCode": "full",
        "description": "f",
        "weight": 1,
        "volume": 1,
        "vat": 20,
        "barcodes": [{"code128": "1"}, {"ean8": "2"}],
    }
    for client in pair:
        references = {
            "uom": client.named("uom", "шт"),
            "country": client.named("country", "Китай"),
            "productFolder": {"meta": client.rows("/entity/productfolder?filter=code=F0001")[0]["meta"]},
            "packs": [{"uom": client.named("uom", "упак"), "quantity": 2}],
            "buyPrice": {"value": 5, "currency": client.named("currency", "доллар")},
            "minPrice": {"value": 5},
            "salePrices": [{"value": 5, "priceType": client.named("pricetype", "VIP")}],
        }
        client.post("/entity/product", {**full, **references})
    assert counts(pair) == {}
    (one,) = child.rows("/entity/product?filter=externalCode=full")

    child.put(f"/entity/product/{one['id']}", CHANGES[field](child, one))

    (sample,) = compare(pair)["samples"]
    assert (sample["kind"], sample["field"], sample["child_id"]) == ("different", field, one["id"])


def test_currency_of_a_price_counts(pair):
    """The same number in another currency is another price."""
    _, child = pair
    one = a_product(child)
    change = price_of(child, one, currency=child.named("currency", "евро"), value=one["salePrices"][0]["value"])
    if one["salePrices"][0]["currency"]["meta"]["href"] == change["currency"]["meta"]["href"]:
        change["currency"] = child.named("currency", "руб")

    child.put(f"/entity/product/{one['id']}", {"salePrices": [change]})

    assert counts(pair) == {"different": 1}


def test_order_of_barcodes_does_not_count(pair):
    """They are a set."""
    _, child = pair
    one = next(row for row in child.rows("/entity/product") if len(row.get("barcodes", [])) > 1)

    child.put(f"/entity/product/{one['id']}", {"barcodes": one["barcodes"][::-1]})

    assert counts(pair) == {}


def test_doubled_references(pair):
    """A folder path, unit, country or price type the child has twice."""
    _, child = pair
    folder = child.rows("/entity/productfolder")[0]
    child.post("/entity/productfolder", {"name": folder["name"]})
    child.post("/entity/uom", {"name": "рулон"})
    child.post("/entity/country", {"name": "Россия"})

    assert counts(pair) == {"duplicates": 3}


def test_missing_folder(pair):
    """A folder path of main's products that the child lacks, even if every product is there."""
    main, _ = pair
    folder = main.post("/entity/productfolder", {"name": "новая"})
    one = main.rows("/entity/product")[0]
    main.put(f"/entity/product/{one['id']}", {"productFolder": {"meta": folder["meta"]}})

    assert counts(pair) == {"missing": 1, "different": 1}


def test_at_most_20_samples(sim, main, child):
    """Counts are whole, samples are few."""
    sim.control("POST", "/seed", account=main.account, products=50)

    found = compare((main, child))

    assert found["missing"] >= 50
    assert len(found["samples"]) == 20
