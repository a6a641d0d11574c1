"""Price types: one list for the account, always written as a whole (md/dictionaries/_pricetypes.md)."""

from __future__ import annotations

from typing import Any

from .account import Account, Entity
from .errors import ApiError
from .fields import Check, checked, href_of, required, text
from .render import Json

MAX_PRICE_TYPES = 100
FIELDS: dict[str, Check] = {"name": text(), "externalCode": text()}


def replace(account: Account, body: Any) -> None:
    """Make the list what `body` says: known ones kept or renamed, new ones made, omitted ones deleted."""
    if not isinstance(body, list):
        raise ApiError(2005)
    if not body:
        raise ApiError(1027)
    if len(body) > MAX_PRICE_TYPES:
        raise ApiError(42000, MAX_PRICE_TYPES)
    known = account.kind("pricetype")
    wanted = [(_known(known, one), checked(account, FIELDS, one)) for one in body]
    names = [values.get("name", old.data["name"] if old else None) for old, values in wanted]
    for name in names:
        required({"name": name}, "name")
    if len(set(names)) < len(names):
        raise ApiError(42001, parameter="name")
    account.entities["pricetype"] = {}
    for old, values in wanted:
        if old is None:
            account.add_price_type(values)
        else:
            old.data.update({name: value for name, value in values.items() if value})
            old.text = None
            account.add(old)
    _refit_products(account)


def _known(known: dict[str, Entity], one: Any) -> Entity | None:
    if not isinstance(one, dict):
        raise ApiError(2005)
    if one.get("meta") is None and one.get("id") is None:
        return None
    key = href_of("meta", one)[1] if one.get("meta") is not None else str(one["id"])
    found = known.get(key)
    if found is None:
        raise ApiError(1021, "pricetype", key, status=400)
    return found


def _refit_products(account: Account) -> None:
    """Every product has a price of every type, and of no other."""
    kinds = account.price_types
    nothing = {"value": 0.0, "currency": account.default_currency.ref}
    for product in account.kind("product").values():
        prices = {price["priceType"]["id"]: price for price in product.data["salePrices"]}
        empty: list[Json] = [{**nothing, "priceType": kind.data} for kind in kinds]
        product.data["salePrices"] = [prices.get(one["priceType"]["id"], one) for one in empty]
        product.text = None
