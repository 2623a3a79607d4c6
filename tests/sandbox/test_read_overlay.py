"""A row with the queued ops laid over it is the row that will be there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.errors import StaleRead
from pipeline.reads import pending as pending_rows
from pipeline.testing import Sandbox, sandbox

TABLES = {"sale": {"shard_key": "customer", "on_reject": "skip"}}


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=2) as made:
        yield made


@pytest.fixture(scope="module")
def db(box: Sandbox) -> Any:
    made = DAL("sqlite:memory", migrate=False)
    made.define_table(
        "sale",
        Field("customer", "integer", notnull=True),
        Field("qty", "integer"),
        Field("price", "decimal(8,2)"),
        Field("weight", "double"),
        Field("name", length=20),
        Field("day", "date"),
        Field("paid", "boolean", default=False),
    )
    pipeline.define_tables(made)
    return made


def random_op(db: Any, row_id: int, draw: Any) -> None:
    sale, mine = db.sale, db.sale.id == row_id
    values = {
        "qty": draw(st.one_of(st.none(), st.integers(-5, 5))),
        "weight": draw(st.one_of(st.none(), st.sampled_from([0.1, -2.0, 1e9]))),
        "day": draw(st.one_of(st.none(), st.just(date(2024, 2, 29)))),
    }
    kind = draw(st.integers(0, 9))
    if kind == 0:
        pipeline.enqueue_delete(mine, shard_key=1)
    elif kind == 1:
        # short: a text that may not fit is waited for, and its ends are what kind 6 makes longer
        pipeline.enqueue_insert(sale, id=row_id, customer=1, name=f"n{row_id % 100}", **values)
    elif kind == 2:
        pipeline.enqueue_update(mine, shard_key=1, qty=sale.qty + draw(st.integers(-3, 3)) * 2, weight=sale.weight * 3)
    elif kind == 3:
        pipeline.enqueue_update((sale.customer == 1) & (sale.qty > 0), paid=True, qty=sale.qty - 1)
    elif kind == 4:
        pipeline.enqueue_update((sale.customer == 1) & (sale.qty.belongs([1, 2]) | (sale.day == None)), weight=0.5)  # noqa: E711
    elif kind == 5:
        pipeline.enqueue_delete((sale.customer == 1) & ~(sale.qty < 3))
    elif kind == 6:
        pipeline.enqueue_update(mine, shard_key=1, name=sale.name + "x")
    elif kind == 7:
        with pipeline.atomic():
            pipeline.enqueue_update(mine, shard_key=1, **values)
            pipeline.enqueue_update(mine, shard_key=1, qty=sale.qty + 1)
    elif kind == 8:
        pipeline.enqueue_upsert(sale, key="id", id=row_id, customer=1, **values)
    else:
        pipeline.enqueue_update(mine, shard_key=1, **values)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_pending_row_is_the_row_that_will_be_there(box: Sandbox, db: Any, data: st.DataObject) -> None:
    pipeline.enqueue_delete(db.sale.customer == 1)
    row_id = pipeline.enqueue_insert(db.sale, customer=1, qty=2, name="n").id
    if data.draw(st.booleans()):
        box.drain()
    for _ in range(data.draw(st.integers(0, 6))):
        random_op(db, row_id, data.draw)

    pending = pipeline.get(db.sale, row_id, pending=True, on_stale="error")
    box.drain()
    applied = pipeline.get(db.sale, row_id)

    if applied is None:
        assert pending is None
    else:
        assert {name: pending[name] for name in db.sale.fields} == {name: applied[name] for name in db.sale.fields}


def test_a_row_that_no_queued_op_touches_is_not_marked(box: Sandbox, db: Any) -> None:
    row_id = pipeline.enqueue_insert(db.sale, customer=1, name="calm").id
    box.drain()

    assert "pending" not in pipeline.get(db.sale, row_id, pending=True)
    pipeline.enqueue_update(db.sale.id == row_id, shard_key=1, qty=7)

    row = pipeline.get(db.sale, row_id, pending=True)
    assert (row.pending, row.qty) == (True, 7)
    box.drain()


def test_what_only_the_database_can_tell_is_waited_for_and_not_guessed(box: Sandbox, db: Any) -> None:
    row_id = pipeline.enqueue_insert(db.sale, customer=1, name="Text", qty=9).id
    box.drain()
    pipeline.enqueue_update((db.sale.customer == 1) & (db.sale.name == "text"), qty=0)

    with pytest.raises(StaleRead, match="still queued"):
        pipeline.get(db.sale, row_id, pending=True, wait_s=0.01)

    box.drain()
    assert pipeline.get(db.sale, row_id, pending=True).qty == 9


def test_a_longer_queue_than_is_worth_it_is_waited_for(box: Sandbox, db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_rows, "MOST_ENTRIES", 2)
    row_id, *_ = [pipeline.enqueue_insert(db.sale, customer=1, name=f"long {n}").id for n in range(4)]

    with pytest.raises(StaleRead):
        pipeline.get(db.sale, row_id, pending=True, wait_s=0.01)
    box.drain()


def test_a_reference_of_a_row_with_queued_ops_leads_on_as_that_of_any_other_row():
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("owner", Field("name"))
    db.define_table("pet", Field("name"), Field("owner", "reference owner"))
    with sandbox({}, shards=1) as box:
        pipeline.define_tables(db)
        owner = pipeline.enqueue_insert(db.owner, name="Ada")
        box.drain()
        queued = pipeline.get(db.pet, pipeline.enqueue_insert(db.pet, name="cat", owner=owner.id).id, pending=True)

        assert type(queued.owner).__name__ == "Reference"
        assert (queued.owner, queued.owner.name) == (owner.id, "Ada")
