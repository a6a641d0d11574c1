"""A client that does nothing but ask: no retries, no pacing."""

from dataclasses import dataclass
from typing import Any

import requests

HEADERS = {
    "Accept": "application/json;charset=utf-8",
    "Accept-Encoding": "gzip",
    "Content-Type": "application/json",
}


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 1_795_000_000.0  # 2026-11-18 12:26:40 in Moscow

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    """Status, parsed body (None if there is none) and headers."""

    status: int
    body: Any
    headers: Any

    @property
    def codes(self) -> list[int]:
        """Error codes of an error answer."""
        return [error["code"] for error in self.body["errors"]]


class Client:
    """One account of the simulator, asked with one token; every request moves the clock by `step` seconds."""

    def __init__(self, sim: Any, clock: Clock, account: str, token: str) -> None:
        self.sim = sim
        self.clock = clock
        self.account = account
        self.token = token

    def ask(self, method: str, path: str, body: Any = None, *, step: float = 0.1, **options: Any) -> Answer:
        """One request; `headers` are added to the usual ones, a header that is None is left out."""
        self.clock.now += step
        headers = {**HEADERS, "Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        if body is None and "data" not in options:
            headers["Content-Type"] = None
        answer = self.sim.session.request(
            method, self.sim.url + path, json=body, headers=headers, **{"timeout": 30, **options}
        )
        return Answer(answer.status_code, answer.json() if answer.content else None, answer.headers)

    def get(self, path: str, **options: Any) -> Any:
        """The body of a GET that must succeed."""
        answer = self.ask("GET", path, **options)
        assert answer.status == 200, answer.body
        return answer.body

    def rows(self, path: str) -> list[Any]:
        """The rows of a list."""
        return self.get(path)["rows"]

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The body of a POST that must end with `status`."""
        answer = self.ask("POST", path, body)
        assert answer.status == status, answer.body
        return answer.body

    def put(self, path: str, body: Any, status: int = 200) -> Any:
        """The body of a PUT that must end with `status`."""
        answer = self.ask("PUT", path, body)
        assert answer.status == status, answer.body
        return answer.body

    def named(self, kind: str, name: str) -> Any:
        """The reference to the one object with this name."""
        path = "/context/companysettings/pricetype" if kind == "pricetype" else f"/entity/{kind}"
        found = self.get(path)
        found = found if isinstance(found, list) else found["rows"]
        (one,) = [row for row in found if row["name"] == name]
        return {"meta": one["meta"]}


def session() -> requests.Session:
    """A session that ignores proxies of the environment."""
    made = requests.Session()
    made.trust_env = False
    return made
