"""What follows a rejected op: its row waits in order, goes on, or stops the bucket, as the table's `on_reject` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.apply.applier import Applier
from pipeline.config.settings import ApplySettings
from pipeline.errors import PipelineError, WaitTimeout
from pipeline.model.receipt import Receipt
from pipeline.shard.records import ledger_queries
from pipeline.testing import Drained, Sandbox, sandbox

TABLES = {
    name: {"shard_key": "who", "on_reject": on_reject}
    for name, on_reject in (("event", "park"), ("loose", "skip"), ("strict", "halt"))
} | {"day": {"shard_key": "who", "unique": [["who", "name"]]}}


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    for name in ("event", "loose", "strict"):
        db.define_table(
            name, Field("who", "integer"), Field("n", "integer", default=0), Field("note", length=40, unique=True)
        )
    db.define_table("day", Field("who", "integer"), Field("name", length=500), Field("n", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        for moment in ("INSERT", "UPDATE"):
            box.client.nodes.primary("s0").query(
                f"CREATE TRIGGER unlucky_{moment} BEFORE {moment} ON day WHEN NEW.n = 13"
                " BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
            )
        yield box


def refused(db: Any, box: Sandbox, name: str = "event") -> int:
    """Enqueue an insert that the database refuses, and return the id of its row."""
    table = db[name]
    pipeline.enqueue_insert(table, who=7, note="taken")
    row = pipeline.enqueue_insert(table, who=7, note="taken").id
    assert row is not None
    return row


def states(box: Sandbox) -> list[str]:
    found = box.client.nodes.primary("s0").query("SELECT state FROM pipeline_rejects ORDER BY epoch, seq")
    return [state for (state,) in found]


def held(box: Sandbox) -> list[str]:
    found = box.client.nodes.primary("s0").query("SELECT row_key FROM pipeline_held ORDER BY epoch, seq, row_key")
    return [key for (key,) in found]


def bucket_states(box: Sandbox) -> set[str]:
    return {mark.state for mark in ledger_queries.marks_of(box.client.nodes.primary("s0")).values()}


def one_by_one(box: Sandbox) -> Applier:
    settings = ApplySettings(max_rows=1)
    return Applier("s0", box.client.nodes.primary("s0"), box.log, settings, tables=box.client.settings.tables)


@pytest.mark.parametrize("batches", ["one", "many"])
def test_later_ops_of_a_rejected_row_are_parked_and_all_others_go_on(db: Any, box: Sandbox, batches: str):
    row = refused(db, box)
    other = pipeline.enqueue_insert(db.event, who=7, note="other").id
    for n in range(3):
        pipeline.enqueue_update(db.event.id == row, n=n)
        pipeline.enqueue_update(db.event.id == other, n=n)
    pipeline.enqueue_delete(db.event.id == row)

    if batches == "many":
        worker = one_by_one(box)
        while worker.apply().left:
            pass
    else:
        assert box.drain() == Drained(5, 1)

    assert states(box) == ["rejected"] + ["parked"] * 4
    assert held(box) == [f"event {row}"] * 5
    assert {r["note"]: r["n"] for r in box.rows("event")} == {"taken": 0, "other": 2}


def test_an_op_of_two_rows_that_is_parked_holds_its_other_row_too(db: Any, box: Sandbox):
    row = refused(db, box)
    other = pipeline.enqueue_insert(db.event, who=7, note="other").id
    pipeline.enqueue_update(db.event.id == other, n=1)
    with pipeline.atomic():
        pipeline.enqueue_update(db.event.id == row, n=5)
        pipeline.enqueue_update(db.event.id == other, n=5)
    pipeline.enqueue_update(db.event.id == other, n=9)

    assert box.drain() == Drained(3, 1)

    assert [r["n"] for r in box.rows("event")] == [0, 1]
    assert sorted(held(box)) == sorted([f"event {row}"] * 2 + [f"event {other}"] * 2)


def test_an_upsert_waits_for_a_rejected_one_of_its_key_however_the_key_is_written(db: Any, box: Sandbox):
    key = {"key": ["who", "name"]}
    pipeline.enqueue_upsert(db.day, key=["name", "who"], who=7, name="Mon", n=13)
    pipeline.enqueue_upsert(db.day, **key, who=7, name="mon ", n=1)
    pipeline.enqueue_upsert(db.day, **key, who=7, name="tue", n=2)

    assert box.drain() == Drained(1, 1)

    assert [r["name"] for r in box.rows("day")] == ["tue"]


def test_a_rejected_double_does_not_hold_the_row_that_has_the_value(db: Any, box: Sandbox):
    owner = pipeline.enqueue_insert(db.event, who=7, note="taken").id
    pipeline.enqueue_insert(db.event, who=7, note="taken")
    pipeline.enqueue_update(db.event.id == owner, n=4)

    assert box.drain() == Drained(2, 1)

    assert [r["n"] for r in box.rows("event")] == [4]


def test_the_ops_of_a_table_that_skips_go_on_after_a_rejected_one_of_their_row(db: Any, box: Sandbox):
    row = refused(db, box, "loose")
    later = pipeline.enqueue_insert(db.loose, who=7, note="x")
    pipeline.enqueue_update(db.loose.id == row, n=1)

    assert box.drain() == Drained(3, 1)

    assert later.status() == "applied"
    assert (held(box), bucket_states(box)) == ([], {"active"})


def test_a_table_that_halts_leaves_the_rest_of_its_bucket_in_the_log(db: Any, box: Sandbox):
    before = pipeline.enqueue_insert(db.event, who=7, note="before")
    refused(db, box, "strict")
    behind = [pipeline.enqueue_insert(db.event, who=7, note=f"{n}") for n in range(3)]
    elsewhere = elsewhere_than(before, db)

    with pytest.raises(PipelineError, match=f"bucket {before.bucket} is halted: the op at {before.bucket}:"):
        box.drain()

    assert (before.status(), elsewhere.status()) == ("applied", "applied")
    assert [receipt.status() for receipt in behind] == ["queued"] * 3
    assert (states(box), bucket_states(box)) == (["rejected"], {"active", "halted"})


def elsewhere_than(receipt: Receipt, db: Any) -> Receipt:
    """Enqueue inserts until one goes to another bucket."""
    made = (pipeline.enqueue_insert(db.event, who=who, note=f"who {who}") for who in range(100, 200))
    return next(one for one in made if one.bucket != receipt.bucket)


@pytest.mark.parametrize(("tables", "state"), [(("loose", "event"), "holding"), (("loose", "strict"), "halted")])
def test_an_atomic_group_follows_the_strictest_of_its_tables(
    db: Any, box: Sandbox, tables: tuple[str, str], state: str
):
    pipeline.enqueue_insert(db[tables[1]], who=7, note="taken")
    with pipeline.atomic():
        for name in tables:
            pipeline.enqueue_insert(db[name], who=7, note="taken")

    assert box.drain() == Drained(1, 1)

    assert bucket_states(box) == {"active", state}


def test_a_row_whose_key_is_long_is_held_by_a_hash(db: Any, box: Sandbox):
    names = ["x" * 400, "x" * 399 + "y"]
    pipeline.enqueue_upsert(db.day, key=["who", "name"], who=7, name=names[0], n=13)
    for name in names:
        pipeline.enqueue_upsert(db.day, key=["who", "name"], who=7, name=name, n=1)

    assert box.drain() == Drained(1, 1)

    assert [r["name"] for r in box.rows("day")] == [names[1]]
    assert {len(key) <= 190 for key in held(box)} == {True}


def test_a_receipt_of_a_parked_op_says_what_it_waits_behind(db: Any, box: Sandbox):
    row = refused(db, box)
    parked = pipeline.enqueue_update(db.event.id == row, n=1)
    last = pipeline.enqueue_insert(db.event, who=7, note="last")
    box.drain()

    assert (parked.status(), last.status()) == ("parked", "applied")
    behind = rf"s: it waits because the op at {parked.bucket}:\d+-1, which holds the row event {row}, was set aside"
    with pytest.raises(WaitTimeout, match=behind):
        parked.wait(timeout_s=0.01)
    with pytest.raises(WaitTimeout, match="1 of 2 ops was still parked"):
        pipeline.wait_all([parked, last], timeout_s=0.01)


def test_a_pending_row_shows_what_will_be_applied_and_nothing_that_will_be_parked(db: Any, box: Sandbox):
    row = refused(db, box)
    other = pipeline.enqueue_insert(db.event, who=7, note="other", n=1).id
    box.drain()
    with pipeline.atomic():
        pipeline.enqueue_update(db.event.id == row, n=5)
        pipeline.enqueue_update(db.event.id == other, n=5)
    pipeline.enqueue_update(db.event.id == other, n=9)
    free = pipeline.enqueue_insert(db.event, who=7, note="free").id

    def seen() -> list[Any]:
        found = [pipeline.get(db.event, id, pending=True, shard_key=7) for id in (row, other, free)]
        return [one and one.n for one in found]

    before = seen()
    box.drain()

    assert before == seen() == [None, 1, 0]
