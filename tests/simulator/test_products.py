"""Products: create, update, defaults, references, merging (md/dictionaries/_product.md)."""

import time
import uuid

import pytest

NOWHERE = "00000000-0000-4000-8000-000000000000"


def ref(sim, kind, key):
    return {"meta": {"href": f"{sim.url}/entity/{kind}/{key}", "type": kind, "mediaType": "application/json"}}


def price(client, name, value, currency="руб"):
    return {
        "value": value,
        "currency": client.named("currency", currency),
        "priceType": client.named("pricetype", name),
    }


def test_a_name_is_enough(main):
    """Everything else gets the vendor's defaults."""
    made = main.post("/entity/product", {"name": "Мандарины"})

    expected = {
        "name": "Мандарины",
        "archived": False,
        "shared": True,
        "pathName": "",
        "vatEnabled": False,
        "useParentVat": True,
        "weight": 0.0,
        "volume": 0.0,
        "discountProhibited": False,
        "paymentItemType": "GOOD",
        "trackingType": "NOT_TRACKED",
        "variantsCount": 0,
        "isSerialTrackable": False,
        "accountId": main.account,
    }
    assert expected == {name: made[name] for name in expected}
    assert made["externalCode"]
    assert made["buyPrice"]["value"] == made["minPrice"]["value"] == 0
    assert [(one["value"], one["priceType"]["name"]) for one in made["salePrices"]] == [(0, "Цена продажи")]
    assert made["meta"]["type"] == "product"
    assert made == main.get(f"/entity/product/{made['id']}")
    assert not {"barcodes", "code", "article", "uom", "packs", "things", "syncId"} & made.keys()


@pytest.mark.parametrize(
    ("body", "status", "code", "parameter"),
    [
        ({}, 412, 3000, "name"),
        ({"name": ""}, 412, 3000, "name"),
        ({"name": "x" * 256}, 412, 3040, "name"),
        ({"name": 5}, 400, 2016, "name"),
        ({"name": "x", "colour": "red"}, 400, 1007, "colour"),
        ({"name": "x", "id": NOWHERE}, 400, 1006, "id"),
        ({"name": "x", "syncId": "no uuid"}, 400, 1052, "syncId"),
        ({"name": "x", "vat": 100}, 412, 3005, "vat"),
        ({"name": "x", "vat": "20"}, 400, 2016, "vat"),
        ({"name": "x", "weight": -1}, 412, 3002, "weight"),
        ({"name": "x", "archived": "yes"}, 400, 2016, "archived"),
        ({"name": "x", "uom": {}}, 400, 2014, "uom"),
        ({"name": "x", "uom": "шт"}, 400, 2014, "uom"),
        ({"name": "x", "uom": {"meta": {}}}, 400, 2010, "uom"),
        ({"name": "x", "uom": {"meta": {"href": "шт"}}}, 400, 2013, "uom"),
        ({"name": "x", "salePrices": [{"value": 1}]}, 412, 3000, "priceType"),
        ({"name": "x", "barcodes": [{"ean15": "1"}]}, 400, 1007, "barcodes"),
        ({"name": "x", "barcodes": [{"gtin": "00000000000131"}]}, 412, 3014, "barcodes"),
        ({"name": "x", "barcodes": [{"gtin": "abc"}]}, 412, 3014, "barcodes"),
        ({"name": "x", "barcodes": [{"code128": "x" * 256}]}, 412, 3011, "barcodes"),
        ({"name": "x", "description": "x" * 4097}, 412, 3040, "description"),
    ],
)
def test_refused_bodies(main, body, status, code, parameter):
    """Every rule has its code, and the error names the field."""
    answer = main.ask("POST", "/entity/product", body)

    assert (answer.status, answer.codes) == (status, [code])
    assert answer.body["errors"][0]["parameter"] == parameter
    assert main.rows("/entity/product") == []


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("uom", "uom"),
        ("country", "country"),
        ("productFolder", "productfolder"),
        ("supplier", "counterparty"),
    ],
)
def test_references_of_another_account_do_not_resolve(sim, main, child, field, kind):
    """An href copied from main into a child is error 1021; the same href in its own account works."""
    if kind in ("productfolder", "counterparty"):
        key = str(uuid.uuid4())
        sim.control("POST", "/entities", account=main.account, type=kind, entities=[{"id": key}])
        foreign = ref(sim, kind, key)
    else:
        foreign = {"meta": main.rows(f"/entity/{kind}")[0]["meta"]}

    assert main.post("/entity/product", {"name": "x", field: foreign})[field]["meta"]["type"] == kind
    answer = child.ask("POST", "/entity/product", {"name": "x", field: foreign})
    assert (answer.status, answer.codes) == (400, [1021])


