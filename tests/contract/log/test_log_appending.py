"""Ops get dense positions under the newest epoch, once each, in their producer's sequence."""

from __future__ import annotations

import threading

import pytest
from support.sandbox.logs import EPOCH, PRODUCER, S0, append, entries, raise_to, sequences

from pipeline.model import Entry, Position
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, HELD, HOLE, SEEN, Appended, EpochStale, Line, Placed, Scope
from pipeline.oplog.shared_state import this_process


def test_positions_are_dense_from_nought_within_an_epoch(log: Log, line: Line):
    first = append(line, (3, 1, [b"a", b"b"]), (4, 1, [b"c"]))
    second = append(line, (3, 3, [b"d"]))

    assert first.placed == [Placed(APPENDED, Position(EPOCH, 0)), Placed(APPENDED, Position(EPOCH, 0))]
    assert second.placed == [Placed(APPENDED, Position(EPOCH, 2))]
    assert entries(log, 3) == [
        Entry(3, Position(EPOCH, 0), PRODUCER, 1, b"a"),
        Entry(3, Position(EPOCH, 1), PRODUCER, 2, b"b"),
        Entry(3, Position(EPOCH, 2), PRODUCER, 3, b"d"),
    ]


def test_positions_start_at_nought_again_in_a_new_epoch_and_stand_behind_the_old(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    raise_to(log, S0, EPOCH + 1)

    placed = append(line, (3, 2, [b"b"]), epoch=EPOCH + 1).placed

    assert placed == [Placed(APPENDED, Position(EPOCH + 1, 0))]
    assert [entry.payload for entry in entries(log, 3)] == [b"a", b"b"]


def test_positions_stay_dense_while_many_producers_append(log: Log):
    def produce(producer: int) -> None:
        line = log.line()
        for seq in range(1, 26):
            append(line, (5, seq, [b"%d" % producer]), producer=producer)
        line.close()

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    found = entries(log, 5)
    assert [entry.position for entry in found] == [Position(EPOCH, n) for n in range(200)]
    for producer in range(1, 9):
        assert [entry.producer_seq for entry in found if entry.producer == producer] == list(range(1, 26))


def test_any_bytes_come_back_as_they_were_sent(log: Log, line: Line):
    payloads = [bytes(range(256)), b"\r\n$5\r\n", b"", "é\U0001f600".encode()]

    append(line, (1, 1, payloads))

    assert [entry.payload for entry in entries(log, 1)] == payloads


def test_a_retry_adds_nothing_and_returns_the_first_place(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    first = append(line, (3, 2, [b"b", b"c"]))

    again = append(line, (3, 2, [b"b", b"c"]))

    assert again == Appended([Placed(SEEN, first.placed[0].position)], [])
    assert len(entries(log, 3)) == 3


def test_a_retry_is_known_on_another_connection(log: Log, line: Line):
    first = append(line, (3, 1, [b"a"]))
    other = log.line()

    again = append(other, (3, 1, [b"a"]))

    assert again.placed == [Placed(SEEN, first.placed[0].position)]
    assert len(entries(log, 3)) == 1
    other.close()


@pytest.mark.parametrize("first", [1, 2, 3])
def test_what_stands_under_an_older_epoch_may_be_gone_and_is_appended_again(log: Log, line: Line, first: int):
    append(line, (3, 1, [b"a", b"b"]))
    raise_to(log, S0, EPOCH + 5)

    again = append(line, (3, first, [b"x"]), epoch=EPOCH + 5)

    assert again.placed == [Placed(APPENDED, Position(EPOCH + 5, 0))]
    assert [(e.producer_seq, e.payload) for e in entries(log, 3)] == [(1, b"a"), (2, b"b"), (first, b"x")]
    assert append(line, (3, first, [b"x"]), epoch=EPOCH + 5).placed == [Placed(SEEN, Position(EPOCH + 5, 0))]


def test_one_op_that_stands_under_an_older_epoch_is_appended_again(log: Log, line: Line):
    line.append_one(S0, EPOCH, PRODUCER, 3, 1, b"a")
    raise_to(log, S0, EPOCH + 5)

    assert line.append_one(S0, EPOCH + 5, PRODUCER, 3, 1, b"a") in (None, (Position(EPOCH + 5, 0), False))

    again = append(line, (3, 1, [b"a"]), epoch=EPOCH + 5)
    assert again.placed[0].position == Position(EPOCH + 5, 0)


def test_a_retry_of_some_buckets_appends_only_to_the_others(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    answer = append(line, (3, 1, [b"a"]), (4, 1, [b"b"]))

    assert [placed.code for placed in answer.placed] == [SEEN, APPENDED]
    assert [len(entries(log, bucket)) for bucket in (3, 4)] == [1, 1]


@pytest.mark.parametrize(("first", "count"), [(3, 1), (2, 2), (4, 1)])
def test_a_hole_or_an_overlap_is_refused_and_tells_the_last_sequence_seen(log: Log, line: Line, first: int, count: int):
    last = 1 if first > 2 else 2
    append(line, (3, 1, [b"a"] * last))

    answer = append(line, (3, first, [b"x"] * count))

    assert answer == Appended([Placed(HOLE, Position(0, last))], [])
    assert len(entries(log, 3)) == last


@pytest.mark.parametrize("first", [2, 4])
def test_where_one_log_has_a_hole_nothing_of_the_call_passes_it(log: Log, line: Line, first: int):
    append(line, (3, 1, [b"a", b"b"]), (5, 1, [b"s"]))
    call = ((5, 1, [b"s"]), (4, 1, [b"child"]), (3, first, [b"parent"] * 2))

    answer = append(line, *call)

    assert [placed.code for placed in answer.placed] == [SEEN, HELD, HOLE]
    assert (answer.placed[2].position, answer.ring) == (Position(0, 2), [])
    assert [len(entries(log, bucket)) for bucket in (3, 4)] == [2, 0]


def test_a_hole_of_another_log_leaves_an_op_of_an_older_epoch_to_be_sent_again(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), (4, 1, [b"b"]))
    raise_to(log, S0, EPOCH + 5)

    answer = append(line, (4, 1, [b"b"]), (3, 3, [b"c"]), epoch=EPOCH + 5)

    assert [placed.code for placed in answer.placed] == [HELD, HOLE]
    assert line.pass_hole(PRODUCER, 3, 1, 2)
    again = append(line, (4, 1, [b"b"]), (3, 3, [b"c"]), epoch=EPOCH + 5)
    assert [placed.code for placed in again.placed] == [APPENDED, APPENDED]


def test_the_first_sequence_of_a_producer_is_one(log: Log, line: Line):
    assert append(line, (3, 2, [b"a"])).placed == [Placed(HOLE, Position(0, 0))]
    assert append(line, (3, 1, [b"a"])).placed == [Placed(APPENDED, Position(EPOCH, 0))]


def test_sequences_are_per_producer_and_bucket(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]), (4, 1, [b"c"]))
    append(line, (3, 1, [b"d"]), producer=9)

    assert sequences(log, PRODUCER) == {3: 2, 4: 1}
    assert sequences(log, 9) == {3: 1}
    assert sequences(log, 10) == {}


