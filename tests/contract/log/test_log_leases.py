"""What processes share: leases on chores and on producer numbers, the full flag, the secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.sandbox.logs import EPOCH, MINUTE_MS, PRODUCER, S0, append, entries, sequences

from pipeline.clock import polls
from pipeline.errors import NoProducerNumber, PipelineFull
from pipeline.model.ids import PRODUCERS, SPAN_MS, Lease
from pipeline.oplog.appends import APPENDED, Line
from pipeline.oplog.contract import Log
from pipeline.oplog.memory.log import MemoryLog


def test_a_full_pipeline_refuses_with_its_reason_and_writes_nothing(log: Log, line: Line):
    log.set_full("Redis uses 80% of its memory", for_ms=MINUTE_MS)

    with pytest.raises(PipelineFull, match="uses 80% of its memory"):
        append(line, (3, 1, [b"a"]), key="k")

    assert entries(log, 3) == []
    assert sequences(log, PRODUCER) == {}
    assert log.due("s0", 10) == {}
    log.set_full(None)
    assert append(line, (3, 1, [b"a"]), key="k").placed[0].code == APPENDED


def test_full_ends_by_itself(log: Log, line: Line):
    log.set_full("for a moment", for_ms=20)

    for _ in polls(10):
        try:
            append(line, (3, 1, [b"a"]))
            return
        except PipelineFull:
            continue
    pytest.fail("the pipeline stayed full")


@pytest.mark.parametrize("single", [True, False])
def test_producers_stop_above_seventy_percent_of_memory_and_go_on_with_room_and_need_no_worker_for_it(
    log: Any, line: Line, single: bool
):
    append(line, (3, 1, [b"x" * 1000]))
    with memory_used(log, 0.5):
        assert append_soon(log, line, 2, single)
    with memory_used(log, 0.8), pytest.raises(PipelineFull, match=r"Redis uses (79|80|81)% of its memory"):
        append_soon(log, line, 3, single)

    assert append_soon(log, line, 3, single)
    assert len(entries(log, 3)) == 3


def test_the_lease_on_a_chore_is_taken_by_one_at_a_time(log: Log):
    assert log.take_lease("trim:s0", MINUTE_MS)
    assert not log.take_lease("trim:s0", MINUTE_MS)
    assert log.take_lease("trim:s1", MINUTE_MS)


def test_a_lease_on_a_chore_ends_by_itself(log: Log):
    log.take_lease("trim:s0", 20)

    for _ in polls(10):
        if log.take_lease("trim:s0", 20):
            return
    pytest.fail("the lease never ended")


def test_without_a_limit_the_memory_share_is_nought(log: Log):
    assert log.memory_share() == 0.0


def test_a_lease_is_held_by_one_renewed_by_its_holder_and_free_when_it_ends(log: Log):
    assert log.hold_lease("probe", "a", 200)
    assert not log.hold_lease("probe", "b", 200)
    assert log.hold_lease("probe", "a", 200)

    assert any(log.hold_lease("probe", "b", 60_000) for _ in polls(5))
    log.release_lease("probe", "a")
    assert not log.hold_lease("probe", "a", 200)
    log.release_lease("probe", "b")
    assert log.hold_lease("probe", "a", 200)


def test_all_leased_numbers_differ_and_then_there_are_none(log: Log):
    leases = [log.lease_ids(f"token{n}", None, 1000) for n in range(PRODUCERS)]

    assert {lease.number for lease in leases} == set(range(PRODUCERS))
    with pytest.raises(NoProducerNumber):
        log.lease_ids("one more", None, 1000)


def test_a_lease_grants_at_least_a_span_of_milliseconds(log: Log):
    lease = log.lease_ids("token", None, 5)

    assert lease.after_ms == 0
    assert lease.until_ms == SPAN_MS


def test_a_held_number_is_lengthened_from_where_its_holder_is(log: Log):
    first = log.lease_ids("token", None, 1_000_000)

    again = log.lease_ids("token", first, 1_000_001)

    assert again == Lease(first.number, 0, first.until_ms + SPAN_MS)


def test_a_number_that_another_holds_is_not_lengthened(log: Log):
    theirs = log.lease_ids("theirs", None, 1_000_000)

    mine = log.lease_ids("mine", Lease(theirs.number, 0, 1_000_000), 1_000_000)

    assert mine.number != theirs.number


def test_the_secret_of_a_deployment_is_the_first_that_anybody_proposed(log: Log):
    first = log.secret("one")

    assert (first, log.secret("two")) == ("one", "one")


@contextmanager
def memory_used(log: Any, share: float) -> Iterator[None]:
    """Set the limit so that this share of it is used."""
    if isinstance(log, MemoryLog):
        log.limit_bytes = int(log._size_bytes() / share)
        yield
        log.limit_bytes = 0
    else:
        log._client.config_set("maxmemory", int(log._client.info("memory")["used_memory"] / share))
        yield
        log._client.config_set("maxmemory", 0)


def append_soon(log: Any, line: Line, seq: int, single: bool) -> bool:
    """Append an op when what is known of the memory is out of date."""
    if not isinstance(log, MemoryLog):
        log._client.delete(log.keys.room, log.keys.full)
    if single:
        return line.append_one(S0, EPOCH, PRODUCER, 3, seq, b"y" * 100) is not None
    return append(line, (3, seq, [b"y" * 100])).placed[0].code == APPENDED
