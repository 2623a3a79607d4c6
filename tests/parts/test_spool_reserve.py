"""Ids in reserve: a host that cannot ask Redis makes ids of blocks that it was given before."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support.sandbox.ids import BUCKETS, TOPOLOGY, Hosts
from support.sandbox.spooled import FORK, shared

from pipeline.enqueue.row_ids import FRESH_MS, RESERVE, RowIds
from pipeline.errors import IdsUsedUp, LogUnavailable
from pipeline.model import bucket_of
from pipeline.spool import RENEW_MS, Spool, sqlite_file

BLOCKS = {bucket: range(10**12, 10**12 + 5000) for bucket in TOPOLOGY.buckets_of("s0")}


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(monkeypatch)


def test_processes_take_different_counters_of_the_hosts_reserve(spool: Spool, monkeypatch: Any):
    monkeypatch.setattr(sqlite_file, "BUSY_S", 60.0)  # a disk that is slow for others is not what this is about
    spool.reserve.keep(BLOCKS)

    with FORK.Pool(8) as pool:
        made = pool.map(_take, range(8))

    taken = [counter for some in made for counter in some]
    assert len(set(taken)) == len(taken) == 8 * 50 * 10


def _take(_: int) -> list[int]:
    [spool] = shared
    return [counter for _ in range(50) for counter in spool.reserve.take(3, 10)]


def test_a_reserve_is_used_to_its_end_and_no_further(spool: Spool):
    spool.reserve.keep({0: range(10, 15)})

    assert [spool.reserve.take(0, 3), spool.reserve.take(0, 3)] == [range(10, 13), range(13, 15)]
    with pytest.raises(IdsUsedUp, match="bucket 0 are used up"):
        spool.reserve.take(0, 3)


def test_a_host_without_a_reserve_says_so(spool: Spool):
    with pytest.raises(IdsUsedUp, match="never reached Redis") as raised:
        spool.reserve.take(0, 1)
    assert raised.value.retryable


def test_the_first_ids_of_a_host_bring_a_reserve_which_a_process_renews_once_an_hour(spool: Spool, hosts: Hosts):
    hosts.maker(spool).new(0, hosts.now_ms)
    assert not any(map(spool.reserve.due, range(BUCKETS)))
    hosts.log.asked = 0

    hosts.maker(spool).new(0, hosts.now_ms)
    assert hosts.log.asked == 1, "for the process's own ids"
    hosts.now_ms += RENEW_MS + 1
    hosts.maker(spool).new(0, hosts.now_ms)

    assert not any(map(spool.reserve.due, range(BUCKETS)))
    assert hosts.log.asked == 1 + 1 + 2, "and for a reserve of both shards"


def test_while_redis_is_away_a_process_goes_on_with_its_blocks_and_then_with_the_reserve(spool: Spool, hosts: Hosts):
    ids = hosts.maker(spool)
    made = [ids.new(3, hosts.now_ms)]
    hosts.log.away = True
    spool.add({3: [b"an op that waits"]})

    for _ in range(200):
        hosts.now_ms += FRESH_MS
        made.append(ids.new(3, hosts.now_ms))

    assert len(set(made)) == len(made)
    assert {bucket_of(id) for id in made} == {3}
    [left] = [spool.reserve.take(3, RESERVE)]
    assert len(left) > RESERVE - 2 * len(made), "what a process takes it uses"


def test_a_redis_that_gives_no_ids_in_time_costs_a_host_with_a_reserve_no_more_than_that(spool: Spool, hosts: Hosts):
    """It may have been busy for a moment: the op itself finds out whether Redis is away."""
    ids: Any = hosts.maker(spool)
    first = ids.new(3, hosts.now_ms)
    hosts.now_ms += FRESH_MS
    hosts.log.away = True

    assert ids.new(3, hosts.now_ms) > first
    assert not ids._away.tripped


def test_a_new_host_that_redis_answers_late_gets_its_ids_all_the_same(spool: Spool, hosts: Hosts):
    ids: Any = hosts.maker(spool)
    hosts.log.fail_once = True

    assert ids.new(3, hosts.now_ms)


def test_a_new_host_gets_its_ids_of_redis_also_while_something_else_has_opened_the_breaker(spool: Spool, hosts: Hosts):
    ids = hosts.maker(spool)
    ids._away.hear(LogUnavailable("one slow reply", silent=True))
    assert ids._away.tripped

    assert ids.new(3, hosts.now_ms)


def test_a_new_host_that_redis_does_not_answer_says_that_it_has_no_ids(spool: Spool, hosts: Hosts):
    hosts.log.away = True

    with pytest.raises(IdsUsedUp, match="never reached Redis"):
        hosts.maker(spool).new(3, hosts.now_ms)


@pytest.mark.parametrize("seed", range(8))
def test_no_id_comes_twice_of_redis_and_of_two_hosts_reserves_whatever_redis_forgets(
    tmp_path: Path, hosts: Hosts, seed: int
):
    randomly = random.Random(seed)
    spools = [Spool(tmp_path / f"{nth}.spool", 1_000_000) for nth in range(2)]
    makers = [hosts.maker(spool) for spool in spools for _ in range(3)]
    replica, made = hosts.log.replica(), []

    for _ in range(80):
        hosts.log.away = randomly.random() < 0.5
        hosts.now_ms += randomly.choice((1, FRESH_MS, RENEW_MS + 1, -RENEW_MS - 1))
        match randomly.randrange(10):
            case 0:
                hosts.log.fail_over()
            case 1:
                hosts.log.forget_ids()
            case 2:
                hosts.log.fail_over(replica)
            case 3:
                replica = hosts.log.replica()
        ids: RowIds = randomly.choice(makers)
        try:
            made += [ids.new(randomly.randrange(BUCKETS), hosts.now_ms) for _ in range(20)]
        except IdsUsedUp:
            assert hosts.log.away

    assert len(set(made)) == len(made) > 400


def test_a_reserve_lives_in_the_file_and_not_in_the_process(spool: Spool):
    spool.reserve.keep(BLOCKS)
    first = spool.reserve.take(0, 10)

    again = Spool(spool.path, 1_000_000).reserve.take(0, 10)

    assert again.start == first.stop
