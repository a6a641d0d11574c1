"""What the queue carries, against the physical limit and its peers, on one PostgreSQL, in one run.

    python -m bench.queue --rounds 3 --tasks 50000 --json
    python -m bench.queue --only drain1,drain2 --peers
    python -m bench.queue --driver redis --peers
    python -m bench.queue --soak 10000000

Every figure of ours and of `bare` (see bare.py) is taken in the same run on the same server, in rounds that
take turns; medians are told, and medians of the ratios within a round. The last line with --json:
{"ours":{"drain1","drain2","enqueue_one","enqueue_bulk"}, "bare":{same}, "peers":{name:{same}}, "ratio":{...},
"latency_ms":{"p50","p99"}, "idle":{"cpu_percent","statements_s","rss_mb"}, "all":{every median}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

from bench.queue import delays, fairness, measures, peers, report, upkeep
from bench.queue.measures import BARE, OURS, Bench, Samples, System
from bench.queue.report import Book
from bench.queue.server import server

Measure = Callable[[Bench], Samples]


def shared(name: str, system: System) -> Measure:
    """The four measurements that every system goes through."""
    return {
        "drain1": lambda bench: measures.plain(bench, system, 1),
        "drain2": lambda bench: measures.plain(bench, system, 2),
        "enqueue_one": lambda bench: measures.enqueue(bench, system),
        "enqueue_bulk": lambda bench: measures.bulk(bench, system),
    }[name]


def more_enqueue(bench: Bench) -> Samples:
    """16 writers at once; and bare without its notify trigger."""
    return (
        measures.enqueue(bench, OURS, writers=16, suffix="_16")
        | measures.enqueue(bench, BARE, writers=16, suffix="_16")
        | measures.enqueue(bench, BARE, writers=16, suffix="_16_no_notify", notify=False)
        | measures.enqueue(bench, BARE, suffix="_no_notify", notify=False)
    )


OWN: dict[str, list[Measure]] = {
    "pending": [measures.pending, lambda bench: measures.pending(bench, scattered=True)],
    "completed": [measures.completed],
    "wildcard": [measures.wildcard],
    "pinned": [lambda bench: measures.pin(bench, 1), lambda bench: measures.pin(bench, 2)],
    "fairness": [
        fairness.fairness,
        lambda bench: fairness.fairness(bench, batch=10, suffix="_batch_10"),
    ],
    "sync": [measures.sync],
    "idle": [upkeep.idle],
    "rescue": [upkeep.rescue],
    "restarts": [upkeep.restarts],
}
NAMES = (*report.SHARED, "latency", *OWN)
ON_REDIS = (*report.SHARED, "latency", "pending", "wildcard", "fairness", "idle")
"""What is not about PostgreSQL's own troubles."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.queue", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=50_000, help="tasks of a drain; a tenth is enqueued one by one")
    parser.add_argument("--million", type=int, default=1_000_000, help="rows of the large tables")
    parser.add_argument("--seconds", type=float, default=15, help="of latency, a round")
    parser.add_argument("--only", default="", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--peers", nargs="?", const="all", default="", help="all that are installed, or names")
    parser.add_argument("--driver", choices=("database", "redis"), default="database")
    parser.add_argument("--soak", type=int, nargs="?", const=10_000_000, default=0, help="only this, so many tasks")
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    given = parser.parse_args()
    names = NAMES if given.driver == "database" else ON_REDIS
    only = [name for name in given.only.split(",") if name] or list(names)
    if unknown := set(only) - set(names):
        parser.error(f"--only knows {', '.join(names)}, not {', '.join(sorted(unknown))}")

    book = Book()
    others = peers.found(given.driver, given.peers)
    with peers.place(given.driver), server() as running:
        bench = Bench(running, given.tasks, given.million)
        if given.soak:
            book.add(0, upkeep.soak(bench, given.soak, tell))
        else:
            for number in range(given.rounds):
                one_round(bench, number, only, others, book, given.seconds, given.driver)
    for name in book.names():
        print(f"{name:>40}  {book.median(name):>14,.3f}")
    found = report.result(book, [system.NAME for system in others])
    for name, value in found["ratio"].items():
        print(f"{'ratio ' + name:>40}  {value:>14}")
    for name in ("latency_ms", "latency_ms_limit", "latency_ms_behind_1m"):
        print(f"{name:>40}  {found[name]}")
    if given.json:
        print(json.dumps(found))


def one_round(
    bench: Bench, number: int, only: Sequence[str], others: Sequence[System], book: Book, seconds: float, driver: str
) -> None:
    """Everything that was asked for, once."""
    limits = [BARE] if driver == "database" else []
    for name in only:
        if name in report.SHARED:
            for system in (*limits, OURS, *others):
                note(book, number, shared(name, system)(bench))
            if name == "enqueue_one" and driver == "database":
                note(book, number, more_enqueue(bench))
            if name == "enqueue_bulk" and driver == "database":
                note(book, number, measures.bulk(bench, OURS, "copy"))
        elif name == "latency":
            tell("latency")
            book.add_delays("ours", delays.latency(bench, OURS, seconds, number))
            for system in [*limits, *(peer for peer in others if hasattr(peer, "pulses"))][:1]:
                book.add_delays("limit", delays.latency(bench, system, seconds, number))
            book.add_delays("behind", delays.latency_behind(bench, seconds, number))
        else:
            for measure in OWN[name]:
                note(book, number, measure(bench))


def note(book: Book, number: int, samples: Samples) -> None:
    """Keep the samples, and show the first."""
    book.add(number, samples)
    tell(", ".join(f"{name} {value:,.3f}" for name, value in samples.items()))


def tell(text: str) -> None:
    """Progress, beside the result."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
