"""What a sync costs: requests against the least possible, time against the vendor's limit, CPU, memory.

    python -m bench.sync --products 10000 --children 3 --json

The last line: {"products","children","requests","minimum_requests","ratio","seconds","rate_bound_seconds",
"items_per_core_second","peak_rss_mb","responses_429","missing","extra","different","duplicates","failed"}.
"""

from __future__ import annotations

import argparse
import json
from math import ceil

from worker.demo.show import press
from worker.demo.stage import Stage, cpu_seconds

REFERENCE_READS = 7
REFERENCE_WRITES = 5
FOLDER_LEVELS = 4
WINDOW_UNITS, UNITS_PER_SECOND = 45, 15


def minimum(products: int, children: int) -> tuple[int, float]:
    """Least requests of a first sync to empty children, and least seconds at weight 1 within the limits.

    Main: pages of 1,000 and 7 reads of references. Each child: arrays of 1,000, 7 reads and 5 writes of
    references, 4 levels of folders. Accounts are limited apart from each other, so the slowest one counts;
    its first 45 units are free, the rest comes at 15 a second.
    """
    pages = ceil(products / 1000)
    per_child = pages + REFERENCE_READS + REFERENCE_WRITES + FOLDER_LEVELS
    seconds = max(0.0, (per_child - WINDOW_UNITS) / UNITS_PER_SECOND)
    return pages + REFERENCE_READS + children * per_child, seconds


def main() -> None:
    """Run it once and print."""
    parser = argparse.ArgumentParser(prog="bench.sync", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--children", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency", type=int, default=0, help="milliseconds of the simulated MoySklad per request")
    parser.add_argument("--batch", type=int, default=500, help="tasks claimed at once: elements of an array")
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    given = parser.parse_args()

    stage = Stage(
        products=given.products,
        children=given.children,
        workers=given.workers,
        latency_ms=given.latency,
        work_options=f"--sleep 3 --tries 3 --max-time 3600 --timeout 300 --batch {given.batch}",
    )
    with stage:
        before = sum(map(cpu_seconds, stage.worker_pids()))
        report = press(stage)
        used = sum(map(cpu_seconds, stage.worker_pids())) - before
    requests, seconds = minimum(given.products, given.children)
    report |= {
        "minimum_requests": requests,
        "ratio": round(report["requests"] / requests, 2),
        "rate_bound_seconds": round(seconds, 2),
        "worker_cpu_seconds": round(used, 2),
        "items_per_core_second": round(given.products * given.children / used) if used else None,
    }
    for name, value in report.items():
        print(f"{name:>24}  {value}")
    if given.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
