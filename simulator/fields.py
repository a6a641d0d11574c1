"""Field checks: each turns one value of a request into its stored form, or raises the vendor's error.

A check gets the account, the field's name and the value (never null; `checked` treats null as "clear").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .account import Account, Entity, split_href
from .errors import ApiError
from .render import Json

Check = Callable[[Account, str, Any], Any]

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# Answer fields a client may echo; "read-only fields in a write are ignored" (md/_general.md).
READ_ONLY = frozenset(
    {
        "meta",
        "id",
        "accountId",
        "pathName",
        "updated",
        "created",
        "version",
        "variantsCount",
        "effectiveVat",
        "effectiveVatEnabled",
        "tobacco",
    }
)


def wrong_type(name: str, wanted: str) -> ApiError:
    """Error 2016 for a value of the wrong JSON type."""
    return ApiError(2016, name, wanted, parameter=name)


def text(limit: int = 255) -> Check:
    """A string of at most `limit` characters (error 3040)."""

    def check(_account: Account, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong_type(name, "строка")
        if len(value) > limit:
            raise ApiError(3040, name, limit, parameter=name)
        return value

    return check


def boolean(_account: Account, name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_type(name, "логическое значение")
    return value


def number(_account: Account, name: str, value: Any) -> float:
    """A number that is not negative (error 3002)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "число")
    if value < 0:
        raise ApiError(3002, name, parameter=name)
    return value


def positive(account: Account, name: str, value: Any) -> float:
    """A number above zero (error 3003)."""
    if number(account, name, value) == 0:
        raise ApiError(3003, name, parameter=name)
    return float(value)


def integer(_account: Account, name: str, value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "целое число")
    return value


def vat(account: Account, name: str, value: Any) -> int:
    """A VAT rate, 0 to 99 per cent."""
    if not 0 <= integer(account, name, value) <= 99:
        raise ApiError(3005, value, name, "0..99", parameter=name)
    return int(value)


def mapping(_account: Account, name: str, value: Any) -> Json:
    """An object taken as it is."""
    if not isinstance(value, dict):
        raise wrong_type(name, "объект")
    return value


def strings(_account: Account, name: str, value: Any) -> list[str]:
    """A list of strings."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong_type(name, "массив строк")
    return value


def uuid_text(_account: Account, name: str, value: Any) -> str:
    """A UUID in lower case (error 1052)."""
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise ApiError(1052, parameter=name)
    return value.lower()


def href_of(name: str, value: Any) -> tuple[str, str]:
    """Type and id a reference names; errors 2014, 2010 and 2013 for a malformed one."""
    meta = value.get("meta") if isinstance(value, dict) else None
    if not isinstance(meta, dict):
        raise ApiError(2014, name, parameter=name)
    href = meta.get("href")
    if not isinstance(href, str):
        raise ApiError(2010, name, parameter=name)
    kind, key = split_href(href)
    if not kind:
        raise ApiError(2013, name, parameter=name)
    return kind, key


def resolve(account: Account, name: str, value: Any, kind: str) -> Entity:
    """The referenced entity of *this* account; another account's href is error 1021."""
    try:
        named, key = split_href(value["meta"]["href"])
    except (TypeError, KeyError, AttributeError):
        named = key = ""
    if not named:
        named, key = href_of(name, value)  # which says what is wrong
    if named != kind:
        raise ApiError(2024, named, kind, parameter=name)
    found = account.entities.get(kind, {}).get(key)
    if found is None:
        raise ApiError(1021, kind, key, parameter=name, status=400)
    return found


def ref(kind: str) -> Check:
    """A reference to an entity of one type."""

    def check(account: Account, name: str, value: Any) -> Json:
        return resolve(account, name, value, kind).ref

    return check


def supplier(account: Account, name: str, value: Any) -> Json:
    """A counterparty or an organization of the account."""
    kind, _ = href_of(name, value)
    return resolve(account, name, value, "organization" if kind == "organization" else "counterparty").ref


def checked(account: Account, fields: dict[str, Check], body: Any) -> Json:
    """The stored form of every known field in `body`; null stays None; an unknown field is error 1007."""
    if not isinstance(body, dict):
        raise ApiError(2005)
    result: Json = {}
    for name, value in body.items():
        check = fields.get(name)
        if check is not None:
            result[name] = None if value is None else check(account, name, value)
        elif name not in READ_ONLY:
            raise ApiError(1007, name, parameter=name)
    return result


def required(values: Json, *names: str) -> None:
    """Error 3000 for the first name that is missing or empty."""
    for name in names:
        if values.get(name) in (None, ""):
            raise ApiError(3000, name, parameter=name)


def refuse_empty(values: Json, *names: str) -> None:
    """Error 3000 for the first name that is given, but empty."""
    required({name: values.get(name, True) for name in names}, *names)
