"""A log server whose clock steps an hour either way: nothing rests, rings, refuses or is held for that hour."""

from __future__ import annotations

import pytest
from support.sandbox.logs import append, entries, servers_of
from support.servers.log_users import admin_of

from pipeline import clock
from pipeline.oplog import Log
from pipeline.oplog.appends import Line
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.redis.connection import hash_of
from pipeline.oplog.redis.log import RedisLog

HOUR_MS = 3_600_000
#: What is said of every step: nothing rests longer.
MOST_REST_S = 5.0


def step(log: Log, by_ms: int) -> None:
    """Let the server's clock step. Redis's own clock stays: all that the server has stamped moves the other way."""
    if isinstance(log, MemoryLog):
        log.ahead_ms += by_ms
        return
    assert isinstance(log, RedisLog)
    for one in servers_of(log):
        _stamp_anew(one, by_ms)


def _stamp_anew(log: RedisLog, by_ms: int) -> None:
    with admin_of(log) as redis:
        for key in redis.scan_iter(f"{log.keys.prefix}:*"):
            left_ms = redis.pttl(key)
            if left_ms > 0:
                redis.pexpire(key, left_ms - by_ms)  # one that is over by then is deleted
        for bucket in redis.zrange(log.keys.dirty("s0"), 0, -1):
            redis.zincrby(log.keys.dirty("s0"), -by_ms, bucket)
        for key in (log.keys.waits("s0"), log.keys.health):
            for field, text in hash_of(redis.hgetall(key)).items():
                stamps, words = text.split(" ", 3), 2 if key == log.keys.waits("s0") else 1
                moved = [str(int(stamp) - by_ms) for stamp in stamps[:words]]
                redis.hset(key, field, " ".join([*moved, *stamps[words:]]))


@pytest.mark.parametrize("by_ms", [-HOUR_MS, HOUR_MS])
def test_what_is_dirty_or_rests_is_applied_soon(log: Log, line: Line, by_ms: int) -> None:
    append(line, (3, 1, [b"a"]), (4, 1, [b"b"]))
    log.postpone("s0", [4], 2_000)
    step(log, by_ms)
    deadline = clock.Deadline(MOST_REST_S)
    append(line, (5, 1, [b"c"]))

    due: set[int] = set()
    while due != {3, 4, 5} and not deadline.passed:
        log.sweep("s0", due_ms=700)  # as each worker does, twice a second
        due |= set(log.due("s0", 10))

    assert due == {3, 4, 5}


@pytest.mark.parametrize("by_ms", [-HOUR_MS, HOUR_MS])
def test_a_bell_that_was_lost_is_rung_again_soon(log: Log, line: Line, by_ms: int) -> None:
    assert append(line, (3, 1, [b"a"])).ring == ["s0"]
    step(log, by_ms)

    assert any(log.sweep("s0", due_ms=100)[0] for _ in clock.polls(MOST_REST_S))


@pytest.mark.parametrize("by_ms", [-HOUR_MS, HOUR_MS])
def test_what_was_refused_for_a_moment_is_taken_soon(log: Log, line: Line, by_ms: int) -> None:
    log.set_full("Redis uses 80% of its memory", 1_000)
    step(log, by_ms)

    for _ in clock.polls(MOST_REST_S):
        log.sweep("s0", due_ms=700)
        if log.full() is None:
            break

    append(line, (3, 1, [b"a"]))
    assert len(entries(log, 3)) == 1


@pytest.mark.parametrize("by_ms", [-HOUR_MS, HOUR_MS])
def test_a_lease_of_one_that_died_is_free_when_it_would_have_been(log: Log, by_ms: int) -> None:
    assert log.take_lease("trim:s0", 1_000)
    assert log.hold_lease("probe", "a", 2_000)
    step(log, by_ms)

    assert any(log.take_lease("trim:s0", 1_000) for _ in clock.polls(MOST_REST_S))
    assert any(log.hold_lease("probe", "b", 2_000) for _ in clock.polls(MOST_REST_S))
    # whoever has it now has it alone
    assert not log.take_lease("trim:s0", 1_000)
    assert not log.hold_lease("probe", "a", 2_000)
    assert log.hold_lease("probe", "b", 2_000)


def test_the_holder_of_a_lease_keeps_and_gives_up_its_own_whatever_the_clock_did(log: Log) -> None:
    log.hold_lease("probe", "a", 2_000)
    step(log, -HOUR_MS)

    log.release_lease("probe", "b")
    assert log.hold_lease("probe", "a", 2_000)
    log.release_lease("probe", "a")

    assert log.hold_lease("probe", "b", 2_000)


def test_since_when_a_bucket_waits_is_never_in_the_future(log: Log) -> None:
    log.note_waits("s0", {3: ("schema/1-4", "words")}, 60_000)
    step(log, -HOUR_MS)
    log.note_waits("s0", {3: ("schema/1-4", "words")}, 60_000)

    note, (now_ms, _, _) = log.waits("s0").notes[3], log.health()
    assert note.since_ms <= now_ms


def test_what_a_shard_had_at_a_time_that_is_still_to_come_says_nothing(log: Log) -> None:
    """A note of the watermarks is made a minute, by the clock of the worker's host."""
    minute_ms, now_ms = 60_000, 10 * HOUR_MS
    log.note_marks("s0", now_ms, "of before", older_than_ms=minute_ms)
    now_ms -= HOUR_MS

    first = log.note_marks("s0", now_ms, "of then", older_than_ms=minute_ms)
    then = log.note_marks("s0", now_ms + minute_ms, "later", older_than_ms=minute_ms)

    assert (first, then) == (None, "of then")


def test_a_clock_that_is_set_on_makes_no_note_of_watermarks_older(log: Log) -> None:
    minute_ms = 60_000
    for minute in range(4):
        log.note_marks("s0", minute * minute_ms, f"{minute}", older_than_ms=10 * minute_ms)

    found = [
        log.note_marks("s0", HOUR_MS + minute * minute_ms, f"{minute}", older_than_ms=10 * minute_ms)
        for minute in range(4, 12)
    ]

    assert found == [None] * 6 + ["0", "1"]
