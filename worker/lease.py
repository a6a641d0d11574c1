"""The worker's life as others see it: registration, heartbeat, the session lock, and hearing of new tasks.

A thread of its own holds one connection, so that a busy handler cannot stop it. The connection's advisory
lock ends with the process, which is how others know of a kill -9 at once; the lease is for hosts that
vanish. Behind a pooler there is neither lock nor NOTIFY: the lease, a shorter one, counts alone, and the
worker polls.
"""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from worker.db import AWAY, Connection, Database, fetch, fetch_one, pooled
from worker.memory import rss_mb
from worker.queues.database import LOCK_CLASS
from worker.queues.routing import like, listens
from worker.telemetry import emit
from worker.wake import Wake

_WATCH = 1.0
"""Seconds between two calls of `watch`."""
_LOOK = 1.8
"""Seconds between two looks whether another worker has died."""
_AGAIN = 0.2
"""... when one has just been seen dead: others may have died with it, or be in the hands of one who is busy."""
_POOLED = 9.0
"""Seconds a lease lasts at most where nothing else tells of a death: with a look and `--sleep`, which is how the next
worker hears of what was put back, less than 15."""


class Lease:
    """Keeps this process known as alive between `start` and `stop`.

    `wake.get(timeout)` returns early when tasks were enqueued or `wake.put` was called.
    """

    def __init__(
        self,
        db: Database,
        *,
        queues: Sequence[str],
        name: str,
        release: str,
        seconds: float,
        counters: Callable[[], dict[str, int]],
        watch: Callable[[], None] = lambda: None,
        restart: Callable[[], None] = lambda: None,
        count: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """`watch` is called every second from the thread; it may end the process. `restart` is called there when an
        operator has asked for it, `count` with every heartbeat and at the end."""
        self._db = db
        self._who: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "name": name,
            "queues": list(queues),
            "listens": [like(queue) for queue in queues],
            "release": release,
        }
        self._seconds = seconds
        self._counters = counters
        self._watch = watch
        self._restart = restart
        self._count = count
        self._asked = False
        self._over = threading.Event()
        self._ready = threading.Event()
        self._nudge, self._nudged = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self.wake = Wake()
        self.worker = 0
        """The id others know this process by; a new one when it was given up for dead meanwhile."""
        self.hears = True
        """Whether NOTIFY reaches it."""
        self.dead = False
        """Set when another worker is seen to be dead, for whoever takes up what it has left, and unsets it."""

    def start(self, *, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Register, waiting for PostgreSQL if need be; False when `give_up()` came true before."""
        self._thread.start()
        while not self._ready.wait(0.2):
            if give_up():
                return False
        return True

    def stop(self) -> None:
        """Unregister."""
        self._over.set()
        self._nudge.send(b".")
        if self._thread.ident:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        patience = 0.1
        while not self._over.is_set():
            try:
                with self._db.connect() as conn:
                    self._live(conn)
                return
            except Exception as error:  # whatever it is, a worker without a lease would be taken for dead
                away = isinstance(error, AWAY)
                level = "warning" if away else "error"
                emit("lease.lost", level=level, error=None if away else error, reason=str(error).strip())
                self._watch()
                self._over.wait(patience)
                patience = min(patience * 2, 1)

    def _live(self, conn: Connection) -> None:
        self.hears = not pooled(conn)
        if not self.hears:
            self._seconds = min(self._seconds, _POOLED)
            emit("lease.pooled", level="warning", reason="PostgreSQL is behind a pooler: polling, no LISTEN")
        self._register(conn)
        if self.hears:
            conn.add_notify_handler(lambda note: self._note(note.channel, note.payload))  # amid a statement
            conn.execute("listen sync_queue")
            conn.execute("listen workers")
        self._ready.set()
        self.wake.put("connected")
        beat = time.monotonic() + self._seconds / 3
        look = time.monotonic() + random.uniform(0, _LOOK)  # not all workers of a host at once
        while not self._over.is_set():
            select.select([conn.fileno(), self._nudged.fileno()], [], [], self._pause(min(beat, look)))
            self._hear(conn)
            self._watch()
            now = time.monotonic()
            if now >= look:
                with conn.transaction():  # one for both, where a heartbeat is due before the next look
                    dead = fetch(conn, "dead_workers", lock_class=LOCK_CLASS, now=None)
                    if now + _LOOK > beat:
                        self._heartbeat(conn)
                        beat = now + self._seconds / 3
                look = now + (_AGAIN if dead and self._tell_of_death() else _LOOK)
            elif now >= beat:
                self._heartbeat(conn)
                beat = now + self._seconds / 3
            elif not self._asked:
                continue
            self._hear(conn)  # what came meanwhile makes the connection readable no more
            if self._asked:  # to restart: the heartbeat tells whether this worker is
                self._asked = False
                beat = 0.0
        self._count(conn)
        fetch(conn, "unregister_worker", worker=self.worker)

    def _hear(self, conn: Connection) -> None:
        """Pass on what has come. Not by psycopg's `notifies`, which takes longer than all the rest of a wake-up."""
        conn.pgconn.consume_input()
        while note := conn.pgconn.notifies():
            self._note(note.relname.decode(), note.extra.decode())

    def _note(self, channel: str, news: str) -> None:
        if channel == "workers":
            self._asked = True
        elif listens(self._who["queues"], news.partition("\t")[0]):
            self.wake.put(news)

    def _tell_of_death(self) -> bool:
        """Whether it is news: who is busy has not yet taken up the last."""
        if self.dead:
            return False
        self.dead = True
        self.wake.put("dead")
        return True

    def _heartbeat(self, conn: Connection) -> None:
        alive = fetch_one(conn, "heartbeat", **self._beat())
        if alive is None:
            self._register(conn)
        elif alive["restart"]:
            self._restart()
        self._count(conn)

    @staticmethod
    def _pause(until: float) -> float:
        return max(0.0, min(_WATCH, until - time.monotonic()))

    def _register(self, conn: Connection) -> None:
        """Come back under the old id if nobody buried it and its lock is free, else under a new one."""
        with conn.transaction():
            if self.worker and fetch_one(conn, "heartbeat", **self._beat()) and self._hold(conn, self.worker):
                return
            row = fetch_one(conn, "register_worker", **self._who, lease=self._seconds)
            assert row is not None
            self._hold(conn, row["id"])
        self.worker = row["id"]
        emit("worker.register", worker=self.worker, name=self._who["name"])

    def _hold(self, conn: Connection, worker: int) -> bool:
        if self.hears:
            row = fetch_one(conn, "hold_worker", lock_class=LOCK_CLASS, worker=worker)
        else:
            row = fetch_one(conn, "pool_worker", worker=worker)
        return bool(row and row["held"])

    def _beat(self) -> dict[str, Any]:
        return {"worker": self.worker, "lease": self._seconds, "rss_mb": rss_mb(), **self._counters()}
