"""`sample.py SOCKET FILE`: every 50 ms the number of workers supervisord has, and of those not RUNNING, to FILE."""

import http.client
import json
import socket
import sys
import time
import xmlrpc.client


class Connection(http.client.HTTPConnection):
    """HTTP over the unix socket."""

    def connect(self):
        """Open it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])


class Transport(xmlrpc.client.Transport):
    """XML-RPC over it."""

    def make_connection(self, host):
        """A connection per call."""
        return Connection("localhost")


def main():
    """Look until killed."""
    server = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=Transport())
    worst = {"samples": 0, "most_down": 0, "fewest": 99, "longest_pause": 0.0}
    before = time.monotonic()
    while True:
        states = [one["statename"] for one in server.supervisor.getAllProcessInfo()]
        now = time.monotonic()
        down = sum(state != "RUNNING" for state in states)
        worst = {
            "samples": worst["samples"] + 1,
            "most_down": max(worst["most_down"], down),
            "fewest": min(worst["fewest"], len(states)),
            "longest_pause": round(max(worst["longest_pause"], now - before), 3),
        }
        before = now
        if worst["samples"] % 10 == 0:
            with open(sys.argv[2], "w", encoding="utf-8") as file:  # noqa: PTH123
                json.dump(worst, file)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
