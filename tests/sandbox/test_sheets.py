"""Inserts that a worker gets as a sheet leave what they leave one by one: rows, rejects, what is held, watermarks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.oracle.grouping import BUCKET, EPOCH, PAST, PLAIN, PRODUCER, SCOPE, WARY, Database
from support.oracle.loads import AT_ONCE, insert, loaded

from pipeline.apply import pace
from pipeline.apply.applier import Applier
from pipeline.apply.batch import Batch
from pipeline.apply.executor import Executor
from pipeline.config.settings import ApplySettings
from pipeline.model import DELETE, Entry, Op, encode
from pipeline.model.schema import TableSchema
from pipeline.oplog.appends import Append
from pipeline.shard import NodeSession
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
    failed = Executor._failed

    def noted(self: Executor, parts: Sequence[Sequence[int]], *rest: Any, **options: Any) -> Any:
        tried.extend(map(len, parts))
        return failed(self, parts, *rest, **options)

    monkeypatch.setattr(Executor, "_failed", noted)
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

    assert sheets == [9, 4, 5, 2, 2, 1, 1]  # SQLite names no row
    assert found["rejects"] == [(13,)]
    assert [row[0] for row in found["plain"]] == [row for row in range(1, 19) if row != 13]


def test_what_became_of_a_batch_is_written_in_one_round_trip(database: Database, monkeypatch: pytest.MonkeyPatch):
    asked, ask = list[str](), NodeSession.ask

    def noted(self: NodeSession, *statements: str) -> Any:
        asked.append(" ".join(statements))
        return ask(self, *statements)

    monkeypatch.setattr(NodeSession, "ask", noted)

    found = database.apply([insert(PLAIN, row, {1: 9 if row == 3 else 1}) for row in range(1, 9)], at_once=AT_ONCE)

    assert found["rejects"] == [(3,)]
    tables = ("producers", "rejects", "held", "watermarks")
    assert any(all(f" pipeline_{table} " in sent for table in tables) for sent in asked)


def come_to(monkeypatch: pytest.MonkeyPatch, *ids: int | None) -> None:
    """Let the server say of each statement that fails to which marked id it came; of the last ones nothing."""
    words = iter(ids)
    monkeypatch.setattr(SQLite, "mark", "@{}")
    monkeypatch.setattr("pipeline.apply.executor.marked_rows", lambda rows, mark: rows)
    monkeypatch.setattr(NodeSession, "marked_ids", lambda self, asked: [next(words, None) for _ in asked])


@pytest.mark.parametrize(
    ("last", "tried"),
    [
        (10, [9, 4, 5, 1, 1, 1, 1]),
        (12, [9, 4, 5, 1, 1, 2]),
        (11, [9, 4, 5, 1, 1, 1, 1]),
        (15, [9, 4, 5, 2, 2, 1, 1]),  # a row of another statement
        (None, [9, 4, 5, 2, 2, 1, 1]),
    ],
)
def test_rows_behind_the_last_mark_are_tried_alone_and_a_wrong_word_changes_no_result(
    database: Database, sheets: list[int], monkeypatch: pytest.MonkeyPatch, last: int | None, tried: list[int]
):
    ops = [insert(PLAIN, row, {1: 9 if row == 13 else 1}) for row in range(1, 19)]
    come_to(monkeypatch, last)

    found = database.apply(ops, at_once=AT_ONCE)

    assert sheets == tried
    assert found["rejects"] == [(13,)]
    assert [row[0] for row in found["plain"]] == [row for row in range(1, 19) if row != 13]


def test_rows_are_inserted_in_the_order_of_their_ids_and_the_refused_one_is_the_ops_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    ops = [insert(PLAIN, row, {1: 9 if row == 13 else 1}) for row in range(27, 0, -1)]
    sent, execute = list[str](), database.session.execute
    monkeypatch.setattr(database.session, "execute", lambda sql: sent.append(sql) or execute(sql))

    found = database.apply(ops, at_once=AT_ONCE)

    inserts = [
        [int(id) for id in re.findall(r"\((\d+), ", sql)] for sql in sent if sql.startswith('INSERT INTO "plain"')
    ]
    assert all(ids == sorted(ids) for ids in inserts[9:])  # the first nine are no sheet
    assert found["rejects"] == [(15,)], "the fifteenth op is of row 13"


def test_after_a_refused_row_statements_are_short_for_a_while(
    database: Database, sheets: list[int], monkeypatch: pytest.MonkeyPatch
):
    for name, rows in (("SHORT_ROWS", 4), ("SHORT_FOR_ROWS", 25)):
        monkeypatch.setattr(pace, name, rows)

    database.apply([insert(PLAIN, row, {1: 9 if row == 10 else 1}) for row in range(1, 64)], at_once=AT_ONCE)

    # the first nine are no sheet; the next are sent in parts of four, of which the first is split
    assert sheets == [9, 4, 4, 1, 2, 2, 1, 1, *(2 * [4, 4, 1]), 9, 9, 9]


def test_a_sheet_stays_whole_around_its_refused_row(database: Database, monkeypatch: pytest.MonkeyPatch):
    left: list[list[int]] = []
    taken_out = Batch.take_out

    def noted(self: Batch, refused: Any) -> None:
        taken_out(self, refused)
        left.append([len(entry.sheet) for entry in self.sheets] + [item.op.id or 0 for item in self.items])

    monkeypatch.setattr(Batch, "take_out", noted)
    database.apply([insert(PLAIN, row, {1: 9 if row in (10, 13, 14) else 1}) for row in range(1, 19)], at_once=AT_ONCE)

    assert left == [[2, 4, 10, 13, 14]]


def test_sheets_behind_a_refused_op_stay_whole_unless_it_holds_one_of_their_rows(database: Database, sheets: list[int]):
    log = database._begun()
    line, applier = log.line(), Applier("s0", database.session, log, ApplySettings())
    sent = 0

    def apply(*rows: int, value: int = 1) -> list[int]:
        nonlocal sent
        sheets.clear()
        ops = [encode(insert(PLAIN, row, {1: value})) for row in rows]
        line.append(SCOPE, EPOCH, PRODUCER, [Append(BUCKET, sent + 1, ops)], "", 0)
        sent += len(ops)
        while log.due("s0", 1):
            applier.apply()
        return sheets

    assert apply(1, 2) == []  # learns the shape
    assert apply(3, 4, value=9) == [2, 1, 1]
    assert apply(5, 6, 7) == [3]
    assert apply(8, 3, 10) == []  # 3 is held
    parked = database.session.query("SELECT seq FROM pipeline_rejects WHERE state = 'parked'")
    assert [row for (row,) in database.session.query("SELECT id FROM plain ORDER BY id")] == [1, 2, 5, 6, 7, 8, 10]
    assert parked == [(8,)]


def test_sheets_stay_whole_however_many_other_rows_are_held_in_their_bucket(database: Database, sheets: list[int]):
    log = database._begun()
    line, applier = log.line(), Applier("s0", database.session, log, ApplySettings())
    held = ", ".join(f"({BUCKET}, 'plain {row}', {EPOCH}, {row})" for row in range(2_000, 4_000))

    def apply(first: int, *rows: int) -> list[int]:
        sheets.clear()
        ops = [encode(insert(PLAIN, row, {1: 1})) for row in rows]
        line.append(SCOPE, EPOCH, PRODUCER, [Append(BUCKET, first, ops)], "", 0)
        applier.apply()
        return sheets

    assert apply(1, 1, 2) == []  # learns the shape
    with database.session.transaction():
        database.session.execute("UPDATE pipeline_watermarks SET state = 'holding'")
        database.session.execute(f"INSERT INTO pipeline_held (bucket, row_key, epoch, seq) VALUES {held}")
    assert apply(3, 4_000, 4_001, 4_002) == [3]
    assert apply(6, 1_998, 1_999, 2_000) == []


def test_a_sheet_beside_an_op_of_its_table_is_taken_apart(database: Database, sheets: list[int]):
    first = [insert(PLAIN, row, {1: 1}) for row in range(1, 10)]
    rows = [insert(PLAIN, row, {1: 1}) for row in range(10, 18)]

    found = database.apply([*first, *rows, Op(DELETE, "plain", PLAIN.hash, 0, 17)], at_once=AT_ONCE)

    assert (sheets, len(found["plain"])) == ([], 16)


@pytest.mark.parametrize("table", [PAST, WARY], ids=["a foreign key", "a trigger that reads"])
def test_sheets_of_a_table_and_of_one_that_needs_its_rows_keep_their_order(
    database: Database, sheets: list[int], table: TableSchema
):
    def needing(row: int, other: int) -> Op:
        return insert(table, row, {1: other})

    known = [*(insert(PLAIN, row, {1: 1}) for row in range(1, 5)), *(needing(row, 1) for row in range(1, 6))]
    ops = [needing(6, 1), needing(7, 2), *(insert(PLAIN, row, {1: 1}) for row in (50, 51))]
    ops += [needing(8, 50), needing(9, 51)]

    found = database.apply([*known, *ops], at_once=AT_ONCE)

    assert sheets == [2, 2, 2]
    assert found["rejects"] == []


def test_what_the_shard_has_seen_of_a_sheet_is_dropped_and_what_is_lost_before_one_is_named(
    database: Database, sheets: list[int]
):
    log = database._begun()
    line, applier = log.line(), Applier("s0", database.session, log, ApplySettings())

    def send(first: int, last: int, epoch: int = EPOCH) -> list[Entry]:
        rows = [encode(insert(PLAIN, row, {1: 1})) for row in range(first, last + 1)]
        line.append(SCOPE, epoch, PRODUCER, [Append(BUCKET, first, rows)], "", 0)
        return log._server.logs[BUCKET]

    send(1, 3)
    applier.apply()  # learns the shape
    send(4, 9)
    applier.apply()
    log.raise_epoch("s0", log.epoch("s0")[2], EPOCH + 1)
    send(7, 14, EPOCH + 1)
    again = applier.apply()
    line.pass_hole(PRODUCER, BUCKET, 14, 20)
    waiting = send(21, 30, EPOCH + 1)
    del waiting[-10:-8]
    gone = applier.apply()

    assert (again.applied, again.seen, gone.applied, gone.lost) == (5, 3, 8, 8)
    assert sheets == [6, 5, 8]
    rows = [row for (row,) in database.session.query("SELECT id FROM plain ORDER BY id")]
    assert rows == [*range(1, 15), *range(23, 31)]
    lost = database.session.query("SELECT epoch, producer, first_seq, last_seq FROM pipeline_lost ORDER BY producer")
    assert lost == [(EPOCH + 1, 0, 8, 9), (EPOCH + 1, PRODUCER, 15, 22)]
    assert database._found()["watermark"].position == (EPOCH + 1, 17)
