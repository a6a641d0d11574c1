"""How much of what MoySklad allows the limiter makes use of, and that it never goes beyond.

    python -m bench.limiter --processes 16 --seconds 15 --weight 1 --latency 300 --json

Processes that send as fast as they may, each over a connection of its own, to one principal of the simulator.
The last line: {"utilisation","responses_429","max_units_3s","max_parallel","acquire_p99_ms","requests"}.
`utilisation` is the units used after the first window, over those allowed; `acquire_p99_ms` what one call of the
limiter takes, waiting not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import requests
from cryptography.fernet import Fernet

from simulator import create_app, serve_in_thread
from worker import db, limiter, telemetry
from worker.app import App
from worker.demo.postgres import EmbeddedPostgres
from worker.settings import Settings

WARM_UP = 2 * limiter.WINDOW


def work(env: dict[str, str], account: UUID, until: float, results: Any) -> None:
    """One process: send until then, timing each call of the limiter."""
    times: list[float] = []
    with App(Settings.from_env(env)) as app:
        telemetry.configure(app.settings, console=False)
        inner = app.limiter._try

        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            answer = inner(*given)
            times.append(time.perf_counter() - began)
            return answer

        app.limiter._try = timed  # type: ignore[method-assign]
        with app.client(account) as client:
            while time.monotonic() < until:
                client.get("entity/country", limit=1)
    results.put(times)


def main() -> None:
    """Run it once and print."""
    parser = argparse.ArgumentParser(prog="bench.limiter", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--weight", type=int, default=1)
    parser.add_argument("--latency", type=int, default=0, help="milliseconds the simulated MoySklad takes")
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="moysklad-bench-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(Path(folder))
        server.start()
        try:
            with serve_in_thread(create_app(latency_ms=given.latency)) as root:
                report = _measure(given, server.url(), root, folder, context)
        finally:
            server.close()
    for name, value in report.items():
        print(f"{name:>20}  {value}")
    if given.json:
        print(json.dumps(report))


def _measure(given: argparse.Namespace, url: str, root: str, folder: str, context: Any) -> dict[str, Any]:
    env = {
        "DATABASE_URL": url,
        "APP_KEY": Fernet.generate_key().decode(),
        "MOYSKLAD_API_URL": f"{root}/api/remap/1.2",
        "LOG_DIR": f"{folder}/logs",
        "LOG_LEVEL": "error",
    }
    db.migrate(url)
    id = uuid4()
    tokens = [{"token": "bench", "weight": given.weight}]
    requests.post(
        f"{root}/_control/accounts", json={"id": str(id), "name": "bench", "tokens": tokens}
    ).raise_for_status()
    with App(Settings.from_env(env)) as app:
        app.accounts.add(id, "bench", "main", "solution", "bench", given.weight)

    results = context.Queue()
    start = time.monotonic()
    until = start + 3 + WARM_UP + given.seconds
    processes = [context.Process(target=work, args=(env, id, until, results)) for _ in range(given.processes)]
    for process in processes:
        process.start()
    while not _ledger(root)["requests"]:
        time.sleep(0.05)
    time.sleep(WARM_UP)
    before, began = _ledger(root), time.monotonic()
    time.sleep(given.seconds)
    after, ended = _ledger(root), time.monotonic()
    times = sorted(one for _ in processes for one in results.get(timeout=60))
    for process in processes:
        process.join()
    # Only whole requests fit: at weight 4 eleven of them, 44 units.
    fitting = limiter.BUDGET // given.weight * given.weight
    allowed = (ended - began) * fitting / limiter.WINDOW
    final = _ledger(root)
    return {
        "utilisation": round((after["units"] - before["units"]) / allowed, 4),
        "responses_429": final["responses_429"],
        "max_units_3s": final["max_units_3s"],
        "max_parallel": final["max_parallel"],
        "acquire_p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
        "requests": final["requests"],
    }


def _ledger(root: str) -> dict[str, Any]:
    seen: dict[str, Any] = requests.get(f"{root}/_control/ledger", timeout=10).json()
    return seen


if __name__ == "__main__":
    main()
