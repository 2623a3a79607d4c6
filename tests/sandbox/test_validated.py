"""A validated insert: pyDAL's validators and pyDAL's answer, and a queued op."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydal import DAL, Field
from pydal.validators import CRYPT, IS_INT_IN_RANGE, IS_NOT_EMPTY

import pipeline
from pipeline.errors import ShardKeyError
from pipeline.testing import Sandbox
from pipeline.web.request import Request

TABLES = {"sale": {"shard_key": "customer"}}


@pytest.fixture
def db(box: Sandbox) -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table(
        "sale",
        Field("customer", "integer"),
        Field("qty", "integer", requires=IS_INT_IN_RANGE(1, 10)),
        Field("name", length=5, requires=IS_NOT_EMPTY()),
        Field("secret", "password", length=255, requires=CRYPT()),
        Field("state", default="new", writable=False),
    )
    db.sale.name.requires = None
    pipeline.define_tables(db)
    return db


def test_what_passes_is_queued_with_the_values_that_the_validators_made(box: Sandbox, db: Any):
    answer = pipeline.enqueue_validated_insert(db.sale, customer=7, qty="3", secret="swordfish")

    assert (answer.errors, answer.success) == ({}, True)
    [op] = box.assert_enqueued(db.sale, customer=7, qty=3, state="new")
    assert op.id == answer["id"] == answer.receipt.id
    assert op.values["secret"].startswith("pbkdf2(")
    assert json.loads(json.dumps(answer)) == {"id": answer.id, "errors": {}, "success": True}


def test_what_fails_is_told_by_field_and_queues_nothing(box: Sandbox, db: Any):
    answer = pipeline.enqueue_validated_insert("sale", {"customer": 7, "qty": 99, "state": "old", "colour": "red"})

    assert answer.id is None
    assert not answer.success
    assert answer.errors.keys() == {"qty", "state", "colour"}
    assert box.enqueued() == []


def test_a_value_that_the_column_cannot_hold_is_an_error_of_its_field(box: Sandbox, db: Any):
    answer = pipeline.enqueue_validated_insert(db.sale, customer=7, qty=1, name="much too long")

    assert "13 characters" in answer.errors["name"]
    assert box.enqueued() == []


def test_a_mistake_of_the_programmer_is_no_error_of_a_field(box: Sandbox, db: Any):
    with pytest.raises(ShardKeyError):
        pipeline.enqueue_validated_insert(db.sale, qty=1)


def test_options_of_an_insert_are_options_here(box: Sandbox, db: Any):
    first = pipeline.enqueue_validated_insert(db.sale, customer=7, qty=1, idempotency_key="once")
    second = pipeline.enqueue_validated_insert(db.sale, customer=7, qty=1, idempotency_key="once")

    assert first.id == second.id
    assert len(box.enqueued()) == 1


def test_a_request_holds_it_like_other_ops(box: Sandbox, db: Any):
    request = Request(box.client, box.client.held())

    refused = request.enqueue_validated_insert(db.sale, customer=7, qty=99)
    answer = request.enqueue_validated_insert(db.sale, customer=7, qty=1)

    assert refused.errors
    assert box.enqueued() == []
    assert request.finish()
    assert [op.id for op in box.enqueued()] == [answer.id]
