"""Receipts: printed and read back they are the same; a text that was cut or changed is refused."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.errors import BadToken, PipelineError
from pipeline.model.op import START, Position
from pipeline.model.receipt import Receipt, Receipts

receipts = st.builds(
    Receipt,
    st.integers(0, 1024),
    st.builds(Position, st.integers(1, 2**40), st.integers(0, 2**50)),
    st.none() | st.integers(1, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(1, 2**50),
)
ONE = Receipt(3, Position(1_700_000_000, 12), 2**62 + 1, 2**62 + 7, 5)


@given(receipt=receipts)
def test_a_printed_receipt_reads_back_the_same(receipt: Receipt):
    found = Receipt.parse(str(receipt))

    assert found == receipt
    assert (found.bucket, found.position, found.id) == (receipt.bucket, receipt.position, receipt.id)
    assert (found.producer, found.producer_seq) == (receipt.producer, receipt.producer_seq)


@given(receipt=receipts)
def test_a_printed_receipt_may_stand_in_a_url_and_a_cookie(receipt: Receipt):
    text = str(receipt)

    assert quote(text) == text
    assert len(text) < 80


@given(receipt=receipts, cut=st.integers(1, 80))
def test_a_receipt_that_was_cut_is_refused(receipt: Receipt, cut: int):
    with pytest.raises(BadToken):
        Receipt.parse(str(receipt)[:-cut])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r",
        "hello",
        "x" + str(ONE)[1:],
        str(ONE).replace("3.", "4.", 1),
        str(ONE).upper(),
        f"{ONE}0",
        "r1.2.3.4.5.6.0",
    ],
)
def test_what_is_no_receipt_is_refused(text: str):
    with pytest.raises(BadToken, match="not a receipt"):
        Receipt.parse(text)


def test_a_text_with_a_right_check_but_no_numbers_is_refused():
    from pipeline.model.receipt import _check

    body = "a.b.c.d.e.%"

    with pytest.raises(BadToken):
        Receipt.parse(f"r{body}.{_check(body)}")


def test_an_op_that_has_not_been_sent_has_an_id_but_no_receipt_to_print():
    receipt = Receipt(3, None, 5)

    assert receipt.id == 5
    with pytest.raises(PipelineError, match="not been sent yet"):
        str(receipt)


def test_a_receipt_of_no_pipeline_says_how_to_read_it():
    with pytest.raises(PipelineError, match=r"pipeline\.Receipt\.parse"):
        ONE.status()


def test_the_facade_reads_receipts_for_the_configured_pipeline():
    class Source:
        def status(self, receipt: Receipt) -> str:
            return f"asked for {receipt.position}"

    receipt = pipeline.Receipt.parse(str(ONE), Source())

    assert receipt.status() == "asked for 1700000000-12"


@pytest.mark.parametrize("row", [0, -1, -5])
def test_a_row_whose_number_is_no_id_prints_without_it(row: int):
    assert Receipt.parse(str(Receipt(3, Position(1, 2), row, 4, 5))).id is None


def test_receipts_are_made_when_they_are_looked_at():
    made: list[int] = []

    def make(row: int) -> Receipt:
        made.append(row)
        return Receipt(0, Position(1, row), None)

    receipts = Receipts(make, 1000)

    assert len(receipts) == 1000
    assert receipts[-1].position == Position(1, 999)
    assert [r.position.seq for r in receipts[10:13] if r.position] == [10, 11, 12]
    assert made == [999, 10, 11, 12]
    with pytest.raises(IndexError):
        receipts[1000]
    assert sum(1 for _ in receipts) == 1000


@given(epochs=st.lists(st.builds(Position, st.integers(1, 5), st.integers(0, 5)), min_size=2))
def test_positions_compare_by_epoch_first_and_all_are_behind_the_start(epochs: list[Position]):
    assert sorted(epochs) == sorted(epochs, key=lambda p: p.epoch * 1000 + p.seq)
    assert all(position > START for position in epochs)
    assert [Position.parse(str(position)) for position in epochs] == epochs
