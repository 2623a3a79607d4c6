"""Ids in reserve: a host that cannot ask Redis makes ids of a number that was leased before."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
from support.sandbox.spooled import FORK, shared

from pipeline import clock
from pipeline.enqueue.redis_away import RedisAway
from pipeline.enqueue.row_ids import RowIds
from pipeline.errors import IdsUsedUp, LogUnavailable
from pipeline.model.ids import EPOCH_MS, HOSTS, PRODUCERS, SPAN_MS, Lease
from pipeline.oplog.memory.log import MemoryLog
from pipeline.spool import sqlite_file
from pipeline.spool.id_reserve import LEAST_MS, SLICE_MS
from pipeline.spool.store import Spool


def now_ms() -> int:
    return clock.wall_ms() - EPOCH_MS


def test_processes_make_ids_of_the_hosts_reserve_and_none_comes_twice(spool: Spool, monkeypatch: Any):
    monkeypatch.setattr(sqlite_file, "BUSY_S", 60.0)  # a disk that is slow for others is not what this is about
    log = MemoryLog()
    spool.reserve.refill(log.lease_host_ids)

    with FORK.Pool(8) as pool:
        made = pool.map(_make_ids, range(8))

    ids = [id for some in made for id in some]
    assert len(set(ids)) == len(ids) == 8 * 500


def _make_ids(_: int) -> list[int]:
    [spool] = shared
    log = MemoryLog()
    log.lease_ids = away
    maker = RowIds(log, RedisAway(spool))
    return [maker.new(3, clock.wall_ms()) for _ in range(500)]


def away(*_: object) -> Lease:
    raise LogUnavailable("away")


def test_a_hosts_number_is_none_that_a_process_gets(spool: Spool):
    log = MemoryLog()
    hosts = [log.lease_host_ids(f"h{n}", None, now_ms()).number for n in range(HOSTS)]
    processes = [log.lease_ids(f"p{n}", None, now_ms()).number for n in range(PRODUCERS)]

    assert len({*hosts, *processes}) == HOSTS + PRODUCERS == 128


def test_processes_that_start_together_lease_one_number_for_their_host(spool: Spool, tmp_path: Path):
    log = MemoryLog()
    for _ in range(3):
        Spool(spool.path, 1_000_000).reserve.refill(log.lease_host_ids)

    assert log.lease_host_ids("another", None, now_ms()).number == PRODUCERS + 1


def test_the_reserve_grows_in_time_and_goes_on_from_where_it_was(spool: Spool, monkeypatch: Any):
    log = MemoryLog()
    spool.reserve.refill(log.lease_host_ids)
    before = spool.reserve.lease(now_ms() + SPAN_MS)
    later = clock.wall_ms() + LEAST_MS + 1000
    monkeypatch.setattr(clock, "wall_ms", lambda: later)

    spool.reserve.refill(log.lease_host_ids)
    after = spool.reserve.lease(before.until_ms + SPAN_MS)

    assert after == Lease(before.number, before.until_ms, before.until_ms + SLICE_MS)
    assert spool.reserve.lease(now_ms() + LEAST_MS + SPAN_MS).number == before.number


def test_a_reserve_that_redis_has_forgotten_is_leased_anew(spool: Spool):
    log = MemoryLog()
    spool.reserve.refill(log.lease_host_ids)
    log.fail_over()
    taken = log.lease_host_ids("another host", None, now_ms() + 1000)

    spool.reserve.doubt()
    spool.reserve.refill(log.lease_host_ids)

    assert spool.reserve.lease(now_ms() + SPAN_MS).number != taken.number


def test_a_host_without_a_reserve_says_so(spool: Spool):
    with pytest.raises(IdsUsedUp, match="never reached Redis") as raised:
        spool.reserve.lease(now_ms() + SPAN_MS)
    assert raised.value.retryable


def test_a_reserve_ends_where_redis_let_it_end(spool: Spool):
    spool.reserve.refill(lambda token, lease, until: Lease(120, 0, now_ms() + 5000))

    leases = iter(lambda: spool.reserve.lease(now_ms() + SPAN_MS), None)
    assert next(leases).until_ms <= now_ms() + 5000
    with pytest.raises(IdsUsedUp, match="used up"):
        collections.deque(leases, maxlen=0)
