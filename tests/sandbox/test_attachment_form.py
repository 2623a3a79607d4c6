"""`enqueue_form` by what it asks of a form; web2py's own forms are tried over HTTP in the integration tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import BadOp
from pipeline.testing import Sandbox

TABLES = {"sale": {"shard_key": "customer"}}


@pytest.fixture
def db(box: Sandbox) -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table(
        "sale",
        Field("customer", "integer"),
        Field("qty", "integer", default=1),
        Field("tags", "list:string"),
        Field("owner", "integer", writable=False, default=3),
        Field("each", "integer", default=2),
        Field("secret", "password", length=255),
        Field("total", "integer", compute=lambda row: row.qty * row.each),
    )
    pipeline.define_tables(db)
    return db


def py4web_form(db: Any, posted: dict[str, Any], record: Any = None, **changed: Any) -> SimpleNamespace:
    """What py4web's `Form(db.sale, record, dbio=False)` has after an accepted POST."""
    shape = {"table": db.sale, "record": record, "vars": dict(posted), "post_vars": posted, "errors": {}}
    shape |= {"accepted": True, "deleted": False, "deletable": record is not None, "dbio": False}
    return SimpleNamespace(**{**shape, **changed})


def sold(box: Sandbox, db: Any, **fields: Any) -> Any:
    receipt = pipeline.enqueue_insert(db.sale, {"customer": 7, **fields})
    box.drain()
    return pipeline.get(db.sale, receipt.id)


def test_a_new_record_is_inserted_and_the_form_knows_its_id(box: Sandbox, db: Any):
    form = py4web_form(db, {"customer": "7", "qty": "2", "tags": "one", "_formkey": "x", "_formname": "sale"})

    receipt = pipeline.enqueue_form(form)

    assert receipt is not None
    assert form.vars["id"] == receipt.id
    box.assert_enqueued(db.sale, customer=7, qty=2, tags=["one"], owner=3, total=4)


def test_an_edit_ships_what_differs_from_the_record_in_stored_form(box: Sandbox, db: Any):
    record = sold(box, db, qty=2, tags=["one"])

    pipeline.enqueue_form(py4web_form(db, {"customer": "7", "qty": "5", "tags": "one"}, record))

    [op] = [one for one in box.enqueued("sale") if one.kind == "update"]
    assert op.values == {"qty": 5, "total": 10}
    box.drain()
    assert pipeline.get(db.sale, record.id).qty == 5


def test_inputs_of_a_list_that_were_left_empty_are_no_items(box: Sandbox, db: Any):
    record = sold(box, db, qty=2, tags=["one"])

    pipeline.enqueue_form(py4web_form(db, {"customer": "7", "qty": "5", "tags": ["one", "", " "]}, record))

    [op] = [one for one in box.enqueued("sale") if one.kind == "update"]
    assert op.values == {"qty": 5, "total": 10}


def test_a_password_that_is_left_alone_stays(box: Sandbox, db: Any):
    record = sold(box, db, secret="hash")

    pipeline.enqueue_form(py4web_form(db, {"qty": "5", "secret": "********"}, record))

    box.drain()
    assert pipeline.get(db.sale, record.id).secret == "hash"


def test_an_edit_of_nothing_queues_nothing(box: Sandbox, db: Any):
    record = sold(box, db, qty=2, tags=["one"])
    form = py4web_form(db, {"customer": "7", "qty": "2", "tags": ["one"]}, record)

    assert pipeline.enqueue_form(form) is None
    assert form.vars["id"] == record.id
    assert len(box.enqueued()) == 1


def test_the_shard_key_cannot_be_edited(box: Sandbox, db: Any):
    record = sold(box, db)

    with pytest.raises(BadOp, match="shard key"):
        pipeline.enqueue_form(py4web_form(db, {"customer": "8"}, record))


def test_py4webs_delete_box_deletes_only_where_it_was_offered(box: Sandbox, db: Any):
    record = sold(box, db)
    posted = {"customer": "7", "qty": "1", "_delete": "on"}

    pipeline.enqueue_form(py4web_form(db, posted, record, deletable=False))
    kept = [one.kind for one in box.enqueued()]
    pipeline.enqueue_form(py4web_form(db, posted, record))

    assert kept == ["insert"]
    assert [(one.kind, one.id) for one in box.enqueued()] == [("insert", record.id), ("delete", record.id)]


def test_a_field_that_the_user_may_not_write_is_not_taken_from_his_post(box: Sandbox, db: Any):
    form = py4web_form(db, {"customer": "7", "owner": "99"})

    pipeline.enqueue_form(form)

    box.assert_enqueued(db.sale, customer=7, owner=3)


def test_what_the_applications_validation_sets_counts(box: Sandbox, db: Any):
    form = py4web_form(db, {"customer": "7"})
    form.vars["owner"] = 5

    pipeline.enqueue_form(form)

    box.assert_enqueued(db.sale, owner=5)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"accepted": False}, "was not accepted"),
        ({"dbio": True}, "dbio=False"),
        ({"vars": {"id": 5}}, "inserted by itself"),
        ({"table": None}, "a form of a table"),
    ],
)
def test_a_form_that_must_not_be_queued_is_refused(box: Sandbox, db: Any, changed: dict[str, Any], why: str):
    with pytest.raises(BadOp, match=why):
        pipeline.enqueue_form(py4web_form(db, {"customer": "7"}, **changed))

    assert box.enqueued() == []
