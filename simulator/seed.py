"""Catalogues to order: the same account, size and seed give the same goods."""

from __future__ import annotations

import random
from typing import Any

from . import pricetypes
from .account import DAY_MS, Account, Entity
from .barcodes import check_digit
from .kinds import KINDS
from .names import BRANDS, DETAILS, GOODS, VARIETIES
from .render import Json
from .routes import upsert

PRICE_TYPES = ("Цена продажи", "Оптовая", "VIP")
UOMS = (("бутылка", "2001", "Бутылка стеклянная"), ("рулон", "2002", "Рулон"))
COUNTRY = ("Южная Осетия", "896", "Республика Южная Осетия")


class _Shelf:
    """What products of one catalogue refer to."""

    def __init__(self, account: Account, folders: list[Entity]) -> None:
        self.folders = folders
        self.uoms = list(account.kind("uom").values())
        self.packing = [one for one in self.uoms if one.data["name"] in ("упак", "кг", "бутылка", "рулон")]
        self.countries = list(account.kind("country").values())
        by_iso = {one.data["isoCode"]: one for one in account.kind("currency").values()}
        self.rub, self.usd, self.eur = (by_iso[iso] for iso in ("RUB", "USD", "EUR"))
        self.prices = account.price_types


def seed(account: Account, products: int, number: int = 1, folders: int = 40) -> dict[str, int]:
    """Fill the account; what is already there by name or isoCode is used, not doubled."""
    account.lag_ms = DAY_MS // 2
    try:
        return _fill(account, random.Random(f"seed {number}"), products, number, folders)
    finally:
        account.lag_ms = 0


def _fill(account: Account, source: random.Random, products: int, number: int, folders: int) -> dict[str, int]:
    for name, code, description in UOMS:
        _ensure(account, "uom", name, {"name": name, "code": code, "description": description})
    name, code, description = COUNTRY
    _ensure(account, "country", name, {"name": name, "code": code, "description": description})
    for iso in ("USD", "EUR"):
        if not any(one.data["isoCode"] == iso for one in account.kind("currency").values()):
            upsert(account, "currency", {"system": True, "isoCode": iso})
    known = {one.data["name"]: one for one in account.price_types}
    wanted: list[Json] = [{**known[name].ref} if name in known else {"name": name} for name in PRICE_TYPES]
    wanted += [{**one.ref} for name, one in known.items() if name not in PRICE_TYPES]
    pricetypes.replace(account, wanted)
    tree = _folders(account, source, folders)
    shelf = _Shelf(account, list(tree.values()))
    first = len(account.kind("product"))
    for index in range(first, first + products):
        upsert(account, "product", _product(source, shelf, number, index))
    return {kind: len(account.kind(kind)) for kind in KINDS}


def _ensure(account: Account, kind: str, name: str, body: Json) -> Entity:
    for one in account.kind(kind).values():
        if one.data["name"] == name:
            return one
    return upsert(account, kind, body)


def _folders(account: Account, source: random.Random, count: int) -> dict[str, Entity]:
    """About `count` folders, three to four levels deep, found or made by their full path."""
    tree = {_path(one): one for one in account.kind("productfolder").values()}
    made: dict[str, Entity] = {}
    paths = list(GOODS)
    brands = [f"{path}/{brand}" for brand in BRANDS for path in paths if path.count("/") == 2]
    for path in paths + brands:
        parent: Entity | None = None
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            here = "/".join(parts[:depth])
            if here not in tree:
                if len(made) >= count:
                    return made
                body: Json = {"name": parts[depth - 1], "code": f"F{len(tree) + 1:04}"}
                if parent is not None:
                    body["productFolder"] = parent.ref
                if depth <= 2 and source.random() < 0.4:
                    body["vat"] = source.choice((10, 20))
                tree[here] = upsert(account, "productfolder", body)
            parent = tree[here]
            made[here] = parent
    return made


def _path(folder: Entity) -> str:
    above = folder.data["pathName"]
    return f"{above}/{folder.data['name']}" if above else str(folder.data["name"])


