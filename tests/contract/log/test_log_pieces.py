"""A piece of a bucket, one of whose keys has a shard of its own: by its number the bucket's log is read."""

from __future__ import annotations

from support.sandbox.logs import EPOCH, append

from pipeline.config.buckets import new_piece
from pipeline.model import START, Position
from pipeline.oplog import Log
from pipeline.oplog.appends import BIG_BYTES, Line
from pipeline.oplog.memory.log import MemoryLog

PIECE = new_piece(3, 11)


def test_a_piece_is_read_from_the_log_of_its_bucket_and_has_its_own_number(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b", b"c"]))

    found = log.read({PIECE: Position(EPOCH, 0), 3: START}, {PIECE: 9, 3: 9})

    assert [(entry.bucket, entry.payload) for entry in found[PIECE]] == [(PIECE, b"b"), (PIECE, b"c")]
    assert [entry.bucket for entry in found[3]] == [3, 3, 3]
    assert log.heads({PIECE: START})[PIECE].bucket == PIECE
    assert log.tails([PIECE, 3]) == {PIECE: Position(EPOCH, 2), 3: Position(EPOCH, 2)}
    assert log.queued({PIECE: Position(EPOCH, 0)}) == {PIECE: 2}
    assert log.sizes({PIECE: START}, 9, 100).keys() == {PIECE}
    assert not log.trimmed(PIECE)


def test_a_piece_is_marked_read_and_finished_by_its_own_number(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"x" * BIG_BYTES]))
    log.mark_dirty("s0", [PIECE])

    assert log.due("s0", 10) == {3: BIG_BYTES, PIECE: BIG_BYTES}
    entries, earlier = log.read_noted("s0", {PIECE: START}, {PIECE: 9}, {PIECE: "0--1 1"}, anew=False)
    assert (len(entries[PIECE]), earlier) == (2, {})
    assert log.attempts("s0") == {PIECE: "0--1 1"}

    _, left = log.finish("s0", {PIECE: Position(EPOCH, 0)})
    assert left == 2
    assert log.marks("s0") == {PIECE: Position(EPOCH, 0)}
    _, left = log.finish("s0", {PIECE: Position(EPOCH, 1)})
    assert left == 1
    assert log.due("s0", 10) == {3: BIG_BYTES}


def test_what_is_no_number_of_a_piece_leaves_the_dirty_set(log: Log):
    largest = new_piece(3, 2**20 - 3)
    strange = [] if isinstance(log, MemoryLog) else [1500, PIECE + 1500, 2**31 + 3]
    log.mark_dirty("s0", [PIECE, largest, *strange])

    assert set(log.due("s0", 10)) == {PIECE, largest}
