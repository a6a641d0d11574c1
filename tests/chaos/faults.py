"""MoySklad at its worst: what the chaos of a sync is made of."""

from __future__ import annotations

import logging
import sys
from typing import Any

from worker.demo.show import press
from worker.demo.stage import Stage

FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "drop_before"},
    {"kind": "drop_after"},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "timeout", "delay_ms": 2000, "effect": True},
    {"kind": "status", "status": 429, "delay_ms": 500},
    {"kind": "html"},
)
"""Each meets one request in twenty. A timeout takes effect after the client has given up: MoySklad works on."""

MORE_FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "late", "delay_ms": 1500},
    {"kind": "truncate"},
    {"kind": "wrong_json"},
    {"kind": "drip", "delay_ms": 1000},
)

SETTINGS = {"READ_TIMEOUT": 1, "EFFECT_SECONDS": 4, "CONNECT_TIMEOUT": 5}
"""Patience in seconds instead of minutes."""

CLEAN = {"missing": 0, "extra": 0, "different": 0, "duplicates": 0, "failed": 0}


def sync_under_fire(
    seed: int, *, products: int = 2000, children: int = 3, faults: tuple[dict[str, Any], ...] = FAULTS
) -> dict[str, Any]:
    """Press the button while every request may go wrong; the report, with the `kill_switch` events and `hits`."""
    options = f"--sleep 0.5 --tries 3 --timeout 300 --batch {(50, 100, 500)[seed % 3]}"
    with Stage(products=products, children=children, work_options=options, seed=seed, env=SETTINGS) as stage:
        for number, fault in enumerate(faults):
            stage.control("POST", "faults", **fault, probability=0.05, seed=100 * seed + number)
        report = press(stage)
        report["kill_switch"] = stage.control("GET", "ledger")["kill_switch"]
        report["hits"] = {
            f"{rule['kind']} {rule['status'] or ''}".strip(): rule["hits"] for rule in stage.control("GET", "faults")
        }
        return report


if __name__ == "__main__":
    logging.basicConfig()
    more = sys.argv[1] == "--more"
    for number in map(int, sys.argv[1 + more :]):
        told = sync_under_fire(number, faults=(*FAULTS, *MORE_FAULTS) if more else FAULTS)
        clean = {name: told[name] for name in CLEAN} == CLEAN and not told["kill_switch"]
        sys.stdout.write(f"seed {number} {'ok' if clean else 'BROKEN'} {told}\n")
        sys.stdout.flush()
