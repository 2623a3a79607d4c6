"""Two calls with one idempotency key, at once or in any other order: one row, and both receipts know its id."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.one_key import Caller

import pipeline
from pipeline import model
from pipeline.errors import BadOp
from pipeline.model.receipt import Receipt
from pipeline.oplog.shared_state import IDEMPOTENCY_TTL_MS
from pipeline.shard.records import known_keys
from pipeline.testing import Drained, Sandbox

TABLES = {
    "purchase": {"shard_key": "customer", "unique": [["customer", "day"]]},
    "country": {"reference": True},
    "legacy": {"shard_key": "customer", "ids": "database"},
}


@pytest.fixture
def db(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    for name in ("purchase", "note", "legacy"):
        db.define_table(name, Field("customer", "integer"), Field("day", "string"), Field("qty", "integer"))
    db.define_table("country", Field("code"))
    pipeline.define_tables(db)
    yield db
    db.close()


Make = Callable[[bool], Caller]


@pytest.fixture
def caller(box: Sandbox, db: Any) -> Make:
    def buy(qty: int, **options: Any) -> Receipt:
        return box.client.enqueue_insert(db.purchase, {"customer": 7, "qty": qty}, **options)

    return lambda held: Caller(box.client, buy, held=held)


@pytest.mark.parametrize("second_first", [False, True])
@pytest.mark.parametrize("held", [(True, True), (True, False)])
def test_whichever_of_two_requests_wins_both_had_the_id_of_the_row(
    box: Sandbox, caller: Make, held: tuple[bool, bool], second_first: bool
):
    first, second = map(caller, held)
    one, other = first.buys(1), second.buys(2)
    told = one.id, other.id

    for request in (second, first) if second_first else (first, second):
        request.ends()
    box.drain()

    [row] = box.rows("purchase")
    assert (row["id"], row["id"]) == told == (one.id, other.id)
    assert row["qty"] == (2 if second_first or not held[1] else 1)
    assert {one.status(), other.status()} == {"applied"}


@pytest.mark.parametrize("held", [True, False])
def test_after_a_ticket_the_request_in_flight_writes_the_row_under_the_id_that_it_was_told(
    box: Sandbox, caller: Make, held: bool
):
    failing, second = caller(True), caller(held)
    told = failing.buys(1).id
    receipt = second.buys(2)

    failing.ends(ticket=True)
    second.ends()

    assert box.drain() == Drained(1, 0)
    assert receipt.id == told
    assert [(row["id"], row["qty"]) for row in box.rows("purchase")] == [(told, 2)]


@pytest.mark.parametrize("held", [True, False])
def test_a_retry_after_a_ticket_is_queued(box: Sandbox, caller: Make, held: bool):
    failing = caller(True)
    failing.buys(1)
    failing.ends(ticket=True)

    again = caller(held)
    receipt = again.buys(2)
    again.ends()

    assert box.drain() == Drained(1, 0)
    assert [(row["id"], row["qty"]) for row in box.rows("purchase")] == [(receipt.id, 2)]


def test_threads_that_call_at_the_same_moment_are_told_one_id_and_it_is_the_rows(box: Sandbox, caller: Make):
    barrier, receipts = threading.Barrier(6), list[Receipt]()

    def call(held: bool) -> None:
        request = caller(held)
        barrier.wait(30)
        receipts.append(request.buys(1))
        request.ends()

    threads = [threading.Thread(target=call, args=(n % 2 == 0,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    box.drain()

    assert len(receipts) == 6
    assert [row["id"] for row in box.rows("purchase")] == list({receipt.id for receipt in receipts})


@pytest.mark.parametrize("durability", ["fsync", "replica"])
def test_a_durability_of_its_own_changes_nothing(box: Sandbox, caller: Make, durability: str):
    box.log.durable = True
    waiting = caller(True)
    told = waiting.buys(1).id

    receipt = caller(False).buys(2, durability=durability)
    waiting.ends()

    assert box.drain() == Drained(1, 0)
    assert [row["id"] for row in box.rows("purchase")] == [receipt.id] == [told]


def test_an_op_without_a_key_asks_and_reserves_nothing(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(box.log, "claim_key", lambda *arguments: asked.append(arguments))
    held = box.client.held()
    with box.client.holding(held):
        pipeline.enqueue_insert(db.purchase, customer=7)
    pipeline.enqueue_insert(db.purchase, customer=7)
    pipeline.enqueue_insert(db.purchase, {"customer": 7}, durability="fsync")
    held.send()

    assert asked == []
    assert box.drain() == Drained(3, 0)


# tables and kinds of ops ------------------------------------------------------------------------------------------


def test_a_key_is_compared_byte_by_byte_and_belongs_to_its_table_and_kind(box: Sandbox, db: Any):
    keys = ["k", "k ", "K", "é", "e\u0301", "e", "k\0", "\U0001f600", "\U0001f601"]
    rows = [pipeline.enqueue_insert(db.purchase, {"customer": 7}, idempotency_key=key).id for key in keys]
    other = pipeline.enqueue_insert(db.legacy, {"customer": 7}, idempotency_key="k")
    pipeline.enqueue_update(db.purchase.id == rows[0], {"qty": 5}, shard_key=7, idempotency_key="k")

    assert box.drain() == Drained(len(keys) + 2, 0)

    assert [row["id"] for row in box.rows("purchase")] == sorted(row for row in rows if row)
    assert [row["id"] for row in box.rows("legacy")] == [other.id]
    assert pipeline.get(db.purchase, rows[0]).qty == 5


@pytest.mark.parametrize("held", [True, False])
def test_in_a_table_that_is_sharded_by_its_own_id_the_id_carries_the_bucket_of_both_ops(
    box: Sandbox, db: Any, held: bool
):
    requests = [box.client.held(), box.client.held() if held else None]
    receipts = []
    for request in requests:
        for n in range(20):
            if request is None:
                receipts.append(pipeline.enqueue_insert(db.note, {"qty": 1}, idempotency_key=f"note {n}"))
                continue
            with box.client.holding(request):
                receipts.append(pipeline.enqueue_insert(db.note, {"qty": 1}, idempotency_key=f"note {n}"))
    for request in requests:
        if request is not None:
            request.send()
    box.drain()

    assert sorted(row["id"] for row in box.rows("note")) == sorted({receipt.id for receipt in receipts})
    assert len(box.rows("note")) == 20
    assert len({receipt.bucket for receipt in receipts}) > 1
    assert all(model.bucket_of(receipt.id) == receipt.bucket for receipt in receipts if receipt.id)
    assert [pipeline.get(db.note, receipt.id).qty for receipt in receipts] == [1] * 40


def test_a_reference_row_has_the_reserved_id_on_every_shard(box: Sandbox, db: Any):
    held = box.client.held()
    with box.client.holding(held):
        first = pipeline.enqueue_insert(db.country, code="fr", idempotency_key="k")
    second = pipeline.enqueue_insert(db.country, code="fr", idempotency_key="k")
    held.send()
    box.drain()

    assert first.id == second.id
    stored = [box.client.nodes.primary(shard).query("SELECT id FROM country") for shard in ("s0", "s1")]
    assert stored == [[(first.id,)]] * 2


def test_where_the_database_gives_the_ids_both_learn_the_same(box: Sandbox, db: Any):
    held = box.client.held()
    with box.client.holding(held):
        first = pipeline.enqueue_insert(db.legacy, {"customer": 7}, idempotency_key="k")
    second = pipeline.enqueue_insert(db.legacy, {"customer": 7}, idempotency_key="k")
    held.send()
    box.drain()

    assert [row["id"] for row in box.rows("legacy")] == [first.id] == [second.id] == [1]


def test_an_id_that_the_caller_gives_is_stored_or_refused_but_never_changed(box: Sandbox, db: Any):
    held = box.client.held()
    with box.client.holding(held):
        kept = pipeline.enqueue_insert(db.purchase, {"id": 5, "customer": 7}, idempotency_key="k")
        same = pipeline.enqueue_insert(db.purchase, {"id": 5, "customer": 7}, idempotency_key="k")
        with pytest.raises(BadOp, match="'k' has claimed the row 5 of 'purchase', and this insert gives the id 6"):
            pipeline.enqueue_insert(db.purchase, {"id": 6, "customer": 7}, idempotency_key="k")
    with pytest.raises(BadOp, match="use a new key for another row"):
        pipeline.enqueue_insert(db.purchase, {"id": 6, "customer": 7}, idempotency_key="k")
    held.send()
    box.drain()

    assert (kept.id, same.id) == (5, 5)
    assert [row["id"] for row in box.rows("purchase")] == [5]


def test_an_update_with_a_key_takes_effect_once_and_keeps_its_rows_id(box: Sandbox, db: Any):
    row = pipeline.enqueue_insert(db.purchase, customer=7, qty=1).id
    held = box.client.held()
    mine, more = db.purchase.id == row, {"qty": db.purchase.qty + 1}
    with box.client.holding(held):
        first = pipeline.enqueue_update(mine, more, idempotency_key="k")
    second = pipeline.enqueue_update(mine, more, idempotency_key="k")
    held.send()
    box.drain()

    assert (first.id, second.id) == (row, row)
    assert [one["qty"] for one in box.rows("purchase")] == [2]
    assert {first.status(), second.status()} == {"applied"}


def test_a_delete_with_a_key_is_queued_once(box: Sandbox, db: Any):
    row = pipeline.enqueue_insert(db.purchase, customer=7, qty=1).id
    first = pipeline.enqueue_delete(db.purchase.id == row, idempotency_key="k")
    second = pipeline.enqueue_delete(db.purchase.id == row, idempotency_key="k")

    assert box.drain() == Drained(2, 0)
    assert first == second
    assert box.rows("purchase") == []


def test_an_upsert_with_a_key_never_tells_an_id_that_a_row_found_does_not_have(box: Sandbox, db: Any):
    there = pipeline.enqueue_insert(db.purchase, customer=7, day="monday", qty=1).id
    box.drain()
    values = {"customer": 7, "day": "monday", "qty": 5}
    first, second = (
        pipeline.enqueue_upsert(db.purchase, values, key=["customer", "day"], idempotency_key="k") for _ in range(2)
    )

    assert box.drain() == Drained(1, 0)
    assert first == second
    assert (first.id, second.id) == (None, None)
    assert [(row["id"], row["qty"]) for row in box.rows("purchase")] == [(there, 5)]


def test_an_edit_that_is_applied_while_its_key_is_looked_up_is_shown(
    box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch
):
    row = pipeline.enqueue_insert(db.purchase, customer=7, qty=1).id
    box.drain()
    pipeline.enqueue_update(db.purchase.id == row, {"qty": 2}, idempotency_key="k")

    def applied_meanwhile(*arguments: Any) -> Any:
        box.drain()
        return known_keys(*arguments)

    monkeypatch.setattr("pipeline.reads.pending.known_keys", applied_meanwhile)

    assert pipeline.get(db.purchase, row, pending=True).qty == 2


@pytest.mark.parametrize("applied", [False, True])
def test_an_edit_that_is_queued_twice_is_shown_once(box: Sandbox, db: Any, applied: bool):
    row = pipeline.enqueue_insert(db.purchase, customer=7, qty=1).id
    box.drain()
    for n in range(3):
        pipeline.enqueue_update(db.purchase.id == row, {"qty": db.purchase.qty + 1}, idempotency_key="k")
        # Redis forgets the key after a day, the shard after a week
        box.log.ahead_ms = IDEMPOTENCY_TTL_MS
        if applied and n == 0:
            box.drain()

    assert pipeline.get(db.purchase, row, pending=True).qty == 2
    box.drain()
    assert [one["qty"] for one in box.rows("purchase")] == [2]


def test_a_bulk_insert_and_an_op_of_a_group_take_no_key_and_queue_nothing(db: Any, box: Sandbox):
    with pytest.raises(BadOp, match="a bulk insert takes no idempotency_key"):
        pipeline.enqueue_bulk_insert(db.purchase, [{"customer": 1, "qty": 1}], idempotency_key="k")

    def group() -> None:
        with pipeline.atomic():
            pipeline.enqueue_insert(db.purchase, customer=1, qty=1)
            pipeline.enqueue_insert(db.purchase, customer=1, qty=2, idempotency_key="k")

    with pytest.raises(BadOp, match="an op in an atomic group takes no idempotency_key"):
        group()

    box.drain()
    assert box.rows(db.purchase) == []
