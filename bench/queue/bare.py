"""The physical limit: the least SQL that is still a queue, in plain psycopg loops (not a product).

Drain is `bare-fused`: one statement completes 50 and claims the next 50, history kept. Enqueue is one insert in
autocommit on a table whose trigger notifies; bulk is COPY. Latency is LISTEN, then that claim.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import Any, LiteralString

import psycopg

from bench.queue.child import Stand
from bench.queue.pulse import pulse
from bench.queue.writers import side_by_side

NAME = "bare"
TASKS = 1.0
BATCH = 50
_ACCOUNT = "6ba7b812-9dad-11d1-80b4-00c04fd430c8"

_SCHEMA: LiteralString = """
create table bare_queue (
    id bigint generated always as identity primary key,
    queue text not null,
    priority integer not null default 1,
    payload jsonb not null,
    status text not null default 'pending',
    attempts integer not null default 0,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz
) with (fillfactor = 85);
create index bare_queue_claim on bare_queue (queue, priority desc, id) where status = 'pending';
create function bare_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('bare_queue', '');
    return null;
end $$;
create trigger bare_notify after insert on bare_queue for each statement execute function bare_notify();
"""
_FUSED: LiteralString = """
with done as (
    update bare_queue set status = 'completed', completed_at = now() where id = any(%(done)s)
), next as (
    select id from bare_queue where status = 'pending' and queue = 'default'
    order by priority desc, id limit %(limit)s for update skip locked
)
update bare_queue q set status = 'processing', attempts = attempts + 1, started_at = now()
from next where q.id = next.id
returning q.id, q.payload
"""
_INSERT: LiteralString = "insert into bare_queue (queue, payload) values ('default', %s)"


def setup(url: str) -> None:
    """Its table."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(_SCHEMA)


def _payload(n: int) -> dict[str, str]:
    """What our tasks hold in columns of their own."""
    return {"account": _ACCOUNT, "kind": "bench/noop", "id": str(n)}


def fill(url: str, tasks: int) -> None:
    """Bulk enqueue by COPY."""
    with psycopg.connect(url) as conn:
        _copy(conn, [_payload(n) for n in range(tasks)])


def _copy(conn: psycopg.Connection[Any], payloads: list[dict[str, str]]) -> float:
    """Seconds until they are committed."""
    began = time.monotonic()
    into: LiteralString = "copy bare_queue (queue, payload) from stdin"
    with conn.cursor() as cursor, cursor.copy(into) as copy:
        for payload in payloads:
            copy.write_row(("default", json.dumps(payload)))
    conn.commit()
    return time.monotonic() - began


def left(url: str) -> bool:
    """Whether a task is not yet over."""
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute("select 1 from bare_queue where status <> 'completed' limit 1").fetchone() is not None


def work(stand: Stand, url: str, trace: str = "") -> None:
    """The fused loop until killed; it listens while nothing is there."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with psycopg.connect(url, autocommit=True) as listener, psycopg.connect(url, autocommit=True) as conn:
        listener.execute("listen bare_queue")
        stand.gate()
        done: list[int] = []
        while True:
            rows = conn.execute(_FUSED, {"done": done, "limit": BATCH}).fetchall()
            done = []
            for id, payload in rows:
                if trace:
                    stand.trace(1, sent=payload["sent"])
                done.append(id)
            if rows and not trace:
                stand.count(len(rows))
            if not done:
                select.select([listener.fileno()], [], [], 3)
                for _ in listener.notifies(timeout=0):
                    pass


def one_by_one(stand: Stand, url: str, tasks: int, writers: int = 1, notify: bool = True) -> float:
    """Seconds that so many inserts take, each committed, from so many connections, which have made one before."""
    if not notify:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("drop trigger bare_notify on bare_queue")

    def write(share: int, ready: Any) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(_INSERT, [json.dumps(_payload(0))])
            ready()
            for n in range(share):
                conn.execute(_INSERT, [json.dumps(_payload(n))])

    return side_by_side(stand, write, tasks, writers)


def bulk(stand: Stand, url: str, tasks: int) -> float:
    """Seconds that one COPY of so many takes."""
    payloads = [_payload(n) for n in range(tasks)]
    with psycopg.connect(url) as conn:
        stand.gate()
        return _copy(conn, payloads)


def pulses(stand: Stand, url: str, rate: float, seconds: float, seed: int) -> int:
    """Insert at that rate."""
    with psycopg.connect(url, autocommit=True) as conn:
        return pulse(stand, lambda sent: conn.execute(_INSERT, [json.dumps({"sent": sent})]), rate, seconds, seed)