def test_the_log_tells_what_each_producer_has_sent_and_under_which_epoch(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]), (4, 1, [b"c"]))
    raise_to(log, S0, EPOCH + 5)
    append(line, (3, 3, [b"d"]), epoch=EPOCH + 5)
    line.pass_hole(9, 4, 0, 7)
    for producer in range(1000, 1600):
        append(line, (3, 1, [b"x"]), epoch=EPOCH + 5, producer=producer)

    known = dict(log.senders("s0"))

    assert (known[PRODUCER], known[9]) == ({3: (3, EPOCH + 5), 4: (1, EPOCH)}, {4: (7, 0)})
    assert len(known) == 602, "also where they are more than one answer of Redis names"


def test_a_scope_has_no_epoch_until_one_is_raised(log: Log, line: Line):
    new = Scope("s9", ("s9",))

    with pytest.raises(EpochStale):
        append(line, (3, 1, [b"a"]), scope=new)

    assert log.epoch("s9")[:2] == (0, False)
    assert raise_to(log, new, 12)
    assert log.epoch("s9")[:2] == (12, True)
    assert append(line, (3, 1, [b"a"]), scope=new, epoch=12).placed[0].position == Position(12, 0)


def test_another_epoch_than_the_newest_is_refused_and_nothing_is_written(log: Log, line: Line):
    raise_to(log, S0, EPOCH + 1)

    for epoch in (EPOCH, EPOCH + 2, 0):
        with pytest.raises(EpochStale):
            append(line, (3, 1, [b"a"]), epoch=epoch)

    assert entries(log, 3) == []
    assert sequences(log, PRODUCER) == {}
    assert log.sweep("s0", due_ms=0) == (False, 0)


def test_of_two_that_raise_an_epoch_one_wins_and_the_other_looks_again(log: Log):
    seen = log.epoch("s0")[2]

    assert log.raise_epoch("s0", seen, EPOCH + 1)
    assert not log.raise_epoch("s0", seen, EPOCH + 2)
    assert log.epoch("s0")[:2] == (EPOCH + 1, True)


def test_a_producer_goes_on_behind_a_hole_once_it_is_passed(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    assert append(line, (3, 5, [b"e"])).placed == [Placed(HOLE, Position(0, 1))]

    assert line.pass_hole(PRODUCER, 3, 1, 4)

    assert append(line, (3, 5, [b"e"])).placed == [Placed(APPENDED, Position(EPOCH, 1))]
    assert append(line, (3, 5, [b"e"])).placed == [Placed(SEEN, Position(EPOCH, 1))]
    assert sequences(log, PRODUCER) == {3: 5}


def test_a_hole_that_another_has_filled_is_not_passed(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]))

    assert not line.pass_hole(PRODUCER, 3, 1, 4)
    assert not line.pass_hole(PRODUCER, 3, 0, 4)

    assert sequences(log, PRODUCER) == {3: 2}


def test_a_producer_that_the_log_has_forgotten_is_let_on_too(log: Log, line: Line):
    assert line.pass_hole(PRODUCER, 3, 0, 4)

    assert append(line, (3, 5, [b"e"])).placed == [Placed(APPENDED, Position(EPOCH, 0))]


def test_the_log_knows_which_process_sends_as_a_producer(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    append(line, (4, 1, [b"b"]))

    assert log.sender(PRODUCER) == this_process()
    assert log.sender(8) is None
    assert dict(log.senders("s0"))[PRODUCER].keys() == {3, 4}
