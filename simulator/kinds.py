"""The entity types the simulator knows, each with what it can do: the one table routes and lists read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import dictionaries, goods
from .account import Account, Entity, tail
from .errors import ApiError
from .render import Json, reference

Create = Callable[..., Entity]
Update = Callable[[Account, Entity, Json], Entity]

_STRINGS = ("name", "code", "externalCode", "description")


@dataclass(frozen=True)
class Kind:
    """How one type is written, which fields filter, sort and search it, and which may be expanded."""

    create: Create
    update: Update
    strings: tuple[str, ...] = _STRINGS
    booleans: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    references: tuple[str, ...] = ("group", "owner")
    search: tuple[str, ...] = ("name",)
    hides_archived: bool = False

    @property
    def sortable(self) -> frozenset[str]:
        """Fields `order` accepts (md/workbook/_workbook_sorting.md)."""
        return frozenset({"id", "updated", *self.strings, *self.booleans, *self.numbers})


KINDS: dict[str, Kind] = {
    "product": Kind(
        create=goods.create,
        update=goods.update,
        strings=(*_STRINGS, "article", "pathName", "syncId"),
        booleans=("archived", "isSerialTrackable", "weighed", "shared"),
        numbers=("weight", "volume", "minimumBalance"),
        references=("group", "owner", "productFolder", "supplier", "uom", "country"),
        search=("name", "code", "article"),
        hides_archived=True,
    ),
    "productfolder": Kind(
        create=dictionaries.create_folder,
        update=dictionaries.update_folder,
        strings=(*_STRINGS, "pathName"),
        booleans=("archived", "shared"),
        references=("group", "owner", "productFolder"),
        hides_archived=True,
    ),
    "uom": Kind(
        create=lambda account, body, key=None: dictionaries.create_simple(account, "uom", body, key),
        update=dictionaries.update_simple,
        booleans=("shared",),
    ),
    "country": Kind(
        create=lambda account, body, key=None: dictionaries.create_simple(account, "country", body, key),
        update=dictionaries.update_simple,
        booleans=("shared",),
    ),
    "currency": Kind(
        create=dictionaries.create_currency,
        update=dictionaries.update_currency,
        strings=("name", "code", "fullName", "isoCode"),
        booleans=("archived", "default"),
        numbers=("multiplicity",),
        references=(),
        hides_archived=True,
    ),
}


def delete(account: Account, entity: Entity) -> None:
    """Remove for good; standard ones cannot go (1025), used ones neither (1028)."""
    if entity.standard:
        raise ApiError(1025)
    if entity.kind != "product" and _used(account, entity):
        raise ApiError(1028)
    account.remove(entity)


def _used(account: Account, entity: Entity) -> bool:
    ref = entity.ref
    if entity.kind == "productfolder":
        others = [*account.kind("product").values(), *account.kind("productfolder").values()]
        return any(one.data.get("productFolder") is ref for one in others)
    if entity.kind == "currency":
        return any(
            price["currency"] is ref
            for one in account.kind("product").values()
            for price in (*one.data["salePrices"], one.data["buyPrice"], one.data["minPrice"])
        )
    return any(
        one.data.get(entity.kind) is ref or any(pack["uom"] is ref for pack in one.data.get("packs", ()))
        for one in account.kind("product").values()
    )


def insert(account: Account, kind: str, body: Json) -> Entity:
    """Put in an entity with a given id, past the API's rules on ids; a type not modelled is kept as it is.

    A name is invented if none is given, and an entity already there is replaced.
    """
    key = str(body["id"])
    rest = {name: value for name, value in body.items() if name not in ("id", "meta")}
    existing = account.entities.get(kind, {}).get(key)
    if existing is not None:
        account.unindex(existing)
    if kind == "pricetype":
        return account.add_price_type(rest, key=key)
    if kind not in KINDS:
        data = {"meta": reference(kind, key)["meta"], "id": key, "accountId": account.id, **rest}
        return account.add(Entity(kind, key, data))
    rest.setdefault("name", f"{kind} {key[:8]}")
    if kind == "currency":
        rest = {"code": key, "isoCode": key, "rate": 1, **rest}
    return KINDS[kind].create(account, rest, key=key)


def expand(account: Account, entity: Entity, path: list[str]) -> Json:
    """The answer form with the reference `path[0]` replaced by its object, and so on along the path."""
    data = dict(entity.data)
    name, rest = path[0], path[1:]
    if name in ("images", "files") and name in data:
        data[name] = {**data[name], "rows": entity.hidden.get(name, [])}
    elif name in data and isinstance(data[name], dict) and "meta" in data[name]:
        meta = data[name]["meta"]
        found = account.entities.get(meta["type"], {}).get(tail(data[name]))
        if found is not None:
            data[name] = expand(account, found, rest) if rest else found.data
    return data
