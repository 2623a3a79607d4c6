"""The table of guarantees: all of them are in it, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()


def test_every_invariant_has_a_row() -> None:
    assert re.findall(r"^\| (I\d+) \|", TEXT, re.MULTILINE) == [f"I{n}" for n in range(1, 19)]


def test_every_row_names_a_test_or_says_that_the_guarantee_is_not_built() -> None:
    rows = re.findall(r"^\| (?:I\d+)? \|.*$", TEXT, re.MULTILINE)

    assert [row for row in rows if "`tests/" not in row and "*Not built*" not in row] == []


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[^`]*)`", TEXT)

    assert named
    assert [path for path in named if not list(ROOT.glob(path))] == []
