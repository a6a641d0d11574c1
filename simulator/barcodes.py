"""Barcodes of products and packs (md/dictionaries/_product.md "Штрихкоды")."""

from __future__ import annotations

import random
from typing import Any

from .account import Account
from .errors import ApiError
from .fields import wrong_type
from .render import Json

KINDS = frozenset({"ean13", "ean8", "code128", "gtin", "upc"})


def check_digit(digits: str) -> str:
    """The digit that completes an EAN-8, EAN-13, UPC or GTIN number."""
    total = sum(int(digit) * (3 if index % 2 == 0 else 1) for index, digit in enumerate(reversed(digits)))
    return str(-total % 10)


def random_ean13(source: random.Random) -> str:
    """A number of the in-house range (prefix 2), with the right check digit."""
    digits = "2" + "".join(source.choices("0123456789", k=11))
    return digits + check_digit(digits)


def checked_barcodes(_account: Account, name: str, value: Any) -> list[Json]:
    """The list as stored: one type and one value per element.

    Only GTIN is checked digit by digit (error 3014): the vendor's own examples carry EAN numbers whose check
    digit is wrong.
    """
    if not isinstance(value, list):
        raise wrong_type(name, "массив")
    return [_barcode(name, one) for one in value]


def _barcode(name: str, one: Any) -> Json:
    if not isinstance(one, dict) or len(one) != 1:
        raise wrong_type(name, "штрихкод")
    ((kind, number),) = one.items()
    if kind not in KINDS:
        raise ApiError(1007, kind, parameter=name)
    if not isinstance(number, str) or not number:
        raise wrong_type(kind, "строка")
    if len(number) > 255:
        raise ApiError(3011, parameter=name)
    if kind == "gtin":
        _check_gtin(number)
    return {kind: number}


def _check_gtin(number: str) -> None:
    if not (number.isascii() and number.isdigit()):
        raise ApiError(3014, "GTIN должен содержать только цифры", parameter="barcodes")
    if len(number) not in (8, 12, 13, 14):
        raise ApiError(3014, "В штрихкоде GTIN должно быть 14, 13, 12 или 8 цифр", parameter="barcodes")
    if check_digit(number[:-1]) != number[-1]:
        raise ApiError(3014, "Не сходится контрольная сумма", parameter="barcodes")