def test_foreign_price_type_and_currency_do_not_resolve(main, child):
    """Prices are references too."""
    body = {"name": "x", "salePrices": [price(main, "Цена продажи", 100)]}

    assert child.ask("POST", "/entity/product", body).codes == [1021]
    body = {"name": "x", "buyPrice": {"value": 1, "currency": main.named("currency", "руб")}}
    assert child.ask("POST", "/entity/product", body).codes == [1021]


def test_a_reference_must_be_of_the_right_type(main):
    """A country where a unit belongs is error 2024."""
    answer = main.ask("POST", "/entity/product", {"name": "x", "uom": main.named("country", "Россия")})

    assert answer.codes == [2024]


def test_any_host_in_an_href_is_accepted(main):
    """Only the tail of an href counts."""
    href = main.named("uom", "шт")["meta"]["href"]
    key = href.rsplit("/", 1)[1]
    foreign = f"https://api.moysklad.ru/api/remap/1.2/entity/uom/{key}"
    meta = {"href": foreign, "type": "uom", "mediaType": "application/json"}

    assert main.post("/entity/product", {"name": "x", "uom": {"meta": meta}})["uom"]["meta"]["href"] == href


def test_the_same_sync_id_makes_one_product(main):
    """A repeated create answers with the earlier product, unchanged."""
    body = {"name": "Бананы", "syncId": str(uuid.uuid4())}
    first = main.post("/entity/product", body)

    again = main.post("/entity/product", {**body, "name": "Другое"})

    assert again == first
    assert len(main.rows("/entity/product")) == 1


def test_the_same_sync_id_twice_in_one_array(main):
    """Both places get the one product that was made."""
    sync_id = str(uuid.uuid4())

    made = main.post(
        "/entity/product", [{"name": "Бананы", "syncId": sync_id}, {"name": "x", "syncId": sync_id.upper()}]
    )

    assert made[0] == made[1]
    assert len(main.rows("/entity/product")) == 1


def test_sync_id_cannot_change(main):
    """A changed one is 1047, the same one is fine."""
    sync_id = str(uuid.uuid4())
    key = main.post("/entity/product", {"name": "x", "syncId": sync_id})["id"]

    assert main.ask("PUT", f"/entity/product/{key}", {"syncId": str(uuid.uuid4())}).codes == [1047]
    assert main.put(f"/entity/product/{key}", {"syncId": sync_id, "name": "y"})["name"] == "y"


def test_sync_id_path(main):
    """A product is found and deleted by its syncId; afterwards the syncId is free again."""
    body = {"name": "x", "syncId": str(uuid.uuid4())}
    made = main.post("/entity/product", body)

    assert main.get(f"/entity/product/syncid/{body['syncId']}") == made
    assert main.ask("DELETE", f"/entity/product/syncid/{body['syncId']}").status == 200
    assert main.ask("GET", f"/entity/product/syncid/{body['syncId']}").codes == [1021]
    assert main.post("/entity/product", body)["id"] != made["id"]


def test_update_changes_only_what_is_sent(main):
    """The rest stays, and `updated` moves on."""
    made = main.post("/entity/product", {"name": "x", "code": "c1", "article": "a1", "weight": 2.5})

    changed = main.put(f"/entity/product/{made['id']}", {"article": "a2"})

    assert changed["updated"] > made["updated"]
    assert {**made, "article": "a2", "updated": changed["updated"]} == changed


