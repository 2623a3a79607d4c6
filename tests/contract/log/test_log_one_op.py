"""A web request's single op goes a shorter way, with the same result."""

from __future__ import annotations

import pytest
from support.sandbox.logs import EPOCH, PRODUCER, S0, append, entries, raise_to

from pipeline.errors import PipelineFull
from pipeline.model import Position
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, BIG_BYTES, Line, Placed


def one(
    line: Line, seq: int, payload: bytes = b"op", *, bucket: int = 3, epoch: int = EPOCH
) -> tuple[Position, bool] | None:
    return line.append_one(S0, epoch, PRODUCER, bucket, seq, payload)


def test_a_single_op_is_appended_and_dirties_and_rings_as_by_append(log: Log, line: Line):
    assert one(line, 1, b"a") == (Position(EPOCH, 0), True)
    assert one(line, 2, b"b") == (Position(EPOCH, 1), False)
    assert append(line, (3, 3, [b"c"])).placed == [Placed(APPENDED, Position(EPOCH, 2))]
    assert one(line, 4, b"d") == (Position(EPOCH, 3), False)

    assert [entry.payload for entry in entries(log, 3)] == [b"a", b"b", b"c", b"d"]
    assert [(entry.producer, entry.producer_seq) for entry in entries(log, 3)] == [(PRODUCER, n) for n in (1, 2, 3, 4)]
    assert log.due("s0", 10) == {3: 0}
    assert one(line, 5) == (Position(EPOCH, 4), True)


def test_a_single_op_sent_again_returns_its_first_place_and_adds_nothing(log: Log, line: Line):
    for seq in (1, 2, 3):
        one(line, seq)
    log.due("s0", 10)

    assert one(line, 3) == (Position(EPOCH, 2), False)
    assert len(entries(log, 3)) == 3


def test_a_single_op_that_would_leave_a_hole_is_left_to_append(log: Log, line: Line):
    assert one(line, 2) is None

    one(line, 1)
    one(line, 2)
    assert one(line, 4) is None

    assert len(entries(log, 3)) == 2


def test_a_single_op_of_another_epoch_is_left_to_append(log: Log, line: Line):
    one(line, 1)
    raise_to(log, S0, EPOCH + 1)

    assert one(line, 2) is None
    assert one(line, 2, epoch=EPOCH + 2) is None
    assert one(line, 2, epoch=EPOCH + 1) == (Position(EPOCH + 1, 0), False)


def test_a_full_pipeline_refuses_a_single_op_with_its_reason(log: Log, line: Line):
    one(line, 1)
    log.set_full("no room today")

    with pytest.raises(PipelineFull, match="no room today"):
        one(line, 2)

    log.set_full(None)
    assert one(line, 2) == (Position(EPOCH, 1), False)


def test_a_large_single_op_tells_its_size(log: Log, line: Line):
    one(line, 1)
    one(line, 2, b"x" * BIG_BYTES)

    assert log.due("s0", 10) == {3: BIG_BYTES}
