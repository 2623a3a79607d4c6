"""Entries that this version cannot decode: recorded whole, once, and what is lost right before one is named as lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.model.op import Position
from pipeline.model.receipt import Receipt
from pipeline.shard import ledger_queries
from pipeline.testing import Drained, Sandbox, sandbox

STRANGE = b'{"an op of":"a later version"}'


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("n", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"event": {"shard_key": "who"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def make_strange(box: Sandbox, receipt: Receipt) -> None:
    """Replace a queued op by an entry that nobody decodes."""
    entries = box.log._server.logs[receipt.bucket]
    entries[:] = [e._replace(payload=STRANGE) if e.position == receipt.position else e for e in entries]


def lose(box: Sandbox, receipts: list[Receipt]) -> None:
    """Take queued ops out of the log, as a Redis does that lost a part of its file."""
    entries = box.log._server.logs[receipts[0].bucket]
    gone = {receipt.position for receipt in receipts}
    entries[:] = [entry for entry in entries if entry.position not in gone]


def send_again(box: Sandbox, receipt: Receipt) -> None:
    """Append a copy of an entry behind all others, as a producer does after a failover."""
    entries = box.log._server.logs[receipt.bucket]
    [entry] = [entry for entry in entries if entry.position == receipt.position]
    epoch, seq = entries[-1].position
    entries.append(entry._replace(position=Position(epoch, seq + 1)))
    box.log._server.last[receipt.bucket] = entries[-1].position
    box.log.mark_dirty("s0", [receipt.bucket])


def rejects(box: Sandbox) -> list[tuple[Any, ...]]:
    return box.client.nodes.primary("s0").query("SELECT producer, producer_seq, reason, op FROM pipeline_rejects")


def test_an_entry_that_cannot_be_decoded_is_recorded_whole_and_the_others_are_applied(db: Any, box: Sandbox):
    before, strange, after = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(3))
    make_strange(box, strange)

    assert box.drain() == Drained(2, 1)

    [(producer, producer_seq, reason, op)] = rejects(box)
    assert (producer, producer_seq, op) == (strange.producer, strange.producer_seq, STRANGE.decode())
    assert reason.startswith("not an op of this version: ")
    assert [receipt.status() for receipt in (before, strange, after)] == ["applied", "rejected", "applied"]
    assert [row["n"] for row in box.rows("event")] == [0, 2]


def test_ops_lost_right_before_an_entry_that_cannot_be_decoded_are_named_as_lost(db: Any, box: Sandbox):
    """I5: the loss is found by the positions, whatever stands behind it."""
    first, *lost, strange, last = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(6))
    lose(box, lost)
    make_strange(box, strange)

    assert box.drain() == Drained(2, 1)

    assert [receipt.status() for receipt in lost] == ["lost"] * 3
    assert [receipt.status() for receipt in (first, strange, last)] == ["applied", "rejected", "applied"]
    session, position = box.client.nodes.primary("s0"), lost[0].position
    assert position is not None
    assert ledger_queries.gaps(session, [first.bucket]) == [
        (first.bucket, position.epoch, position.seq, position.seq + 2)
    ]


@pytest.mark.parametrize("at_once", [True, False], ids=["in one batch", "in a later batch"])
def test_an_entry_that_cannot_be_decoded_and_is_sent_again_is_refused_once(db: Any, box: Sandbox, at_once: bool):
    strange = pipeline.enqueue_insert(db.event, who=7, n=0)
    make_strange(box, strange)
    if not at_once:
        assert box.drain() == Drained(0, 1)
    send_again(box, strange)
    later = pipeline.enqueue_insert(db.event, who=7, n=1)

    box.drain()

    assert len(rejects(box)) == 1
    assert (strange.status(), later.status()) == ("rejected", "applied")


def test_what_was_applied_before_an_entry_that_cannot_be_decoded_is_not_applied_again(db: Any, box: Sandbox):
    first, strange = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(2))
    make_strange(box, strange)
    box.drain()
    send_again(box, first)

    assert box.drain() == Drained(0, 0)

    assert [row["n"] for row in box.rows("event")] == [0]
