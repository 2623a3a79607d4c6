"""`docs/troubleshooting.md` has a row for each reason that `pipeline why` can give, in its words, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.model.wait_reason import KINDS, WaitReason

ROOT = Path(__file__).parents[2]


def rows() -> dict[str, str]:
    """Return what mends each reason, as the page says it."""
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return {because: mend for because, _, mend in cells[1:]}


def test_the_page_has_each_reason_in_its_order_with_what_mends_it_and_no_other():
    assert list(rows().items()) == [(kind.because, kind.mend) for kind in KINDS.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_reason_was_seen_in_a_test(kind: str):
    tests = [*ROOT.glob("tests/sandbox/*.py"), *ROOT.glob("tests/integration/**/*.py")]

    assert any(f'"{kind}"' in path.read_text(encoding="utf-8") for path in tests)


@pytest.mark.parametrize("kind", KINDS)
def test_every_reason_makes_one_sentence_with_nothing_left_to_fill_in(kind: str):
    sentence = WaitReason(kind, "s0", "purchase", "a cause", 1_764_322_222_000).sentence("the op at 3:1-4")

    assert sentence.startswith("the op at 3:1-4 has waited since 2025-11-28 09:30:22 UTC because ")
    assert "{" not in sentence
    assert "; " in sentence


def test_a_note_of_another_version_is_left_out():
    assert WaitReason.from_json('{"kind": "unheard-of", "shard": "s0", "scope": "s0"}') is None
    assert WaitReason.from_json("not JSON") is None
    reason = WaitReason("schema", "s0", "purchase", "a column", 5, "1-4", 2)
    assert WaitReason.from_json(reason.to_json()) == reason
