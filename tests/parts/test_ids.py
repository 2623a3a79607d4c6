"""I16: ids are unique and carry their bucket, whatever Redis forgets, and whatever clocks and forks do."""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sandbox.ids import BUCKETS, Hosts

from pipeline import clock
from pipeline.client import Client
from pipeline.enqueue.row_ids import FEW, FRESH_MS, LEAST
from pipeline.errors import IdsUsedUp, ShardUnavailable
from pipeline.model import EPOCH_MS, FIRST_SPAN, PER_MS, SMALLEST, SPAN, SPANS, bucket_of, carries_bucket, ids_of
from pipeline.shard.records import ledger_queries
from pipeline.testing import Sandbox

HOUR_MS = 3_600_000


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(monkeypatch)


@given(bucket=st.integers(0, 1023), counter=st.integers(FIRST_SPAN * SPAN, SPANS * SPAN - 1))
def test_an_id_carries_its_bucket_is_told_from_other_keys_and_is_exact_as_a_number_of_javascript(
    bucket: int, counter: int
):
    [made] = ids_of(bucket, range(counter, counter + 1))

    assert bucket_of(made) == bucket
    assert carries_bucket(made)
    assert json.loads(json.dumps(made), parse_int=float) == made, "JavaScript has doubles only"
    assert int(float(made)) == made != int(float(made + 1))


def test_a_key_that_is_no_id_of_ours_is_told_by_its_size():
    assert not carries_bucket(2**31)
    assert not carries_bucket(SMALLEST - 1)
    assert not carries_bucket(2**53)


def test_an_id_carries_the_time_at_which_it_was_made(hosts: Hosts):
    made = hosts.maker().new(5, hosts.now_ms)

    assert (made >> 10) // PER_MS + EPOCH_MS == pytest.approx(hosts.now_ms, abs=SPAN // PER_MS)


def test_ids_of_a_block_follow_each_other_and_blocks_ascend_even_when_the_clock_does_not(hosts: Hosts):
    ids = hosts.maker()
    made = []

    for step_ms in (0, HOUR_MS, -HOUR_MS, 5):
        hosts.now_ms += step_ms
        made += [ids.new(3, hosts.now_ms) for _ in range(LEAST)]

    assert made == sorted(made)
    assert made[LEAST - 1] == made[0] + (LEAST - 1 << 10)


def test_what_two_processes_make_a_second_apart_sorts_by_time(hosts: Hosts):
    first, second, made = hosts.maker(), hosts.maker(), []

    for _ in range(10):
        for ids in (first, second):
            hosts.now_ms += FRESH_MS
            made += [ids.new(bucket, hosts.now_ms) for bucket in range(2)]

    assert [id for id in made if bucket_of(id) == 0] == sorted(id for id in made if bucket_of(id) == 0)


def test_ids_follow_the_clock_into_the_next_span_as_long_as_a_worker_lives(hosts: Hosts):
    ids = hosts.maker()
    ids.new(0, hosts.now_ms)
    hosts.now_ms += 2 * SPAN // PER_MS

    late = ids.new(0, hosts.now_ms)
    ids.follow("s0")
    hosts.now_ms += FRESH_MS
    followed = ids.new(0, hosts.now_ms)

    assert (late >> 10) // SPAN < (followed >> 10) // SPAN
    assert (followed >> 10) // PER_MS + EPOCH_MS == hosts.now_ms


def test_a_clock_that_is_far_ahead_alone_does_not_use_up_ids(hosts: Hosts):
    ids = hosts.maker()
    before = ids.new(0, hosts.now_ms)
    hosts.redis_ahead_ms = 1000 * 24 * HOUR_MS
    ids.follow("s0")

    assert ids.new(0, hosts.now_ms + FRESH_MS) >> 10 < (before >> 10) + 2 * SPAN


def test_a_bulk_load_asks_ever_less_often(hosts: Hosts):
    ids = hosts.maker()
    for _ in range(100_000):
        ids.new(0, hosts.now_ms)
    assert hosts.log.asked <= 20

    hosts.log.asked = 0
    for n in range(100_000):
        ids.new(n % BUCKETS, hosts.now_ms)
    assert hosts.log.asked <= 40


def test_a_process_that_seldom_makes_an_id_asks_for_those_of_one_bucket(hosts: Hosts, monkeypatch: pytest.MonkeyPatch):
    asked, give_ids = list[int](), hosts.log.give_ids
    ids, all_of_a_shard = hosts.maker(), BUCKETS // 2
    ids.follow("s0"), ids.follow("s1")
    monkeypatch.setattr(hosts.log, "give_ids", lambda *what: asked.append(len(what[1])) or give_ids(*what))

    for nth in range(4):  # seldom
        ids.new(nth, hosts.now_ms)
        hosts.now_ms += FRESH_MS
    assert set(asked) == {1}
    asked.clear()

    for nth in range(BUCKETS):  # and often, all at once
        ids.new(nth, hosts.now_ms)
    assert asked == [1] * FEW + [all_of_a_shard] * 2
    asked.clear()

    hosts.now_ms += FRESH_MS  # then it goes on as it did
    for nth in range(BUCKETS):
        ids.new(nth, hosts.now_ms)
    assert asked == [all_of_a_shard] * 2


