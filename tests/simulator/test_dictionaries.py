"""Folders, units, countries, currencies, price types and company settings."""

import pytest


def test_folders_know_their_path(main):
    """pathName is the chain of parents; moving and renaming a folder moves what lies below."""
    top = main.post("/entity/productfolder", {"name": "Еда"})
    inner = main.post("/entity/productfolder", {"name": "Крупы", "productFolder": {"meta": top["meta"]}})
    good = main.post("/entity/product", {"name": "Рис", "productFolder": {"meta": inner["meta"]}})
    assert (top["pathName"], inner["pathName"], good["pathName"]) == ("", "Еда", "Еда/Крупы")

    main.put(f"/entity/productfolder/{top['id']}", {"name": "Продукты"})
    assert main.get(f"/entity/product/{good['id']}")["pathName"] == "Продукты/Крупы"
    main.put(f"/entity/productfolder/{inner['id']}", {"productFolder": None})
    assert main.get(f"/entity/product/{good['id']}")["pathName"] == "Крупы"


def test_a_folder_cannot_lie_in_itself(main):
    """Neither directly nor through its children: error 23000."""
    top = main.post("/entity/productfolder", {"name": "a"})
    inner = main.post("/entity/productfolder", {"name": "b", "productFolder": {"meta": top["meta"]}})

    for below in (top, inner):
        body = {"productFolder": {"meta": below["meta"]}}
        assert main.ask("PUT", f"/entity/productfolder/{top['id']}", body).codes == [23000]


def test_used_folders_stay(main):
    """A folder with something in it is 409 with code 1028."""
    top = main.post("/entity/productfolder", {"name": "a"})
    good = main.post("/entity/product", {"name": "x", "productFolder": {"meta": top["meta"]}})

    answer = main.ask("DELETE", f"/entity/productfolder/{top['id']}")
    assert (answer.status, answer.codes) == (409, [1028])
    main.ask("DELETE", f"/entity/product/{good['id']}")
    assert main.ask("DELETE", f"/entity/productfolder/{top['id']}").status == 200


def test_archived_of_a_folder_is_read_only(main):
    """It is ignored in a write."""
    assert main.post("/entity/productfolder", {"name": "a", "archived": True})["archived"] is False


@pytest.mark.parametrize("kind", ["uom", "country"])
def test_standard_entries_differ_by_id_only(main, child, kind):
    """Codes and names coincide between accounts, ids do not; there is no owner or group."""
    mine, theirs = main.rows(f"/entity/{kind}"), child.rows(f"/entity/{kind}")

    assert len(mine) >= 15
    assert [(one["code"], one["name"]) for one in mine] == [(one["code"], one["name"]) for one in theirs]
    assert not {one["id"] for one in mine} & {one["id"] for one in theirs}
    assert not {"owner", "group"} & mine[0].keys()


@pytest.mark.parametrize("kind", ["uom", "country"])
def test_standard_entries_cannot_change_or_go(main, kind):
    """Errors 1024 and 1025."""
    key = main.rows(f"/entity/{kind}")[0]["id"]

    assert main.ask("PUT", f"/entity/{kind}/{key}", {"name": "x"}).codes == [1024]
    assert main.ask("DELETE", f"/entity/{kind}/{key}").codes == [1025]


@pytest.mark.parametrize("kind", ["uom", "country"])
def test_own_entries_can_change_and_go(main, kind):
    """And names are not unique: a careless client doubles them."""
    made = [main.post(f"/entity/{kind}", {"name": "Попугаи", "code": "p"}) for _ in range(2)]
    assert made[0]["id"] != made[1]["id"]

    assert main.put(f"/entity/{kind}/{made[0]['id']}", {"description": "d"})["description"] == "d"
    assert main.ask("DELETE", f"/entity/{kind}/{made[0]['id']}").status == 200


def test_used_units_stay(main):
    """A unit of a product or a pack is 1028."""
    own = main.post("/entity/uom", {"name": "рулон"})
    pack = {"uom": {"meta": own["meta"]}, "quantity": 3}
    main.post("/entity/product", {"name": "x", "packs": [pack]})

    assert main.ask("DELETE", f"/entity/uom/{own['id']}").codes == [1028]


