"""How much one transaction takes: it follows the time of commits and never goes beyond its caps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.apply.applier import FIRST_ROWS, LEAST_ROWS, Pace
from pipeline.config.settings import ApplySettings

SETTINGS = ApplySettings(target_ms=100, max_rows=5000, max_bytes=1_000_000)


def test_a_slow_commit_halves_the_batch_at_most_and_a_fast_full_one_makes_it_grow():
    pace = Pace(SETTINGS)

    pace.learn(FIRST_ROWS, 125)
    assert pace.rows == FIRST_ROWS * 100 // 125
    pace.learn(pace.rows, 10_000)
    assert pace.rows == FIRST_ROWS * 100 // 125 // 2
    pace.learn(pace.rows, 50)
    assert pace.rows > FIRST_ROWS * 100 // 125 // 2


def test_a_fast_batch_that_was_not_full_tells_nothing():
    pace = Pace(SETTINGS)

    pace.learn(10, 1)

    assert pace.rows == FIRST_ROWS


@given(batches=st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 60_000)), max_size=60))
def test_a_batch_never_leaves_its_bounds(batches: list[tuple[int, int]]):
    pace = Pace(SETTINGS)

    for rows, took_ms in batches:
        pace.learn(rows, took_ms)
        assert LEAST_ROWS <= pace.rows <= SETTINGS.max_rows


@given(
    buckets=st.sets(st.integers(0, 255), max_size=64),
    sizes=st.dictionaries(st.integers(0, 255), st.integers(0, 10**7)),
)
def test_what_is_read_fits_the_batch_in_rows_and_bytes_and_never_starves_a_bucket(
    buckets: set[int], sizes: dict[int, int]
):
    counts = Pace(SETTINGS).counts(buckets, sizes)

    assert counts.keys() == buckets
    assert all(count >= 1 for count in counts.values())
    assert sum(counts.values()) < FIRST_ROWS + len(buckets)
    for bucket, count in counts.items():
        assert count == 1 or count * sizes.get(bucket, 0) <= SETTINGS.max_bytes / len(buckets)


def test_no_buckets_are_no_division_by_zero():
    assert Pace(SETTINGS).counts([], {}) == {}


@pytest.mark.parametrize("most", [1, 49, 500])
def test_a_cap_below_the_first_batch_holds_from_the_start(most: int):
    assert Pace(ApplySettings(max_rows=most)).rows == most
