"""The port of a demo's API belongs to that demo, from before the API starts until the demo ends."""

from __future__ import annotations

import socket

from worker.demo.stage import reserve


def test_two_demos_that_want_one_port_get_two() -> None:
    """While one holds the port it asked for, though nobody listens there yet, another gets a different one."""
    with reserve(0) as first:
        port = first.getsockname()[1]
        with reserve(port) as second:
            assert second.getsockname()[1] != port
    with reserve(port) as again:
        assert again.getsockname()[1] == port


def test_the_api_can_listen_on_the_port_held_for_it_and_again_after_a_restart() -> None:
    """Holding a port keeps other demos from it, not the server it is held for; and it holds while that restarts."""
    with reserve(0) as held:
        port = held.getsockname()[1]
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)):
                server.accept()[0].close()
                with reserve(port) as other:
                    assert other.getsockname()[1] != port