def test_read_only_fields_are_ignored(main):
    """A product can be sent back as it was read."""
    made = main.post("/entity/product", {"name": "x", "vat": 20})
    echo = {**made, "pathName": "no", "variantsCount": 7, "effectiveVat": 3, "updated": "never"}

    changed = main.put(f"/entity/product/{made['id']}", echo)

    assert {**made, "updated": changed["updated"]} == changed


def test_null_clears_references(main):
    """And an empty string or list clears texts and lists."""
    body = {
        "name": "x",
        "code": "c",
        "description": "d",
        "uom": main.named("uom", "шт"),
        "country": main.named("country", "Россия"),
        "barcodes": [{"code128": "1"}],
    }
    made = main.post("/entity/product", body)
    assert body.keys() <= made.keys()

    clear = {"uom": None, "country": None, "description": None, "code": "", "barcodes": []}
    changed = main.put(f"/entity/product/{made['id']}", clear)

    assert not clear.keys() & changed.keys()


def test_sale_prices_merge_by_type(main):
    """A type that is not sent keeps its price."""
    types = main.get("/context/companysettings/pricetype")
    main.post("/context/companysettings/pricetype", [*types, {"name": "Оптовая"}])
    prices = [price(main, "Цена продажи", 100.5), price(main, "Оптовая", 80)]
    made = main.post("/entity/product", {"name": "x", "salePrices": prices})

    changed = main.put(f"/entity/product/{made['id']}", {"salePrices": [price(main, "Оптовая", 70)]})

    assert [(one["priceType"]["name"], one["value"]) for one in changed["salePrices"]] == [
        ("Цена продажи", 100.5),
        ("Оптовая", 70),
    ]


def test_attributes_merge_and_clear(sim, main):
    """Values merge by attribute; a null value takes its attribute away."""

    def value(number, value):
        href = f"{sim.url}/entity/product/metadata/attributes/{number}"
        meta = {"href": href, "type": "attributemetadata", "mediaType": "application/json"}
        return {"meta": meta, "name": f"n{number}", "value": value}

    made = main.post("/entity/product", {"name": "x", "attributes": [value(1, "a"), value(2, True)]})
    assert [one["value"] for one in made["attributes"]] == ["a", True]

    path = f"/entity/product/{made['id']}"
    assert [one["value"] for one in main.put(path, {"attributes": [value(2, False)]})["attributes"]] == [
        "a",
        False,
    ]
    assert [one["value"] for one in main.put(path, {"attributes": [value(1, None)]})["attributes"]] == [False]


def test_barcodes_and_packs_replace(main):
    """What is sent is the whole list."""
    pack = {"uom": main.named("uom", "упак"), "quantity": 10, "barcodes": [{"ean13": "2000000000008"}]}
    body = {"name": "x", "uom": main.named("uom", "шт"), "barcodes": [{"ean8": "20000000"}], "packs": [pack]}
    made = main.post("/entity/product", body)
    (kept,) = made["packs"]
    assert kept["quantity"] == 10
    assert kept["barcodes"] == pack["barcodes"]

    changes = {"barcodes": [{"code128": "a"}, {"upc": "1"}], "packs": [{**kept, "quantity": 12}]}
    changed = main.put(f"/entity/product/{made['id']}", changes)

    assert changed["barcodes"] == changes["barcodes"]
    assert [(one["id"], one["quantity"]) for one in changed["packs"]] == [(kept["id"], 12)]
    assert "packs" not in main.put(f"/entity/product/{made['id']}", {"packs": []})


def test_pack_rules(main):
    """A pack needs another unit than the product, a quantity, and at most one barcode."""
    piece, box = main.named("uom", "шт"), main.named("uom", "упак")

    def codes(**pack):
        return main.ask("POST", "/entity/product", {"name": "x", "uom": piece, "packs": [pack]}).codes

    assert codes(uom=piece, quantity=2) == [3034]
    assert codes(uom=box) == [3000]
    assert codes(quantity=2) == [3000]
    assert codes(uom=box, quantity=0) == [3003]
    assert codes(uom=box, quantity=2, barcodes=[{"ean8": "1"}, {"ean8": "2"}]) == [3036]


