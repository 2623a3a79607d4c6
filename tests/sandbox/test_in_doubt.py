"""In doubt is said: an op that Redis may have, and the spool cannot take, has a receipt for a harmless repeat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sandbox.spooling import Shop

from pipeline.client import Client
from pipeline.enqueue import held_ops
from pipeline.errors import BadOp, InDoubt, LogUnavailable, PipelineFull, SpoolUnavailable


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path, monkeypatch)
    made.buy(1)
    yield made
    made.client.close()
    made.box.client.close()
    made.db.close()


def lose(shop: Shop, where: str) -> None:
    def broken(here: str) -> None:
        if here == where:
            raise ConnectionError("on purpose")

    shop.log.fault = broken


def mend(shop: Shop) -> None:
    shop.log.fault = lambda where: None
    shop.client.away.close()


@pytest.fixture(params=["full", "cannot be written", "sync fails"])
def no_spool(shop: Shop, request: pytest.FixtureRequest) -> Iterator[pytest.MonkeyPatch]:
    """Let the spool take nothing."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PipelineFull("the spool is full") if request.param == "full" else SpoolUnavailable("app.spool", "no")

    def fail(file: int) -> None:
        raise OSError(5, "on purpose")

    with pytest.MonkeyPatch.context() as patched:
        if request.param == "sync fails":
            patched.setattr(os, "fdatasync", fail)
        else:
            patched.setattr(shop.client.spool, "add", refuse)
        yield patched


@pytest.mark.parametrize("lost", ["send", "reply"])
def test_an_op_in_doubt_is_applied_once_however_often_it_is_repeated_with_its_receipt(
    shop: Shop, no_spool: pytest.MonkeyPatch, lost: str
):
    lose(shop, lost)
    with pytest.raises(InDoubt, match="again=") as raised:
        shop.buy(2)
    assert "nothing was queued" not in str(raised.value)
    assert not raised.value.retryable
    no_spool.undo()
    mend(shop)

    first = raised.value.receipt
    repeats = [shop.buy(2, again=first) for _ in range(3)]
    shop.drain()

    assert {(again.producer, again.producer_seq, again.id) for again in repeats} == {
        (first.producer, first.producer_seq, first.id)
    }
    assert shop.bought() == [1, 2]
    assert {receipt.status() for receipt in (first, *repeats)} == {"applied"}


def test_a_repeat_while_redis_is_still_away_is_spooled_once(shop: Shop, no_spool: pytest.MonkeyPatch):
    lose(shop, "reply")
    with pytest.raises(InDoubt) as raised:
        shop.buy(2)
    no_spool.undo()
    shop.log.away = True

    repeats = [shop.buy(2, again=raised.value.receipt) for _ in range(2)]

    assert {again.status() for again in repeats} == {"spooled"}
    shop.log.away = False
    mend(shop)
    shop.drain()
    assert shop.bought() == [1, 2]


def test_updates_deletes_and_upserts_can_be_repeated_too(shop: Shop, no_spool: pytest.MonkeyPatch):
    purchase, row = shop.db.purchase, shop.buy(5)
    where = (purchase.id == row.id) & (purchase.customer == 7)

    def calls(**again: Any) -> Iterator[Any]:
        yield lambda: shop.client.enqueue_update(where, {"qty": purchase.qty * 3}, **again)
        yield lambda: shop.client.enqueue_delete(where, **again)

    for nth, call in enumerate(calls()):
        lose(shop, "reply")
        with pytest.raises(InDoubt) as raised:
            call()
        no_spool.undo() if nth else None
        mend(shop)
        list(calls(again=raised.value.receipt))[nth]()
        if not nth:
            shop.box.drain()
            assert [found["qty"] for found in shop.box.rows("purchase")] == [1, 15]
    shop.drain()

    assert shop.bought() == [1]


def test_the_same_call_with_its_idempotency_key_is_as_harmless(shop: Shop, no_spool: pytest.MonkeyPatch):
    lose(shop, "reply")
    with pytest.raises(InDoubt) as raised:
        shop.buy(2, idempotency_key="k")
    no_spool.undo()
    mend(shop)

    plain, again = shop.buy(2, idempotency_key="k"), shop.buy(2, idempotency_key="k", again=raised.value.receipt)
    shop.drain()

    assert plain.id == again.id == raised.value.receipt.id
    assert shop.bought() == [1, 2]


