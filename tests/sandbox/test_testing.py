"""The sandbox: an application's own tests need no server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import PipelineError, PipelineFull, UnknownField
from pipeline.testing import Drained, Sandbox, sandbox

TABLES = {"purchase": {"shard_key": "customer", "unique": [["customer", "day"]]}, "country": {"reference": True}}


@pytest.fixture
def db(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("purchase", Field("customer", "integer"), Field("day", "date"), Field("qty", "integer", default=1))
    db.define_table("country", Field("code", length=2))
    db.define_table("person", Field("name", notnull=True))
    pipeline.define_tables(db)
    yield db
    db.close()


def test_what_is_enqueued_is_there_once_drained(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7, day=date(2024, 5, 1))
    pipeline.enqueue_update(db.purchase.id == receipt.id, qty=db.purchase.qty + 1)
    assert receipt.status() == "queued"
    assert box.rows(db.purchase) == []

    drained = box.drain()

    assert drained == Drained(2, 0)
    assert receipt.wait() == "applied"
    assert box.rows("purchase") == [{"id": receipt.id, "customer": 7, "day": date(2024, 5, 1), "qty": 2}]
    assert box.drain() == Drained(0, 0)


def test_a_drain_waits_for_a_bucket_that_rests_and_says_so_where_it_rests_on(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    shard = box.client.topology.shard_of(pipeline.enqueue_insert(db.purchase, customer=7).bucket)
    box.log.postpone(shard, [*range(box.client.topology.buckets)], 1500)
    assert box.drain() == Drained(1, 0)

    pipeline.enqueue_insert(db.purchase, customer=7)
    box.log.postpone(shard, [*range(box.client.topology.buckets)], 60_000)
    monkeypatch.setattr("pipeline.testing.MOST_RESTS_S", 0.0)
    with pytest.raises(PipelineError, match=f"buckets of shard {shard!r} rest"):
        box.drain()


def test_a_drain_says_that_ops_wait_for_their_definition_and_applies_them_once_it_is_there(db: Any, box: Sandbox):
    newer = DAL("sqlite:memory", migrate=False)
    newer.define_table("person", Field("name", notnull=True), Field("nick"))
    person = pipeline.enqueue_insert(newer.person, name="Ada", nick="a")
    other = pipeline.enqueue_insert(db.person, name="Bob")
    newer.close()
    with pytest.raises(PipelineError, match="is behind the schema of person"):
        box.drain()
    assert (person.status(), other.status()) == ("parked", "applied")

    for shard in box.client.topology.shards:
        with box.client.nodes.primary(shard).transaction():
            box.client.nodes.primary(shard).execute("ALTER TABLE person ADD COLUMN nick CHAR(512)")

    assert box.drain() == Drained(1, 0)
    assert person.status() == "replayed"


def test_rows_are_gathered_from_all_shards_by_id_and_reference_rows_come_once(db: Any, box: Sandbox):
    receipts = pipeline.enqueue_bulk_insert(db.purchase, [{"customer": n} for n in range(40)])
    pipeline.enqueue_insert(db.country, code="fr")

    box.drain()

    assert [row["id"] for row in box.rows(db.purchase)] == sorted(r.id for r in receipts)
    assert {box.client.topology.shard_of(r.bucket) for r in receipts} == {"s0", "s1"}
    assert [row["code"] for row in box.rows(db.country)] == ["fr"]


def test_assert_enqueued_finds_a_write_by_some_of_its_values_in_any_form(db: Any, box: Sandbox):
    receipt = pipeline.enqueue_insert(db.purchase, customer=7, day="2024-05-01", qty=3)
    with pipeline.atomic():
        pipeline.enqueue_insert(db.purchase, customer=7, day=date(2024, 5, 2))
        pipeline.enqueue_delete(db.purchase, receipt.id)

    assert len(box.assert_enqueued(db.purchase, customer="7")) == 2
    [found] = box.assert_enqueued("purchase", day=date(2024, 5, 1), qty="3", times=1)
    assert (found.kind, found.values["customer"]) == ("insert", 7)
    assert [one.kind for one in box.assert_enqueued(db.purchase, {"id": receipt.id})] == ["insert", "delete"]


def test_a_failed_assert_enqueued_shows_what_was_enqueued_instead(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=8)

    with pytest.raises(AssertionError) as raised:
        box.assert_enqueued(db.purchase, customer=7)

    text = str(raised.value)
    assert "no write to 'purchase' with {'customer': 7} was enqueued" in text
    assert "insert purchase id=" in text
    assert "'customer': 8" in text
    with pytest.raises(AssertionError, match="1 writes, not 2,"):
        box.assert_enqueued(db.purchase, customer=8, times=2)
    with pytest.raises(AssertionError, match="nothing"):
        box.assert_enqueued(db.person)


def test_assert_enqueued_of_a_field_that_is_not_there_is_a_mistake_in_the_test(db: Any, box: Sandbox):
    with pytest.raises(UnknownField, match="did you mean 'customer'"):
        box.assert_enqueued(db.purchase, custmer=7)


def test_a_rejected_op_is_counted_and_its_receipt_tells(db: Any, box: Sandbox):
    pipeline.enqueue_insert(db.purchase, customer=7, day="2024-05-01")
    twin = pipeline.enqueue_insert(db.purchase, customer=7, day="2024-05-01")

    assert box.drain() == Drained(1, 1)
    assert twin.status() == "rejected"


def test_the_log_of_a_sandbox_can_be_told_to_be_full(db: Any, box: Sandbox):
    box.log.set_full("for the test")

    with pytest.raises(PipelineFull, match="for the test"):
        pipeline.enqueue_insert(db.purchase, customer=7)


def test_a_sandbox_leaves_neither_files_nor_a_client_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with sandbox() as box:
        inside = list(tmp_path.iterdir())
        assert pipeline.current() is box.client

    assert inside
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pipeline.errors.ConfigError):
        pipeline.current()


def test_a_sandbox_within_another_leaves_that_one_as_it_was():
    with sandbox(shards=1) as outer:
        with sandbox(shards=1) as inner:
            assert pipeline.current() is inner.client

        assert pipeline.current() is outer.client
        assert outer.drain() == (0, 0)
    assert not pipeline.configured()
