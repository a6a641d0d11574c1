"""One account of the service and everything it owns, in memory."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from . import standard
from .errors import ApiError
from .limits import Principal
from .render import BASE, Json, dumps, reference

DAY_MS = 86_400_000
MOSCOW = 3 * 3600  # the API tells time in Moscow time without an offset (md/_general.md)
_EXTERNAL_CODE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Entity:
    """One stored object: `data` is its answer form, `ref` how others name it."""

    __slots__ = ("data", "hidden", "id", "kind", "ref", "standard", "text")

    def __init__(self, kind: str, key: str, data: Json, standard: bool = False) -> None:
        self.kind = kind
        self.id = key
        self.ref = reference(kind, key)
        self.data = data
        self.hidden: Json = {}  # fields answered only on request, such as minimumStock
        self.standard = standard
        self.text: bytes | None = None

    def bytes(self) -> bytes:
        """The serialised answer form, remembered until the object changes."""
        if self.text is None:
            self.text = dumps(self.data)
        return self.text


class Account:
    """Entities by type and id, tokens, settings; ids and codes are drawn from its own seeded generator."""

    def __init__(self, key: str, name: str, clock: Callable[[], float], **options: Any) -> None:
        self.id = key
        self.name = name
        self.clock = clock
        self.login: str | None = options.get("login")
        self.password: str | None = options.get("password")
        settings: Json = options.get("settings") or {}
        self.fill_ean13 = bool(settings.get("fillEAN13Barcode"))
        self.check_unique_code = bool(settings.get("checkUniqueCode"))
        self.rate_headers_in_units = settings.get("rateHeaders") == "units"
        self.company: Json = {}
        self.random = random.Random(f"account {key}")
        self.entities: dict[str, dict[str, Entity]] = {}
        self.sync_ids: dict[str, Entity] = {}
        self.codes: dict[str, set[str]] = {}
        self.principals: dict[str, Principal] = {}
        self.lag_ms = DAY_MS
        self._last = 0
        self._second = (-1, "")
        self._found()
        self.lag_ms = 0

    # --- time, ids, codes ---

    def stamp(self) -> str:
        """A fresh value for `updated`: Moscow time to the millisecond, later than any given before.

        `lag_ms` lets the first day and a seeded catalogue lie in the past, so that they do not run ahead of
        the clock.
        """
        self._last = max(self._last + 1, int(self.clock() * 1000) - self.lag_ms)
        second, milliseconds = divmod(self._last, 1000)
        if self._second[0] != second:
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second + MOSCOW))
            self._second = (second, text)
        return f"{self._second[1]}.{milliseconds:03}"

    def new_id(self) -> str:
        """A fresh entity id."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def new_external_code(self) -> str:
        """What the service writes when a client gives no externalCode."""
        return "".join(self.random.choices(_EXTERNAL_CODE, k=22))

    # --- entities ---

    def kind(self, kind: str) -> dict[str, Entity]:
        """All entities of one type, oldest first."""
        return self.entities.setdefault(kind, {})

    def add(self, entity: Entity) -> Entity:
        """Store a new entity and index it."""
        self.kind(entity.kind)[entity.id] = entity
        self.index(entity)
        return entity

    def index(self, entity: Entity) -> None:
        """Make a product findable by syncId and code."""
        if entity.kind == "product":
            if sync_id := entity.data.get("syncId"):
                self.sync_ids[sync_id] = entity
            if code := entity.data.get("code"):
                self.codes.setdefault(code, set()).add(entity.id)

    def unindex(self, entity: Entity) -> None:
        """Undo `index` before a product changes or goes."""
        if entity.kind == "product":
            self.sync_ids.pop(entity.data.get("syncId", ""), None)
            if owners := self.codes.get(entity.data.get("code", "")):
                owners.discard(entity.id)

    def remove(self, entity: Entity) -> None:
        """Delete for good; catalogue objects have no recycle bin (error 1066)."""
        self.unindex(entity)
        del self.kind(entity.kind)[entity.id]

    def get(self, kind: str, key: str) -> Entity:
        """The entity, or error 1021."""
        found = self.kind(kind).get(key)
        if found is None:
            raise ApiError(1021, kind, key)
        return found

    def touched(self, entity: Entity) -> None:
        """The entity has changed: new `updated`, new text."""
        if "updated" in entity.data:
            entity.data["updated"] = self.stamp()
        entity.text = None

    def owned(self, kind: str, key: str) -> Json:
        """The fields every object of the account's own starts with."""
        return {
            "meta": reference(kind, key)["meta"],
            "id": key,
            "accountId": self.id,
            "owner": self.owner.ref,
            "shared": True,
            "group": self.group.ref,
            "updated": self.stamp(),
        }

    # --- references ---

    @property
    def price_types(self) -> list[Entity]:
        """Price types in their order; the first is the default one."""
        return list(self.kind("pricetype").values())

    def walk_up(self, folder: Entity | None) -> Iterator[Entity]:
        """A folder, its parent, and so on to the root."""
        seen: set[str] = set()
        while folder is not None and folder.id not in seen:
            seen.add(folder.id)
            yield folder
            folder = self.parent(folder)

    def parent(self, entity: Entity) -> Entity | None:
        """The folder an entity lies in."""
        ref = entity.data.get("productFolder")
        return None if ref is None else self.kind("productfolder").get(tail(ref))

    # --- the first day ---

    def _found(self) -> None:
        """Fill in what the service gives every new account."""
        self.group = self.add(self._named("group", "Основной"))
        self.owner = self.add(self._named("employee", "Администратор"))
        for name, code, description in standard.UOMS:
            self._standard("uom", name, code, description)
        for name, code, description in standard.COUNTRIES:
            self._standard("country", name, code, description)
        # The currency prices are in when none is named.
        self.default_currency = self.add_currency(standard.CURRENCIES[0], default=True)
        self.add_price_type({"name": standard.DEFAULT_PRICE_TYPE})

    def _named(self, kind: str, name: str) -> Entity:
        key = self.new_id()
        data = {"meta": reference(kind, key)["meta"], "id": key, "accountId": self.id, "name": name}
        return Entity(kind, key, data)

    def _standard(self, kind: str, name: str, code: str, description: str) -> None:
        key = self.new_id()
        data = {
            "meta": reference(kind, key)["meta"],
            "id": key,
            "updated": "2012-11-02 11:07:44.000",
            "name": name,
            "description": description,
            "code": code,
            "externalCode": code,
        }
        self.add(Entity(kind, key, data, standard=True))

    def add_currency(self, body: Json, *, key: str | None = None, default: bool = False) -> Entity:
        """Store a currency with the fields md/dictionaries/_currency.md promises in an answer."""
        key = key or self.new_id()
        data: Json = {"meta": reference("currency", key)["meta"], "id": key, "system": False}
        data.update(rate=1.0, multiplicity=1, indirect=False, rateUpdateType="manual")
        data.update(majorUnit={"gender": "masculine"}, minorUnit={"gender": "masculine"}, archived=False)
        data.update({name: value for name, value in body.items() if value is not None})
        data["default"] = default
        return self.add(Entity("currency", key, data, standard=default))

    def add_price_type(self, body: Json, *, key: str | None = None) -> Entity:
        """Store a price type at the end of the list."""
        key = key or self.new_id()
        code = body.get("externalCode") or str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        data = {"meta": reference("pricetype", key)["meta"], "id": key}
        data.update(name=body.get("name") or key, externalCode=code)
        return self.add(Entity("pricetype", key, data))


def tail(ref: Json) -> str:
    """The id a stored reference points at."""
    return str(ref["meta"]["href"]).rsplit("/", 1)[1]


@lru_cache(maxsize=16384)
def split_href(href: str) -> tuple[str, str]:
    """Type and id out of an href, whatever its host (`…/entity/{type}/{id}`); `("", "")` if it is none."""
    path = href.split("?", 1)[0].replace(BASE, "").rstrip("/")
    parts = path.rsplit("/", 2)
    if len(parts) < 3 or not parts[2]:
        return "", ""
    return parts[1], parts[2]