def test_a_bulk_call_says_of_each_row_whether_it_may_be_queued(shop: Shop, no_spool: pytest.MonkeyPatch):
    rows = [{"customer": n, "qty": n} for n in range(40)]
    appends = 0

    def broken(where: str) -> None:
        nonlocal appends
        appends += where == "reply"
        if appends > 1:
            raise ConnectionError("on purpose")

    shop.client.enqueue_bulk_insert(shop.db.purchase, [{"customer": n, "qty": 0} for n in range(40)])
    shop.log.fault = broken
    with pytest.raises(InDoubt) as raised:
        shop.client.enqueue_bulk_insert(shop.db.purchase, rows)
    no_spool.undo()
    mend(shop)

    assert len(raised.value.receipts) == 40
    for row, receipt in zip(rows, raised.value.receipts, strict=True):
        assert receipt is not None
        shop.client.enqueue_insert(shop.db.purchase, row, again=receipt)
    shop.drain()

    assert sorted(qty for qty in shop.bought() if qty) == sorted([1, *range(1, 40)])


def test_held_ops_in_doubt_have_receipts(shop: Shop, no_spool: pytest.MonkeyPatch):
    held = shop.client.held()
    with shop.client.holding(held):
        receipts = [shop.buy(2), shop.buy(3)]
    lose(shop, "reply")

    with pytest.raises(InDoubt) as raised:
        held.send()

    assert list(raised.value.receipts) == receipts
    assert all(receipt.sent for receipt in receipts)
    no_spool.undo()
    mend(shop)
    shop.drain()
    assert shop.bought() == [1, 2, 3]


def test_without_a_spool_a_lost_reply_leaves_the_op_in_doubt_too(shop: Shop):
    client: Client = shop.box.client
    client.enqueue_insert(shop.db.purchase, customer=7, qty=5)
    lose(shop, "reply")

    with pytest.raises(InDoubt) as raised:
        client.enqueue_insert(shop.db.purchase, customer=7, qty=6)

    mend(shop)
    client.enqueue_insert(shop.db.purchase, {"customer": 7, "qty": 6}, again=raised.value.receipt)
    assert sorted(shop.bought()) == [1, 5, 6]
    assert isinstance(raised.value, LogUnavailable)


def test_an_op_that_was_certainly_not_taken_is_in_no_doubt(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PipelineFull("the spool is full")

    shop.log.set_full("on purpose", for_ms=60_000)
    monkeypatch.setattr(shop.client.spool, "add", refuse)

    with pytest.raises(PipelineFull, match="nothing was queued"):
        shop.buy(2)


def test_a_bulk_call_that_is_refused_behind_its_first_chunk_names_those_that_are_queued(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PipelineFull("the spool is full")

    def rows() -> Iterator[dict[str, int]]:
        for n in range(1500):
            if n == 1400:
                shop.log.set_full("on purpose", for_ms=60_000)
            yield {"customer": 7, "qty": n}

    monkeypatch.setattr(shop.client.spool, "add", refuse)
    monkeypatch.setattr(held_ops, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(held_ops, "SHEET_ROWS", 1000)
    with pytest.raises(InDoubt) as raised:
        shop.client.enqueue_bulk_insert(shop.db.purchase, rows())

    receipts = raised.value.receipts
    assert [receipt is not None for receipt in receipts] == [True] * 1000 + [False] * 500
    assert receipts[999].status() == "queued"


@pytest.mark.parametrize(("most_rows", "most_bytes"), [(7, 1_000_000), (1000, 1500)])
@pytest.mark.parametrize("held", [False, True])
def test_each_receipt_of_a_bulk_call_is_of_its_row_wherever_the_chunks_end(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, most_rows: int, most_bytes: int, held: bool
):
    monkeypatch.setattr(held_ops, "CHUNK_ROWS", most_rows)
    monkeypatch.setattr(held_ops, "CHUNK_BYTES", most_bytes)
    rows = [{"customer": n % 5, "qty": n} for n in range(40)]

    if held:
        with shop.client.holding(ops := shop.client.held()):
            receipts = list(shop.client.enqueue_bulk_insert(shop.db.purchase, rows))
        ops.send()
    else:
        receipts = list(shop.client.enqueue_bulk_insert(shop.db.purchase, rows))
    shop.box.drain()

    stored = {row["id"]: row["qty"] for row in shop.box.rows("purchase")}
    assert [stored[receipt.id] for receipt in receipts] == [row["qty"] for row in rows]
    assert {receipt.status() for receipt in receipts} == {"applied"}
    assert len({(receipt.bucket, receipt.position) for receipt in receipts}) == 40


def test_the_receipt_of_another_op_is_refused(shop: Shop):
    purchase = shop.db.purchase
    other = next(
        r for n in range(8, 99) if (r := shop.client.enqueue_insert(purchase, customer=n)).bucket != shop.buy(0).bucket
    )

    with pytest.raises(BadOp, match="again="):
        shop.client.enqueue_update((purchase.id == 5) & (purchase.customer == 7), {"qty": 1}, again=other)
