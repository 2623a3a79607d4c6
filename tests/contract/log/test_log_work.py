"""Dirty sets and bells: no bucket with work is forgotten, and nobody is rung for nothing."""

from __future__ import annotations

import itertools

import pytest
from support.sandbox.logs import ALL, EPOCH, MINUTE_MS, append

from pipeline.clock import polls
from pipeline.model import START, Position
from pipeline.oplog import Log
from pipeline.oplog.appends import BIG_BYTES, Line
from pipeline.oplog.groups import GroupedLog
from pipeline.oplog.shared_state import MOST_AHEAD_MS


def test_the_bell_is_to_be_rung_once_until_it_is_answered(log: Log, line: Line):
    assert append(line, (3, 1, [b"a"])).ring == ["s0"]
    assert append(line, (4, 1, [b"b"])).ring == []
    assert append(log.line(), (3, 1, [b"c"]), producer=9).ring == []

    log.due("s0", 10)

    assert append(line, (3, 2, [b"d"])).ring == ["s0"]


def test_the_reference_log_rings_every_shard_that_is_silent(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    answer = append(line, (64, 1, [b"b"]), scope=ALL)

    beside = ["s0"] if isinstance(log, GroupedLog) else []  # its bell beside the reference log is another one
    assert answer.ring == [*beside, "s1"]
    assert list(log.due("s0", 10)) == [3, 64]
    assert list(log.due("s1", 10)) == [64]


def test_a_retry_neither_rings_nor_dirties(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10)
    log.finish("s0", {3: Position(EPOCH, 0)})

    assert append(line, (3, 1, [b"a"])).ring == []
    assert log.due("s0", 10) == {}


def test_due_gives_the_oldest_first_and_no_more_than_asked_for(log: Log, line: Line):
    log.mark_dirty("s0", [8])  # as old as can be
    append(line, (9, 1, [b"a"]), (3, 1, [b"a"]))

    assert list(log.due("s0", 1)) == [8]
    assert set(log.due("s0", 2)) < {3, 8, 9}
    assert set(log.due("s0", 10)) == {3, 8, 9}


def test_due_tells_the_size_of_a_buckets_largest_op_where_ops_are_large(log: Log, line: Line):
    append(line, (3, 1, [b"x" * (BIG_BYTES + 5), b"a"]))
    append(line, (3, 3, [b"x" * BIG_BYTES]))
    append(line, (4, 1, [b"x" * (BIG_BYTES - 1)]))

    assert log.due("s0", 10) == {3: BIG_BYTES + 5, 4: 0}


def test_an_op_that_is_sent_together_with_a_large_one_makes_its_own_bucket_no_large_one(log: Log, line: Line):
    """Else the small ops of such a bucket come last, behind all large ones, for a week."""
    append(line, (3, 1, [b"a"]), (4, 1, [b"x" * 9, b"x" * 10 * BIG_BYTES]), (5, 1, [b"b"] * 300))

    assert log.due("s0", 10) == {3: 0, 4: 10 * BIG_BYTES, 5: 0}


def test_entries_are_measured_in_the_order_asked_for_until_they_have_so_many_bytes(log: Log, line: Line):
    append(line, (3, 1, [b"x" * 100_000] * 4), (4, 1, [b"x" * 200_000]), (5, 1, [b"x" * 50_000]))
    after = {4: START, 6: START, 3: Position(EPOCH, 0), 5: START}

    found = log.sizes(after, 9, 350_000)

    assert {bucket: [size // 1000 for size in sizes] for bucket, sizes in found.items()} == {
        4: [200],
        6: [],
        3: [100, 100],
    }
    assert list(log.sizes(after, 1, 1)) == [4]
    assert {bucket: len(sizes) for bucket, sizes in log.sizes(after, 2, 10**9).items()} == {4: 1, 6: 0, 3: 2, 5: 1}


def test_what_comes_after_due_was_asked_for_rings_again(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10)

    rung = append(line, (3, 2, [b"late"])).ring
    log.finish("s0", {3: Position(EPOCH, 0)})

    assert rung == ["s0"]
    assert log.due("s0", 10) == {3: 0}


def test_finish_takes_the_bell_if_anything_is_left_and_nobody_has_it(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]), (4, 1, [b"c"]))
    log.due("s0", 10)

    assert log.finish("s0", {3: Position(EPOCH, 0), 4: Position(EPOCH, 0)}) == (True, 1)
    assert log.finish("s0", {3: Position(EPOCH, 0)}) == (False, 1)
    log.due("s0", 10)
    assert log.finish("s0", {3: Position(EPOCH, 1)}) == (False, 0)
    assert log.due("s0", 10) == {}


def test_finish_counts_buckets_that_it_was_not_told_of(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), (4, 1, [b"b"]))
    log.due("s0", 1)

    assert log.finish("s0", {3: Position(EPOCH, 0)}) == (True, 1)


def test_finish_compares_epochs_before_sequences(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 5), (4, 1, [b"a"]))
    log.due("s0", 10)

    left = log.finish("s0", {3: Position(EPOCH - 1, 99), 4: Position(EPOCH + 1, 0)})[1]

    assert left == 1
    assert list(log.due("s0", 10)) == [3]


def test_finish_with_a_delay_lets_the_bucket_rest_and_rings_nobody(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10)

    assert log.finish("s0", {3: START}, delay_ms=MINUTE_MS) == (False, 1)
    assert log.due("s0", 10) == {}
    assert append(line, (3, 2, [b"b"])).ring == ["s0"]
    assert log.due("s0", 10) == {}, "another op does not shorten the rest"


