"""Notes of batches prove what they say of an op, or say nothing of it."""

from __future__ import annotations

import pytest

from pipeline.apply.batch import FactBook
from pipeline.model import START, Entry, Position, deleted_behind
from pipeline.oplog.shared_state import MOST_NOTED, committed_in, note_of

NOTES = [
    note_of(30, {4: Position(9, 5)}, {4: Position(9, 8)}),
    note_of(20, {4: Position(7, 2), 5: START}, {4: Position(9, 3), 5: Position(9, 0)}),
]


@pytest.mark.parametrize(
    ("bucket", "position", "at_ms"),
    [
        (4, Position(9, 6), 30), (4, Position(9, 8), 30), (4, Position(9, 3), 20), (4, Position(7, 3), 20),
        (5, Position(9, 0), 20), (4, Position(9, 5), None), (4, Position(9, 9), None), (4, Position(7, 2), None),
        (6, Position(9, 0), None),
    ],
)  # fmt: skip
def test_an_op_is_in_the_batch_that_moved_the_watermark_over_it(bucket: int, position: Position, at_ms: int | None):
    found = committed_in(NOTES, bucket, position)

    assert (found.at_ms if found is not None else None) == at_ms


def test_a_batch_of_very_many_buckets_leaves_some_out():
    buckets = range(4096)
    note = note_of(1, dict.fromkeys(buckets, START), dict.fromkeys(buckets, Position(1_800_000_000, 123)))

    assert len(note) < 4000
    assert committed_in([note], MOST_NOTED - 1, Position(1_800_000_000, 123)) is not None
    assert committed_in([note], MOST_NOTED, Position(1_800_000_000, 123)) is None


def test_a_batch_that_applied_nothing_has_no_note_and_junk_says_nothing():
    assert note_of(1, {4: START}, {}) == ""
    assert (
        committed_in(["", "x", "[]", '[1,"w",{},{"4":[9,9]}]', '[1,"w",{"4":"x"},{"4":[9,9]}]'], 4, Position(9, 1))
        is None
    )


def test_before_the_first_op_of_a_bucket_nothing_can_be_deleted_so_the_log_is_not_asked():
    first = Entry(3, Position(5, 0), 7, 1, b"")
    published = [None, *(Position(epoch, seq) for epoch in range(8) for seq in range(-1, 3))]

    assert not any(deleted_behind(START, first.position, one) for one in published)
    assert FactBook("s0", None, None).follows(first, START)  # type: ignore[arg-type]  # neither is asked
