"""Serve an application over real HTTP, in this thread or in one of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class CuttableProtocol(H11Protocol):
    """Hands its transport to the application (`scope["state"]`), so that a fault can cut the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the transport of this connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


def _server(app: Any, log_level: str) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=CuttableProtocol,
        lifespan="off",
        log_level=log_level,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        backlog=512,
        h11_max_incomplete_event_size=1024 * 1024,  # too long a URL is the API's 414, not a parser's 400
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    # With the protocol named asyncio turns Nagle's algorithm off; else every answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(512)
    return listener


def _relax_garbage_collection() -> None:
    """Collect rarely: a catalogue is a million long-lived objects, and each full pass walks them all."""
    gc.set_threshold(100_000, 20, 50)


def run(app: Any, host: str, port: int, port_file: Path | None, log_level: str) -> None:
    """Serve until SIGTERM or SIGINT; the port file appears once connections are accepted."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn stops on it, then raises it again: exit code 0
    _relax_garbage_collection()
    listener = _listen(host, port)
    if port_file is not None:
        temporary = port_file.with_name(f"{port_file.name}.{os.getpid()}")
        temporary.write_text(str(listener.getsockname()[1]))
        temporary.rename(port_file)
    _server(app, log_level).run(sockets=[listener])


@contextmanager
def serve_in_thread(app: Any, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in a thread while the block runs; gives the address, such as `http://127.0.0.1:40001`."""
    listener = _listen(host, port)
    server = _server(app, "warning")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
