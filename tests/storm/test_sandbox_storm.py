"""A fixed number of schedules in one process; `make storm` runs any number, and replays a failing seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from storm.sandbox_storm import run
from support.examples import THOROUGH

#: Schedules of a test, and how many tests.
EACH, TESTS = 5, 6 if THOROUGH else 1


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A storm logs thousands of faults."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, EACH * TESTS, EACH))
def test_no_promise_is_broken_whatever_fails_in_one_process(first: int) -> None:
    outcomes = [run(seed) for seed in range(first, first + EACH)]

    assert {f"make storm KIND=sandbox SEED={one.seed}": one.broken for one in outcomes if one.broken} == {}
    assert all(one.ops["applied"] and one.faults for one in outcomes)


@pytest.mark.parametrize("seed", [48, 60, 77, 122, 490, 1196, 1281])
def test_what_a_schedule_has_found_stays_mended(seed: int) -> None:
    assert run(seed).broken == []


def test_a_seed_replays_exactly() -> None:
    assert run(105) == run(105)
