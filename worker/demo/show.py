"""`moysklad-worker demo`: press the button, watch, check, tell."""

from __future__ import annotations

import json as stdlib_json
import os
import signal
import sys
import time
from typing import Any

import requests
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worker.demo.stage import Stage, peak_rss_mb

_PLACES = ("QUEUE_CONNECTION", "LIMITER_STORE", "REDIS_URL")
"""Settings that the demo takes from the environment."""

_GIVE_UP = 1800.0


def run(*, products: int, children: int, workers: int, latency_ms: int, again: bool, wait: bool, json: bool) -> bool:
    """Play the whole scene; whether every child equals main in the end. `json` prints one last line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=json)
    wait = wait and sys.stdin.isatty() and sys.stdout.isatty()
    stage = Stage(
        products=products,
        children=children,
        workers=workers,
        latency_ms=latency_ms,
        env={name: os.environ[name] for name in _PLACES if name in os.environ},
        port=8080 if wait else 0,  # an address to remember, where somebody will look at the page
        tell=lambda what: console.print(f"  starting {what}"),
    )
    try:
        with stage:
            report = press(stage, console)
            _summary(console, report, "Sync All")
            if again:
                report["again"] = press(stage, console)
                _summary(console, report["again"], "Sync All, pressed again")
            if json:
                sys.stdout.write(stdlib_json.dumps(report) + "\n")
                sys.stdout.flush()
            if wait:
                console.print(f"\n  The page is at {stage.api}/ and asks for the token [bold]{stage.token}[/bold]")
                console.print("  Press Ctrl-C to stop everything.")
                _until_interrupted()
            console.print("  stopping")
    except KeyboardInterrupt:
        console.print("\n  stopped")
        return False
    return all(report[name] == 0 for name in ("missing", "extra", "different", "duplicates", "failed"))


def press(stage: Stage, console: Console | None = None) -> dict[str, Any]:
    """Press *Sync All*, wait for the run's end and check; the figures of `--json`."""
    stage.control("POST", "ledger/reset")
    began = time.monotonic()
    id = stage.click()
    peaks: dict[int, int] = {}
    row = _watch(stage, id, console, peaks)
    seconds = time.monotonic() - began
    ledger = stage.control("GET", "ledger")
    return {
        "products": stage.products,
        "children": len(stage.children),
        "requests": ledger["requests"],
        "responses_429": ledger["responses_429"],
        "seconds": round(seconds, 2),
        **stage.difference(),
        "failed": row["counts"]["failed"],
        "peak_rss_mb": max(peaks.values(), default=0),
        "writes": ledger["writes"],
        "units": ledger["units"],
        "max_units_3s": ledger["max_units_3s"],
        "max_parallel": ledger["max_parallel"],
    }


def _watch(stage: Stage, id: str, console: Console | None, peaks: dict[int, int]) -> dict[str, Any]:
    bar = Progress(TextColumn("  [bold]Sync All"), BarColumn(None), TaskProgressColumn(), TimeElapsedColumn())
    tasks = bar.add_task("", total=None)
    until = time.monotonic() + _GIVE_UP
    with Live(bar, console=console or Console(quiet=True), refresh_per_second=8) as live:
        while time.monotonic() < until:
            for pid in stage.worker_pids():
                peaks[pid] = max(peaks.get(pid, 0), peak_rss_mb(pid))
            try:
                row: dict[str, Any] = stage.call("GET", f"/api/runs/{id}")
                ledger = stage.control("GET", "ledger")
            except requests.RequestException:
                time.sleep(0.5)
                continue
            counts = {name: row["counts"][name] for name in ("pending", "processing", "completed", "failed")}
            done = counts["completed"] + counts["failed"]
            # Before the goods are planned nobody knows how many tasks there will be.
            planned = done + counts["pending"] + counts["processing"]
            bar.update(tasks, completed=done, total=planned if planned > len(stage.children) + 1 else None)
            told = "  ".join(f"{number:,} {name}" for name, number in counts.items())
            asked = f"{ledger['requests']} requests  {ledger['units']} units  {ledger['responses_429']} × 429"
            live.update(Group(bar, Text(f"  {told}"), Text(f"  {asked}")))
            if row["finished_at"]:
                bar.update(tasks, completed=max(done, 1), total=max(done, 1))
                return row
            time.sleep(0.2)
    raise TimeoutError(f"run {id} has not ended after {_GIVE_UP:.0f} s")


def _summary(console: Console, report: dict[str, Any], title: str) -> None:
    console.print(f"\n  [bold]{title}[/bold]: {report['products']:,} goods to {report['children']} children")
    table = Table.grid(padding=(0, 2))
    told = {
        "seconds": f"{report['seconds']}",
        "requests": f"{report['requests']}, of them {report['writes']} writes",
        "units": f"{report['units']}, at most {report['max_units_3s']} in any 3 s (allowed 45)",
        "429s": f"{report['responses_429']}",
        "memory": f"{report['peak_rss_mb']} MB at most in a worker",
    }
    for name, value in told.items():
        table.add_row(f"  {name}", value)
    console.print(table)
    wrong = {name: report[name] for name in ("missing", "extra", "different", "duplicates", "failed")}
    if any(wrong.values()):
        console.print(f"  [red]children differ:[/red] {', '.join(f'{n} {name}' for name, n in wrong.items())}\n")
    else:
        console.print(
            "  [green]every child equals main[/green]: nothing missing, extra, different, doubled, failed\n"
        )


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
