"""Table definitions: one JSON text and one hash for one definition, on both pyDAL lines and for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydal import DAL, Field
from pydal.helpers.classes import SQLCustomType

from pipeline.errors import BadOp
from pipeline.model.schema import Column, TableSchema, schema_of, signature_of

columns = st.builds(
    Column,
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda name: name != "id"),
    st.sampled_from(["string", "integer", "decimal(10,2)", "reference t", "list:string", "json"]),
    st.none() | st.integers(1, 512),
    st.booleans(),
    st.booleans(),
    st.none() | st.just("`odd name`"),
)
schemas = st.builds(
    lambda name, own, rname: TableSchema(name, (Column("id", "id"), *own), rname),
    st.from_regex(r"[a-z]{1,10}", fullmatch=True),
    st.lists(columns, max_size=6, unique_by=lambda column: column.name),
    st.none() | st.just("schema.odd"),
)


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    yield db
    db.close()


@given(schema=schemas)
def test_a_definition_is_read_back_equal_with_the_same_hash(schema: TableSchema):
    found = TableSchema.from_json(schema.to_json())

    assert found == schema
    assert found.hash == schema.hash
    assert found.to_json() == schema.to_json()


@given(one=schemas, other=schemas)
def test_only_equal_definitions_have_equal_hashes(one: TableSchema, other: TableSchema):
    assert (one.hash == other.hash) == (one == other)


def test_the_hash_is_the_same_in_every_process_and_version():
    schema = TableSchema(
        "purchase", (Column("id", "id"), Column("customer", "integer", notnull=True), Column("t", "string", 512))
    )

    assert schema.hash == "a39e64886f21"


def test_the_definition_of_a_pydal_table_is_the_same_on_both_lines(db: Any):
    table = db.define_table(
        "purchase",
        Field("customer", "integer", notnull=True),
        Field("code", unique=True, length=20),
        Field("price", "decimal(10,2)"),
        Field("odd", "text", rname="`strange name`"),
        Field("picture", "upload"),
        Field("up", "reference purchase"),
    )

    schema = schema_of(table)

    assert schema == TableSchema(
        "purchase",
        (
            Column("id", "id"),
            Column("customer", "integer", None, True),
            Column("code", "string", 20, False, True),
            Column("price", "decimal(10,2)"),
            Column("odd", "text", None, rname="`strange name`"),
            Column("picture", "upload", 512),
            Column("up", "reference purchase"),
        ),
    )
    assert schema.id_name == "id"
    assert schema.index["price"] == 3


def test_an_id_of_another_name_is_found(db: Any):
    schema = schema_of(db.define_table("t", Field("n", "integer"), Field("key", "id")))

    assert schema.id_name == "key"
    assert schema.columns[schema.id_index].name == "key"


def test_a_table_of_another_name_in_the_database_keeps_it(db: Any):
    assert schema_of(db.define_table("t", Field("n"), rname="legacy_t")).rname == "legacy_t"


def test_a_table_without_an_id_is_refused_with_what_to_do():
    with pytest.raises(BadOp, match=r"'t' has no id column.*give it an 'id' field"):
        TableSchema("t", (Column("n", "integer"),))


def test_a_custom_type_is_refused_by_name(db: Any):
    table = db.define_table("t", Field("point", SQLCustomType("string", "POINT")))

    with pytest.raises(BadOp, match=r"'point'.*SQLCustomType"):
        schema_of(table)


def test_a_table_that_web2py_defines_anew_has_the_same_signature_and_a_changed_one_another(db: Any):
    def define(**more: Any) -> Any:
        return db.define_table("t", Field("n", "integer", **more), redefine=True, migrate=False)

    first = signature_of(define())

    assert signature_of(define()) == first
    assert signature_of(define(notnull=True)) != first
