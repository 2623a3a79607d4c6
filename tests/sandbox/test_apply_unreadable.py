"""Entries that no release makes are recorded whole, once; those of a newer release wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs
from pydal import DAL, Field

import pipeline
from pipeline.admin.why import why
from pipeline.errors import PipelineError
from pipeline.model import Op, Position, decode, encode
from pipeline.model.receipt import Receipt
from pipeline.model.wait_reason import WaitReason
from pipeline.testing import Drained, Sandbox, sandbox

STRANGE = b'{"an op of":"nobody"}'


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


def make_strange(box: Sandbox, receipt: Receipt, payload: bytes = STRANGE, **fields: Any) -> None:
    """Replace a queued op by an entry that nobody decodes."""
    entries, fields = box.log._server.logs[receipt.bucket], {"payload": payload, **fields}
    entries[:] = [e._replace(**fields) if e.position == receipt.position else e for e in entries]


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
    assert session.query(
        "SELECT bucket, epoch, producer, first_seq, last_seq FROM pipeline_lost ORDER BY producer"
    ) == [
        (first.bucket, position.epoch, 0, position.seq, position.seq + 2),
        (first.bucket, position.epoch, first.producer, 2, 4),
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


# junk ---------------------------------------------------------------------------------------------------------------


def deep(levels: int) -> Any:
    tree: Any = ["=", 1, 7]
    for _ in range(levels):
        tree = ["or", tree, ["=", 1, 8]]
    return tree


MISFITS: dict[str, dict[str, Any]] = {
    "more columns than values": {"columns": (1, 2), "values": (7,)},
    "fewer columns than values": {"columns": (1,), "values": (7, 8)},
    "a column that the table has not": {"columns": (1, 99), "values": (7, 8)},
    "a key that the table has not": {"kind": "upsert", "columns": (1,), "values": (7,), "key": (99,)},
    "an upsert without a key": {"kind": "upsert", "columns": (1,), "values": (7,)},
    "a renewed column that the table has not": {
        "kind": "upsert",
        "columns": (1,),
        "values": (7,),
        "key": (1,),
        "renew": (9,),
    },
    "an expression of a column that the table has not": {"kind": "update", "expressions": ((9, ["c", 1]),)},
    "an expression of nothing": {"kind": "update", "expressions": ((1, []),)},
    "an expression that is too deep": {"kind": "update", "expressions": ((2, deep(305)),)},
    "a condition of nothing": {"kind": "delete", "id": None, "where": []},
    "a condition that is no list": {"kind": "delete", "id": None, "where": ["and", 5]},
    "a condition without a value": {"kind": "delete", "id": None, "where": ["=", 1]},
    "a condition of a column that the table has not": {"kind": "delete", "id": None, "where": ["=", 99, 5]},
    "a condition of another row in a group": {"kind": "group", "ops": (Op("delete", "t", "h", 1),)},
    "a condition that is too deep": {"kind": "delete", "id": None, "where": deep(305)},
    "a kind of its own": {"kind": "frobnicate"},
    "a group without members": {"kind": "group"},
    "a read by itself": {"kind": "read"},
    "members of an insert": {"ops": (Op("insert", "event", "h", 1),)},
    "a copy without a source": {"kind": "copy"},
    "no condition": {"kind": "delete", "id": None},
    "a value of another type": {"columns": (1, 2), "values": (7, ["x"])},
    "a schema without a hash": {"schema": "a\0b"},
    "a huge id": {"id": 10**30},
}


@pytest.mark.parametrize("changed", MISFITS.values(), ids=MISFITS)
def test_an_op_that_fits_no_release_is_set_aside_and_the_others_are_applied(
    db: Any, box: Sandbox, changed: dict[str, Any]
):
    before, strange, after = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(3))
    others = [pipeline.enqueue_insert(db.event, who=who, n=0) for who in range(20)]
    [entry] = [e for e in box.log._server.logs[strange.bucket] if e.position == strange.position]
    own = decode(entry.payload)
    payload = encode(structs.replace(own, **changed)).replace(b'"h"', b'"%b"' % own.schema.encode())
    make_strange(box, strange, payload)

    assert box.drain() == Drained(22, 1)

    [(producer, producer_seq, reason, op)] = rejects(box)
    assert (producer, producer_seq) == (strange.producer, strange.producer_seq)
    assert reason
    assert json.loads(op) == json.loads(payload)
    assert {receipt.status() for receipt in (before, after, *others)} == {"applied"}
    assert strange.status() == "rejected"


def test_that_ops_of_its_shape_fitted_makes_no_misfit_fit(db: Any, box: Sandbox):
    row = pipeline.enqueue_insert(db.event, who=7, n=0)

    def both() -> Receipt:
        with pipeline.atomic():
            pipeline.enqueue_update(db.event.id == row.id, n=db.event.n + 1, shard_key=7)
            return pipeline.enqueue_update(db.event.id == row.id, n=5, shard_key=7)

    computed = [pipeline.enqueue_update(db.event.id == row.id, n=db.event.n + 1, shard_key=7) for _ in range(2)]
    groups = [both() for _ in range(2)]
    for receipt, change in ((computed[1], {"expressions": ()}), (groups[1], {"values": (["x"],)})):
        [entry] = [e for e in box.log._server.logs[receipt.bucket] if e.position == receipt.position]
        op = decode(entry.payload)
        changed = structs.replace(op, ops=(op.ops[0], structs.replace(op.ops[1], **change))) if op.ops else None
        make_strange(box, receipt, encode(changed or structs.replace(op, **change)))

    assert box.drain() == Drained(3, 2)

    assert [reason for *_, reason, _ in rejects(box)] == [
        "not an op of its schema: an update of nothing",
        "not an op of its schema: a list for the column 'n'",
    ]


def test_an_entry_that_no_producer_wrote_is_set_aside_and_counted_each_time(db: Any, box: Sandbox):
    before, one, other, after = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(4))
    for receipt in (one, other):
        make_strange(box, receipt, b'["p", "x\\u00ff", "s", "1"]', producer=0, producer_seq=0)

    assert box.drain() == Drained(2, 2)

    assert {row[:2] for row in rejects(box)} == {(0, 0)}
    assert {row[2] for row in rejects(box)} == {"not an op: the entry has not the fields that a producer writes"}
    assert [receipt.status() for receipt in (before, after)] == ["applied"] * 2


def test_an_entry_beyond_what_a_shard_can_count_waits_with_its_cure(db: Any, box: Sandbox):
    first, strange = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(2))
    other = pipeline.enqueue_insert(db.event, who=8, n=0)
    make_strange(box, strange, position=Position(7, 2**64 - 1))

    with pytest.raises(
        PipelineError, match=r"no shard can count up to the entry 7-\d+ of bucket \d+; delete it with XDEL"
    ):
        box.drain()
    noted = WaitReason.from_json(box.log.waits("s0").notes[strange.bucket].text)
    assert noted is not None
    assert noted.kind == "misplaced"

    assert [receipt.status() for receipt in (first, other)] == ["applied"] * 2


# newer releases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "newer",
    [
        b'["merge","event","h",1,5,[],[],null,[],[],[],null,[],null,5]',
        b'["insert","event","h",1,5,[],[],null,[],[],[],null,[],null,5,{"new":1}]',
        b'["group","event","h",1,5,[],[],null,[],[],[],null,[["merge",1]],null,5]',
    ],
    ids=["a kind", "a field", "a member"],
)
def test_an_op_of_a_newer_release_waits_with_all_behind_it_and_no_other_bucket_does(
    db: Any, box: Sandbox, newer: bytes
):
    first, waits, behind = (pipeline.enqueue_insert(db.event, who=7, n=n) for n in range(3))
    others = [pipeline.enqueue_insert(db.event, who=who, n=0) for who in range(20)]
    own = [e.payload for e in box.log._server.logs[waits.bucket] if e.position == waits.position]
    make_strange(box, waits, newer)

    with pytest.raises(PipelineError, match=r"older than the op at .*, of version 5.*; upgrade the workers"):
        box.drain()
    assert "newer" in {reason.kind for reason in why(box.client, "s0").reasons}

    assert [receipt.status() for receipt in (first, waits, behind)] == ["applied", "queued", "queued"]
    assert {receipt.status() for receipt in others if receipt.bucket != first.bucket} == {"applied"}
    assert rejects(box) == []
    make_strange(box, waits, *own)  # as an upgraded worker reads it
    box.log.mark_dirty("s0", [waits.bucket])
    box.log._server.dirty["s0"][waits.bucket] = 0
    box.drain()
    assert [receipt.status() for receipt in (first, waits, behind)] == ["applied"] * 3
