"""Products: what a create and an update check, keep and derive (md/dictionaries/_product.md)."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from .account import Account, Entity, tail
from .barcodes import checked_barcodes, random_ean13
from .errors import ApiError
from .fields import (
    Check,
    boolean,
    checked,
    href_of,
    mapping,
    number,
    positive,
    ref,
    refuse_empty,
    required,
    resolve,
    strings,
    supplier,
    text,
    uuid_text,
    vat,
    wrong_type,
)
from .render import Json, collection_meta
from .vat import derive, settle

MAX_IMAGES = 10
HIDDEN = frozenset({"minimumStock", "minimumBalance"})  # answered only with `fields=`
MERGED = frozenset({"salePrices", "attributes", "images", "files", "buyPrice", "minPrice"})


def _price(account: Account, name: str, value: Any) -> Json:
    if not isinstance(value, dict):
        raise wrong_type(name, "объект")
    amount = number(account, name, value.get("value", 0.0))
    currency = value.get("currency")
    owner = account.default_currency if currency is None else resolve(account, "currency", currency, "currency")
    return {"value": amount, "currency": owner.ref}


def _sale_prices(account: Account, name: str, value: Any) -> dict[str, Json]:
    """Given prices by price type; only the given ones will change."""
    if not isinstance(value, list):
        raise wrong_type(name, "массив")
    prices: dict[str, Json] = {}
    for one in value:
        if not isinstance(one, dict) or one.get("priceType") is None:
            raise ApiError(3000, "priceType", parameter="priceType")
        kind = resolve(account, "priceType", one["priceType"], "pricetype")
        prices[kind.id] = {**_price(account, name, one), "priceType": kind.data}
    return prices


def _packs(account: Account, name: str, value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise wrong_type(name, "массив")
    packs = []
    for one in value:
        if not isinstance(one, dict):
            raise wrong_type(name, "объект")
        required(one, "uom", "quantity")
        pack: Json = {"id": str(one.get("id"))}
        pack["uom"] = resolve(account, "uom", one["uom"], "uom").ref
        pack["quantity"] = positive(account, "quantity", one["quantity"])
        if codes := checked_barcodes(account, "barcodes", one.get("barcodes") or []):
            if len(codes) > 1:
                raise ApiError(3036, "штрихкодов упаковки", 1, parameter="barcodes")
            pack["barcodes"] = codes
        packs.append(pack)
    return packs


def _attributes(_account: Account, name: str, value: Any) -> list[Json]:
    """Attribute values as they came: their metadata is not modelled, so any named attribute is taken."""
    if not isinstance(value, list):
        raise wrong_type(name, "массив")
    result = []
    for one in value:
        _, key = href_of(name, one)
        result.append({**one, "id": key})
    return result


def _files(account: Account, name: str, value: Any) -> list[Json] | None:
    """The list of inline files or kept ones, by name and size; an echoed collection changes nothing."""
    if isinstance(value, dict):
        return None
    if not isinstance(value, list):
        raise wrong_type(name, "массив")
    if name == "images" and len(value) > MAX_IMAGES:
        raise ApiError(51006, MAX_IMAGES, parameter=name)
    rows = []
    for one in value:
        if not isinstance(one, dict):
            raise wrong_type(name, "объект")
        if "meta" in one:
            rows.append({"meta": one["meta"]})
            continue
        required(one, "filename", "content")
        _SHORT(account, "filename", one["filename"])
        try:
            size = len(base64.b64decode(one["content"]))
        except (binascii.Error, TypeError, ValueError):
            raise wrong_type("content", "base64") from None
        rows.append({"filename": one["filename"], "size": size})
    return rows


_SHORT = text()

FIELDS: dict[str, Check] = {
    "name": _SHORT,
    "code": _SHORT,
    "externalCode": _SHORT,
    "article": _SHORT,
    "description": text(4096),
    "syncId": uuid_text,
    "archived": boolean,
    "shared": boolean,
    "vat": vat,
    "vatEnabled": boolean,
    "useParentVat": boolean,
    "discountProhibited": boolean,
    "isSerialTrackable": boolean,
    "weighed": boolean,
    "onTap": boolean,
    "partialDisposal": boolean,
    "weight": number,
    "volume": number,
    "minimumBalance": number,
    "minimumStock": mapping,
    "uom": ref("uom"),
    "country": ref("country"),
    "productFolder": ref("productfolder"),
    "group": ref("group"),
    "owner": ref("employee"),
    "supplier": supplier,
    "buyPrice": _price,
    "minPrice": _price,
    "salePrices": _sale_prices,
    "barcodes": checked_barcodes,
    "packs": _packs,
    "attributes": _attributes,
    "images": _files,
    "files": _files,
    "alcoholic": mapping,
    "things": strings,
    "trackingType": _SHORT,
    "tnved": _SHORT,
    "paymentItemType": _SHORT,
    "taxSystem": _SHORT,
    "ppeType": _SHORT,
}

_NEVER_NULL = frozenset({"externalCode", "archived", "shared", "group", "trackingType", "paymentItemType"})
_DEFAULTS: Json = {"weight": 0.0, "volume": 0.0, "isSerialTrackable": False, "discountProhibited": False}


def create(account: Account, body: Json, key: str | None = None) -> Entity:
    """A new product, or the earlier one that was created with the same syncId (md/_general.md "syncId")."""
    if key is None and "id" in body:
        raise ApiError(1006, parameter="id")
    sync_id = body.get("syncId")
    if sync_id is not None and (earlier := account.sync_ids.get(uuid_text(account, "syncId", sync_id))):
        return earlier
    values = checked(account, FIELDS, body)
    required(values, "name")
    _check_code(account, values, None)
    key = key or account.new_id()
    data = account.owned("product", key)
    data |= {
        "externalCode": values.get("externalCode") or account.new_external_code(),
        "archived": False,
        "pathName": "",
        "vatEnabled": False,
        "useParentVat": True,
        "images": {"meta": collection_meta(f"/entity/product/{key}/images", "image")},
        "minPrice": _nothing(account),
        "salePrices": [{**_nothing(account), "priceType": kind.data} for kind in account.price_types],
        "buyPrice": _nothing(account),
        "paymentItemType": "GOOD",
        **_DEFAULTS,
        "variantsCount": 0,
        "trackingType": "NOT_TRACKED",
        "files": {"meta": collection_meta(f"/entity/product/{key}/files", "files")},
    }
    entity = Entity("product", key, data)
    _check_packs(values)
    if "barcodes" not in body and account.fill_ean13:  # md/dictionaries/_assortment.md "barcodeRules"
        values["barcodes"] = [{"ean13": random_ean13(account.random)}]
    _store(account, entity, values)
    return account.add(entity)


def update(account: Account, entity: Entity, body: Json) -> Entity:
    """Change only what `body` names; a changed syncId is error 1047."""
    values = checked(account, FIELDS, body)
    refuse_empty(values, "name")
    sync_id = values.pop("syncId", None)
    if sync_id is not None and sync_id != entity.data.get("syncId"):
        raise ApiError(1047, parameter="syncId")
    _check_code(account, values, entity)
    account.unindex(entity)
    _store(account, entity, values)
    account.index(entity)
    account.touched(entity)
    return entity


def _nothing(account: Account) -> Json:
    return {"value": 0.0, "currency": account.default_currency.ref}


def _check_code(account: Account, values: Json, entity: Entity | None) -> None:
    """Codes are unique only if the account wants it (`uniqueCodeRules.checkUniqueCode`, error 3006)."""
    code = values.get("code")
    if code and account.check_unique_code:
        owners = account.codes.get(code, set())
        if owners - {entity.id if entity else ""}:
            raise ApiError(3006, "code", parameter="code")


def _check_packs(values: Json) -> None:
    """A pack is counted in another unit than the product itself (md/dictionaries/_product.md "Упаковки").

    Creates are held to that; a change is not, since the same page shows one that breaks it.
    """
    uom = values.get("uom")
    for pack in values.get("packs") or []:
        if uom is not None and pack["uom"] is uom:
            reason = "единица измерения упаковки совпадает с единицей измерения товара"
            raise ApiError(3034, "packs", tail(uom), reason, parameter="packs")


def _store(account: Account, entity: Entity, values: Json) -> None:
    data = entity.data
    settle(data, values)
    for name, value in values.items():
        if name in MERGED:
            _merge(account, entity, name, value)
        elif name in HIDDEN:
            entity.hidden[name] = value
        elif value in (None, "", []):
            if name in _DEFAULTS:
                data[name] = _DEFAULTS[name]
            elif name not in _NEVER_NULL:
                data.pop(name, None)
        elif name == "packs":
            known = {pack["id"] for pack in data.get("packs", ())}
            data[name] = [{**pack, "id": pack["id"] if pack["id"] in known else account.new_id()} for pack in value]
        else:
            data[name] = value
    derive(account, entity)


def _merge(account: Account, entity: Entity, name: str, value: Any) -> None:
    """Collections that keep what a request does not name (md/_general.md on salePrices and attributes)."""
    data = entity.data
    if name in ("buyPrice", "minPrice"):
        data[name] = value or _nothing(account)
    elif value is None:
        if name == "attributes":
            data.pop(name, None)
    elif name == "salePrices":
        data[name] = [value.get(price["priceType"]["id"], price) for price in data["salePrices"]]
    elif name == "attributes":
        attributes = {one["id"]: one for one in data.get(name, ())}
        attributes.update({one["id"]: one for one in value})
        kept = [one for one in attributes.values() if one.get("value", one.get("file")) is not None]
        data[name] = kept
        if not kept:
            del data[name]
    else:
        entity.hidden[name] = value
        kind = "image" if name == "images" else "files"
        data[name] = {"meta": collection_meta(f"/entity/product/{entity.id}/{name}", kind, len(value))}