def test_ean13_is_filled_in_where_the_account_wants_it(open_account):
    """Only if `barcodes` is left out; the number is valid, and the same on every run."""
    account = open_account("main", id=NOWHERE, settings={"fillEAN13Barcode": True})

    (code,) = account.post("/entity/product", {"name": "x"})["barcodes"]

    digits = [int(digit) for digit in code["ean13"]]
    assert sum(digits[::2]) % 10 == -3 * sum(digits[1::2]) % 10
    assert "barcodes" not in account.post("/entity/product", {"name": "x", "barcodes": []})


def test_codes_are_unique_only_where_the_account_wants_it(open_account):
    """With checkUniqueCode a second product with the code is 3006; a freed code can be used again."""
    free, strict = open_account("free"), open_account("strict", settings={"checkUniqueCode": True})
    for _ in range(2):
        free.post("/entity/product", {"name": "x", "code": "1", "externalCode": "e"})
    first = strict.post("/entity/product", {"name": "x", "code": "1"})
    assert strict.ask("POST", "/entity/product", {"name": "y", "code": "1"}).codes == [3006]

    strict.put(f"/entity/product/{first['id']}", {"code": "1", "name": "z"})
    strict.put(f"/entity/product/{first['id']}", {"code": "2"})
    strict.post("/entity/product", {"name": "y", "code": "1"})


def test_vat_of_its_own_and_of_the_folder(sim, main):
    """A rate given alone becomes the product's own; with useParentVat the folder's one holds."""
    folder = main.post("/entity/productfolder", {"name": "Еда", "vat": 10})
    own = main.post("/entity/product", {"name": "x", "vat": 20, "productFolder": {"meta": folder["meta"]}})
    assert (own["vat"], own["vatEnabled"], own["useParentVat"], own["effectiveVat"]) == (20, True, False, 20)

    changed = main.put(f"/entity/product/{own['id']}", {"useParentVat": True})
    assert "vat" not in changed
    assert (changed["useParentVat"], changed["effectiveVat"], changed["effectiveVatEnabled"]) == (
        True,
        10,
        True,
    )

    changed = main.put(f"/entity/product/{own['id']}", {"vatEnabled": False, "useParentVat": False})
    assert (changed["vatEnabled"], changed["effectiveVat"], changed["effectiveVatEnabled"]) == (
        False,
        0,
        False,
    )


def test_images_are_counted(main):
    """Inline images become a collection with a size; eleven are too many; an echo changes nothing."""
    image = {"filename": "a.png", "content": "aGVsbG8="}
    made = main.post("/entity/product", {"name": "x", "images": [image, image]})
    assert made["images"]["meta"]["size"] == 2

    assert main.put(f"/entity/product/{made['id']}", {"images": made["images"]})["images"]["meta"]["size"] == 2
    assert main.ask("POST", "/entity/product", {"name": "x", "images": [image] * 11}).codes == [51006]
    rows = main.get(f"/entity/product/{made['id']}/images")["rows"]
    assert [(row["filename"], row["size"]) for row in rows] == [("a.png", 5)] * 2


def test_delete_is_for_good(main):
    """There is no recycle bin for goods."""
    key = main.post("/entity/product", {"name": "x"})["id"]

    assert main.ask("DELETE", f"/entity/product/{key}").status == 200
    assert main.ask("GET", f"/entity/product/{key}").codes == [1021]
    assert main.ask("DELETE", f"/entity/product/{key}").codes == [1021]


def test_updated_grows_strictly(main):
    """Even at one moment of the clock no two writes share `updated`."""
    made = main.post("/entity/product", [{"name": str(number)} for number in range(100)])

    moments = [one["updated"] for one in made]
    assert moments == sorted(set(moments))
    assert moments[0][:16] == time.strftime("%Y-%m-%d %H:%M", time.gmtime(main.clock.now + 3 * 3600))
