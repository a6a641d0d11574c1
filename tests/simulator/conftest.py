"""One served simulator for all tests here, emptied before each, and judged by the contract after each."""

from collections.abc import Callable, Iterator

import pytest

from tests.contract.contract import Contracted, simulator_under_contract
from tests.simulator.client import Client, Clock


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def served(clock: Clock) -> Iterator[Contracted]:
    with simulator_under_contract(clock=clock) as contracted:
        yield contracted


@pytest.fixture
def sim(served: Contracted, clock: Clock) -> Iterator[Contracted]:
    """An empty simulator; the test fails if anything that passed broke the vendor's description."""
    clock.now += 3600
    served.control("POST", "/reset")
    served.control("POST", "/speed", latency_ms=0, item_ms=0)
    served.violations.clear()
    yield served

    assert served.violations == []


@pytest.fixture
def open_account(sim: Contracted, clock: Clock) -> Callable[..., Client]:
    """Makes an account with one token of weight 1, named like the account."""

    def make(name: str, weight: int = 1, **options: object) -> Client:
        tokens = [{"token": name, "weight": weight}]
        made = sim.control("POST", "/accounts", name=name, tokens=tokens, **options)
        return Client(sim, clock, made["id"], name)

    return make


@pytest.fixture
def main(open_account: Callable[..., Client]) -> Client:
    return open_account("main")


@pytest.fixture
def child(open_account: Callable[..., Client]) -> Client:
    return open_account("child")
