"""`moysklad-worker demo`: press the button, watch, check, tell."""

from __future__ import annotations

import json as stdlib_json
import signal
import sys
import time
from typing import Any

import requests
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from worker.demo.stage import Stage, peak_rss_mb

_GIVE_UP = 1800.0


def run(*, products: int, children: int, workers: int, latency_ms: int, again: bool, wait: bool, json: bool) -> bool:
    """Play the whole scene; whether every child equals main in the end. `json` prints one last line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=json)
    stage = Stage(
        products=products,
        children=children,
        workers=workers,
        latency_ms=latency_ms,
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
            if wait and sys.stdin.isatty() and sys.stdout.isatty():
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
    with Progress(
        TextColumn("  [bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        console=console or Console(quiet=True),
    ) as progress:
        bar = progress.add_task("Sync All", total=stage.products * len(stage.children), told="")
        until = time.monotonic() + _GIVE_UP
        while time.monotonic() < until:
            for pid in stage.worker_pids():
                peaks[pid] = max(peaks.get(pid, 0), peak_rss_mb(pid))
            try:
                row: dict[str, Any] = stage.call("GET", f"/api/runs/{id}")
                ledger = stage.control("GET", "ledger")
            except requests.RequestException:
                time.sleep(0.5)
                continue
            counts = row["counts"]
            told = (
                f"{counts['pending']} pending  {counts['processing']} processing  {counts['completed']} completed  "
                f"{counts['failed']} failed  |  {ledger['requests']} requests  {ledger['units']} units  "
                f"{ledger['responses_429']} × 429"
            )
            planned = sum(counts[name] for name in ("pending", "processing", "completed", "failed"))
            progress.update(bar, completed=counts["completed"] + counts["failed"], told=told, total=max(planned, 1))
            if row["finished_at"]:
                return row
            time.sleep(0.2)
    raise TimeoutError(f"run {id} has not ended after {_GIVE_UP:.0f} s")


def _summary(console: Console, report: dict[str, Any], title: str) -> None:
    table = Table(title=f"{title}: {report['products']:,} goods to {report['children']} children")
    for name in ("seconds", "requests", "writes", "units", "429s", "most units in 3 s", "peak MB of a worker"):
        table.add_column(name, justify="right")
    names = ("seconds", "requests", "writes", "units", "responses_429", "max_units_3s", "peak_rss_mb")
    table.add_row(*(str(report[name]) for name in names))
    console.print(table)
    wrong = {name: report[name] for name in ("missing", "extra", "different", "duplicates", "failed")}
    told = ", ".join(f"{number} {name}" for name, number in wrong.items())
    equal = not any(wrong.values())
    console.print(f"  {'[green]every child equals main' if equal else '[red]children differ'}[/]: {told}")


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
