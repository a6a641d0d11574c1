"""How much of what MoySklad allows the limiter makes use of, and that it never goes beyond.

    python -m bench.limiter --processes 16 --hosts-simulated 4 --seconds 15 --weight 1 --store redis --json

Processes that send as fast as they may, over connections of their own, to one principal of the simulator. The hosts'
clocks are hours apart. The last line:
{"utilisation","responses_429","max_units_3s","max_parallel","acquire_p99_ms",...}. `utilisation` is the units used
after the first window over those allowed (with --foreign: left by the neighbour, with --latency: at most what five at
once can carry); `acquire_p99_ms` what one question to the store takes, waiting not counted, and `bare_p99_ms` what
one takes that wants nothing (`select 1`, PING), asked meanwhile by the same processes: that much is the machine's.

`--kill` kills two thirds of the processes with -9 at random moments: `recovered_s` is how long after the last death
a whole window was used to 95 %. `--compare` lets pyrate-limiter and limits do the same on the same store, as far as
they can: neither knows parallel slots, limits has no store in PostgreSQL (extra `bench`).

Lists measure every combination, one after the other; the last line then holds all `cells` and the `worst` figures:

    python -m bench.limiter --processes 1,4,16 --weight 1,3,4 --store postgresql,redis --latency 0,300 --json
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import requests
from cryptography.fernet import Fernet

from simulator import create_app, serve_in_thread
from worker import db, limiter, telemetry
from worker.app import App
from worker.demo.postgres import EmbeddedPostgres
from worker.errors import TaskError
from worker.lease import Lease
from worker.memory import freeze
from worker.settings import Settings

WARM_UP = limiter.WINDOW + 2
TOKEN = "bench"
AXES = ("store", "latency", "weight", "processes")


def work(env: dict[str, str], account: UUID, threads: int, hours: float, stop: Path, results: Any) -> None:
    """One process on a host whose clock is off by so many hours: send until told, timing each question asked."""
    times: list[float] = []
    bare: list[float] = []
    with App(Settings.from_env(env)) as app:
        telemetry.configure(app.settings, console=False)
        lease = Lease(app.db, queues=["bench"], name="bench", release="bench", seconds=10,
                      counters=lambda: {"done": 0, "failed": 0})  # fmt: skip
        lease.start()
        app.limiter.worker = lease.worker
        app.limiter._clock = lambda: time.monotonic() + hours * 3600
        app.limiter._today = lambda: date.today() + timedelta(hours=hours)
        inner = app.limiter.store.ask
        warm = float("inf")

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            answer = inner(*given, **named)
            took = time.perf_counter() - began
            if time.monotonic() > warm and not stop.exists():  # not while processes start or end
                times.append(took)
            return answer

        app.limiter.store.ask = timed  # type: ignore[method-assign]

        def idle() -> None:
            rng = random.Random(os.getpid())
            nothing = _nothing(app)
            while not stop.exists():
                time.sleep(rng.uniform(0.1, 0.4))
                began = time.perf_counter()
                nothing()
                if time.monotonic() > warm:
                    bare.append(time.perf_counter() - began)

        def send() -> None:
            nonlocal warm
            warm = time.monotonic() + WARM_UP
            with app.client(account) as client:
                while not stop.exists():
                    try:
                        client.get("entity/country", limit=1)
                    except TaskError as error:
                        time.sleep(min(getattr(error, "wait", 0.1), 1))
                    if not gc.get_freeze_count():
                        freeze()  # as a worker does after its first batch

        beside = threading.Thread(target=idle)
        beside.start()
        _run(send, threads, stop)
        beside.join()
        lease.stop()
    results.put((times, bare))


def _nothing(app: App) -> Callable[[], object]:
    """A round trip to the limiter's store."""
    if isinstance(app.limiter.store, limiter.DatabaseStore):
        return lambda: _select_1(app)
    redis: Any = app.limiter.store
    return lambda: redis._redis.ping()


def _select_1(app: App) -> None:
    with app.db.connection() as conn:
        conn.execute("select 1")


