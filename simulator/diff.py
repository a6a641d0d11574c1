"""How far a child account is from its main account, judged by content and not by ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from .account import Account, Entity, tail
from .render import Json
from .vat import path_of

SAMPLES = 20
PLAIN = ("name", "code", "article", "externalCode", "description", "archived", "weight", "volume")
_EMPTY: Json = {"archived": False, "weight": 0.0, "volume": 0.0}


def diff(main: Account, child: Account) -> dict[str, Any]:
    """Counts of missing, extra, doubled and different objects, with up to 20 samples."""
    return _Diff(main, child).run()


class _Diff:
    def __init__(self, main: Account, child: Account) -> None:
        self.main = main
        self.child = child
        self.counts: Counter[str] = Counter()
        self.samples: list[Json] = []

    def run(self) -> dict[str, Any]:
        self.products()
        self.folders()
        self.names()
        kinds = ("missing", "extra", "different", "duplicates")
        products = len(self.main.kind("product"))
        return {**{kind: self.counts[kind] for kind in kinds}, "products": products, "samples": self.samples}

    def found(self, kind: str, mine: Entity | None, theirs: Entity | None, **more: Any) -> None:
        """Count one finding and keep it if there is still room."""
        self.counts[kind] += 1
        if len(self.samples) < SAMPLES:
            ids = {"main_id": mine.id if mine else None, "child_id": theirs.id if theirs else None}
            nothing = {"field": None, "main": None, "child": None}
            self.samples.append({"kind": kind, **ids, **nothing, **more})

    # --- products ---

    def products(self) -> None:
        """Pair every product of main with its counterparts, then compare the pair."""
        pairs = self.paired()
        for product in self.main.kind("product").values():
            others = pairs.get(product.id, [])
            if not others:
                self.found("missing", product, None, field="name", main=product.data["name"])
                continue
            for other in others[1:]:
                self.found("duplicates", product, other, field="product", child=other.data["name"])
            self.compare(product, others[0])

    def paired(self) -> dict[str, list[Entity]]:
        """Counterparts by externalCode; for main products left alone by code, then by name."""
        pairs: dict[str, list[Entity]] = {}
        free = list(self.child.kind("product").values())
        for name in ("externalCode", "code", "name"):
            alone = [one for one in self.main.kind("product").values() if one.id not in pairs]
            index = _unique(alone, name)
            left = []
            for other in free:
                mine = index.get(other.data.get(name, ""))
                if mine is None:
                    left.append(other)
                else:
                    pairs.setdefault(mine.id, []).append(other)
            free = left
        for other in free:
            if not other.data["archived"]:
                self.found("extra", None, other, field="name", child=other.data["name"])
        return pairs

    def compare(self, product: Entity, other: Entity) -> None:
        """One finding for a pair that is not equal, naming the first field that differs."""
        mine, theirs = _content(self.main, product), _content(self.child, other)
        for name, value in mine.items():
            if value != theirs[name]:
                self.found("different", product, other, field=name, main=value, child=theirs[name])
                return

    # --- references ---

    def folders(self) -> None:
        """Folders main's products lie in must be in the child, and no path twice."""
        wanted: dict[str, Entity] = {}
        for product in self.main.kind("product").values():
            for folder in self.main.walk_up(self.main.parent(product)):
                wanted.setdefault(path_of(self.main, folder), folder)
        paths: dict[str, list[Entity]] = {}
        for folder in self.child.kind("productfolder").values():
            paths.setdefault(path_of(self.child, folder), []).append(folder)
        for path, folder in wanted.items():
            if path not in paths:
                self.found("missing", folder, None, field="productfolder", main=path)
        self.doubled("productfolder", paths, Counter(_paths(self.main)))

    def names(self) -> None:
        """Units, countries, currencies and price types must not share a name."""
        for kind in ("uom", "country", "currency", "pricetype"):
            by_name: dict[str, list[Entity]] = {}
            for one in self.child.kind(kind).values():
                by_name.setdefault(one.data["name"], []).append(one)
            self.doubled(kind, by_name, Counter(one.data["name"] for one in self.main.kind(kind).values()))

    def doubled(self, kind: str, groups: dict[str, list[Entity]], in_main: Counter[str]) -> None:
        """More of one name than main has (and than one) is a duplicate each."""
        for name, group in groups.items():
            for one in group[max(1, in_main[name]) :]:
                self.found("duplicates", None, one, field=kind, child=name)


def _paths(account: Account) -> Iterable[str]:
    return (path_of(account, folder) for folder in account.kind("productfolder").values())


def _unique(products: list[Entity], name: str) -> dict[str, Entity]:
    """Products by one field, where that field names only one of them."""
    counts = Counter(one.data.get(name) for one in products)
    return {one.data[name]: one for one in products if one.data.get(name) and counts[one.data[name]] == 1}


def _content(account: Account, product: Entity) -> Json:
    """Everything of a product that must be equal in both accounts, references by what they mean."""
    data = product.data
    content: Json = {name: data.get(name, _EMPTY.get(name)) for name in PLAIN}
    content["vat"] = _vat(data)
    content["uom"] = _named(account, data.get("uom"))
    content["country"] = _named(account, data.get("country"))
    content["folder"] = path_of(account, account.parent(product))
    content["salePrices"] = {
        price["priceType"]["name"]: _price(account, price) for price in data["salePrices"] if price["value"]
    }
    content["buyPrice"] = _price(account, data["buyPrice"])
    content["minPrice"] = _price(account, data["minPrice"])
    content["barcodes"] = _codes(data)
    content["packs"] = sorted(
        [_named(account, pack["uom"]), float(pack["quantity"]), _codes(pack)] for pack in data.get("packs", ())
    )
    return content


def _vat(data: Json) -> str:
    if data["useParentVat"]:
        return "parent"
    return f"{data.get('vat', 0)}%" if data["vatEnabled"] else "none"


def _named(account: Account, ref: Json | None) -> str | None:
    """A unit or country by code if it has one, else by name."""
    if ref is None:
        return None
    one = account.entities[ref["meta"]["type"]].get(tail(ref))
    return None if one is None else str(one.data.get("code") or one.data["name"])


def _price(account: Account, price: Json) -> list[Any] | None:
    if not price["value"]:
        return None
    currency = account.kind("currency").get(tail(price["currency"]))
    return [float(price["value"]), currency.data["isoCode"] if currency else None]


def _codes(data: Json) -> list[list[str]]:
    return sorted([kind, number] for code in data.get("barcodes", ()) for kind, number in code.items())
