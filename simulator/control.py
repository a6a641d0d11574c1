"""The control side under `/_control`: make accounts, fill them, order faults, read the ledger.

No token guards it: it is meant for loopback, for tests, benchmarks and demonstrations.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Body, HTTPException

from .account import Account
from .diff import diff
from .errors import ApiError
from .kinds import insert
from .limits import Neighbour
from .seed import mutate, seed
from .vat import derive_all
from .world import World

Order = dict[str, Any]


def control_routes(world: World) -> APIRouter:
    """All control paths, working on one world."""
    router = APIRouter(prefix="/_control")
    _account_routes(router, world)
    _neighbour_route(router, world)
    _catalogue_routes(router, world)
    _fault_routes(router, world)
    _ledger_routes(router, world)
    return router


def _account(world: World, key: Any) -> Account:
    found = world.accounts.get(str(key))
    if found is None:
        raise HTTPException(404, f"no account {key}")
    return found


def _described(account: Account) -> Order:
    return {
        "id": account.id,
        "name": account.name,
        "login": account.login,
        "tokens": [
            {"token": key, "name": one.name, "weight": one.weight, "disabled": one.disabled}
            for key, one in account.principals.items()
        ],
        "entities": {kind: len(entities) for kind, entities in account.entities.items()},
    }


def _account_routes(router: APIRouter, world: World) -> None:
    @router.get("/health")
    async def health() -> Order:
        """Alive, and how many accounts there are."""
        return {"status": "ok", "accounts": len(world.accounts)}

    @router.post("/reset")
    async def reset() -> Order:
        """Forget everything."""
        world.reset()
        return {}

    @router.post("/speed")
    async def speed(order: Order = Body()) -> Order:
        """Set `latency_ms` per request and `item_ms` per object of a bulk request."""
        world.latency_ms = float(order.get("latency_ms", world.latency_ms))
        world.item_ms = float(order.get("item_ms", world.item_ms))
        return {"latency_ms": world.latency_ms, "item_ms": world.item_ms}

    @router.post("/accounts")
    async def add_account(order: Order = Body()) -> Order:
        """A new account with standard data."""
        if str(order.get("id")) in world.accounts:
            raise HTTPException(409, f"account {order['id']} exists")
        return _described(world.new_account(order))

    @router.get("/accounts")
    async def accounts() -> list[Order]:
        """All accounts."""
        return [_described(account) for account in world.accounts.values()]

    @router.post("/accounts/{key}/tokens")
    async def tokens(key: str, order: Order = Body()) -> Order:
        """Revoke, add, or restore access (`enable`) after the kill-switch."""
        account = _account(world, key)
        for token in order.get("revoke", ()):
            world.revoke(account, token)
        for one in order.get("add", ()):
            world.add_token(account, one["token"], int(one.get("weight", 1)))
        for token in order.get("enable", ()):
            if token in account.principals:
                account.principals[token].forgive()
        return _described(account)


def _neighbour_route(router: APIRouter, world: World) -> None:
    @router.post("/neighbour")
    async def neighbour(order: Order = Body()) -> Order:
        """Have somebody else use the same `token`: `units_per_second` from now on, `weight` at once; 0 ends it."""
        principal = world.tokens.get(str(order.get("token")))
        if principal is None:
            raise HTTPException(404, f"no token {order.get('token')}")
        rate, weight = float(order["units_per_second"]), int(order.get("weight", principal.weight))
        if rate < 0 or weight < 1:
            raise HTTPException(422, "units_per_second must not be negative, weight must be 1 or more")
        principal.neighbour = Neighbour(rate, weight, world.clock()) if rate else None
        return {"token": principal.name, "units_per_second": rate, "weight": weight}


def _catalogue_routes(router: APIRouter, world: World) -> None:
    @router.post("/seed")
    async def fill(order: Order = Body()) -> Order:
        """A catalogue, the same for the same seed."""
        account = _account(world, order.get("account"))
        number, folders = int(order.get("seed", 1)), int(order.get("folders", 40))
        return dict(seed(account, int(order["products"]), number, folders))

    @router.post("/entities")
    async def entities(order: Order = Body()) -> Order:
        """Raw entities with given ids, any type."""
        account = _account(world, order.get("account"))
        try:
            made = [insert(account, order["type"], body).id for body in order["entities"]]
        except ApiError as error:
            raise HTTPException(422, error.body()) from None
        if order["type"] == "productfolder":
            derive_all(account)
        return {"ids": made}

    @router.post("/mutate")
    async def change(order: Order = Body()) -> Order:
        """Random changes in the catalogue."""
        account = _account(world, order.get("account"))
        return {"ids": mutate(account, int(order["count"]), int(order.get("seed", 1)))}

    @router.get("/diff")
    async def compare(main: str, child: str) -> Order:
        """How far the child is from main."""
        return diff(_account(world, main), _account(world, child))


def _fault_routes(router: APIRouter, world: World) -> None:
    @router.post("/faults")
    async def add_fault(order: Order = Body()) -> Order:
        """One more fault rule."""
        try:
            return world.faults.add(order).as_json()
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from None

    @router.get("/faults")
    async def faults() -> list[Order]:
        """All rules with their hits."""
        return [rule.as_json() for rule in world.faults.rules]

    @router.delete("/faults")
    async def clear_faults() -> Order:
        """No more faults."""
        world.faults.rules.clear()
        return {}


def _ledger_routes(router: APIRouter, world: World) -> None:
    @router.get("/ledger")
    async def ledger(entries: int = 0) -> Order:
        """Everything counted since the last reset; `entries=1` adds the newest requests one by one."""
        names = {key: account.name for key, account in world.accounts.items()}
        return world.ledger.as_json(names, bool(entries))

    @router.post("/ledger/reset")
    async def reset_ledger() -> Order:
        """Start counting anew; rate windows and switched-off access stay."""
        world.ledger.reset()
        return {}
