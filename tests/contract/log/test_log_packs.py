"""Ops that are appended together are read one by one, wherever a watermark stands: however few entries hold them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sandbox.logs import EPOCH, PRODUCER, S0, append, cut, entries, raise_to

from pipeline import model as ops
from pipeline.errors import NewerOp, NotAnOp
from pipeline.model import START, Entry, Op, Position, decode, encode, with_trace
from pipeline.model.sheet import Sheet, singly
from pipeline.oplog import Log
from pipeline.oplog.appends import APPENDED, BIG_BYTES, HOLE, SEEN, EpochStale, Line, Placed
from pipeline.oplog.redis import log as redis_log
from pipeline.oplog.redis.keys import BLOCK_BYTES, MOST_BYTES, WORTH_A_CUT_BYTES, packed, room_behind, unpacked

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def op(n: int, size: int = 10) -> bytes:
    return encode(Op("insert", "item", "hash", 1000.5 + n, n + 1, (1, 2), ("x" * size, ',]"é\n')))


def some(first: int, last: int, size: int = 10) -> list[bytes]:
    return [op(n, size) for n in range(first, last + 1)]


def shown(found: list[Entry]) -> list[tuple[int, int, bytes]]:
    return [(entry.position.seq, entry.producer_seq, entry.payload) for entry in found]


def test_ops_appended_together_are_read_one_by_one_from_any_watermark(log: Log, line: Line):
    append(line, (3, 1, some(1, 1)), (4, 1, some(1, 2)))
    placed = append(line, (3, 2, some(2, 500))).placed
    append(line, (3, 501, [op(501, MOST_BYTES), op(502), b"no op", op(504)]))

    assert placed == [Placed(APPENDED, Position(EPOCH, 1))]
    every = shown(entries(log, 3))
    wanted = [*some(1, 500), op(501, MOST_BYTES), op(502), b"no op", op(504)]
    assert every == [(n, n + 1, payload) for n, payload in enumerate(wanted)]
    for seq, count in ((0, 1), (1, 70), (63, 1), (130, 1), (250, 3), (499, 4), (503, 9)):
        assert shown(entries(log, 3, Position(EPOCH, seq), count)) == every[seq + 1 : seq + 1 + count]
    assert log.tails([3, 4]) == {3: Position(EPOCH, 503), 4: Position(EPOCH, 1)}
    assert [entry.bucket for entry in entries(log, 4)] == [4, 4]


def test_a_run_that_comes_again_is_known_and_one_that_only_begins_again_is_a_hole(log: Log, line: Line):
    append(line, (3, 1, some(1, 300)))

    assert append(line, (3, 1, some(1, 300))).placed == [Placed(SEEN, Position(EPOCH, 0))]
    assert append(line, (3, 101, some(101, 300))).placed == [Placed(SEEN, Position(EPOCH, 100))]
    assert append(line, (3, 201, some(201, 400))).placed == [Placed(HOLE, Position(0, 300))]
    assert append(line, (3, 301, some(301, 400))).placed == [Placed(APPENDED, Position(EPOCH, 300))]
    assert [seq for seq, _, _ in shown(entries(log, 3))] == [*range(400)]


def test_producers_take_turns_and_epochs_follow_each_other(log: Log, line: Line):
    append(line, (3, 1, some(1, 90)))
    append(line, (3, 1, some(1, 40)), producer=9)
    line.append_one(S0, EPOCH, 9, 3, 41, op(41))
    raise_to(log, S0, EPOCH + 2)
    append(line, (3, 42, some(42, 100)), producer=9, epoch=EPOCH + 2)

    found = entries(log, 3)
    assert [entry.position for entry in found] == [
        *(Position(EPOCH, n) for n in range(131)),
        *(Position(EPOCH + 2, n) for n in range(59)),
    ]
    assert [(entry.producer, entry.producer_seq) for entry in found] == [
        *((PRODUCER, n) for n in range(1, 91)),
        *((9, n) for n in range(1, 101)),
    ]
    assert log.queued({3: Position(EPOCH, 20)}) == {3: 110 + 59}
    assert log.queued({3: Position(EPOCH + 2, 3)}) == {3: 55}
    assert log.queued({3: START}) == {3: 190}


def test_what_is_behind_a_watermark_within_an_entry_is_not_trimmed(log: Log, line: Line):
    append(line, (3, 1, some(1, 400)))

    log.trim({3: Position(EPOCH, 250)})

    assert shown(entries(log, 3, Position(EPOCH, 250))) == [(n, n + 1, op(n + 1)) for n in range(251, 400)]
    assert append(line, (3, 401, some(401, 402))).placed == [Placed(APPENDED, Position(EPOCH, 400))]
    log.trim({3: Position(EPOCH, 401)})
    assert append(line, (3, 403, some(403, 405))).placed == [Placed(APPENDED, Position(EPOCH, 402))]


def test_the_bytes_of_all_ops_are_measured_and_as_many_ops_are_counted_as_there_are(log: Log, line: Line):
    append(line, (3, 1, some(1, 200, BIG_BYTES)))

    found = log.sizes({3: Position(EPOCH, 9)}, 1000, 10**9)[3]
    few = log.sizes({3: Position(EPOCH, 9)}, 7, 10**9)[3]
    enough = log.sizes({3: Position(EPOCH, 9)}, 1000, 20 * BIG_BYTES)[3]

    assert (len(found), len(few)) == (190, 7)
    assert sum(map(len, some(11, 200, BIG_BYTES))) <= sum(found) <= 2 * sum(map(len, some(11, 200, BIG_BYTES)))
    assert 15 <= len(enough) <= 21


def test_a_log_that_has_forgotten_an_entry_of_many_ops_ends_its_epoch(log: Log, line: Line):
    append(line, (3, 1, some(1, 100)))
    cut(log, 3)

    with pytest.raises(EpochStale):
        append(line, (3, 101, some(101, 140)))
    assert log.epoch("s0")[2].endswith("forgot:3")
    assert entries(log, 3) == []


def test_a_log_ahead_of_its_epoch_takes_no_entry_of_many_ops(log: Log, line: Line):
    append(line, (3, 1, some(1, 100)))
    raise_to(log, S0, EPOCH + 5)
    append(line, (3, 101, some(101, 140)), epoch=EPOCH + 5)
    raise_to(log, S0, EPOCH + 3)

    with pytest.raises(EpochStale):
        append(line, (3, 1, some(1, 3)), producer=9, epoch=EPOCH + 3)
    assert log.epoch("s0")[2].endswith("ahead:3")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from([1, 100, 2000, 5000, 9000]), min_size=1, max_size=300))
def test_what_is_packed_is_unpacked(sizes: list[int]):
    payloads = [with_trace(op(n, size), TRACE) if n % 3 else op(n, size) for n, size in enumerate(sizes)]

    made = list(packed(payloads))

    assert [bytes(one) for _, text in made for one in unpacked(text)] == payloads
    assert [n for n, _ in made] == [len(unpacked(text)) for _, text in made]
    assert all(len(text) <= MOST_BYTES + 600 for n, text in made if n > 1)


def test_a_release_that_knows_no_packs_lets_one_wait(monkeypatch: pytest.MonkeyPatch):
    [(_, text)] = packed(some(1, 5))
    monkeypatch.setattr(ops, "VERSION", 2)

    with pytest.raises(NewerOp, match="'pack'"):
        decode(text)


def test_a_reader_that_expects_one_op_an_entry_reads_no_more_than_it_may(
    log: Log, line: Line, monkeypatch: pytest.MonkeyPatch
):
    append(line, (3, 1, some(1, 100)), (4, 1, some(1, 5)))
    for seq in range(101, 161):
        line.append_one(S0, EPOCH, PRODUCER, 3, seq, op(seq))
    monkeypatch.setattr(redis_log, "FIRST_ENTRIES", 3)

    found = log.read({3: Position(EPOCH, 40), 4: START, 5: START}, {3: 110, 4: 9, 5: 2})

    assert shown(found[3]) == [(n, n + 1, op(n + 1)) for n in range(41, 151)]
    assert (len(found[4]), found[5]) == (5, [])


def sheet(first: int, last: int, size: int = 10, step: int = 1024) -> Sheet:
    """Return inserts with ids that are even steps apart, or not."""
    rows = range(first, last + 1)
    values = [["x" * size] * len(rows), [None if n % 3 else ',]"é\n' for n in rows], [n / 4 for n in rows]]
    return Sheet("item", "hash", 1000.5, [1 + n * step if step else 1 + n * n for n in rows], (1, 2, 4), values)


def test_a_sheet_is_read_op_by_op_from_any_watermark_and_together_where_that_is_asked(log: Log, line: Line):
    sent = sheet(1, 600)
    append(line, (3, 1, sent[:1]), (4, 1, sent[:2]))
    placed = append(line, (3, 2, sent[1:])).placed

    assert placed == [Placed(APPENDED, Position(EPOCH, 1))]
    every = shown(entries(log, 3))
    assert every == [(n, n + 1, payload) for n, payload in enumerate(sent)]
    for seq, count in ((0, 1), (1, 70), (63, 1), (253, 2), (250, 300), (598, 4)):
        after = {3: Position(EPOCH, seq)}
        assert shown(log.read(after, {3: count})[3]) == every[seq + 1 : seq + 1 + count]
        together, _ = log.read_noted("s0", after, {3: count}, {3: f"{after[3]} {count}"}, anew=True)
        assert shown(singly(together[3])) == every[seq + 1 : seq + 1 + count]
        assert len(together[3]) <= 1 + count // 100


def test_a_sheet_that_comes_again_in_parts_is_known(log: Log, line: Line):
    sent = sheet(1, 300)
    append(line, (3, 1, sent))

    assert append(line, (3, 101, sent[100:])).placed == [Placed(SEEN, Position(EPOCH, 100))]
    assert append(line, (3, 201, sheet(201, 400))).placed == [Placed(HOLE, Position(0, 300))]
    assert append(line, (3, 301, sheet(301, 400))).placed == [Placed(APPENDED, Position(EPOCH, 300))]
    log.trim({3: Position(EPOCH, 350)})
    assert [seq for seq, _, _ in shown(entries(log, 3, Position(EPOCH, 350)))] == [*range(351, 400)]


@settings(deadline=None)
@given(st.integers(1, 700), st.sampled_from([0, 1, 50, 3000, 20_000]), st.sampled_from([0, 1, 1024]))
def test_the_texts_of_a_sheet_hold_its_ops(count: int, size: int, step: int):
    sent = sheet(1, count, size, step)

    made = list(packed(sent))

    assert [bytes(one) for _, text in made for one in unpacked(text)] == list(sent)
    assert [n for n, _ in made] == [len(unpacked(text)) for _, text in made]
    assert all(len(text) <= 2 * MOST_BYTES for n, text in made if n > 1)


@pytest.mark.parametrize("size", [5, 300, 9_000], ids=["many rows", "wide rows", "rows of half an entry"])
def test_a_large_sheet_is_encoded_once_behind_the_door(size: int, monkeypatch: pytest.MonkeyPatch):
    encoded: list[int] = []
    sent = Sheet("sale", "hash", 1.0, range(1, 1001), (0,), [[f"{n:0{size}}" for n in range(1000)]])
    assert sent.size_bytes > 1000 * size, "the door has measured it"

    def noting(op: Any) -> bytes:
        text = encode(op)
        encoded.append(len(text))
        return text

    monkeypatch.setattr("pipeline.model.sheet.encode", noting)

    made = list(packed(sent))

    assert sum(n for n, _ in made) == 1000
    assert sum(encoded) <= 1.3 * sum(len(text) for _, text in made)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 120), st.sampled_from([20, 90, 300])), min_size=8, max_size=20))
def test_the_sheets_of_a_bucket_fill_the_blocks_of_its_log(sheets: list[tuple[int, int]]):
    room, blocks = BLOCK_BYTES, [0]
    for count, size in sheets:
        for _, text in packed(sheet(1, count, size), room):
            behind = room_behind(room, text)
            if behind > room - len(text):
                blocks.append(0)
            room = behind
            blocks[-1] += len(text)

    assert all(size <= BLOCK_BYTES for size in blocks)
    assert all(size > BLOCK_BYTES - WORTH_A_CUT_BYTES - 700 for size in blocks[:-1])


def test_a_release_that_knows_no_sheets_lets_one_wait(monkeypatch: pytest.MonkeyPatch):
    [(_, text)] = packed(sheet(1, 5))
    monkeypatch.setattr(ops, "VERSION", 3)

    with pytest.raises(NewerOp, match="'sheet'"):
        decode(text)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b"[1025,3],", b"[1025,2],"),
        (b"[1025,3],", b"[1025,90000000000],"),
        (b"[1025,3],", b"[-2000,3],"),
        (b"[1025,3],", b"[9223372036854775000,3],"),
        (b"[1,2,4]", b"[1,2]"),
        (b"0.25", b"[1]"),
        (b'"item"', b"7"),
    ],
)
def test_a_sheet_that_no_release_makes_is_no_op(was: bytes, becomes: bytes):
    [(_, text)] = packed(sheet(1, 3))
    assert text.count(was) == 1

    [only] = unpacked(text.replace(was, becomes))

    with pytest.raises(NotAnOp):
        decode(only)


def test_the_text_of_a_sheet_stays_as_it_is():
    text = b'["sheet","item","hash",1000.5,[1025,2],[1,2],[["x",null],[7,true]],1024,null,null,null,null,null,null,4]'

    read = Sheet.read(text)

    assert [read.op(n) for n in (0, 1)] == [
        Op("insert", "item", "hash", 1000.5, 1025, (1, 2), ("x", 7)),
        Op("insert", "item", "hash", 1000.5, 2049, (1, 2), (None, True)),
    ]
    assert Sheet(read.table, read.schema, read.at_ms, [1025, 2049], (1, 2), read.values).text == text
