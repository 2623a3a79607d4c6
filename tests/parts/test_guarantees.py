"""The tables of guarantees and of faults: all guarantees are there, and so is each test that the tables name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
FAULTS = (ROOT / "docs" / "reliability.md").read_text()


def test_every_invariant_has_a_row() -> None:
    assert re.findall(r"^\| (I\d+) \|", TEXT, re.MULTILINE) == [f"I{n}" for n in range(1, 19)]


def test_every_row_names_a_test_or_says_that_the_guarantee_is_not_built() -> None:
    rows = re.findall(r"^\| (?:I\d+)? \|.*$", TEXT, re.MULTILINE)

    assert [row for row in rows if "`tests/" not in row and "*Not built*" not in row] == []


def test_every_promise_against_a_fault_names_its_test() -> None:
    promises = re.search(r"^## Promises\n(.*?)^## ", FAULTS, re.MULTILINE | re.DOTALL)

    assert promises is not None
    rows = re.findall(r"^\| (?!promise|---).*$", promises[1], re.MULTILINE)
    assert [row for row in rows if "`tests/" not in row.split(" | ")[2]] == []


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[^`]*)`", TEXT + FAULTS)

    assert named
    assert [path for path in named if not list(ROOT.glob(path))] == []
