"""How much one transaction takes: it follows the time of commits and never goes beyond its caps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.apply.pace import FIRST_ROWS, LEAST_ROWS, Guesses, Pace
from pipeline.config.settings import ApplySettings
from pipeline.model import START, Entry, Position
from pipeline.oplog.appends import BIG_BYTES
from pipeline.oplog.memory.log import MemoryLog

SETTINGS = ApplySettings(target_ms=100, max_rows=5000, max_bytes=1_000_000)


def test_a_slow_commit_halves_the_batch_at_most_and_a_fast_full_one_makes_it_grow():
    pace = Pace(SETTINGS, MemoryLog())

    pace.learn(FIRST_ROWS, 125)
    assert pace.rows == FIRST_ROWS * 100 // 125
    pace.learn(pace.rows, 10_000)
    assert pace.rows == FIRST_ROWS * 100 // 125 // 2
    pace.learn(pace.rows, 50)
    assert pace.rows > FIRST_ROWS * 100 // 125 // 2


def test_a_fast_batch_that_was_not_full_tells_nothing():
    pace = Pace(SETTINGS, MemoryLog())

    pace.learn(10, 1)

    assert pace.rows == FIRST_ROWS


def test_the_time_of_large_ops_is_no_measure_for_others():
    pace = Pace(SETTINGS, MemoryLog())

    pace.learn(2, 10_000, 2 * SETTINGS.max_bytes)
    assert pace.rows == FIRST_ROWS
    pace.learn(FIRST_ROWS, 10_000, SETTINGS.max_bytes)  # many, and none of them large
    assert pace.rows == FIRST_ROWS // 2


@given(batches=st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 60_000)), max_size=60))
def test_a_batch_never_leaves_its_bounds(batches: list[tuple[int, int]]):
    pace = Pace(SETTINGS, MemoryLog())

    for rows, took_ms in batches:
        pace.learn(rows, took_ms)
        assert LEAST_ROWS <= pace.rows <= SETTINGS.max_rows


def test_a_batch_has_few_buckets_where_nearly_all_hold_more_than_it_takes_and_many_where_not():
    pace, taken = Pace(SETTINGS, MemoryLog()), list[int]()

    for deep in (64, 31, 16, 16, 12, 7, 2):
        pace.learn_depth(deep, pace.buckets)
        taken.append(pace.buckets)

    assert taken == [32, 16, 16, 16, 16, 32, 64]


def test_few_due_buckets_say_nothing_of_others():
    pace = Pace(SETTINGS, MemoryLog())

    pace.learn_depth(3, 3)

    assert pace.buckets == SETTINGS.buckets


@pytest.mark.parametrize("most", [1, 5])
def test_a_batch_has_no_more_buckets_than_the_settings_say(most: int):
    pace = Pace(ApplySettings(buckets=most), MemoryLog())

    for deep in (most, 0, 0):
        pace.learn_depth(deep, most)
        assert pace.buckets == most


def log_of(sizes: dict[int, list[int]]) -> MemoryLog:
    """Return a log with ops of these sizes in each bucket."""
    log = MemoryLog()
    for bucket, each in sizes.items():
        ops = [Entry(bucket, Position(7, n), 5, n + 1, b"x" * size) for n, size in enumerate(each)]
        log._server.logs[bucket] = ops
    return log


@given(
    sizes=st.dictionaries(
        st.integers(0, 255),
        st.lists(st.sampled_from([150, 2_000, 3_000, 50_000, 400_000, 1_500_000]), max_size=4),
        min_size=1,
        max_size=20,
    ),
    data=st.data(),
)
def test_what_is_read_is_at_most_a_batch_and_one_op_and_nothing_waits_for_ever(
    sizes: dict[int, list[int]], data: st.DataObject
):
    largest = {bucket: max(each, default=0) for bucket, each in sizes.items()}
    due = {bucket: size if size >= BIG_BYTES else 0 for bucket, size in largest.items()}
    pace = Pace(SETTINGS, log_of(sizes))
    after = dict.fromkeys(data.draw(st.permutations(list(due))), START)

    counts = pace.counts(after, due, pace.rows)

    read = [size for bucket, count in counts.items() for size in sizes[bucket][:count]]
    assert sum(read) < SETTINGS.max_bytes + max(largest.values()) + 64 * BIG_BYTES
    assert counts.keys() <= due.keys()
    assert all(count >= 1 for count in counts.values())
    assert next(iter(due)) in counts, "what was due first is read"


def test_small_ops_of_many_buckets_fill_the_batch_in_rows():
    due = dict.fromkeys(range(20), 0)

    counts = Pace(SETTINGS, MemoryLog()).counts(dict.fromkeys(due, START), due, 1000)

    assert counts == dict.fromkeys(due, SETTINGS.max_bytes // (20 * BIG_BYTES))
    assert Pace(SETTINGS, MemoryLog()).counts({}, due, 1000) == {}


@pytest.mark.parametrize("most", [1, 49, 500])
def test_a_cap_below_the_first_batch_holds_from_the_start(most: int):
    assert Pace(ApplySettings(max_rows=most), MemoryLog()).rows == most


def test_a_wrong_guess_ends_none_and_each_more_that_follows_leaves_out_twice_as_many():
    guesses, left_out = Guesses(), list[int]()

    for _ in range(8):
        guesses.wrong()
        left_out.append(next(n for n in range(100) if guesses.next()))
    guesses.right()
    guesses.wrong()

    assert left_out == [0, 2, 6, 14, 30, 62, 62, 62]
    assert guesses.next()
