"""Calls and answers: one HTTP exchange as plain values, and the ASGI edge that sends them."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ApiError, Empty
from .render import API, dumps, with_base

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON_TYPE = "application/json;charset=utf-8"
MAX_BODY = 10 * 1024 * 1024  # error 1044 says 10 MB, md/_restrictions.md 20 MB: the stricter one holds
GZIP_FROM = 1024


@dataclass
class Call:
    """One request: method, path below the API base, query, headers; the body comes later."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    base: str
    head_size: int
    body: bytes = b""
    too_large: bool = False

    @classmethod
    def from_scope(cls, scope: Scope) -> Call:
        """Read an ASGI scope."""
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
        server = scope.get("server") or ("localhost", None)
        host = headers.get("host") or f"{server[0]}:{server[1]}"
        query = scope.get("query_string", b"").decode("latin-1")
        path = scope["path"].removeprefix(API).rstrip("/") or "/"
        size = len(scope.get("raw_path") or scope["path"].encode()) + len(query)
        size += sum(len(name) + len(value) + 4 for name, value in raw)
        base = f"{scope.get('scheme', 'http')}://{host}{API}"
        return cls(scope["method"], path, query, headers, base, size)

    async def read(self, receive: Receive) -> None:
        """Take the whole body in; what is beyond the limit is read and thrown away."""
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= MAX_BODY:
                chunks.append(chunk)
            more = message.get("more_body", False)
        self.too_large = size > MAX_BODY
        self.body = b"" if self.too_large else b"".join(chunks)


@dataclass
class Answer:
    """Status, body with `BASE` still inside, extra headers, how many objects, whether any was applied."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)
    items: int = 0
    applied: bool = True

    @classmethod
    def of(cls, value: object, status: int = 200, items: int = 1) -> Answer:
        """A JSON answer."""
        return cls(status, dumps(value), items=items)

    @classmethod
    def refusal(cls, error: ApiError | Empty) -> Answer:
        """An error answer; 414 and 415 of the transport have no body."""
        if isinstance(error, Empty):
            return cls(error.status)
        return cls(error.status, dumps(error.body()))

    def wire(self, base: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and bytes as they go out, gzipped when that pays."""
        body = with_base(self.body, base)
        headers = {"content-type": self.content_type} if body else {}
        if len(body) > GZIP_FROM:
            body = gzip.compress(body, 1, mtime=0)
            headers["content-encoding"] = "gzip"
        headers["content-length"] = str(len(body))
        headers.update(self.headers)
        return [(name.encode(), value.encode()) for name, value in headers.items()], body

    async def send(self, send: Send, base: str) -> None:
        """Send it all."""
        headers, body = self.wire(base)
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def send_half(self, send: Send, base: str) -> None:
        """Promise the whole body and deliver half of it; the caller then cuts the connection."""
        headers, body = self.wire(base)
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        half = body[: len(body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})

    async def drip(self, send: Send, receive: Receive, base: str, seconds: float) -> None:
        """Promise the whole body and deliver it byte by byte, as long as the client stays."""
        headers, body = self.wire(base)
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        gone = asyncio.ensure_future(receive())  # the request has been read: what comes now is its end
        try:
            for index in range(len(body)):
                await send({"type": "http.response.body", "body": body[index : index + 1], "more_body": True})
                if (await asyncio.wait({gone}, timeout=seconds))[0]:
                    return
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()


def cut(scope: Scope) -> None:
    """Abort the TCP connection under a request; without one (in-process tests) raise instead."""
    transport = scope.get("state", {}).get("transport")
    if transport is None:
        raise ConnectionAbortedError("the simulator cut the connection")
    transport.abort()