def _product(source: random.Random, shelf: _Shelf, number: int, index: int) -> Json:
    folder = source.choice(shelf.folders) if shelf.folders and source.random() > 0.05 else None
    words = GOODS.get(_path(folder)) if folder else None
    what = source.choice(words or GOODS[source.choice(list(GOODS))])
    body: Json = {
        "name": f"{what} {source.choice(BRANDS)}, {source.choice(VARIETIES)} №{index + 1}",
        "code": f"{number:02}-{index + 1:06}",
        "externalCode": f"ext-{number}-{index + 1:06}-{source.getrandbits(32):08x}",
        "weight": round(source.uniform(0, 30), 3),
        "volume": round(source.uniform(0, 2), 4),
        "barcodes": _barcodes(source, index),
        "salePrices": _sale_prices(source, shelf),
    }
    if source.random() > 0.04:
        body["article"] = f"ART-{number}-{index + 1:05}"
    if source.random() < 0.7:
        body["description"] = f"{what}. {source.choice(DETAILS)}"
    if source.random() < 0.03:
        body["archived"] = True
    if source.random() < 0.85:
        body["uom"] = (shelf.uoms[0] if source.random() < 0.6 else source.choice(shelf.uoms)).ref
    if source.random() < 0.6:
        body["country"] = source.choice(shelf.countries).ref
    if folder is not None:
        body["productFolder"] = folder.ref
    body.update(_vat(source))
    buy = round(source.uniform(50, 500_000))
    if source.random() < 0.8:
        currency = shelf.usd if source.random() < 0.1 else shelf.rub
        body["buyPrice"] = {"value": float(buy), "currency": currency.ref}
    if source.random() < 0.5:
        body["minPrice"] = {"value": buy * 1.1 // 1, "currency": shelf.rub.ref}
    if source.random() < 0.15:
        body["packs"] = _packs(source, shelf, body.get("uom"), index)
    return body


def _vat(source: random.Random) -> Json:
    chance = source.random()
    if chance < 0.4:
        return {"useParentVat": True}
    if chance < 0.55:
        return {"useParentVat": False, "vatEnabled": False}
    return {"vat": 10 if chance < 0.7 else 20, "vatEnabled": True, "useParentVat": False}


def _sale_prices(source: random.Random, shelf: _Shelf) -> list[Json]:
    value = source.uniform(100, 900_000)
    prices = []
    for kind, factor in zip(shelf.prices, (1.0, 0.85, 0.7), strict=False):
        currency = shelf.rub
        if source.random() < 0.12:
            currency = shelf.usd if source.random() < 0.7 else shelf.eur
        amount = float(round(value * factor / (1 if currency is shelf.rub else 90)))
        prices.append({"value": amount, "currency": currency.ref, "priceType": kind.ref})
    return prices


def _barcodes(source: random.Random, index: int) -> list[Json]:
    kinds = source.sample(("ean13", "code128", "gtin", "ean8", "upc"), source.randrange(4))
    return [{kind: _number(source, kind, index)} for kind in kinds]


def _number(source: random.Random, kind: str, index: int) -> str:
    if kind == "code128":
        return f"CODE-{index + 1}-{source.randrange(10_000)}"
    length = {"ean13": 12, "gtin": 13, "ean8": 7, "upc": 11}[kind]
    digits = "".join(source.choices("0123456789", k=length))
    return digits + check_digit(digits)


def _packs(source: random.Random, shelf: _Shelf, uom: Any, index: int) -> list[Json]:
    units = [one for one in shelf.packing if one.ref is not uom]
    packs = []
    for unit in source.sample(units, source.randint(1, 2)):
        pack: Json = {"uom": unit.ref, "quantity": float(source.choice((2, 6, 10, 12, 24, 100)))}
        if source.random() < 0.6:
            pack["barcodes"] = [{"ean13": _number(source, "ean13", index)}]
        packs.append(pack)
    return packs


def mutate(account: Account, count: int, number: int = 1) -> list[str]:
    """Change `count` random products: a price, a name, or in or out of the archive; their ids."""
    source = random.Random(f"mutate {number}")
    products = list(account.kind("product").values())
    chosen = source.sample(products, min(count, len(products)))
    for product in chosen:
        KINDS["product"].update(account, product, _change(source, product.data))
    return [product.id for product in chosen]


def _change(source: random.Random, data: Json) -> Json:
    chance = source.random()
    if chance < 0.15:
        return {"archived": not data["archived"]}
    if chance < 0.45:
        return {"name": f"{data['name'][:240]} ред.{source.randrange(1000)}"}
    price = source.choice(data["salePrices"])
    return {
        "salePrices": [
            {
                "value": price["value"] + source.randint(1, 5000),
                "currency": price["currency"],
                "priceType": {"meta": price["priceType"]["meta"]},
            }
        ]
    }
