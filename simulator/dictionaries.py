"""Folders, units, countries, currencies (md/dictionaries/: _productFolder, _uom, _country, _currency)."""

from __future__ import annotations

from . import standard
from .account import Account, Entity, tail
from .errors import ApiError
from .fields import (
    Check,
    boolean,
    checked,
    integer,
    mapping,
    number,
    positive,
    ref,
    refuse_empty,
    required,
    text,
    vat,
)
from .render import Json
from .vat import derive, derive_all, settle

_NAMED: dict[str, Check] = {
    "name": text(),
    "code": text(),
    "externalCode": text(),
    "description": text(4096),
    "shared": boolean,
    "group": ref("group"),
    "owner": ref("employee"),
}

SIMPLE_FIELDS: dict[str, Check] = {**_NAMED, "archived": boolean}

FOLDER_FIELDS: dict[str, Check] = {
    **_NAMED,
    "productFolder": ref("productfolder"),
    "vat": vat,
    "vatEnabled": boolean,
    "useParentVat": boolean,
    "taxSystem": text(),
    "archived": boolean,
}

CURRENCY_FIELDS: dict[str, Check] = {
    "system": boolean,
    "name": text(),
    "fullName": text(),
    "code": text(),
    "isoCode": text(),
    "rate": positive,
    "multiplicity": integer,
    "margin": number,
    "indirect": boolean,
    "rateUpdateType": text(),
    "majorUnit": mapping,
    "minorUnit": mapping,
    "archived": boolean,
    "default": boolean,
}


def _write(data: Json, values: Json) -> None:
    """Put values into an answer; null and "" clear."""
    for name, value in values.items():
        if value not in (None, ""):
            data[name] = value
        elif name not in ("externalCode", "shared", "group", "archived"):
            data.pop(name, None)


def _begin(account: Account, fields: dict[str, Check], body: Json, key: str | None) -> Json:
    if key is None and "id" in body:
        raise ApiError(1006, parameter="id")
    values = checked(account, fields, body)
    required(values, "name")
    return values


def create_simple(account: Account, kind: str, body: Json, key: str | None = None) -> Entity:
    """A unit or country of the account's own."""
    values = _begin(account, SIMPLE_FIELDS, body, key)
    key = key or account.new_id()
    data = account.owned(kind, key)
    data["externalCode"] = account.new_external_code()
    values.pop("archived", None)
    _write(data, values)
    return account.add(Entity(kind, key, data))


def update_simple(account: Account, entity: Entity, body: Json) -> Entity:
    """Change a unit or country; a standard one cannot be changed (error 1024)."""
    values = checked(account, SIMPLE_FIELDS, body)
    if entity.standard:
        raise ApiError(1024)
    refuse_empty(values, "name")
    values.pop("archived", None)
    _write(entity.data, values)
    account.touched(entity)
    return entity


def create_folder(account: Account, body: Json, key: str | None = None) -> Entity:
    """A folder; `archived` and `pathName` are read-only."""
    values = _begin(account, FOLDER_FIELDS, body, key)
    key = key or account.new_id()
    data = account.owned("productfolder", key)
    data |= {
        "externalCode": account.new_external_code(),
        "archived": False,
        "pathName": "",
        "vatEnabled": False,
        "useParentVat": True,
    }
    entity = Entity("productfolder", key, data)
    _store_folder(account, entity, values)
    derive(account, entity)
    return account.add(entity)


def update_folder(account: Account, entity: Entity, body: Json) -> Entity:
    """Change, rename or move a folder; into itself or below itself is error 23000."""
    values = checked(account, FOLDER_FIELDS, body)
    refuse_empty(values, "name")
    if (parent := values.get("productFolder")) is not None:
        above = account.kind("productfolder").get(tail(parent))
        if any(one is entity for one in account.walk_up(above)):
            raise ApiError(23000, parameter="productFolder")
    _store_folder(account, entity, values)
    derive_all(account)
    account.touched(entity)
    return entity


def _store_folder(account: Account, entity: Entity, values: Json) -> None:
    values.pop("archived", None)
    settle(entity.data, values)
    _write(entity.data, values)


def create_currency(account: Account, body: Json, key: str | None = None) -> Entity:
    """A currency in full, or a known one by `system` and `isoCode` or `code`; a new one needs a new isoCode.

    Uniqueness (3006) is our decision; the vendor documents none, but two currencies of one isoCode make every
    price ambiguous. A change is not held to it: md/dictionaries/_currency.md shows one that breaks it.
    """
    if key is None and "id" in body:
        raise ApiError(1006, parameter="id")
    values = checked(account, CURRENCY_FIELDS, body)
    values.pop("default", None)
    if values.get("system"):
        values = {**_known(values), "rateUpdateType": "auto", **values}
    else:
        values.pop("rateUpdateType", None)
    required(values, "name", "code", "isoCode")
    _check_iso(account, values["isoCode"])
    return account.add_currency(values, key=key)


def update_currency(account: Account, entity: Entity, body: Json) -> Entity:
    """Change a currency; `system` and `default` are read-only."""
    values = checked(account, CURRENCY_FIELDS, body)
    for name in ("system", "default"):
        values.pop(name, None)
    refuse_empty(values, "name", "code", "isoCode")
    _write(entity.data, values)
    account.touched(entity)
    return entity


def _known(values: Json) -> Json:
    for one in standard.CURRENCIES:
        if one["isoCode"] == values.get("isoCode") or one["code"] == values.get("code"):
            return one
    raise ApiError(3000, "isoCode", parameter="isoCode")


def _check_iso(account: Account, iso: str) -> None:
    if any(other.data["isoCode"] == iso for other in account.kind("currency").values()):
        raise ApiError(3006, "isoCode", parameter="isoCode")
