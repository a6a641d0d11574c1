"""`python -m simulator`: serve an empty simulator until told to stop."""

from __future__ import annotations

import argparse
from pathlib import Path

from .app import create_app
from .server import run


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="simulator", description="A stand-in for MoySklad's JSON API 1.2.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 picks a free one")
    parser.add_argument("--port-file", type=Path, help="gets the port number once connections are accepted")
    parser.add_argument("--latency-ms", type=float, default=0, help="delay of every request")
    parser.add_argument("--item-ms", type=float, default=0, help="further delay per object of a bulk request")
    parser.add_argument("--log-level", default="warning")
    options = parser.parse_args()
    app = create_app(latency_ms=options.latency_ms, item_ms=options.item_ms)
    run(app, options.host, options.port, options.port_file, options.log_level)


if __name__ == "__main__":
    main()
