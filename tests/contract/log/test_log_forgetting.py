"""A log that forgot a part of what it took, while its server lives on, ends the epoch before it takes anything more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.sandbox.logs import EPOCH, PRODUCER, S0, append, cut, entries, raise_to, server_of

from pipeline.model import Position
from pipeline.oplog import RECONCILE, Log
from pipeline.oplog.appends import APPENDED, EpochStale, Line, Placed
from pipeline.oplog.redis.log import RedisLog

NEXT = EPOCH + 1


def one(line: Line, seq: int, *, bucket: int = 3, epoch: int = EPOCH) -> object:
    return line.append_one(S0, epoch, PRODUCER, bucket, seq, b"%d" % seq)


def many(line: Line, seq: int, *, bucket: int = 3, epoch: int = EPOCH) -> object:
    try:
        [placed] = append(line, (bucket, seq, [b"%d" % seq, b"more"]), epoch=epoch).placed
    except EpochStale:
        return None
    return placed


@pytest.mark.parametrize("send", [one, many])
@pytest.mark.parametrize("kept", [0, 2])
def test_a_log_that_is_gone_or_was_cut_takes_nothing_more_under_its_epoch(
    log: Log, line: Line, send: Callable[..., object], kept: int
):
    append(line, (3, 1, [b"1", b"2", b"3", b"4"]))
    cut(log, 3, kept)

    assert send(line, 5) is None

    assert log.epoch("s0")[:2] == (EPOCH, False)
    assert log.epoch("s0")[2].endswith("forgot:3")
    assert len(entries(log, 3)) == kept
    assert send(line, 5) is None, "the epoch has ended for all"


@pytest.mark.parametrize("send", [one, many])
def test_another_producer_meets_a_log_that_is_gone(log: Log, line: Line, send: Callable[..., object]):
    append(line, (3, 1, [b"1", b"2"]), producer=9)
    cut(log, 3)

    assert send(line, 1) is None

    raise_to(log, S0, NEXT)
    assert send(line, 1, epoch=NEXT) is not None
    assert entries(log, 3)[0].position == Position(NEXT, 0)


@pytest.mark.parametrize("producer", [PRODUCER, 9])
def test_a_log_whose_last_entry_somebody_has_deleted_takes_nothing_more_under_its_epoch(
    log: Log, line: Line, producer: int
):
    append(line, (3, 1, [b"1"]), producer=9)
    append(line, (3, 2, [b"2", b"3"]), producer=9)
    if isinstance(log, RedisLog):
        server = server_of(log, 3)
        server._client.xdel(server.keys.log(3), f"{EPOCH}-2")
    else:
        producer = 9  # it has no last id apart from its last entry
        cut(log, 3, 2)

    with pytest.raises(EpochStale):
        append(line, (3, 1 if producer == PRODUCER else 4, [b"4", b"5"]), producer=producer)

    assert log.epoch("s0")[2].endswith("forgot:3")
    assert len(entries(log, 3)) == 2


def test_what_went_into_other_logs_of_the_same_call_is_seen_under_the_next_epoch(log: Log, line: Line):
    append(line, (3, 1, [b"1"]))
    cut(log, 3)

    with pytest.raises(EpochStale):
        append(line, (4, 1, [b"a"]), (3, 2, [b"2"]), (5, 1, [b"z"]))

    raise_to(log, S0, NEXT)
    append(line, (4, 1, [b"a"]), (3, 2, [b"2"]), (5, 1, [b"z"]), epoch=NEXT)
    assert {entry.payload for bucket in (4, 3, 5) for entry in entries(log, bucket)} == {b"a", b"2", b"z"}
    assert set(log.due("s0", 10)) == {3, 4, 5}


def test_a_log_that_was_trimmed_empty_goes_on_where_it_was(log: Log, line: Line):
    for seq in range(1, 4):
        one(line, seq)
    trim_all(log, 3, Position(EPOCH, 2))
    assert entries(log, 3) == []

    assert one(line, 4) == (Position(EPOCH, 3), False)
    assert log.audit("s0", {3: Position(EPOCH, 2)}) == ""


def test_a_log_whose_entries_are_of_a_later_epoch_takes_ops_again_under_one_above(log: Log, line: Line):
    raise_to(log, S0, EPOCH + 50)
    append(line, (3, 1, [b"astray"]), producer=9, epoch=EPOCH + 50)
    raise_to(log, S0, EPOCH)

    assert one(line, 1) is None
    assert many(line, 1) is None

    assert log.epoch("s0")[:2] == (EPOCH + 50, False)
    assert log.epoch("s0")[2].endswith("ahead:3")
    raise_to(log, S0, EPOCH + 51)
    assert many(line, 1, epoch=EPOCH + 51) == Placed(APPENDED, Position(EPOCH + 51, 0))


def test_an_audit_finds_nothing_where_each_log_reaches_its_watermark(log: Log, line: Line):
    append(line, (3, 1, [b"1", b"2"]))

    assert log.audit("s0", {3: Position(EPOCH, 0), 4: Position(0, -1), 5: Position(EPOCH - 1, 9)}) == ""

    assert log.epoch("s0")[:2] == (EPOCH, True)


@pytest.mark.parametrize(
    ("kept", "mark", "why"),
    [
        (0, Position(EPOCH, 1), "forgot:3"),
        (1, Position(EPOCH, 1), "forgot:3"),
        (0, Position(EPOCH - 1, 7), "forgot:3"),
        (2, Position(EPOCH + 4, 0), "ahead:3"),
    ],
)
def test_an_audit_ends_the_epoch_where_a_log_does_not_reach_its_watermark(
    log: Log, line: Line, kept: int, mark: Position, why: str
):
    append(line, (3, 1, [b"1", b"2"]))
    cut(log, 3, kept)

    assert log.audit("s0", {4: Position(0, -1), 3: mark}) == why

    assert log.epoch("s0")[:2] == (max(EPOCH, mark.epoch), False)
    assert log.audit("s0", {3: mark}) == "", "a new epoch is due, and no other"


def test_a_worker_that_finds_a_log_behind_its_watermark_makes_reconcile_due(log: Log, line: Line):
    append(line, (3, 1, [b"1", b"2"]))
    assert log.take_lease(RECONCILE.format("s0"), 60_000)
    log.finish("s0", {3: Position(EPOCH, 0)})
    log.finish("s0", {3: Position(EPOCH, 1)})
    assert not log.take_lease(RECONCILE.format("s0"), 60_000)

    for kept in (1, 0):
        cut(log, 3, kept)
        log.finish("s0", {3: Position(EPOCH, 1)})

        assert log.take_lease(RECONCILE.format("s0"), 60_000)


def trim_all(log: Log, bucket: int, to: Position) -> None:
    log.trim({bucket: to})
    if hasattr(log, "keys"):  # over Redis a trim leaves up to a hundred
        one: Any = server_of(log, bucket)  # type: ignore[arg-type]
        one._client.xtrim(one.keys.log(bucket), minid=f"{to.epoch}-{to.seq + 1}", approximate=False)
