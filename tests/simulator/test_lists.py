"""Lists: pages, filters, order, search, expand (md/_general.md, md/workbook/)."""

from urllib.parse import quote

import pytest


@pytest.fixture
def shop(main):
    """Seven products that differ in everything a filter can see."""
    folder = main.post("/entity/productfolder", {"name": "Фрукты"})
    main.post(
        "/entity/product",
        [
            {"name": "Бананы", "code": "1", "article": "b-1", "externalCode": "e;1", "weight": 3},
            {"name": "бананы сушёные", "code": "2", "article": "b-2", "externalCode": "e2", "weight": 1},
            {"name": "Абрикос", "code": "3", "externalCode": "e3", "weight": 2},
            {"name": "Яблоки", "code": "4", "externalCode": "e4", "archived": True},
            {"name": "Груши", "externalCode": "e5", "productFolder": {"meta": folder["meta"]}},
            {"name": "Сливы", "externalCode": "e6", "uom": main.named("uom", "кг")},
            {"name": "Вишни", "externalCode": "e7", "barcodes": [{"code128": "777"}]},
        ],
    )
    return main


def names(client, text, extra=""):
    return [one["name"] for one in client.rows(f"/entity/product?filter={quote(text)}{extra}")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name=Бананы", ["Бананы"]),
        ("name!=Бананы;weight>0", ["бананы сушёные", "Абрикос"]),
        ("name~банан", ["Бананы", "бананы сушёные"]),
        ("name~=сушёные", []),
        ("name=~сушёные", ["бананы сушёные"]),
        ("name~=аБри", ["Абрикос"]),
        ("code=1;code=3", ["Бананы", "Абрикос"]),
        ("code=1;name=Абрикос", []),
        ("article=b-1;article=b-2;code=2", ["бананы сушёные"]),
        (r"externalCode=e\;1;externalCode=e2", ["Бананы", "бананы сушёные"]),
        ("externalCode=e4", []),
        ("externalCode=e4;archived=true", ["Яблоки"]),
        ("externalCode=e3;externalCode=e4;archived=true;archived=false", ["Абрикос", "Яблоки"]),
        ("archived!=true;code=1", ["Бананы"]),
        ("weight>1", ["Бананы", "Абрикос"]),
        ("weight>=1;weight<3", ["бананы сушёные", "Абрикос"]),
        ("weight<=1;code=2", ["бананы сушёные"]),
        ("weight=2", ["Абрикос"]),
        ("barcode=777", ["Вишни"]),
        ("barcode~77", ["Вишни"]),
        ("pathName=Фрукты", ["Груши"]),
        ("code=;weight=0", ["Груши", "Сливы", "Вишни"]),
    ],
)
def test_filters(shop, text, expected):
    """Repeated `=` is OR, different fields AND, archived ones only when asked for."""
    assert expected == names(shop, text)


def test_filter_by_reference(shop):
    """By href, whatever its host; empty means none."""
    folder = shop.named("productfolder", "Фрукты")["meta"]["href"]
    uom = shop.named("uom", "кг")["meta"]["href"]

    assert names(shop, f"productFolder={folder}") == ["Груши"]
    tail = folder.rsplit("/", 1)[1]
    foreign = f"https://api.moysklad.ru/api/remap/1.2/entity/productfolder/{tail}"
    assert names(shop, f"productFolder={foreign}") == ["Груши"]
    assert names(shop, f"uom={uom}") == ["Сливы"]
    assert names(shop, "uom=;code=1") == ["Бананы"]


def test_filter_by_id_sees_archived_ones(shop):
    """The only filter that does so by itself."""
    (archived,) = shop.rows("/entity/product?filter=archived=true")

    assert names(shop, f"id={archived['id']}") == ["Яблоки"]


def test_filter_by_sync_id(main):
    """Letter case of a UUID does not matter."""
    sync_id = "8b7c97cf-cf77-4f7e-b200-d264125578ab"
    main.post("/entity/product", {"name": "x", "syncId": sync_id})

    assert names(main, f"syncId={sync_id};syncId={sync_id.replace('8', '9')}") == ["x"]
    assert names(main, f"syncId={sync_id.upper()}") == ["x"]


def test_filter_by_moment(main):
    """`updated` to the millisecond, second or minute; `>=` includes, `>` does not."""
    first = main.post("/entity/product", {"name": "a"})["updated"]
    main.clock.now += 61
    second = main.post("/entity/product", {"name": "b"})["updated"]

    assert names(main, f"updated>={first}") == ["a", "b"]
    assert names(main, f"updated>{first}") == ["b"]
    assert names(main, f"updated<{second}") == ["a"]
    assert names(main, f"updated<={second}") == ["a", "b"]
    assert names(main, f"updated>={second[:19]}") == ["b"]
    assert names(main, f"updated>={second[:16]}") == ["b"]
    assert names(main, f"updated>={first};updated<{second}") == ["a"]
    assert names(main, f"updated={second}") == ["b"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("colour=red", 1034),
        ("name", 1034),
        ("name>a", 1034),
        ("uom~x", 1034),
        ("weight=1;weight>2", 1034),
        ("weight=heavy", 1014),
        ("archived=yes", 1014),
        ("updated>=yesterday", 1035),
    ],
)
def test_wrong_filters(main, text, code):
    """Unknown fields, operators and values are 400, not an empty list."""
    answer = main.ask("GET", f"/entity/product?filter={quote(text)}")

    assert (answer.status, answer.codes) == (400, [code])


