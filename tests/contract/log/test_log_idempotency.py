"""An idempotency key stands for one op, and for one row's id, of its bucket."""

from __future__ import annotations

import threading

import pytest
from support.sandbox.logs import EPOCH, PRODUCER, append, entries, sequences

from pipeline.model import Position
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, Appended, KeyClaimed, Line, Placed


def test_an_idempotency_key_adds_one_op_and_gives_the_first_receipt_to_any_producer(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    append(line, (3, 2, [b"b"]), key="order 7", row_id=2**62)
    other = log.line()

    again = append(other, (3, 1, [b"other"]), producer=9, key="order 7", row_id=5)

    assert again == Appended([], [], f"{EPOCH} 1 {PRODUCER} 2 {2**62}")
    assert [entry.payload for entry in entries(log, 3)] == [b"a", b"b"]
    assert sequences(log, 9) == {}
    other.close()


def test_an_idempotency_key_belongs_to_its_bucket(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), key="k")

    answer = append(line, (4, 1, [b"a"]), key="k")

    assert [placed.code for placed in answer.placed] == [APPENDED]


def test_the_first_claim_of_an_idempotency_key_gives_its_id_to_all_of_that_bucket(log: Log, line: Line):
    assert log.claim_key(3, "k", 2**62) == 2**62
    assert log.claim_key(3, "k", 5) == 2**62
    assert log.claim_key(4, "k", 6) == 6
    assert entries(log, 3) == []


def test_threads_that_claim_a_key_at_the_same_moment_get_one_id(log: Log):
    barrier, got = threading.Barrier(8), list[int]()

    def claim(row_id: int) -> None:
        barrier.wait(30)
        got.append(log.claim_key(3, "k", row_id))

    threads = [threading.Thread(target=claim, args=(row_id,)) for row_id in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(got) == 8
    assert len(set(got)) == 1


def test_a_claim_is_no_op_and_the_first_op_with_its_id_is_appended(log: Log, line: Line):
    log.claim_key(3, "k", 77)
    log.claim_key(3, "k", 78)

    first = append(line, (3, 1, [b"a"]), key="k", row_id=77)
    second = append(line, (3, 2, [b"b"]), key="k", row_id=77)

    assert first.placed == [Placed(APPENDED, Position(EPOCH, 0))]
    assert second.claim == f"{EPOCH} 0 {PRODUCER} 1 77"
    assert [entry.payload for entry in entries(log, 3)] == [b"a"]


def test_an_op_with_another_id_than_the_claimed_one_is_refused_with_it_and_uses_no_sequence_up(log: Log, line: Line):
    log.claim_key(3, "k", 2**62)

    with pytest.raises(KeyClaimed) as refused:
        append(line, (3, 1, [b"mine"]), key="k", row_id=5)

    assert refused.value.row_id == 2**62
    assert entries(log, 3) == []
    assert append(line, (3, 1, [b"renamed"]), key="k", row_id=2**62).placed == [Placed(APPENDED, Position(EPOCH, 0))]


def test_an_op_without_an_id_is_appended_under_a_claimed_key(log: Log, line: Line):
    log.claim_key(3, "k", 77)

    assert [placed.code for placed in append(line, (3, 1, [b"a"]), key="k").placed] == [APPENDED]
    assert append(line, (3, 2, [b"b"]), key="k").claim == f"{EPOCH} 0 {PRODUCER} 1 0"
    assert log.claim_key(3, "k", 78) == 78  # the claim is the receipt of an op without a row's id


def test_a_claim_after_an_op_gets_the_id_of_its_row_and_the_op_stays_known(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), key="k", row_id=2**62)

    assert log.claim_key(3, "k", 5) == 2**62
    assert append(line, (3, 2, [b"b"]), key="k", row_id=5).claim == f"{EPOCH} 0 {PRODUCER} 1 {2**62}"


def test_a_refused_hole_does_not_use_up_its_idempotency_key(log: Log, line: Line):
    append(line, (3, 5, [b"a"]), key="k")

    answer = append(line, (3, 1, [b"a"]), key="k")

    assert [placed.code for placed in answer.placed] == [APPENDED]
