"""What a caller gives in any size, depth or type is taken, or refused by an error of ours; nothing grows with it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from itertools import islice, permutations
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.enqueue.op_builder import PLAN
from pipeline.enqueue.table_plan import MOST_PLANS
from pipeline.errors import BadOp, BadValue, PipelineError
from pipeline.testing import Sandbox

TABLES = {"sale": {"shard_key": "customer"}}
#: A message is a line or two, whatever the caller gave.
MOST = 400


def nested(levels: int, kind: type[Any]) -> Any:
    """Return lists in lists, or dicts in dicts."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


def endless() -> list[Any]:
    """Return a list that is in itself."""
    value: list[Any] = []
    value.append(value)
    return value


def said(call: Callable[[], Any]) -> str:
    """Return what one of our errors says; nothing where the call is taken."""
    try:
        call()
    except PipelineError as error:
        return str(error)
    return ""


#: Made when used: pytest would print them.
VALUES: dict[str, Callable[[], Any]] = {
    "lists in lists": lambda: nested(3_000, list),
    "dicts in dicts": lambda: nested(3_000, dict),
    "a list in itself": endless,
    "an int of 5,000 digits": lambda: 10**5000,
    "digits": lambda: "9" * 100_000,
    "a long text": lambda: "x" * 1_000_000,
    "half a character": lambda: "\ud800",
    "NUL": lambda: "a\0b",
    "bytes": lambda: b"\xff",
    "a set": lambda: {1, 2},
    "an object": object,
    "a class": lambda: int,
    "NaN": lambda: float("nan"),
    "a dict of numbers": lambda: {1: {(2, 3): None}},
}
NAMES: dict[str, Callable[[], Any]] = {
    "a long text": lambda: "x" * 1_000_000,
    "half a character": lambda: "\ud800" * 200,
    "NUL": lambda: "a\0b",
    "a number": lambda: 5,
    "None": lambda: None,
    "bytes": lambda: b"customer",
    "a tuple": lambda: ("customer",),
    "a large number": lambda: 10**5000,
}


@pytest.fixture
def db() -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    text, other = (Field("name"), Field("body", "text"), Field("many", "list:string")), (Field("more", "list:integer"),)
    db.define_table(
        "sale", Field("customer", "integer"), *text, *other, Field("price", "decimal(9,2)"), Field("any", "json")
    )
    pipeline.define_tables(db)
    return db


@pytest.mark.parametrize("value", VALUES)
def test_a_value_of_any_size_and_depth_is_taken_or_refused_as_our_error(box: Sandbox, db: Any, value: str):
    own, given = db.sale.customer == 7, VALUES[value]()
    for name in ("id", "customer", "name", "body", "many", "more", "price", "any"):
        calls: dict[str, Callable[[], Any]] = {
            "insert": lambda name=name: pipeline.enqueue_insert(db.sale, {"customer": 7, name: given}),
            "bulk": lambda name=name: pipeline.enqueue_bulk_insert(db.sale, [{"customer": 7, name: given}]),
            "update": lambda name=name: pipeline.enqueue_update(own, {name: given}),
            "where": lambda name=name: pipeline.enqueue_delete(own & (db.sale[name] == given)),
            "belongs": lambda name=name: pipeline.enqueue_delete(own & db.sale[name].belongs([given])),
            "validated": lambda name=name: pipeline.enqueue_validated_insert(db.sale, {"customer": 7, name: given}),
        }
        if value == "a long text":
            del calls["validated"]  # pyDAL's validator of a list takes seconds
        for call in calls.values():
            assert len(said(call)) < MOST
    box.drain()
    assert pipeline.enqueue_insert(db.sale, customer=7).id


@pytest.mark.parametrize("given", NAMES)
def test_a_name_that_no_field_and_no_table_has_is_refused_in_a_line(box: Sandbox, db: Any, given: str):
    name, own = NAMES[given](), db.sale.customer == 7
    for call in (
        lambda: pipeline.enqueue_insert(db.sale, {"customer": 7, name: 1}),
        lambda: pipeline.enqueue_bulk_insert(db.sale, [{"customer": 7, name: 1}]),
        lambda: pipeline.enqueue_update(own, {name: 1}),
        lambda: pipeline.enqueue_upsert(db.sale, {"customer": 7, name: 1}, key=["customer"]),
        lambda: pipeline.enqueue_upsert(db.sale, {"customer": 7}, key=[name]),
        lambda: pipeline.enqueue_insert(name, {"customer": 7}),
        lambda: pipeline.enqueue_insert(db.sale, {"customer": 7}, durability=name),
        lambda: pipeline.enqueue_insert(db.sale, {"customer": 7}, again=name or 0),
    ):
        with pytest.raises(BadOp) as raised:
            call()
        assert len(str(raised.value)) < MOST
    assert box.enqueued() == []


@pytest.mark.parametrize("rows", [5, None, [5], [None], [[]], [("customer", 7)], "ab"])
def test_rows_that_are_no_mappings_are_refused(box: Sandbox, db: Any, rows: Any):
    with pytest.raises(BadOp, match="a mapping of fields"):
        pipeline.enqueue_bulk_insert(db.sale, rows)


def test_an_unprintable_number_is_refused_where_a_text_is_compared(box: Sandbox, db: Any):
    with pytest.raises(BadValue, match=r"sale\.name cannot take this int"):
        pipeline.enqueue_delete((db.sale.customer == 7) & (db.sale.name == 10 ** (sys.get_int_max_str_digits() + 1)))


def test_plans_do_not_grow_with_the_orders_in_which_a_caller_names_fields(box: Sandbox, db: Any):
    names = {"name": "x", "body": "y", "many": ["z"], "more": [1], "price": 1, "any": None, "customer": 7}

    for order in islice(permutations(names), 5 * MOST_PLANS):
        pipeline.enqueue_insert(db.sale, {name: names[name] for name in order})

    assert 0 < len(getattr(db.sale, PLAN)._row_plans) <= MOST_PLANS
    box.drain()
    assert len(box.rows("sale")) == 5 * MOST_PLANS


@pytest.mark.parametrize("name", ["sale", "sale{}"])
def test_definitions_do_not_grow_with_the_tables_that_a_program_defines(box: Sandbox, name: str):
    builder = box.client.op_builder
    assert builder._most > 1000
    builder._most = 5
    for nth in range(12):
        db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        table = db.define_table(name.format(nth), Field("customer", "integer"), Field("name", length=10 + nth))
        pipeline.define_tables(db)
        pipeline.enqueue_insert(table, customer=7, name="x")
        db.close()
        del db, table
    gc.collect()

    caches = (builder._compiled, builder._ready, builder._latest, builder._schemas._published)
    assert [len(cache) for cache in caches] == [5, 5, 5 if "{" in name else 1, 5]
    assert len(box.enqueued()) == 12


def test_a_table_that_lives_on_is_published_anew_however_many_definitions_came_since(box: Sandbox, db: Any):
    box.client.op_builder._most = 3
    pipeline.enqueue_insert(db.sale, customer=7)
    for nth in range(9):
        other = DAL("sqlite:memory", bigint_id=True, migrate=False)
        pipeline.enqueue_insert(other.define_table(f"t{nth}", Field("customer", "integer")), customer=7)

    box.log._server.schemas.clear()
    box.client.op_builder._schemas.republish()

    assert "sale" in box.log.newest_schemas()
