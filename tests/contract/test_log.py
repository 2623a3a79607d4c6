"""What every log does, in this process or over Redis 7.0 or Valkey: the claims of `contract` and of the Lua scripts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from pipeline.clock import polls
from pipeline.errors import NoProducerNumber, PipelineFull
from pipeline.ids import PRODUCERS, SPAN_MS, Lease
from pipeline.log.contract import (
    APPENDED,
    HOLE,
    SEEN,
    Append,
    Appended,
    EpochStale,
    IdReserved,
    Line,
    Log,
    Placed,
    Scope,
)
from pipeline.log.line import BIG_BYTES
from pipeline.log.memory import MemoryLog
from pipeline.log.redis_log import NOTE_MS, RedisLog
from pipeline.op import START, Entry, Position

S0 = Scope("s0", ("s0",))
ALL = Scope("*", ("s0", "s1"))
EPOCH = 7
PRODUCER = 2**63 - 1
MINUTE_MS = 60_000


@pytest.fixture(params=["memory", "redis", "valkey"])
def log(request: pytest.FixtureRequest, log_server: Callable[[str], object]) -> Iterator[Log]:
    """An empty log whose epochs are raised."""
    log: Log
    if request.param == "memory":
        log = MemoryLog()
    else:
        log = RedisLog(log_server(request.param).url, prefix=f"t{uuid4().hex[:12]}", timeout_s=5)  # type: ignore[attr-defined]
    for scope in (S0, ALL):
        raise_to(log, scope, EPOCH)
    yield log
    log.close()


@pytest.fixture
def line(log: Log) -> Iterator[Line]:
    line = log.line()
    yield line
    line.close()


def raise_to(log: Log, scope: Scope, epoch: int) -> bool:
    return log.raise_epoch(scope.name, log.epoch(scope.name)[2], epoch)


def append(
    line: Line,
    *appends: tuple[int, int, list[bytes]],
    scope: Scope = S0,
    epoch: int = EPOCH,
    producer: int = PRODUCER,
    key: str = "",
    row_id: int = 0,
) -> Appended:
    return line.append(scope, epoch, producer, [Append(*one) for one in appends], key, row_id)


def entries(log: Log, bucket: int, after: Position = START, count: int = 100_000) -> list[Entry]:
    return log.read({bucket: after}, {bucket: count})[bucket]


# append ---------------------------------------------------------------------------------------------------------


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


def test_a_retry_is_known_on_another_connection_and_in_a_later_epoch(log: Log, line: Line):
    first = append(line, (3, 1, [b"a"]))
    raise_to(log, S0, EPOCH + 5)
    other = log.line()

    again = append(other, (3, 1, [b"a"]), epoch=EPOCH + 5)

    assert again.placed == [Placed(SEEN, first.placed[0].position)]
    assert len(entries(log, 3)) == 1
    other.close()


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


def test_the_first_sequence_of_a_producer_is_one(log: Log, line: Line):
    assert append(line, (3, 2, [b"a"])).placed == [Placed(HOLE, Position(0, 0))]
    assert append(line, (3, 1, [b"a"])).placed == [Placed(APPENDED, Position(EPOCH, 0))]


def test_sequences_are_per_producer_and_bucket(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]), (4, 1, [b"c"]))
    append(line, (3, 1, [b"d"]), producer=9)

    assert line.sequences(PRODUCER) == {3: 2, 4: 1}
    assert line.sequences(9) == {3: 1}
    assert line.sequences(10) == {}


def test_an_idempotency_key_adds_one_op_and_gives_the_first_receipt_to_any_producer(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    append(line, (3, 2, [b"b"]), key="order 7", row_id=2**62)
    other = log.line()

    again = append(other, (3, 1, [b"other"]), producer=9, key="order 7", row_id=5)

    assert again == Appended([], [], f"{EPOCH} 1 {PRODUCER} 2 {2**62}")
    assert [entry.payload for entry in entries(log, 3)] == [b"a", b"b"]
    assert other.sequences(9) == {}
    other.close()


def test_an_idempotency_key_belongs_to_its_bucket(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), key="k")

    answer = append(line, (4, 1, [b"a"]), key="k")

    assert [placed.code for placed in answer.placed] == [APPENDED]


def test_the_first_who_reserves_an_id_under_an_idempotency_key_gives_it_to_all_of_that_bucket(log: Log, line: Line):
    assert log.reserve(3, "k", 2**62) == 2**62
    assert log.reserve(3, "k", 5) == 2**62
    assert log.reserve(4, "k", 6) == 6
    assert entries(log, 3) == []


def test_threads_that_reserve_at_the_same_moment_get_one_id(log: Log):
    barrier, got = threading.Barrier(8), list[int]()

    def reserve(row_id: int) -> None:
        barrier.wait(30)
        got.append(log.reserve(3, "k", row_id))

    threads = [threading.Thread(target=reserve, args=(row_id,)) for row_id in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(got) == 8
    assert len(set(got)) == 1


def test_a_reservation_is_no_op_and_the_first_op_with_its_id_is_appended(log: Log, line: Line):
    log.reserve(3, "k", 77)
    log.reserve(3, "k", 78)

    first = append(line, (3, 1, [b"a"]), key="k", row_id=77)
    second = append(line, (3, 2, [b"b"]), key="k", row_id=77)

    assert first.placed == [Placed(APPENDED, Position(EPOCH, 0))]
    assert second.same == f"{EPOCH} 0 {PRODUCER} 1 77"
    assert [entry.payload for entry in entries(log, 3)] == [b"a"]


def test_an_op_with_another_id_than_the_reserved_one_is_told_it_and_uses_no_sequence_up(log: Log, line: Line):
    log.reserve(3, "k", 2**62)

    with pytest.raises(IdReserved) as told:
        append(line, (3, 1, [b"mine"]), key="k", row_id=5)

    assert told.value.row_id == 2**62
    assert entries(log, 3) == []
    assert append(line, (3, 1, [b"renamed"]), key="k", row_id=2**62).placed == [Placed(APPENDED, Position(EPOCH, 0))]


def test_an_op_that_brings_no_id_does_not_mind_a_reserved_one(log: Log, line: Line):
    log.reserve(3, "k", 77)

    assert [placed.code for placed in append(line, (3, 1, [b"a"]), key="k").placed] == [APPENDED]
    assert append(line, (3, 2, [b"b"]), key="k").same == f"{EPOCH} 0 {PRODUCER} 1 0"
    assert log.reserve(3, "k", 78) == 78  # what stands under the key is an op that has none


def test_who_reserves_after_an_op_gets_the_id_of_its_row_and_the_op_stays_known(log: Log, line: Line):
    append(line, (3, 1, [b"a"]), key="k", row_id=2**62)

    assert log.reserve(3, "k", 5) == 2**62
    assert append(line, (3, 2, [b"b"]), key="k", row_id=5).same == f"{EPOCH} 0 {PRODUCER} 1 {2**62}"


def test_a_refused_hole_does_not_use_up_its_idempotency_key(log: Log, line: Line):
    append(line, (3, 5, [b"a"]), key="k")

    answer = append(line, (3, 1, [b"a"]), key="k")

    assert [placed.code for placed in answer.placed] == [APPENDED]


# one op -----------------------------------------------------------------------------------------------------------


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


# epochs ---------------------------------------------------------------------------------------------------------


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
    assert line.sequences(PRODUCER) == {}
    assert log.sweep("s0", due_ms=0) == (False, 0)


def test_of_two_that_raise_an_epoch_one_wins_and_the_other_looks_again(log: Log):
    seen = log.epoch("s0")[2]

    assert log.raise_epoch("s0", seen, EPOCH + 1)
    assert not log.raise_epoch("s0", seen, EPOCH + 2)
    assert log.epoch("s0")[:2] == (EPOCH + 1, True)


# bell and dirty set ---------------------------------------------------------------------------------------------


def test_the_bell_is_to_be_rung_once_until_it_is_answered(log: Log, line: Line):
    assert append(line, (3, 1, [b"a"])).ring == ["s0"]
    assert append(line, (4, 1, [b"b"])).ring == []
    assert append(log.line(), (3, 1, [b"c"]), producer=9).ring == []

    log.due("s0", 10)

    assert append(line, (3, 2, [b"d"])).ring == ["s0"]


def test_the_reference_log_rings_every_shard_that_is_silent(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    answer = append(line, (64, 1, [b"b"]), scope=ALL)

    assert answer.ring == ["s1"]
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
    log.postpone("s0", [3], MINUTE_MS)
    assert log.sweep("s0", due_ms=0) == (False, 1)


def test_a_bell_that_nobody_answers_may_be_rung_again_after_a_while(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))

    seqs = itertools.count(2)
    for _ in polls(10):
        if append(line, (3, next(seqs), [b"a"])).ring:
            return
    pytest.fail("the bell stayed taken")


# reading and trimming -------------------------------------------------------------------------------------------


def test_read_gives_what_is_behind_a_position_in_order_up_to_a_count_per_bucket(log: Log, line: Line):
    append(line, (3, 1, [b"%d" % n for n in range(10)]), (4, 1, [b"x"]))

    found = log.read({3: Position(EPOCH, 1), 4: START, 5: START}, {3: 3, 4: 9, 5: 9})

    assert [entry.payload for entry in found[3]] == [b"2", b"3", b"4"]
    assert [entry.payload for entry in found[4]] == [b"x"]
    assert found[5] == []


def test_read_goes_on_into_the_next_epoch(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    raise_to(log, S0, EPOCH + 3)
    append(line, (3, 2, [b"b"]), epoch=EPOCH + 3)

    assert [e.payload for e in entries(log, 3, after=Position(EPOCH, 0))] == [b"b"]
    assert [e.payload for e in entries(log, 3, after=Position(EPOCH + 1, 5))] == [b"b"]
    assert entries(log, 3, after=Position(EPOCH + 3, 0)) == []


def test_tails_are_the_last_positions_of_logs_that_have_entries(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]))

    assert log.tails([3, 4]) == {3: Position(EPOCH, 1)}
    assert log.tails([]) == {}


def test_trim_deletes_nothing_beyond_the_position_and_at_most_a_hundred_too_few(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 500), (4, 1, [b"b"] * 500))

    trimmed = log.trim({3: Position(EPOCH, 399), 5: Position(EPOCH, 9)})

    left = [entry.position.seq for entry in entries(log, 3)]
    assert 300 <= trimmed <= 400
    assert left == list(range(trimmed, 500))
    assert len(entries(log, 4)) == 500


def test_trim_behind_a_mark_of_an_older_epoch_keeps_the_newer_one(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 300))
    raise_to(log, S0, EPOCH + 1)
    append(line, (3, 301, [b"b"] * 300), epoch=EPOCH + 1)

    log.trim({3: Position(EPOCH, 299)})

    left = [entry.position for entry in entries(log, 3) if entry.position.epoch == EPOCH + 1]
    assert left == [Position(EPOCH + 1, n) for n in range(300)]


def test_positions_go_on_densely_behind_what_was_trimmed(log: Log, line: Line):
    append(line, (3, 1, [b"a"] * 300))
    log.trim({3: Position(EPOCH, 299)})

    assert append(line, (3, 301, [b"b"])).placed == [Placed(APPENDED, Position(EPOCH, 300))]


# watermarks -----------------------------------------------------------------------------------------------------


def test_finish_publishes_watermarks_per_shard(log: Log):
    log.finish("s0", {3: Position(EPOCH, 4), 5: Position(EPOCH, 0)})
    log.finish("s0", {3: Position(EPOCH, 6)})

    assert log.marks("s0") == {3: Position(EPOCH, 6), 5: Position(EPOCH, 0)}
    assert log.mark("s0", 3) == Position(EPOCH, 6)
    assert log.mark("s0", 4) is None
    assert log.marks("s1") == {}


def test_the_mark_of_a_bucket_to_which_nothing_was_applied_is_below_every_position(log: Log):
    log.finish("s0", {3: START})

    mark = log.mark("s0", 3)

    assert mark is not None
    assert mark < Position(1, 0)


def test_notes_are_taken_once_a_minute_and_given_back_when_old_enough(log: Log):
    ten_minutes = 10 * NOTE_MS

    assert log.note_marks("s0", 1_000_000, "first", older_than_ms=ten_minutes) is None
    assert log.note_marks("s0", 1_000_000 + NOTE_MS - 1, "too soon", older_than_ms=ten_minutes) is None
    for minute in range(1, 10):
        assert log.note_marks("s0", 1_000_000 + minute * NOTE_MS, f"{minute}", older_than_ms=ten_minutes) is None

    assert log.note_marks("s0", 1_000_000 + 10 * NOTE_MS, "10", older_than_ms=ten_minutes) == "first"
    assert log.note_marks("s0", 1_000_000 + 11 * NOTE_MS, "11", older_than_ms=ten_minutes) == "1"
    assert log.note_marks("s1", 1_000_000 + 99 * NOTE_MS, "other", older_than_ms=ten_minutes) is None


def test_notes_do_not_pile_up_and_a_text_may_hold_blanks(log: Log):
    for minute in range(40):
        log.note_marks("s0", minute * NOTE_MS, f"note {minute}", older_than_ms=2 * NOTE_MS)

    assert log.note_marks("s0", 40 * NOTE_MS, "now", older_than_ms=2 * NOTE_MS) == "note 38"
    assert log.note_marks("s0", 41 * NOTE_MS, "now", older_than_ms=30 * NOTE_MS) is None


# table definitions ----------------------------------------------------------------------------------------------


def test_definitions_are_found_by_hash_and_the_newest_by_table(log: Log):
    log.publish_schema("purchase", "h1", '{"v": 1}')
    log.publish_schema("purchase", "h2", '{"v": "é"}')
    log.publish_schema("person", "h3", "{}")

    assert log.schema("h1") == '{"v": 1}'
    assert log.schema("h2") == '{"v": "é"}'
    assert log.schema("h4") is None
    assert log.tables() == {"purchase": '{"v": "é"}', "person": "{}"}


def test_there_are_no_tables_at_first(log: Log):
    assert log.tables() == {}


# chores ---------------------------------------------------------------------------------------------------------


def test_a_full_pipeline_refuses_with_its_reason_and_writes_nothing(log: Log, line: Line):
    log.set_full("Redis uses 80% of its memory", for_ms=MINUTE_MS)

    with pytest.raises(PipelineFull, match="uses 80% of its memory"):
        append(line, (3, 1, [b"a"]), key="k")

    assert entries(log, 3) == []
    assert line.sequences(PRODUCER) == {}
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


def test_a_chore_is_claimed_by_one_at_a_time(log: Log):
    assert log.claim("trim:s0", MINUTE_MS)
    assert not log.claim("trim:s0", MINUTE_MS)
    assert log.claim("trim:s1", MINUTE_MS)


def test_a_claim_ends_by_itself(log: Log):
    log.claim("trim:s0", 20)

    for _ in polls(10):
        if log.claim("trim:s0", 20):
            return
    pytest.fail("the claim never ended")


def test_without_a_limit_the_memory_share_is_nought(log: Log):
    assert log.memory_share() == 0.0


# producer numbers -----------------------------------------------------------------------------------------------


def test_all_leased_numbers_differ_and_then_there_are_none(log: Log):
    leases = [log.lease_ids(f"token{n}", None, 1000) for n in range(PRODUCERS)]

    assert {lease.number for lease in leases} == set(range(PRODUCERS))
    with pytest.raises(NoProducerNumber):
        log.lease_ids("one more", None, 1000)


def test_a_lease_grants_at_least_a_span_of_milliseconds(log: Log):
    lease = log.lease_ids("token", None, 5)

    assert lease.after_ms == 0
    assert lease.until_ms == SPAN_MS


def test_a_held_number_is_lengthened_from_where_its_holder_is(log: Log):
    first = log.lease_ids("token", None, 1_000_000)

    again = log.lease_ids("token", first, 1_000_001)

    assert again == Lease(first.number, 0, first.until_ms + SPAN_MS)


def test_a_number_that_another_holds_is_not_lengthened(log: Log):
    theirs = log.lease_ids("theirs", None, 1_000_000)

    mine = log.lease_ids("mine", Lease(theirs.number, 0, 1_000_000), 1_000_000)

    assert mine.number != theirs.number


# reads ----------------------------------------------------------------------------------------------------------


def test_the_secret_of_a_deployment_is_the_first_that_anybody_proposed(log: Log):
    first = log.secret("one")

    assert (first, log.secret("two")) == ("one", "one")


# holes ------------------------------------------------------------------------------------------------------------


def test_a_producer_goes_on_behind_a_hole_once_it_is_passed(log: Log, line: Line):
    append(line, (3, 1, [b"a"]))
    assert append(line, (3, 5, [b"e"])).placed == [Placed(HOLE, Position(0, 1))]

    assert line.pass_hole(PRODUCER, 3, 1, 4)

    assert append(line, (3, 5, [b"e"])).placed == [Placed(APPENDED, Position(EPOCH, 1))]
    assert append(line, (3, 5, [b"e"])).placed == [Placed(SEEN, Position(EPOCH, 1))]
    assert line.sequences(PRODUCER) == {3: 5}


def test_a_hole_that_another_has_filled_is_not_passed(log: Log, line: Line):
    append(line, (3, 1, [b"a", b"b"]))

    assert not line.pass_hole(PRODUCER, 3, 1, 4)
    assert not line.pass_hole(PRODUCER, 3, 0, 4)

    assert line.sequences(PRODUCER) == {3: 2}


def test_a_producer_that_the_log_has_forgotten_is_let_on_too(log: Log, line: Line):
    assert line.pass_hole(PRODUCER, 3, 0, 4)

    assert append(line, (3, 5, [b"e"])).placed == [Placed(APPENDED, Position(EPOCH, 0))]
