"""Inserts that a worker gets as a sheet leave what they leave one by one: rows, rejects, what is held, watermarks."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.oracle.grouping import PAST, PLAIN, Database
from support.oracle.loads import AT_ONCE, insert, loaded

from pipeline.apply.executor import Executor
from pipeline.model.op import DELETE, Op
from pipeline.shard.dialect import SQLite


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with pytest.MonkeyPatch.context() as patch:
        # these files need not outlive a power cut
        patch.setattr(SQLite, "session", lambda self, read_only: ["PRAGMA synchronous=OFF"])
        database = Database(f"sqlite://{tmp_path_factory.mktemp('sheets') / 'shop.sqlite'}")
        yield database
        database.close()


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each statement that was tried for sheets."""
    tried: list[int] = []
    inserted = Executor._inserted

    def noted(self: Executor, entries: Any, facts: Any) -> bool:
        tried.append(sum(len(entry.sheet) for entry in entries))
        return inserted(self, entries, facts)

    monkeypatch.setattr(Executor, "_inserted", noted)
    return tried


@settings(max_examples=examples(150), deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_sheets_equal_their_ops_one_by_one(database: Database, seed: int):
    ops = loaded(Random(seed))

    assert database.apply(ops, at_once=AT_ONCE) == database.apply(ops, at_once=1)


def test_rows_of_a_sheet_are_one_statement(database: Database, sheets: list[int]):
    found = database.apply([insert(PLAIN, row, {1: 1, 2: "it's"}) for row in range(1, 28)], at_once=AT_ONCE)

    assert sheets == [9, 9]
    assert len(found["plain"]) == 27
    assert found["plain"][-1] == (27, 1, "it's")


def test_a_refused_row_of_a_sheet_is_rejected_alone(database: Database, sheets: list[int]):
    ops = [insert(PLAIN, row, {1: 9 if row == 13 else 1}) for row in range(1, 19)]

    found = database.apply(ops, at_once=AT_ONCE)

    assert sheets == [9]
    assert found["rejects"] == [(13,)]
    assert [row[0] for row in found["plain"]] == [row for row in range(1, 19) if row != 13]


def test_a_sheet_beside_an_op_of_its_table_is_taken_apart(database: Database, sheets: list[int]):
    first = [insert(PLAIN, row, {1: 1}) for row in range(1, 10)]
    rows = [insert(PLAIN, row, {1: 1}) for row in range(10, 18)]

    found = database.apply([*first, *rows, Op(DELETE, "plain", PLAIN.hash, 0, 17)], at_once=AT_ONCE)

    assert (sheets, len(found["plain"])) == ([], 16)


def test_sheets_of_a_parent_and_its_children_keep_their_order(database: Database, sheets: list[int]):
    known = [*(insert(PLAIN, row, {1: 1}) for row in range(1, 5)), *(past(row, 1) for row in range(1, 6))]
    ops = [past(6, 1), past(7, 2), insert(PLAIN, 50, {1: 1}), insert(PLAIN, 51, {1: 1}), past(8, 50), past(9, 51)]

    found = database.apply([*known, *ops], at_once=AT_ONCE)

    assert sheets == [2, 2, 2]
    assert found["rejects"] == []


def past(row: int, of: int) -> Op:
    return insert(PAST, row, {1: of})