def test_a_span_that_is_used_up_is_followed_by_another(hosts: Hosts):
    ids, made = hosts.maker(), []

    for nth in range(1, 22):
        made.append(ids.new(0, hosts.now_ms))
        hosts.log.give_ids("s0", {0: SPAN >> nth})  # to others, as long as there is room
        hosts.now_ms += FRESH_MS

    assert len(set(made)) == len(made)
    assert hosts.database.given > 1


def test_when_all_ids_have_been_given_out_it_is_said(hosts: Hosts):
    hosts.database.last = SPANS - 1

    with pytest.raises(IdsUsedUp, match="all of its ids"):
        hosts.maker().new(0, hosts.now_ms)


def test_a_wiped_redis_gives_no_ids_before_the_shard_gave_it_a_span(hosts: Hosts):
    hosts.maker().new(0, hosts.now_ms)
    hosts.log.fail_over()
    hosts.database.away = True

    with pytest.raises(ShardUnavailable):
        hosts.maker().new(0, hosts.now_ms)


def test_a_crowd_of_processes_over_a_wipe_takes_few_spans(hosts: Hosts):
    makers = [hosts.maker() for _ in range(60)]
    for ids in makers:
        ids.new(0, hosts.now_ms)
    hosts.log.fail_over()

    made = [ids.new(1, hosts.now_ms + FRESH_MS) for ids in makers]

    assert len(set(made)) == 60
    assert hosts.database.given == 2


@given(seed=st.integers(0, 2**32))
def test_no_id_comes_twice_whatever_redis_forgets_and_whatever_clocks_and_forks_do(seed: int):
    with pytest.MonkeyPatch.context() as monkeypatch:
        hosts, randomly = Hosts(monkeypatch), random.Random(seed)
        alive = [hosts.maker() for _ in range(8)]
        replica, made = hosts.log.replica(), []

        for _ in range(150):
            nth, event = randomly.randrange(8), randomly.random()
            if event < 0.05:
                alive[nth] = hosts.maker()  # the process dies, another comes
            elif event < 0.10:
                alive[nth] = fork(alive[nth - 1])
            elif event < 0.12:
                hosts.log.fail_over()  # Redis forgets everything
            elif event < 0.14:
                hosts.log.forget_ids()  # only its counters
            elif event < 0.16:
                replica = hosts.log.replica()
            elif event < 0.18:
                hosts.log.fail_over(replica)  # to a replica that is behind, perhaps for the second time
            elif event < 0.20:
                hosts.redis_ahead_ms = randomly.randint(-HOUR_MS, HOUR_MS)
            elif event < 0.30:
                hosts.now_ms += randomly.choice((1, FRESH_MS, HOUR_MS, -HOUR_MS))
            bucket, count = randomly.randrange(BUCKETS), randomly.choice((1, 3, 60))
            made += [alive[nth].new(bucket, hosts.now_ms) for _ in range(count)]

        assert len(set(made)) == len(made)


def fork(parent: Any) -> Any:
    """Return what a child has of its parent at first: the same memory, under another process id."""
    child = copy.copy(parent)
    child._blocks = {bucket: copy.copy(block) for bucket, block in parent._blocks.items()}
    child._pid = -1
    return child


@pytest.fixture
def box(tmp_path: Any) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path, {}, 2, 16)
    yield made
    made.client.close()


def test_a_fork_does_not_go_on_with_its_parents_block(box: Sandbox):
    box.client.row_ids.new(1, clock.wall_ms())
    _parents[:] = [box.client]

    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply(_ids_of_child)
    here = {box.client.row_ids.new(1, clock.wall_ms()) for _ in range(LEAST - 1)}

    assert not here & there


_parents: list[Client] = []


def _ids_of_child() -> set[int]:
    [parent] = _parents
    return {parent.row_ids.new(1, clock.wall_ms()) for _ in range(LEAST - 1)}


def test_a_shard_gives_each_span_once_and_both_of_its_limits_count(box: Sandbox):
    primary = box.client.nodes.primary("s0")

    given = [ledger_queries.give_span(primary, above, least) for above, least in ((0, 200_000), (0, 0), (300_000, 0))]

    assert given == [200_000, 200_001, 300_001]
