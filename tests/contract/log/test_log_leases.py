"""What processes share: leases on chores, the counters of ids, the full flag, the secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.sandbox.logs import EPOCH, MINUTE_MS, PRODUCER, S0, append, entries, sequences, servers_of
from support.servers.log_users import admin_of

from pipeline import clock
from pipeline.clock import polls
from pipeline.errors import PipelineFull
from pipeline.model import SPAN, counter_at
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, Line
from pipeline.oplog.memory.log import MemoryLog

#: A span that the clock has not reached.
FAR = 2**20


def test_a_full_pipeline_refuses_with_its_reason_and_writes_nothing(log: Log, line: Line):
    log.set_full("Redis uses 80% of its memory")

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
    assert log.memory()[0] == 0.0


def test_a_lease_is_held_by_one_renewed_by_its_holder_and_free_when_it_ends(log: Log):
    assert log.hold_lease("probe", "a", 200)
    assert not log.hold_lease("probe", "b", 200)
    assert log.hold_lease("probe", "a", 200)

    assert any(log.hold_lease("probe", "b", 200) for _ in polls(5))
    assert log.hold_lease("probe", "b", 60_000)
    log.release_lease("probe", "a")
    assert not log.hold_lease("probe", "a", 60_000)
    log.release_lease("probe", "b")
    assert log.hold_lease("probe", "a", 200)


def test_no_ids_are_given_before_there_is_a_span(log: Log):
    given = log.give_ids("s0", {3: 10})

    assert (given.span, given.starts) == (0, None)


def test_blocks_follow_each_other_and_begin_where_the_clock_is(log: Log):
    span = counter_at(clock.wall_ms()) // SPAN

    first = log.give_ids("s0", {3: 10, 4: 1000}, span)
    again = log.give_ids("s0", {4: 5})

    assert first.starts is not None
    assert again.starts is not None
    assert first.starts[3] == first.starts[4] <= counter_at(clock.wall_ms())
    assert again.starts[4] >= first.starts[4] + 1000


def test_a_block_begins_behind_the_last_one_where_a_burst_ran_ahead_of_the_clock(log: Log):
    log.give_ids("s0", {3: 10}, FAR)

    assert log.give_ids("s0", {3: 10}).starts == {3: FAR * SPAN + 10}


def test_a_span_that_is_behind_the_one_in_use_changes_nothing(log: Log):
    log.give_ids("s0", {3: 10}, FAR)

    assert log.give_ids("s0", {3: 10}, FAR - 1).starts == {3: FAR * SPAN + 10}


def test_a_span_is_used_to_its_end_and_then_nothing_is_given_and_nothing_used(log: Log):
    log.give_ids("s0", {3: SPAN - 10, 4: 1}, FAR)

    assert log.give_ids("s0", {4: 1, 3: 11}) == (FAR, counter_at(clock.wall_ms()) // SPAN, None)
    assert log.give_ids("s0", {3: 10, 4: 1}).starts == {3: (FAR + 1) * SPAN - 10, 4: FAR * SPAN + 1}


def test_each_shard_has_a_span_of_its_own(log: Log):
    log.give_ids("s0", {3: 10}, FAR)

    assert log.give_ids("s1", {9: 10}).starts is None
    assert log.give_ids("s1", {9: 10}, FAR + 1).starts == {9: (FAR + 1) * SPAN}
    assert log.give_ids("s0", {4: 10}).starts == {4: FAR * SPAN}


def test_ids_are_given_although_memory_is_full_so_that_the_spool_need_not_give_its_own(log: Any):
    log.give_ids("s0", {3: 10}, FAR)
    with memory_used(log, 1.5):
        assert log.give_ids("s0", {3: 10}).starts == {3: FAR * SPAN + 10}


def test_the_secret_of_a_deployment_is_the_first_that_anybody_proposed(log: Log):
    one, two = "one" * 8, "two" * 8
    first = log.secret(one)

    assert (first, log.secret(two)) == (one, one)


@contextmanager
def memory_used(log: Any, share: float) -> Iterator[None]:
    """Set the limit so that this share of it is used."""
    if isinstance(log, MemoryLog):
        log.limit_bytes = int(log._size_bytes() / share)
        yield
        log.limit_bytes = 0
    else:
        with ExitStack() as stack:
            admins = [stack.enter_context(admin_of(one)) for one in servers_of(log)]
            for admin in admins:
                admin.config_set("maxmemory", int(admin.info("memory")["used_memory"] / share))
            yield
            for admin in admins:
                admin.config_set("maxmemory", 0)


def append_soon(log: Any, line: Line, seq: int, single: bool) -> bool:
    """Append an op when what is known of the memory is out of date."""
    if not isinstance(log, MemoryLog):
        for one in servers_of(log):
            one._client.delete(one.keys.room, one.keys.full)
    if single:
        return line.append_one(S0, EPOCH, PRODUCER, 3, seq, b"y" * 100) is not None
    return append(line, (3, seq, [b"y" * 100])).placed[0].code == APPENDED


def test_several_leases_are_held_and_lengthened_together(log: Log):
    assert log.hold_lease("alive:s1", "another", MINUTE_MS)

    for _ in range(2):
        log.hold_leases(["alive:s0", "alive:s1", "alive:s2"], "worker", MINUTE_MS)

    assert [log.hold_lease(f"alive:s{n}", "worker", MINUTE_MS) for n in range(3)] == [True, False, True]
