"""VAT and place of products and folders: what a write means, and what follows from the folder above."""

from __future__ import annotations

from .account import Account, Entity
from .render import Json


def path_of(account: Account, folder: Entity | None) -> str:
    """Names from the root to this folder, joined by "/"; empty for no folder."""
    return "/".join(reversed([one.data["name"] for one in account.walk_up(folder)]))


def settle(data: Json, values: Json) -> None:
    """A rate given alone means an own rate; the parent's rate leaves no own one behind."""
    if values.get("vat") is not None:
        values.setdefault("vatEnabled", True)
    if values.get("useParentVat") is None:
        values.pop("useParentVat", None)
        if values.get("vat") is not None or "vatEnabled" in values:
            values["useParentVat"] = False
    if values.get("vatEnabled", True) is None:
        values["vatEnabled"] = False
    if values.get("useParentVat") or values.get("vatEnabled") is False:
        values["vat"] = None
    if values.get("useParentVat"):
        values["vatEnabled"] = False


def derive(account: Account, entity: Entity) -> None:
    """Recompute `pathName`, `effectiveVat` and `effectiveVatEnabled` of a product or folder."""
    data = entity.data
    if data["vatEnabled"]:
        data.setdefault("vat", 0)
    parent = account.parent(entity)
    data["pathName"] = path_of(account, parent) if parent else ""
    source: Entity | None = entity
    if data["useParentVat"]:
        source = next((one for one in account.walk_up(parent) if not one.data["useParentVat"]), None)
    data.pop("effectiveVat", None)
    data.pop("effectiveVatEnabled", None)
    if source is not None:
        data["effectiveVat"] = source.data.get("vat", 0)
        data["effectiveVatEnabled"] = bool(source.data["vatEnabled"])
    entity.text = None


def derive_all(account: Account) -> None:
    """After a folder changed: everything may lie below it."""
    for kind in ("productfolder", "product"):
        for entity in account.kind(kind).values():
            derive(account, entity)
