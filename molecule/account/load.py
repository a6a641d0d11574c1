"""Work without end: `load.py SIMULATOR MAIN` changes goods of main and has them synced, until TERM.

What a round enqueues goes where the env file says at that moment, as with every producer.
"""

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request


def main(simulator, account):
    """Sixty goods a round; the number of rounds is in /root/load.rounds."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    for number in itertools.count(1):
        if told:
            break
        order = json.dumps({"account": account, "count": 60, "seed": number}).encode()
        request = urllib.request.Request(f"{simulator}/_control/mutate", order, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).read()
        subprocess.run(["/usr/local/sbin/moysklad-worker", "sync", account], check=True, stdout=subprocess.DEVNULL)
        pathlib.Path("/root/load.rounds").write_text(str(number))
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
