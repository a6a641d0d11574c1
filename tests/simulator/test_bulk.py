"""Arrays: mixed creates and updates, errors per item, bulk delete (md/_general.md)."""

import pytest


def test_creates_and_updates_mix(main):
    """With `meta` an element updates, without it creates; answers come in request order."""
    known = main.post("/entity/product", {"name": "старое", "code": "1"})

    made = main.post(
        "/entity/product", [{"name": "новое"}, {"meta": known["meta"], "name": "другое"}, {"name": "третье"}]
    )

    assert [one["name"] for one in made] == ["новое", "другое", "третье"]
    assert (made[1]["id"], made[1]["code"]) == (known["id"], "1")
    assert len(main.rows("/entity/product")) == 3


@pytest.mark.parametrize("path", ["/entity/product", "/entity/product/batch"])
def test_one_bad_item_does_not_harm_the_others(main, path):
    """Status 400, an array of the same length, errors in their places, everything else applied."""
    items = [{"name": "a"}, {}, {"name": "b"}, {"name": "c", "vat": 1000}]

    made = main.post(path, items, status=400)

    assert [one.get("name") for one in made] == ["a", None, "b", None]
    assert [one["errors"][0]["code"] for one in made if "errors" in one] == [3000, 3005]
    assert sorted(one["name"] for one in main.rows("/entity/product")) == ["a", "b"]


def test_an_update_of_something_gone_is_1021(main):
    """A stale mapping shows as an error of its item."""
    meta = {**main.named("uom", "шт")["meta"], "type": "product"}
    meta["href"] = meta["href"].replace("/uom/", "/product/")

    made = main.post("/entity/product", [{"meta": meta, "name": "x"}, {"name": "y"}], status=400)

    assert made[0]["errors"][0]["code"] == 1021
    assert made[1]["name"] == "y"


def test_items_that_are_no_objects(main):
    """Numbers, null and lists in an array are errors of their items."""
    made = main.post("/entity/product", [None, 5, [], {"name": "x"}], status=400)

    assert [one.get("name") for one in made] == [None, None, None, "x"]


def test_a_thousand_pass_and_one_more_does_not(main):
    """1,000 elements are the limit; beyond it nothing is applied and the answer is one error object."""
    items = [{"name": str(number)} for number in range(1001)]
    answer = main.ask("POST", "/entity/product", items)
    assert (answer.status, answer.codes) == (413, [2007])
    assert main.get("/entity/product?limit=1")["meta"]["size"] == 0

    made = main.post("/entity/product", items[:1000])

    assert [one["name"] for one in made] == [one["name"] for one in items[:1000]]


def test_an_empty_array_is_1027(main):
    """There must be something to do."""
    assert main.ask("POST", "/entity/product", []).codes == [1027]


def test_put_takes_no_array(main):
    """Error 2009."""
    key = main.post("/entity/product", {"name": "x"})["id"]

    assert main.ask("PUT", f"/entity/product/{key}", [{"name": "y"}]).codes == [2009]


def test_bulk_delete_tells_each_fate(main):
    """What went is told in words, what did not as an error, and the status is 400 then."""
    first, second = main.post("/entity/product", [{"name": "a"}, {"name": "b"}])
    metas = [{"meta": first["meta"]}, {"meta": second["meta"]}]

    (told,) = main.post("/entity/product/delete", metas[:1])
    assert told["info"] == f"Сущность 'product' с UUID: {first['id']} успешно удалена"

    gone, told = main.post("/entity/product/delete", metas, status=400)
    assert gone["errors"][0]["code"] == 1021
    assert "info" in told
    assert main.rows("/entity/product") == []


def test_standard_units_survive_a_bulk_delete(main):
    """Error 1025 for each."""
    metas = [{"meta": one["meta"]} for one in main.rows("/entity/uom")[:3]]

    answers = main.post("/entity/uom/delete", metas, status=400)

    assert [one["errors"][0]["code"] for one in answers] == [1025] * 3


def test_a_full_array_stays_fast(sim, main):
    """1,000 creates and 1,000 updates among 5,000 products: far from anything that grows with the square."""
    sim.control("POST", "/seed", account=main.account, products=5000)
    made = main.post("/entity/product", [{"name": str(number), "code": str(number)} for number in range(1000)])
    main.post("/entity/product", [{"meta": one["meta"], "name": "новое"} for one in made])

    entries = sim.control("GET", "/ledger?entries=1")["entries"]

    assert max(one["duration_ms"] for one in entries) < 2000
