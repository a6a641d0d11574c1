"""The application: the API below `/api/remap/1.2`, the control side below `/_control`."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from .api import Api
from .control import control_routes
from .render import API
from .world import Clock, World


class Simulator(FastAPI):
    """FastAPI for the control side; API requests go straight to `Api`, past all middleware.

    The API must own its connection: it cuts it on order, and it is the part that has to be fast.
    """

    def __init__(self, world: World) -> None:
        super().__init__(title="MoySklad simulator", openapi_url=None)
        self.world = world
        self.api = Api(world)
        self.include_router(control_routes(world))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http" and scope["path"].startswith(f"{API}/"):
            await self.api(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(clock: Clock = time.time, latency_ms: float = 0, item_ms: float = 0) -> Simulator:
    """A simulator with no accounts yet; `clock` gives seconds since the epoch."""
    return Simulator(World(clock, latency_ms, item_ms))
