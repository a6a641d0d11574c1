"""A whole sync while every third request goes wrong: it ends by itself, and every child equals main."""

from __future__ import annotations

import pytest

from tests.chaos.faults import CLEAN, FAULTS, MORE_FAULTS, sync_under_fire

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SEEDS = [pytest.param(n, marks=[pytest.mark.slow] if n > 3 else []) for n in range(1, 21)]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_fault_at_once(seed: int) -> None:
    """2,000 goods for 3 children, 5 % of the requests each: cut before, cut after, 500, 503, timeout, 429, HTML.

    Nothing is missing, doubled, different or failed; MoySklad sees no 429 but those that were ordered, and
    never thinks of disabling anybody.
    """
    report = sync_under_fire(seed)

    assert {name: report[name] for name in CLEAN} == CLEAN
    assert report["kill_switch"] == []
    assert report["responses_429"] == report["hits"]["status 429"]
    assert sum(report["hits"].values()) >= 10
    assert len(report["hits"]) == len(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(21, 27))
def test_even_more_faults(seed: int) -> None:
    """Besides: effects that come after the cut, truncated bodies, wrong JSON, answers byte by byte."""
    report = sync_under_fire(seed, faults=(*FAULTS, *MORE_FAULTS))

    assert {name: report[name] for name in CLEAN} == CLEAN
    assert report["kill_switch"] == []
    assert sum(report["hits"].values()) >= 20
