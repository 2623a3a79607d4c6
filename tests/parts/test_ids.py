"""I16: ids are unique and carry their bucket, whatever clocks, forks and leases do."""

from __future__ import annotations

import multiprocessing
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import clock
from pipeline.client import Client
from pipeline.enqueue.redis_away import RedisAway
from pipeline.enqueue.row_ids import RowIds
from pipeline.errors import NoProducerNumber
from pipeline.model.ids import EPOCH_MS, PRODUCERS, SMALLEST, SPAN_MS, Lease, bucket_of, carries_bucket
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.ttls import LEASE_MS

HOUR_MS = 3_600_000
NOW_MS = EPOCH_MS + 60 * 86_400_000 * 12


class Clock:
    """The server's clock; every machine has another of its own."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def maker(log: MemoryLog) -> RowIds:
    return RowIds(log, RedisAway())


@given(bucket=st.integers(0, 1023), now_ms=st.integers(EPOCH_MS, EPOCH_MS + 2**41 - 2 * SPAN_MS))
def test_an_id_carries_its_bucket_fits_into_63_bits_and_is_told_from_other_keys(bucket: int, now_ms: int):
    made = maker(MemoryLog()).new(bucket, now_ms)

    assert bucket_of(made) == bucket
    assert SMALLEST <= made < 2**63
    assert carries_bucket(made)


def test_an_id_carries_the_time_at_which_it_was_made():
    made = maker(MemoryLog()).new(5, NOW_MS)

    assert (made >> 22) + EPOCH_MS == pytest.approx(NOW_MS, abs=SPAN_MS)


def test_a_key_that_is_no_id_of_ours_is_told_by_its_size():
    assert not carries_bucket(2**31)
    assert not carries_bucket(SMALLEST - 1)


@pytest.mark.parametrize("step_ms", [0, 1, -1, HOUR_MS, -HOUR_MS])
def test_one_maker_never_doubles_an_id_whatever_its_clock_does(step_ms: int):
    ids = maker(MemoryLog())
    randomly = random.Random(step_ms)

    made = [ids.new(randomly.choice((0, 7)), NOW_MS + n * step_ms) for n in range(5000)]

    assert len(set(made)) == 5000


def test_ids_of_a_bucket_ascend_even_when_the_clock_does_not():
    ids = maker(MemoryLog())

    made = [ids.new(3, NOW_MS + offset) for offset in (0, HOUR_MS, -HOUR_MS, 0, 5)]

    assert made == sorted(made)


@given(seed=st.integers(0, 2**32))
def test_64_makers_with_clocks_an_hour_off_that_come_and_go_never_double_an_id(seed: int):
    randomly, clock = random.Random(seed), Clock()
    log = MemoryLog()
    log.now_ms = clock
    alive = {n: maker(log) for n in range(64)}
    off_ms = {n: randomly.randint(-HOUR_MS, HOUR_MS) for n in range(64)}
    made: list[int] = []

    for _ in range(300):
        n = randomly.randrange(64)
        if randomly.random() < 0.1:  # the process dies; another comes with its own clock, perhaps on its number
            alive[n] = maker(log)
            off_ms[n] = randomly.randint(-HOUR_MS, HOUR_MS)
            clock.now_ms += LEASE_MS + 1
        clock.now_ms += randomly.choice((0, 1, 50, SPAN_MS))
        bucket = randomly.randrange(2)
        made += [alive[n].new(bucket, clock.now_ms + off_ms[n]) for _ in range(randomly.choice((1, 40)))]

    assert len(set(made)) == len(made)


def test_whoever_leases_a_number_next_starts_behind_its_last_span_though_its_clock_is_an_hour_late():
    clock = Clock()
    log = MemoryLog()
    log.now_ms = clock
    first = maker(log)
    before = {first.new(3, NOW_MS + HOUR_MS) for _ in range(100)}
    clock.now_ms += LEASE_MS + 1

    second = maker(log)
    after = {second.new(3, NOW_MS - HOUR_MS) for _ in range(100)}

    assert (min(before) >> 5 & 127) == (min(after) >> 5 & 127), "the test is about one and the same number"
    assert max(before) < min(after)


def test_a_busy_maker_lengthens_its_lease_before_it_goes_beyond_it():
    leases: list[Lease] = []

    def lease_ids(token: str, lease: Lease | None, until_ms: int) -> Lease:
        leases.append(Lease(9, 0, until_ms))
        return leases[-1]

    log = MemoryLog()
    log.lease_ids = lease_ids
    ids = maker(log)
    ids.new(1, NOW_MS)
    ids.new(1, NOW_MS + SPAN_MS)
    assert len(leases) == 1

    late = ids.new(1, NOW_MS + SPAN_MS + 1)

    assert len(leases) == 2
    assert late >> 22 <= leases[-1].until_ms


def test_without_a_free_number_no_id_is_made():
    log = MemoryLog()
    for _ in range(PRODUCERS):
        maker(log).new(0, NOW_MS)

    with pytest.raises(NoProducerNumber, match="at most 112 processes"):
        maker(log).new(0, NOW_MS)


@pytest.fixture
def pipeline(tmp_path: Any) -> Any:
    configuration = {
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "shards": {"s0": {"primary": f"sqlite://{tmp_path}/s0.sqlite"}},
    }
    made = Client(configuration, log=MemoryLog(), bell=SilentBell())
    yield made
    made.close()


def test_a_fork_does_not_go_on_with_its_parents_number(pipeline: Client):
    here = pipeline.row_ids.new(1, clock.wall_ms())
    _parents.append(pipeline)

    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply(_id_of_child)

    assert here >> 5 & 127 != there >> 5 & 127


_parents: list[Client] = []


def _id_of_child() -> int:
    [parent] = _parents
    return parent.row_ids.new(1, clock.wall_ms())
