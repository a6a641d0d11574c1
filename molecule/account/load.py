"""Work without end: `load.py SIMULATOR MAIN` changes goods of main and has them synced, until TERM.

What a round enqueues goes where the env file says at that moment, as with every producer. After each it looks whether
anything waits that no living worker listens to. What it has done and seen is in /root/load.json.
"""

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

WORKER = "/usr/local/sbin/moysklad-worker"
SEEN = pathlib.Path("/root/load.json")


def main(simulator, account):
    """Sixty goods a round."""
    told, unheard = [], []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    for number in itertools.count(1):
        if told:
            break
        order = json.dumps({"account": account, "count": 60, "seed": number}).encode()
        request = urllib.request.Request(f"{simulator}/_control/mutate", order, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).read()
        subprocess.run([WORKER, "sync", account], check=True, stdout=subprocess.DEVNULL)
        snapshot = subprocess.run([WORKER, "monitor", "--once", "--json"], check=True, capture_output=True).stdout
        unheard += json.loads(snapshot)["unheard"]
        SEEN.write_text(json.dumps({"rounds": number, "unheard": unheard}))
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
