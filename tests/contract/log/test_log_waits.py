"""Why ops wait, as workers note it."""

from __future__ import annotations

from pipeline.clock import polls
from pipeline.oplog import Log
from pipeline.oplog.shared_state import ALIVE, ALIVE_TOKEN


def test_a_note_says_since_when_its_bucket_waits_for_the_same(log: Log):
    log.note_waits("s0", {3: ("schema/1-4", "the first words"), 5: ("schema/1-0", "other")}, 60_000)
    first = log.waits("s0").notes
    next(iter(polls(0.005)))
    for _ in polls(0.05):
        pass

    log.note_waits("s0", {3: ("schema/1-4", "second words of it"), 5: ("locked/1-0", "a lock")}, 60_000)

    then = log.waits("s0").notes
    assert {bucket: note.text for bucket, note in then.items()} == {3: "second words of it", 5: "a lock"}
    assert then[3].since_ms == first[3].since_ms
    assert then[5].since_ms > first[5].since_ms
    assert log.waits("s1").notes == {}


def test_a_note_that_is_not_renewed_expires_alone(log: Log):
    log.note_waits("s0", {4: ("schema/1-0", "for long")}, 60_000)
    log.note_waits("s0", {3: ("schema/1-0", "a moment")}, 50)

    assert any(set(log.waits("s0").notes) == {4} for _ in polls(5))


def test_a_shard_has_a_worker_while_one_holds_its_lease(log: Log):
    assert not log.waits("s0").alive

    for _ in range(2):  # two workers hold it together
        assert log.hold_lease(ALIVE.format("s0"), ALIVE_TOKEN, 60_000)

    assert log.waits("s0").alive
    assert not log.waits("s1").alive
    log.hold_lease(ALIVE.format("s0"), ALIVE_TOKEN, 50)
    assert any(not log.waits("s0").alive for _ in polls(5))
