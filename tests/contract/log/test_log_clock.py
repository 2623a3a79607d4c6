"""A clock that is set back an hour lets nothing rest for that hour: no bucket, no bell, no lease, no full flag."""

from __future__ import annotations

import pytest
from support.sandbox.logs import append

from pipeline.errors import PipelineFull
from pipeline.oplog.appends import Line
from pipeline.oplog.contract import Log
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.redis.log import RedisLog

HOUR_MS = 3_600_000


def set_back(log: Log) -> None:
    """Let what the server holds be as after its clock was set back an hour."""
    if isinstance(log, MemoryLog):
        log.ahead_ms -= HOUR_MS
        return
    assert isinstance(log, RedisLog)
    redis = log._client
    for key in redis.scan_iter(match=f"{log.keys.prefix}:*"):
        if (left_ms := redis.pttl(key)) > 0:
            redis.pexpire(key, left_ms + HOUR_MS)
    for shard in ("s0", "s1"):
        dirty = log.keys.dirty(shard)
        for bucket, at_ms in redis.zrange(dirty, 0, -1, withscores=True):
            redis.zadd(dirty, {bucket: at_ms + HOUR_MS})


def test_what_was_dirty_is_rung_for_and_due_at_the_next_sweep(log: Log, line: Line) -> None:
    assert append(line, (3, 1, [b"a"])).ring == ["s0"]
    set_back(log)

    assert log.sweep("s0", due_ms=1000) == (True, 1)
    assert list(log.due("s0", 10)) == [3]


def test_what_rests_by_intent_rests_on(log: Log, line: Line) -> None:
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10)
    log.postpone("s0", [3], 5000)

    assert log.sweep("s0", due_ms=0) == (False, 1)
    assert log.due("s0", 10) == {}


def test_the_lease_on_a_chore_is_free_again(log: Log) -> None:
    assert log.take_lease("trim:s0", 10_000)
    assert not log.take_lease("trim:s0", 10_000)
    set_back(log)

    assert log.take_lease("trim:s0", 10_000)
    assert not log.take_lease("trim:s0", 10_000)


def test_a_lease_that_is_held_passes_to_another(log: Log) -> None:
    assert log.hold_lease("probe", "mine", 3000)
    assert not log.hold_lease("probe", "another", 3000)
    set_back(log)

    assert log.hold_lease("probe", "another", 3000)
    log.release_lease("probe", "mine")
    assert not log.hold_lease("probe", "mine", 3000)


def test_a_pipeline_that_was_full_takes_ops(log: Log, line: Line) -> None:
    log.set_full("on purpose", 1000)
    with pytest.raises(PipelineFull):
        append(line, (3, 1, [b"a"]))
    set_back(log)

    assert append(line, (3, 1, [b"a"])).placed