def test_currencies(main):
    """The rouble is there; others are made in full or from the system's list, with a new isoCode."""
    (rouble,) = main.rows("/entity/currency")
    assert (rouble["isoCode"], rouble["code"], rouble["default"]) == ("RUB", "643", True)

    dollar = main.post("/entity/currency", {"name": "доллар", "rate": 63, "code": "840", "isoCode": "USD"})
    assert (dollar["system"], dollar["rateUpdateType"], dollar["rate"]) == (False, "manual", 63)
    euro = main.post("/entity/currency", {"system": True, "isoCode": "EUR"})
    assert (euro["system"], euro["name"], euro["code"]) == (True, "евро", "978")
    assert (euro["rateUpdateType"], euro["default"]) == ("auto", False)

    assert main.ask("POST", "/entity/currency", {"system": True, "code": "978"}).codes == [3006]
    assert main.ask("POST", "/entity/currency", {"name": "x"}).codes == [3000]
    body = {"name": "x", "code": "1", "isoCode": "X", "rate": 0}
    assert main.ask("POST", "/entity/currency", body).codes == [3003]
    assert main.ask("DELETE", f"/entity/currency/{rouble['id']}").codes == [1025]
    assert main.ask("DELETE", f"/entity/currency/{euro['id']}").status == 200


PATH = "/context/companysettings/pricetype"


def test_price_types_are_written_as_a_whole(main):
    """Kept ones keep their id, new ones get one, omitted ones are deleted; the first is the default."""
    (first,) = main.get(PATH)
    assert first["name"] == "Цена продажи"

    made = main.post(PATH, [{"name": "VIP"}, first, {"name": "Опт", "externalCode": "opt"}])
    assert [one["name"] for one in made] == ["VIP", "Цена продажи", "Опт"]
    assert made[1] == first
    assert made[2]["externalCode"] == "opt"
    assert main.get(f"{PATH}/default") == made[0]
    assert main.get(f"{PATH}/{first['id']}") == first

    left = main.post(PATH, [{**made[2], "name": "Оптовая"}])
    assert [(one["id"], one["name"]) for one in left] == [(made[2]["id"], "Оптовая")]
    assert main.ask("GET", f"{PATH}/{first['id']}").codes == [1021]


def test_products_follow_the_price_types(main):
    """A new type appears in every product with price 0, a deleted one goes, a renamed one is renamed."""
    (first,) = main.get(PATH)
    prices = [{"value": 5, "priceType": {"meta": first["meta"]}}]
    key = main.post("/entity/product", {"name": "x", "salePrices": prices})["id"]

    def shown():
        found = main.get(f"/entity/product/{key}")["salePrices"]
        return [(one["priceType"]["name"], one["value"]) for one in found]

    _, vip = main.post(PATH, [{**first, "name": "Розница"}, {"name": "VIP"}])
    assert shown() == [("Розница", 5), ("VIP", 0)]
    main.post(PATH, [vip])
    assert shown() == [("VIP", 0)]


def test_price_type_rules(main):
    """Names are unique and not empty, at most 100, at least one, and ids must be known."""
    assert main.ask("POST", PATH, [{"name": "a"}, {"name": "a"}]).codes == [42001]
    assert main.ask("POST", PATH, [{"name": ""}]).codes == [3000]
    assert main.ask("POST", PATH, [{}]).codes == [3000]
    assert main.ask("POST", PATH, [{"name": str(number)} for number in range(101)]).codes == [42000]
    assert main.ask("POST", PATH, []).codes == [1027]
    assert main.ask("POST", PATH, [{"name": "a", "id": "nobody"}]).codes == [1021]
    assert [one["name"] for one in main.get(PATH)] == ["Цена продажи"]


def test_company_settings(main):
    """They carry the default currency and all price types, and can be changed."""
    settings = main.get("/context/companysettings")

    assert settings["currency"]["isoCode"] == "RUB"
    assert [one["name"] for one in settings["priceTypes"]] == ["Цена продажи"]
    assert main.put("/context/companysettings", {"checkMinPrice": True})["checkMinPrice"] is True
    assert main.ask("PUT", "/context/companysettings", [1]).codes == [2009]


def test_metadata(main):
    """Product metadata points at its attributes, of which there are none."""
    assert main.get("/entity/product/metadata")["attributes"]["meta"]["size"] == 0
    assert main.get("/entity/product/metadata/attributes")["rows"] == []
    assert main.get("/context/employee")["id"]
