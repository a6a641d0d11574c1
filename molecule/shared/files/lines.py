"""Numbered lines, so that a lost one shows.

`lines.py write NAME` writes them as a worker does until it gets TERM: events to worker.log, and to its stdout, which
Supervisor keeps in a file. The last number goes into a file of its own.
`lines.py count` reads all there is of these logs and prints, per writer and log, what is missing or there twice.
"""

import collections
import gzip
import json
import pathlib
import re
import signal
import sys
import time

STATE = pathlib.Path("/var/lib/moysklad-worker")
LOGS = {"event": "/var/log/moysklad-worker/worker.log", "output": "/var/log/moysklad-worker-output/NAME.log"}
KEPT = re.compile(r"\.log(\.\d+(\.gz)?)?")


def write(name):
    """About a thousand lines a second."""
    from worker import telemetry
    from worker.settings import Settings

    telemetry.configure(Settings.from_env(), console=False)
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    number = 0
    while not told:
        number += 1
        telemetry.emit("lines.write", writer=name, number=number)
        sys.stdout.write(f"lines.write writer={name} number={number}\n")
        sys.stdout.flush()
        time.sleep(0.001)
    (STATE / f"{name}.last").write_text(str(number))


def count():
    """Every line that was written, once; and no file beside those logrotate keeps count of."""
    found = {"odd_files": [], "writers": {}}
    for log in (pathlib.Path(path) for path in LOGS.values()):
        names = [file.name for file in log.parent.iterdir()]
        found["odd_files"] += [name for name in names if not KEPT.fullmatch(name[name.find(".log") :])]
    for last in STATE.glob("*.last"):
        for kind, path in LOGS.items():
            log = pathlib.Path(path.replace("NAME", last.stem))
            files = sorted(log.parent.glob(log.name + "*"))
            line = re.compile(rf"lines\.write writer={last.stem} number=(\d+)$", re.MULTILINE)
            seen = collections.Counter(int(n) for file in files for n in line.findall(read(file)))
            wanted = range(1, int(last.read_text()) + 1)
            found["writers"][f"{last.stem} {kind}"] = {
                "written": len(wanted),
                "files": len([file for file in files if line.search(read(file))]),
                "missing": [n for n in wanted if not seen[n]][:20],
                "twice": [n for n in seen if seen[n] > 1][:20],
            }
    sys.stdout.write(json.dumps(found) + "\n")


def read(file):
    """A log, packed or not."""
    return (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()


if __name__ == "__main__":
    write(sys.argv[2]) if sys.argv[1] == "write" else count()
