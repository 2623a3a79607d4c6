"""Ops that wait for the request's own commit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import LogUnavailable, PipelineError, PipelineFull
from pipeline.testing import Drained, Sandbox

TABLES = {"purchase": {"shard_key": "customer", "unique": [["customer", "day"]]}}


@pytest.fixture
def db(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("purchase", Field("customer", "integer"), Field("day", "date"), Field("qty", "integer", default=1))
    pipeline.define_tables(db)
    yield db
    db.close()


def test_a_second_request_with_an_idempotency_key_knows_the_first_ones_row_before_it_is_sent(db: Any, box: Sandbox):
    def requested() -> Any:
        held = box.client.held()
        with box.client.holding(held):
            receipt = pipeline.enqueue_insert(db.purchase, customer=7, idempotency_key="form 1")
        known = receipt.id
        held.send()
        return known, receipt.id

    first, second = requested(), requested()

    assert set(first + second) == {first[0]}
    assert box.drain() == Drained(1, 0)
    assert [row["id"] for row in box.rows("purchase")] == [first[0]]


def test_while_redis_is_away_no_id_is_reserved_and_nothing_is_raised(db: Any, box: Sandbox):
    held = box.client.held()
    claim_key = box.log.claim_key

    def away(*args: Any) -> Any:
        raise LogUnavailable("away", sent=False)

    box.log.claim_key = away  # type: ignore[method-assign]  # our own double
    with box.client.holding(held):
        receipt = pipeline.enqueue_insert(db.purchase, customer=7, idempotency_key="form 1")
    box.log.claim_key = claim_key  # type: ignore[method-assign]
    held.send()

    assert receipt.id
    assert box.drain() == Drained(1, 0)


def test_held_ops_have_ids_at_once_and_positions_when_sent(db: Any, box: Sandbox):
    held = box.client.held()

    with box.client.holding(held):
        first = pipeline.enqueue_insert(db.purchase, customer=7)
        pipeline.enqueue_update(db.purchase.id == first.id, qty=5)
        with pipeline.atomic():
            pipeline.enqueue_insert(db.purchase, customer=8)
            pipeline.enqueue_insert(db.purchase, customer=8)
        pipeline.enqueue_bulk_insert(db.purchase, [{"customer": 9}, {"customer": 10}])
        pipeline.enqueue_insert(db.purchase, customer=11, idempotency_key="once")

    assert first.id
    assert first.position is None
    with pytest.raises(PipelineError, match="not been sent yet"):
        first.status()
    assert box.drain() == Drained(0, 0)

    receipts = held.send()

    assert len(receipts) == 7
    assert all(receipt.position is not None for receipt in receipts)
    assert receipts[2].position == receipts[3].position
    assert len(held) == 0
    assert box.drain() == Drained(6, 0)  # a group counts once
    assert [receipt.status() for receipt in receipts] == ["applied"] * 7
    [row] = [row for row in box.rows("purchase") if row["id"] == first.id]
    assert row["qty"] == 5


def test_dropped_ops_are_never_sent(db: Any, box: Sandbox):
    held = box.client.held()
    with box.client.holding(held):
        pipeline.enqueue_insert(db.purchase, customer=7)

    held.drop()

    assert held.send() == []
    assert box.drain() == Drained(0, 0)


def test_only_the_calls_of_the_block_are_held(db: Any, box: Sandbox):
    held = box.client.held()
    with box.client.holding(held):
        pipeline.enqueue_insert(db.purchase, customer=7)
    pipeline.enqueue_insert(db.purchase, customer=7, day=date(2024, 1, 1))

    assert len(held) == 1
    assert box.drain() == Drained(1, 0)


def test_what_was_sent_before_an_error_is_not_sent_again(db: Any, box: Sandbox):
    held = box.client.held()
    with box.client.holding(held):
        pipeline.enqueue_insert(db.purchase, customer=7, idempotency_key="first")
        pipeline.enqueue_insert(db.purchase, customer=8)
        pipeline.enqueue_insert(db.purchase, customer=9, idempotency_key="last")
    box.client.log.set_full("test")
    with pytest.raises(PipelineFull):
        held.send()
    assert len(held) == 2

    box.client.log.set_full(None)

    assert len(held.send()) == 2
    assert box.drain() == Drained(2, 0)
