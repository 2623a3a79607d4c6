"""Rows of a bulk call that are made column by column are what they are one by one; the same faults are refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.enqueue import held_ops
from pipeline.enqueue.held_ops import Chunk
from pipeline.errors import PipelineError
from pipeline.model import Addressed, Op, decode
from pipeline.testing import Sandbox, sandbox

TABLES: dict[str, Any] = {"sale": {"shard_key": "shop"}, "kind": {"reference": True}}


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox(TABLES, buckets=8) as box:
        db = DAL("sqlite:memory")
        db.define_table("kind", Field("name"))
        db.define_table("sale", *columns(), Field("why", default="none"), Field("at", "datetime"))
        db.define_table("free", *columns(), Field("tags", "list:string"))
        db.define_table("loose", *columns(), Field("made", default=lambda: "now"))
        db.define_table("plain", *columns())
        db.define_table("long", *columns()[:1], Field("note", length=2_000))
        pipeline.define_tables(db)
        box.db = db  # type: ignore[attr-defined]
        yield box
        db.close()


def columns() -> list[Any]:
    return [Field("shop", "bigint"), Field("price", "decimal(8,2)"), Field("note", length=20)]


@settings(max_examples=examples(150), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_rows_made_in_columns_are_those_made_one_by_one(box: Sandbox, seed: int):
    random = Random(seed)
    table = random.choice(("sale", "plain", "free", "loose"))
    rows = [row(random, table) for _ in range(random.randint(0, 40))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_ops, "CHUNK_ROWS", random.choice((1, 7, 100)))
        one, many = (made(box, table, rows, at_once=at_once) for at_once in (False, True))

    assert many == one


def test_a_bulk_call_is_made_in_columns_and_its_receipts_name_the_rows(box: Sandbox):
    db = box.db  # type: ignore[attr-defined]
    rows = [{"shop": n % 5, "price": "1.50", "note": f"n{n}"} for n in range(50)]
    chunks = list(box.client.op_builder.inserts(db.sale, rows, at_once=True))
    assert [type(one) for one in chunks] == [Chunk]

    receipts = pipeline.enqueue_bulk_insert(db.sale, rows)
    box.drain()

    found = {row.id: (row.shop, row.note) for row in pipeline.select(db.sale)}
    assert [found[receipt.id] for receipt in receipts] == [(n % 5, f"n{n}") for n in range(50)]
    assert len({(receipt.bucket, receipt.position) for receipt in receipts}) == 50


def test_rows_that_become_larger_are_sent_in_smaller_parts(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_ops, "CHUNK_ROWS", 10)
    monkeypatch.setattr(held_ops, "SHEET_BYTES", 2_000)
    rows = [{"shop": n % 5, "note": "x" * (1 if n < 10 else 1_000)} for n in range(40)]
    db = box.db  # type: ignore[attr-defined]

    chunks = list(box.client.op_builder.inserts(db.long, rows, at_once=True))

    assert sum(len(of_chunk(one)) for one in chunks if isinstance(one, Chunk)) == 40
    assert len(chunks) > 10
    assert max(sum(map(len, one.payloads.values())) for one in chunks[1:]) <= 4


@pytest.mark.parametrize("known", [True, False])
def test_the_chunks_of_a_bulk_call_are_of_one_size_where_the_number_of_rows_is_known(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, known: bool
):
    monkeypatch.setattr(held_ops, "CHUNK_ROWS", 10)
    monkeypatch.setattr(held_ops, "SHEET_ROWS", 100)
    rows = [{"shop": n % 5, "note": f"n{n}"} for n in range(210)]
    db = box.db  # type: ignore[attr-defined]

    chunks = [*box.client.op_builder.inserts(db.long, rows if known else (row for row in rows), at_once=True)]

    assert [len(one) for one in chunks if isinstance(one, Chunk)] == ([70] * 3 if known else [100, 100, 10])


def test_a_bulk_call_asks_for_ids_a_few_times(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    box.client.row_ids._start()  # an earlier test's ids may be enough
    asked, give_ids = [], box.log.give_ids
    monkeypatch.setattr(box.log, "give_ids", lambda *what: asked.append(what) or give_ids(*what))

    pipeline.enqueue_bulk_insert(box.db.plain, [{"shop": n} for n in range(3000)])  # type: ignore[attr-defined]

    assert 0 < len(asked) <= 12
    box.drain()


def made(box: Sandbox, table: str, rows: list[Any], *, at_once: bool) -> tuple[list[Any], str]:
    """Return what becomes of rows, in their order: the place and the op of each; and what is refused.

    Where nothing fixes the bucket, it is left out. So are ids and times.
    """
    found: list[Any] = []
    try:
        builder = box.client.op_builder
        for one in builder.inserts(getattr(box.db, table), rows, at_once=at_once):  # type: ignore[attr-defined]
            found += of_chunk(one) if isinstance(one, Chunk) else [of(one.bucket, one.op)]
    except PipelineError as error:
        refused = str(error)
    else:
        refused = ""
    given = [what if table in ("sale",) else what[1:] for what in found]
    # of a call that is refused, what is in the chunk with the fault is not sent on either way
    return ([] if refused else given), refused


def of_chunk(chunk: Chunk) -> list[Any]:
    chunk._place_rows()
    ops = {bucket: list(map(decode, sheet)) for bucket, sheet in chunk.payloads.items()}
    assert [ops[bucket][nth].id for bucket, nth in chunk._at] == chunk._ids
    return [of(bucket, ops[bucket][nth]) for bucket, nth in chunk._at]


def of(bucket: int, op: Op) -> Any:
    assert op.id is not None
    assert op.id < 1000 or op.id % 1024 == bucket
    return bucket, op.kind, op.table, op.schema, op.columns, op.values, op.id if op.id < 1000 else None


def row(random: Random, table: str) -> Any:
    given: dict[str, Any] = {
        "shop": random.choice((1, 2, 3, 4, 5, 2**40)),
        "price": random.choice((Decimal("1.50"), "2", 3, None)),
        "note": random.choice(("a", "it's", "é", None)),
    }
    if table == "sale":
        given["at"] = datetime(2026, 1, random.randint(1, 28))
    if random.random() < 0.02:
        given |= random.choice(
            ({"note": "x" * 21}, {"shop": None}, {"shop": "no"}, {"nothing": 1}, {"id": random.randint(1, 999)},
             {"price": lambda: 5}, {"note": 7})
        )  # fmt: skip
    if random.random() < 0.02:
        del given["price"]
    if random.random() < 0.1:
        given = dict(reversed(given.items()))
    return given if random.random() < 0.99 else random.choice((pipeline.errors.shown, [1], None, Addressed))
