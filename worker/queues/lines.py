"""Connections to Redis or Valkey that redis-py has made, spoken over by hiredis alone."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from ssl import SSLSocket, SSLWantReadError
from typing import Any

from hiredis import PushNotification, Reader, pack_command
from redis.connection import ConnectionPool, DefaultParser
from redis.exceptions import ConnectionError


class Line:
    """A connection that redis-py has made; spoken over without it, since what it does around hiredis costs as much
    again as all the rest, while a task waits."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self.connection: Any = pool.get_connection()
        self.socket: Any
        self.socket = self.connection._sock
        _let_wait(self.socket)
        self.send: Callable[[bytes], None] = self.socket.sendall
        self.reader = Reader(replyError=DefaultParser.parse_error)

    def answer(self) -> Any:
        """The answer to what was sent, an error as it is. Raises OSError or ConnectionError when none will come."""
        while isinstance(answer := self.next(), PushNotification):
            pass
        return answer

    def next(self) -> Any:
        """What the server says next, which may be something else (RESP3)."""
        while (said := self.reader.gets()) is False:
            self.take_in()
        return said

    def take_in(self) -> None:
        """Take in what has come."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.reader.feed(data)

    def close(self) -> None:
        """Give it up."""
        self.connection.disconnect()
        self._pool.release(self.connection)


def _let_wait(sock: Any) -> None:
    """Have the kernel, not Python, see to the socket's time limit: no poll() before each recv() and send()."""
    seconds = sock.gettimeout()
    if seconds and not isinstance(sock, SSLSocket):  # OpenSSL would wait on and on
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        sock.settimeout(None)


class Ear:
    """A subscription to a channel."""

    def __init__(self, pool: ConnectionPool, channel: str) -> None:
        subscribe: Any = ("SUBSCRIBE", channel)
        self._line = Line(pool)
        try:
            self._line.send(pack_command(subscribe))
            if isinstance(said := self._line.next(), Exception):
                raise said
            self._line.socket.setblocking(False)
        except BaseException:
            self.close()
            raise
        self.number: int = self._line.socket.fileno()
        """The socket's, which is readable when there is something to hear."""

    def hear(self) -> list[str]:
        """What has come, message by message. Raises ConnectionError at its end."""
        with suppress(BlockingIOError, SSLWantReadError):
            self._line.take_in()
            while getattr(self._line.socket, "pending", int)():  # TLS has more than the socket tells
                self._line.take_in()
        heard = []
        while said := self._line.reader.gets():
            if said[0] == b"message":
                heard.append(said[2].decode())
        return heard

    def close(self) -> None:
        """End it."""
        self._line.close()
