"""What docs/attach.md says of the order of ids: of one second it holds for a shard key; a column of one's own holds."""

from __future__ import annotations

import time
from itertools import cycle
from operator import itemgetter

from pydal import DAL, Field

import pipeline
from pipeline.testing import Sandbox

TABLES = {"line": {"shard_key": "sale"}}
ROWS = 200


def defined() -> DAL:
    db = DAL(None)
    at = Field("at", "bigint", default=lambda: time.time_ns() // 1000, writable=False)
    for table in ("line", "note"):
        db.define_table(table, Field("sale", "integer"), Field("nth", "integer"), at.clone())
    pipeline.define_tables(db)
    return db


def test_ids_of_one_shard_key_have_the_order_of_their_inserts(box: Sandbox) -> None:
    db = defined()

    for nth in range(ROWS):
        pipeline.enqueue_insert(db.line, sale=nth % 7, nth=nth)

    box.drain()
    for sale in range(7):
        rows = [row for row in box.rows("line") if row["sale"] == sale]
        assert sorted(rows, key=itemgetter("id")) == sorted(rows, key=itemgetter("nth"))


def test_ids_of_rows_that_take_turns_may_not_and_a_column_of_ones_own_does(box: Sandbox) -> None:
    db = defined()
    box.client.op_builder._turn = cycle((3, 1))  # it begins with a bucket by chance

    for nth in range(ROWS):
        pipeline.enqueue_insert(db.note, sale=1, nth=nth)

    box.drain()
    rows = sorted(box.rows("note"), key=itemgetter("nth"))
    assert [row["id"] for row in rows] != sorted(row["id"] for row in rows)
    assert rows == sorted(rows, key=itemgetter("at", "id"))