def test_finish_rings_nobody_for_what_only_rests(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), (4, 1, [b"b"]))
    log.due("s0", 10)
    log.postpone("s0", [3], MINUTE_MS)

    assert log.finish("s0", {4: Position(EPOCH, 0)}) == (False, 1)


def test_finish_of_a_bucket_that_is_clean_leaves_it_clean(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]))
    log.due("s0", 10)
    log.finish("s0", {3: Position(EPOCH, 1)})

    log.finish("s0", {3: Position(EPOCH, 0)})

    assert log.due("s0", 10) == {}


def test_a_bucket_without_a_log_is_clean(log: Log):
    log.mark_dirty("s0", [3])

    assert log.finish("s0", {3: START}) == (False, 0)


def test_postponed_buckets_rest_and_clean_ones_stay_clean(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), (4, 1, [b"b"]))

    log.postpone("s0", [3, 5], MINUTE_MS)

    assert list(log.due("s0", 10)) == [4]
    assert log.finish("s0", {4: Position(EPOCH, 0)})[1] == 1


def test_a_rest_ends_by_itself(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    log.postpone("s0", [3], 30)

    for _ in polls(10):
        if log.due("s0", 10):
            return
    pytest.fail("the bucket never became due again")


def test_marking_dirty_never_shortens_a_rest(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.postpone("s0", [3], MINUTE_MS)

    log.mark_dirty("s0", [3])
    log.mark_dirty("s0", [])

    assert log.due("s0", 10) == {}
    assert log.dirty_buckets("s0") == {3}
    assert log.dirty_buckets("s1") == set()


def test_a_sweep_rings_for_what_was_due_long_ago_and_nobody_is_on_the_way(log: Log):
    log.mark_dirty("s0", [3])

    assert log.sweep("s0", due_ms=700) == (True, 1)
    assert log.sweep("s0", due_ms=700) == (False, 1)
    log.due("s0", 10)
    assert log.sweep("s0", due_ms=700) == (True, 1)


def test_a_sweep_leaves_young_and_resting_buckets_to_their_own_bell(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    log.due("s0", 10)

    assert log.sweep("s0", due_ms=MINUTE_MS) == (False, 1)
    log.postpone("s0", [3], MOST_AHEAD_MS)
    assert log.sweep("s0", due_ms=0) == (False, 1)


def test_a_bell_that_nobody_answers_may_be_rung_again_after_a_while(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    seqs = itertools.count(2)
    for _ in polls(10):
        if append(line, (3, next(seqs), [b"a"])).ring:
            return
    pytest.fail("the bell stayed taken")


def test_the_note_of_an_attempt_stays_until_its_bucket_is_finished(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]))
    assert log.note_attempts("s0", {3: "0--1 first", 4: "0--1 first"}) == {}

    assert log.note_attempts("s0", {3: "0--1 second"}) == {3: "0--1 first"}
    assert log.note_attempts("s0", {}) == {}  # of a replay whose buckets are all being moved
    assert log.attempts("s0") == {3: "0--1 first", 4: "0--1 first"}
    assert log.attempts("s1") == {}

    log.finish("s0", {3: Position(EPOCH, 0)})
    assert log.attempts("s0") == {4: "0--1 first"}


def test_a_commit_that_is_published_late_forgets_no_attempt_that_another_worker_makes_behind_it(log: Log):
    mark, still = Position(EPOCH, 0), Position(EPOCH, 4)
    log.note_attempts("s0", {3: f"{mark} 5", 4: f"{still} 5", 5: "0--1 1"})

    # the sender of it moved the first bucket to where the other began, found nothing to do in the second, and had the
    # third alone
    log.finish("s0", {3: mark, 4: still, 5: mark}, own={3: "0--1 1", 4: f"{still} 5", 5: "0--1 1"})

    assert log.attempts("s0") == {3: f"{mark} 5"}


def test_a_commit_that_is_published_late_takes_no_watermark_back(log: Log):
    """What was committed once is the proof by which a database that was restored from a backup is known."""
    log.finish("s0", {3: Position(EPOCH, 9), 4: Position(EPOCH + 1, 0)})

    log.finish("s0", {3: Position(EPOCH, 8), 4: Position(EPOCH, 5), 5: Position(EPOCH, 0)})

    assert log.marks("s0") == {3: Position(EPOCH, 9), 4: Position(EPOCH + 1, 0), 5: Position(EPOCH, 0)}


def test_entries_are_read_together_with_the_notes_of_their_attempts(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]), (4, 1, [b"c"]))
    after, count = {3: Position(EPOCH, 0), 4: START}, {3: 5, 4: 5}
    notes = {3: f"{EPOCH}-0 first", 4: "0--1 first"}

    entries, earlier = log.read_noted("s0", after, count, notes, anew=False)
    assert {bucket: [one.payload for one in found] for bucket, found in entries.items()} == {3: [b"b"], 4: [b"c"]}
    assert earlier == {}
    assert log.attempts("s0") == notes

    assert log.read_noted("s0", after, count, dict.fromkeys(notes, "0--1 second"), anew=False)[1] == {4: "0--1 first"}
    assert log.read_noted("s0", after, count, notes, anew=True)[1] == {}
    assert log.read_noted("s0", {}, {}, {}, anew=False) == ({}, {})


def test_the_note_of_an_attempt_gives_way_to_one_at_another_watermark_or_on_demand(log: Log):
    log.note_attempts("s0", {3: "0--1 first", 4: "0--1 first", 5: "0--1 first"})

    assert log.note_attempts("s0", {3: f"{EPOCH}-0 second"}) == {}
    assert log.note_attempts("s0", {4: "0--1 second", 5: ""}, anew=True) == {}

    assert log.attempts("s0") == {3: f"{EPOCH}-0 second", 4: "0--1 second"}