def test_pages(main):
    """`size` is the whole, nextHref and previousHref lead through it and keep the other parameters."""
    main.post("/entity/product", [{"name": f"{number:03}"} for number in range(25)])

    page = main.get("/entity/product?limit=10&order=name,desc")
    assert (page["meta"]["size"], page["meta"]["limit"], page["meta"]["offset"]) == (25, 10, 0)
    assert "previousHref" not in page["meta"]
    seen = [row["name"] for row in page["rows"]]
    while "nextHref" in page["meta"]:
        page = main.get(page["meta"]["nextHref"].removeprefix(main.sim.url))
        seen += [row["name"] for row in page["rows"]]

    assert seen == [f"{number:03}" for number in reversed(range(25))]
    assert page["meta"]["offset"] == 20
    assert "offset=10" in page["meta"]["previousHref"]
    assert page["context"]["employee"]["meta"]["type"] == "employee"


def test_a_page_beyond_the_end_is_empty(main):
    """It is no error."""
    assert main.get("/entity/product?offset=1000")["rows"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "order=name,up"])
def test_wrong_parameters(main, query):
    """Error 1040."""
    assert main.ask("GET", f"/entity/product?{query}").codes == [1040]


def test_order(shop):
    """Several keys, each with its direction; an unknown one is 1063."""
    found = shop.rows("/entity/product?order=weight,desc;name&limit=3")

    assert [one["name"] for one in found] == ["Бананы", "Абрикос", "бананы сушёные"]
    assert shop.ask("GET", "/entity/product?order=colour").codes == [1063]
    moments = [one["updated"] for one in shop.rows("/entity/product?order=updated,asc;id")]
    assert moments == sorted(moments)


def test_search(shop):
    """By name, code and article, without regard to letter case."""
    assert len(shop.rows("/entity/product?search=БАНАН")) == 2
    assert [one["name"] for one in shop.rows("/entity/product?search=b-2")] == ["бананы сушёные"]


def test_expand_needs_a_small_page(shop):
    """With limit up to 100 references become objects, above it `expand` is ignored without a word."""
    (row,) = [one for one in shop.rows("/entity/product?expand=uom,country&limit=100") if "uom" in one]
    assert row["uom"]["name"] == "кг"

    for limit in ("", "&limit=101"):
        (row,) = [one for one in shop.rows(f"/entity/product?expand=uom{limit}") if "uom" in one]
        assert row["uom"].keys() == {"meta"}


def test_expand_along_a_path(main):
    """A folder's folder; more than three steps are refused, as is a field that is no reference."""
    top = main.post("/entity/productfolder", {"name": "a"})
    inner = main.post("/entity/productfolder", {"name": "b", "productFolder": {"meta": top["meta"]}})
    key = main.post("/entity/product", {"name": "x", "productFolder": {"meta": inner["meta"]}})["id"]

    found = main.get(f"/entity/product/{key}?expand=productFolder.productFolder")
    assert found["productFolder"]["productFolder"]["name"] == "a"
    path = ".".join(["productFolder"] * 4)
    assert main.ask("GET", f"/entity/product/{key}?expand={path}").codes == [1089]
    assert main.ask("GET", f"/entity/product/{key}?expand=name").codes == [1089]


def test_fields(main):
    """One hidden field at a time, only the documented ones."""
    stock = {"type": "ALL_WAREHOUSE_SUM", "quantity": 10}
    key = main.post("/entity/product", {"name": "x", "minimumStock": stock})["id"]

    assert "minimumStock" not in main.get(f"/entity/product/{key}")
    assert main.get(f"/entity/product/{key}?fields=minimumStock")["minimumStock"] == stock
    assert main.rows("/entity/product?fields=minimumStock")[0]["minimumStock"] == stock
    assert main.ask("GET", "/entity/product?fields=minimumStock,stock").codes == [3042]
    assert main.ask("GET", "/entity/product?fields=colour").codes == [3043]


def test_150_keys_fit_one_request(main):
    """A batch of ids in one filter: the longest URL that the 8 KB allow."""
    made = main.post("/entity/product", [{"name": str(number)} for number in range(150)])
    text = ";".join(f"id={one['id']}" for one in made)

    assert len(names(main, text)) == 150