def work_like(name: str, env: dict[str, str], url: str, weight: int, threads: int, stop: Path, results: Any) -> None:
    """The same with a limiter of others."""
    take = _pyrate(env, weight) if name == "pyrate-limiter" else _limits(env, weight)
    times: list[float] = []

    def send() -> None:
        session = requests.Session()
        session.headers.update({"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "gzip"})
        while not stop.exists():
            began = time.perf_counter()
            wait = take()
            times.append(time.perf_counter() - began)
            if wait:
                time.sleep(wait)
            else:
                session.get(f"{url}/entity/country", params={"limit": 1}, timeout=30)

    _run(send, threads, stop)
    results.put((times, []))


def _run(send: Callable[[], None], threads: int, stop: Path) -> None:
    stop.with_suffix(f".ready-{os.getpid()}").touch()
    while not stop.with_suffix(".go").exists():
        time.sleep(0.01)
    running = [threading.Thread(target=send) for _ in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()


def _pyrate(env: dict[str, str], weight: int) -> Callable[[], float]:
    from psycopg_pool import ConnectionPool
    from pyrate_limiter import Limiter, PostgresBucket, Rate, RedisBucket
    from redis import Redis

    rates = [Rate(limiter.BUDGET, int(limiter.WINDOW * 1000))]
    if env["LIMITER_STORE"] == "redis":
        bucket: Any = RedisBucket.init(rates, Redis.from_url(env["REDIS_URL"]), "pyrate")
    else:
        bucket = PostgresBucket(ConnectionPool(env["DATABASE_URL"], open=True), "pyrate", rates)
    theirs = Limiter(bucket)
    return lambda: 0.0 if theirs.try_acquire("bench", weight=weight, blocking=False) else 0.02


def _limits(env: dict[str, str], weight: int) -> Callable[[], float]:
    from limits import RateLimitItemPerSecond
    from limits.storage import storage_from_string
    from limits.strategies import MovingWindowRateLimiter

    storage = storage_from_string(env["REDIS_URL"].replace("unix://", "redis+unix://"))
    theirs, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(limiter.BUDGET, int(limiter.WINDOW))
    return lambda: 0.0 if theirs.hit(item, "bench", cost=weight) else 0.02


@contextmanager
def redis_server(folder: str) -> Iterator[str]:
    """A Redis or Valkey of one's own on a Unix socket; its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("neither redis-server nor valkey-server is installed")
    socket = f"{folder}/redis.sock"
    arguments = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
    with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL) as process:
        try:
            while not Path(socket).exists():
                time.sleep(0.02)
            yield f"unix://{socket}"
        finally:
            process.terminate()


def main() -> None:
    """Measure what was asked for, and print."""
    parser = argparse.ArgumentParser(prog="bench.limiter", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=_list(int), default=[4])
    parser.add_argument("--hosts-simulated", type=int, default=1, help="groups of processes with clocks hours apart")
    parser.add_argument("--threads", type=int, default=0, help="per process; 0: as many as latency asks for")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--weight", type=_list(int), default=[1])
    parser.add_argument("--store", type=_list(_store), default=["database"], help="database (or postgresql), redis")
    parser.add_argument("--latency", type=_list(int), default=[0], help="milliseconds the simulated MoySklad takes")
    parser.add_argument("--foreign", type=float, default=0, help="units a second of a neighbour with the same token")
    parser.add_argument("--foreign-after", type=float, default=0, help="seconds after which the neighbour appears")
    parser.add_argument("--kill", action="store_true", help="kill two thirds of the processes with -9")
    parser.add_argument("--compare", action="store_true", help="pyrate-limiter and limits too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    given = parser.parse_args()
    cells = [
        argparse.Namespace(**{**vars(given), **dict(zip(AXES, values, strict=True))})
        for values in itertools.product(*(getattr(given, axis) for axis in AXES))
    ]
    with tempfile.TemporaryDirectory(prefix="moysklad-bench-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(Path(folder))
        server.start()
        try:
            with redis_server(folder) as redis:
                reports = [_cell(cell, server.url(), redis, folder) for cell in cells]
        finally:
            server.close()
    last = reports[0] if len(reports) == 1 else {"cells": reports, "worst": _worst(reports)}
    if len(reports) > 1:
        print("worst: " + "  ".join(f"{name} {value}" for name, value in last["worst"].items()))
    if given.json:
        print(json.dumps(last))


def _cell(cell: argparse.Namespace, url: str, redis: str, folder: str) -> dict[str, Any]:
    """Measure one combination, and show it."""
    report = {axis: getattr(cell, axis) for axis in AXES} | _one(cell, "ours", url, redis, folder)
    if cell.compare:
        names = ["pyrate-limiter"] + (["limits"] if cell.store == "redis" else [])
        report["compared"] = {name: _one(cell, name, url, redis, folder) for name in names}
    print("  ".join(f"{name} {value}" for name, value in report.items()), flush=True)
    return report


def _worst(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each promise the figure that is nearest to breaking it."""
    return {
        name: (min if name == "utilisation" else max)(report[name] for report in reports)
        for name in ("utilisation", "responses_429", "max_units_3s", "max_parallel", "acquire_p99_ms")
    }


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between them."""

    def values(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return values


def _store(name: str) -> str:
    if name not in ("database", "postgresql", "redis"):
        raise argparse.ArgumentTypeError(f"there is no store {name}: database (or postgresql) and redis")
    return name.replace("postgresql", "database")


def _one(given: argparse.Namespace, name: str, url: str, redis: str, folder: str) -> dict[str, Any]:
    with serve_in_thread(create_app(latency_ms=given.latency)) as root:
        return _measure(given, name, url, redis, root, folder)


def _measure(given: argparse.Namespace, name: str, url: str, redis: str, root: str, folder: str) -> dict[str, Any]:
    env = {
        "DATABASE_URL": url,
        "APP_KEY": Fernet.generate_key().decode(),
        "MOYSKLAD_API_URL": f"{root}/api/remap/1.2",
        "LIMITER_STORE": given.store,
        "REDIS_URL": redis,
        "LOG_DIR": f"{folder}/logs",
        "LOG_LEVEL": "warning",
        "LEASE_SECONDS": "10",
    }
    db.migrate(url)
    id = uuid4()
    _control(root, "accounts", {"id": str(id), "name": "bench", "tokens": [{"token": TOKEN, "weight": given.weight}]})
    with App(Settings.from_env(env)) as app:
        app.accounts.add(id, "bench", "main", "solution", TOKEN, given.weight)

    # So many in flight at once that the limiter is the bound, and twice that in line.
    threads = given.threads or max(1 if not given.kill else 3, math.ceil(10 / given.processes))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    stop = Path(tempfile.mkdtemp(dir=folder)) / "stop"
    processes = []
    for number in range(given.processes):
        hours = 5.5 * (number % given.hosts_simulated)
        target, values = (
            (work, (env, id, threads, hours, stop, results))
            if name == "ours"
            else (work_like, (name, env, env["MOYSKLAD_API_URL"], given.weight, threads, stop, results))
        )
        processes.append(context.Process(target=target, args=values))
    for process in processes:
        process.start()
    while len(list(stop.parent.glob(f"{stop.name}.ready-*"))) < given.processes:
        time.sleep(0.05)
    stop.with_suffix(".go").touch()
    while not _ledger(root)["requests"]:
        time.sleep(0.02)
    if given.foreign and not given.foreign_after:
        _control(root, "neighbour", {"token": TOKEN, "units_per_second": given.foreign, "weight": 1})
    time.sleep(WARM_UP)
    report: dict[str, Any] = {}
    dead: set[int] = set()
    if given.kill:
        dead = _kill(processes, given.seed)
        killed = time.monotonic()
        report["recovered_s"] = _recovered(root, given, killed)
    if given.foreign and given.foreign_after:
        time.sleep(given.foreign_after)
        _control(root, "neighbour", {"token": TOKEN, "units_per_second": given.foreign, "weight": 1})
    before, began = _ledger(root), time.monotonic()
    time.sleep(given.seconds)
    after, ended = _ledger(root), time.monotonic()
    stop.touch()
    living = [process for process in processes if process.pid not in dead]
    told = [results.get(timeout=60) for _ in living]
    times, bare = (sorted(itertools.chain(*lists)) for lists in zip(*told, strict=True))
    for process in processes:
        process.join()
    final = _ledger(root)
    allowed = (ended - began) * _allowed(given) - (after["neighbour_units"] - before["neighbour_units"])
    ours = after["requests"] - before["requests"]
    refused = after["responses_429"] - before["responses_429"]
    return {
        "utilisation": round((after["units"] - before["units"]) / allowed, 4),
        "responses_429": final["responses_429"],
        "max_units_3s": final["max_units_3s"],
        "max_parallel": final["max_parallel"],
        "acquire_p99_ms": _ms(times, 0.99),
        "acquire_p50_ms": _ms(times, 0.5),
        "bare_p99_ms": _ms(bare, 0.99),
        "bare_p50_ms": _ms(bare, 0.5),
        "asks": len(times),
        "requests": final["requests"],
        "refused_share": round(refused / ours, 4) if ours else None,
        "kill_switch": len(final["kill_switch"]),
        **report,
    }


def _ms(times: list[float], part: float) -> float | None:
    """A quantile of sorted seconds, in milliseconds."""
    return round(times[int(len(times) * part)] * 1000, 2) if times else None


def _allowed(given: argparse.Namespace) -> float:
    """Units a second: only whole requests fit (at weight 4 eleven of them, 44 units), and five at once."""
    fitting = limiter.BUDGET // given.weight * given.weight / limiter.WINDOW
    slots = limiter.PARALLEL * given.weight / (given.latency / 1000) if given.latency else math.inf
    return min(fitting, slots)


def _kill(processes: list[Any], seed: int) -> set[int]:
    """Two thirds of them, at random moments within two seconds; their ids."""
    rng = random.Random(seed)
    doomed = rng.sample(processes, len(processes) * 2 // 3)
    for process in doomed:
        time.sleep(rng.uniform(0, 2 / len(doomed)))
        os.kill(process.pid, signal.SIGKILL)
    return {process.pid for process in doomed}


def _recovered(root: str, given: argparse.Namespace, since: float) -> float | None:
    """Seconds until the first whole window after the deaths used to 95 %; None if none came in half a minute."""
    seen = [(time.monotonic(), _ledger(root)["units"])]
    while time.monotonic() < since + 30:
        time.sleep(0.1)
        now, units = time.monotonic(), _ledger(root)["units"]
        seen.append((now, units))
        for then, had in reversed(seen):
            if now - then >= limiter.WINDOW:
                if (units - had) / (now - then) >= 0.95 * _allowed(given):
                    return round(then - since, 1)
                break
    return None


def _control(root: str, path: str, body: dict[str, Any]) -> None:
    requests.post(f"{root}/_control/{path}", json=body, timeout=10).raise_for_status()


def _ledger(root: str) -> dict[str, Any]:
    seen: dict[str, Any] = requests.get(f"{root}/_control/ledger", timeout=10).json()
    return seen


if __name__ == "__main__":
    main()
