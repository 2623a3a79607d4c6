"""Receipts: printed and read back they are the same; a text that was cut or changed is refused."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline import clock
from pipeline.errors import BadToken, LogUnavailable, PipelineError
from pipeline.model import START, Position
from pipeline.model.receipt import RENEW_S, Receipt, Receipts, Seal, _base36

receipts = st.builds(
    Receipt,
    st.integers(0, 1024),
    st.builds(Position, st.integers(1, 2**40), st.integers(0, 2**50)),
    st.none() | st.integers(1, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(1, 2**50),
)
SEAL = Seal("a secret of this deployment", "pl 256")


class Source:
    """Answers for receipts."""

    seal = SEAL

    def status(self, receipt: Receipt) -> str:
        return f"asked for {receipt.position}"

    def wait(self, receipt: Receipt, timeout_s: float) -> str:
        return self.status(receipt)

    def row_id(self, receipt: Receipt) -> int | None:
        return None


def printed(receipt: Receipt, seal: Seal = SEAL) -> str:
    """Return the text that a deployment makes of a receipt."""
    receipt.source = Source()
    receipt.source.seal = seal
    return str(receipt)


ONE = Receipt(3, Position(1_700_000_000, 12), 2**62 + 1, 2**62 + 7, 5)


@given(receipt=receipts)
def test_a_printed_receipt_reads_back_the_same(receipt: Receipt):
    found = Receipt.parse(printed(receipt), SEAL)

    assert found == receipt
    assert (found.bucket, found.position, found.row) == (receipt.bucket, receipt.position, receipt.row)
    assert (found.producer, found.producer_seq) == (receipt.producer, receipt.producer_seq)


@given(receipt=receipts)
def test_a_printed_receipt_may_stand_in_a_url_and_a_cookie(receipt: Receipt):
    text = printed(receipt)

    assert quote(text) == text
    assert len(text) < 80


@given(receipt=receipts, cut=st.integers(1, 80))
def test_a_receipt_that_was_cut_is_refused(receipt: Receipt, cut: int):
    with pytest.raises(BadToken):
        Receipt.parse(printed(receipt)[:-cut], SEAL)


def numbers_of(text: str) -> tuple[list[str], str]:
    """Return the numbers of a printed receipt, and its signature."""
    *numbers, signature = text[1:].split(".")
    return numbers, signature


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("step", [1, -1, 1000])
def test_a_receipt_of_another_op_cannot_be_made_by_counting(at: int, step: int):
    numbers, signature = numbers_of(printed(ONE))
    numbers[at] = _base36(abs(int(numbers[at], 36) + step))

    with pytest.raises(BadToken, match="changed on its way"):
        Receipt.parse(f"r{'.'.join(numbers)}.{signature}", SEAL)


def test_a_receipt_does_not_pass_for_one_of_a_spooled_op_nor_for_a_token():
    spooled = printed(Receipt(3, None, 5, 7, 8))
    numbers, signature = numbers_of(spooled)

    assert Receipt.parse(spooled, SEAL).position is None
    with pytest.raises(BadToken):
        Receipt.parse(f"r{'.'.join([numbers[0], '1', '0', *numbers[1:]])}.{signature}", SEAL)
    assert SEAL.sign_text(b"token", "r1") != SEAL.sign_text(b"receipt", "r1")


@pytest.mark.parametrize(
    "seal",
    [Seal("another secret of theirs", "pl 256"), Seal("a secret of this deployment", "shop 256"), Seal("", "pl 256")],
)
def test_a_receipt_of_another_deployment_is_refused_also_with_the_same_secret(seal: Seal):
    with pytest.raises(BadToken, match="another deployment"):
        Receipt.parse(printed(ONE, seal), SEAL)


@pytest.mark.parametrize("text", [None, b"r1.2.3.4.5.6.0", 5, 5.0, [], {}, True, ["r1.2.3.4.5.6.0"]])
def test_what_is_no_text_is_refused_as_no_receipt(text: Any):
    with pytest.raises(BadToken, match="not a receipt"):
        Receipt.parse(text, SEAL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r",
        "hello",
        "x" + printed(ONE)[1:],
        printed(ONE).upper(),
        "r-1.2.3.4.5.6." + SEAL.sign_text(b"receipt", "r-1.2.3.4.5.6"),
        "r1_0.2.3.4.5.6." + SEAL.sign_text(b"receipt", "r1_0.2.3.4.5.6"),
        "r 1.2.3.4.5.6." + SEAL.sign_text(b"receipt", "r 1.2.3.4.5.6"),
        "r\u0661.2.3.4.5.6.0",
        "r\ud800.2.3.4.5.6.0",
        "r" + "9" * 10_000_000 + ".2.3.4.5.6.0",
        "r" + ".1" * 100_000,
    ],
)
def test_what_is_no_receipt_is_refused(text: str):
    with pytest.raises(BadToken, match="not a receipt"):
        Receipt.parse(text, SEAL)


@pytest.mark.parametrize("text", ["r1.2.3.4.5.6.0", "r1.2.3.4.5.6.", f"{printed(ONE)}0", f"{printed(ONE)[:-1]}!"])
def test_a_receipt_that_nobody_signed_is_refused(text: str):
    with pytest.raises(BadToken, match="changed on its way"):
        Receipt.parse(text, SEAL)


@given(text=st.text(max_size=80) | st.from_regex(r"[rs]([0-9a-z_+\- ]{1,8}\.){4,6}[0-9A-Za-z_-]{0,16}"))
def test_no_text_from_outside_is_taken_or_raises_anything_else(text: str):
    with pytest.raises(BadToken):
        Receipt.parse(text, SEAL)


def test_the_secret_is_asked_for_once_however_many_receipts_are_printed():
    asked: list[int] = []

    def secret() -> str:
        asked.append(1)
        return "a secret of this deployment"

    seal = Seal(secret, "pl 256")

    assert {printed(ONE, seal) for _ in range(100)} == {printed(ONE)}
    assert len(asked) == 1


def test_a_process_that_is_shown_a_receipt_under_another_secret_asks_whether_that_is_the_secret_by_now(
    monkeypatch: pytest.MonkeyPatch,
):
    asked, said, now_s = list[str](), ["an old secret"], [0.0]
    monkeypatch.setattr(clock, "mono_s", lambda: now_s[0])

    def secret() -> str:
        asked.append(said[0])
        if not said[0]:
            raise LogUnavailable("away")
        return said[0]

    seal = Seal(secret, "pl 256")
    seal.learn()
    said[0] = "a secret of this deployment"  # Redis lost the old one

    assert Receipt.parse(printed(ONE), seal).position == ONE.position
    assert printed(ONE, seal) == printed(ONE)
    for said[0], now_s[0] in (("a third one", RENEW_S - 1), ("", RENEW_S + 1)):  # too soon; Redis is away
        with pytest.raises(BadToken, match="secret has changed"):
            Receipt.parse(printed(ONE, Seal("a third one", "pl 256")), seal)
    assert printed(ONE, seal) == printed(ONE)
    assert asked == ["an old secret", "a secret of this deployment", ""]


def test_an_op_that_has_not_been_sent_has_an_id_but_no_receipt_to_print():
    receipt = Receipt(3, None, 5)

    assert receipt.id == 5
    with pytest.raises(PipelineError, match="not been sent yet"):
        str(receipt)


def test_a_receipt_of_no_pipeline_says_how_to_read_it():
    with pytest.raises(PipelineError, match=r"pipeline\.Receipt\.parse"):
        Receipt.parse(printed(ONE), SEAL).status()


def test_the_facade_reads_receipts_for_the_configured_pipeline():
    receipt = pipeline.Receipt.parse(printed(ONE), Source())

    assert receipt.status() == "asked for 1700000000-12"


@pytest.mark.parametrize("row", [0, -1, -5])
def test_a_row_whose_number_is_no_id_prints_without_it(row: int):
    assert Receipt.parse(printed(Receipt(3, Position(1, 2), row, 4, 5)), SEAL).id is None


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
