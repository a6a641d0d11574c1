"""The `filter` parameter (md/_general.md "Фильтрация выборки"): text in, one predicate out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .account import Entity, split_href, tail
from .errors import ApiError
from .kinds import Kind

Predicate = Callable[[Entity], bool]

_CONDITION = re.compile(r"(https?://[^=!<>~]+|[\w.]+)(!=|>=|<=|~=|=~|=|>|<|~)(.*)", re.DOTALL)
_SEPARATOR = re.compile(r"(?<!\\);")
_DATE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d(\.\d{1,3})?)?)?")
_ORDERED = (">", "<", ">=", "<=")


@dataclass(frozen=True)
class Condition:
    """One `field operator value` as written."""

    field: str
    operator: str
    value: str


def parse(text: str) -> list[Condition]:
    """All conditions of a filter; `\\;` stands for a semicolon inside a value."""
    conditions = []
    for part in _SEPARATOR.split(text):
        if not part.strip():
            continue
        match = _CONDITION.fullmatch(part.strip())
        if match is None:
            raise ApiError(1034, f"не удалось разобрать условие '{part}'", parameter="filter")
        field, operator, value = match.groups()
        conditions.append(Condition(field, operator, value.replace("\\;", ";")))
    return conditions


def compile_filter(kind: Kind, conditions: list[Condition]) -> list[Predicate]:
    """One predicate per field; repeated `=` means any of them, all fields must hold."""
    by_field: dict[str, list[Condition]] = {}
    for one in conditions:
        by_field.setdefault(one.field, []).append(one)
    return [_field(kind, name, group) for name, group in by_field.items()]


def _field(kind: Kind, name: str, group: list[Condition]) -> Predicate:
    operators = {one.operator for one in group}
    if "=" in operators and operators & set(_ORDERED):
        raise ApiError(1034, f"'=' и неравенства для поля '{name}' несовместимы", parameter="filter")
    equal = [one.value for one in group if one.operator == "="]
    rest: dict[str, Condition] = {}
    predicates: list[Predicate] = []
    for one in group:
        if one.operator == "!=":
            predicates.append(_not(_equals(kind, name, [one.value])))
        elif one.operator != "=":
            rest.setdefault(one.operator, one)  # "the first wins"
    if equal:
        predicates.append(_equals(kind, name, equal))
    predicates += [_compares(kind, name, one.operator, one.value) for one in rest.values()]
    if len(predicates) == 1:
        return predicates[0]
    return lambda entity: all(predicate(entity) for predicate in predicates)


def _not(predicate: Predicate) -> Predicate:
    return lambda entity: not predicate(entity)


def _equals(kind: Kind, name: str, values: list[str]) -> Predicate:
    if name == "id":
        wanted = set(values)
        return lambda entity: entity.id in wanted
    if name in kind.strings:
        texts = {value.lower() for value in values} if name == "syncId" else set(values)
        return lambda entity: entity.data.get(name, "") in texts
    if name in kind.booleans:
        flags = {_boolean(name, value) for value in values}
        return lambda entity: entity.data.get(name, False) in flags
    if name in kind.numbers:
        numbers = {_number(name, value) for value in values}
        return lambda entity: entity.data.get(name, 0) in numbers
    if name in kind.references:
        ids = {split_href(value)[1] if value else "" for value in values}
        return lambda entity: (tail(entity.data[name]) if name in entity.data else "") in ids
    if name == "barcode" and "article" in kind.strings:
        codes = set(values)
        return lambda entity: not codes.isdisjoint(_barcodes(entity))
    if name == "updated":
        moments = [_moment(value) for value in values]
        return lambda entity: any(entity.data.get("updated", "").startswith(one) for one in moments)
    raise _unknown(name)


def _compares(kind: Kind, name: str, operator: str, value: str) -> Predicate:
    if operator in _ORDERED:
        if name in kind.numbers:
            limit = _number(name, value)
            return _ordered(operator, lambda entity: entity.data.get(name, 0), limit)
        if name == "updated":
            return _ordered(operator, lambda entity: entity.data.get("updated", ""), _moment(value))
        raise _unknown(name)
    wanted = value.lower()
    if name == "barcode" and "article" in kind.strings:
        return lambda entity: any(_alike(operator, code.lower(), wanted) for code in _barcodes(entity))
    if name not in kind.strings or name == "syncId":
        raise _unknown(name)
    return lambda entity: _alike(operator, entity.data.get(name, "").lower(), wanted)


def _ordered(operator: str, value: Callable[[Entity], object], limit: object) -> Predicate:
    # Stored moments have milliseconds, a limit may end earlier: as text "10:00" < "10:00:00.000", as wanted.
    compare: dict[str, Callable[[object, object], bool]] = {
        ">": lambda one, other: one > other,  # type: ignore[operator]
        ">=": lambda one, other: one >= other,  # type: ignore[operator]
        "<": lambda one, other: one < other,  # type: ignore[operator]
        "<=": lambda one, other: one <= other,  # type: ignore[operator]
    }
    holds = compare[operator]
    return lambda entity: holds(value(entity), limit)


def _alike(operator: str, text: str, wanted: str) -> bool:
    """`~` contains, `~=` begins with, `=~` ends with; letter case does not matter."""
    if operator == "~":
        return wanted in text
    return text.startswith(wanted) if operator == "~=" else text.endswith(wanted)


def _barcodes(entity: Entity) -> list[str]:
    own = entity.data.get("barcodes", [])
    packed = [code for pack in entity.data.get("packs", ()) for code in pack.get("barcodes", ())]
    return [number for code in (*own, *packed) for number in code.values()]


def _boolean(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise ApiError(1014, value, name, parameter="filter")
    return value == "true"


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ApiError(1014, value, name, parameter="filter") from None


def _moment(value: str) -> str:
    if not _DATE.fullmatch(value):
        raise ApiError(1035, parameter="filter")
    return value


def _unknown(name: str) -> ApiError:
    text = f"неизвестное поле '{name}' или оператор для него не поддерживается"
    return ApiError(1034, text, parameter="filter")
