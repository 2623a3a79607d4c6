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
    st.none() | st.just("odd name"),
)
schemas = st.builds(
    lambda name, own, rname: TableSchema(name, (Column("id", "id"), *own), rname),
    st.from_regex(r"[a-z]{1,10}", fullmatch=True),
    st.lists(columns, max_size=6, unique_by=lambda column: column.name_there),
    st.none() | st.just("order"),
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

    assert schema.hash == "OlJmFc7ticpKiD-aOyEC5ABgwJXdmNzsOn0P6S3Dyo8"


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
            Column("odd", "text", None, rname="strange name"),
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


REFUSED: dict[str, dict[str, Any]] = {
    "of another database": {"rname": "other.t"},
    "of the server's own database": {"rname": "`mysql`.`user`"},
    "that is SQL": {"rname": "t` SELECT `"},
    "that leaves its quotes": {"rname": "t; DROP TABLE x --`"},
    "with a line's end": {"rname": "t\n"},
    "with a NUL": {"rname": "t\0"},
    "with a blank at its end": {"rname": "t "},
    "that is too long": {"rname": "t" * 65},
    "that is empty": {"rname": ""},
    "of ours": {"name": "pipeline_watermarks"},
    "of ours in the database": {"rname": "PIPELINE_Rejects"},
    "that a server takes for ours": {"rname": "P\u0130PEL\u0130NE_rejects"},
    "in wide letters that a server may take for ours": {"rname": "\uff50ipeline_rejects"},
    "of SQLite": {"rname": "sqlite_master"},
    "with a dot": {"name": "a.b"},
}
COLUMNS: dict[str, dict[str, Any]] = {
    "a name that is SQL": {"name": "n`, x"},
    "an rname of another table": {"rname": "other.n"},
    "an rname that is SQL": {"rname": "n=1 --`"},
    "a type that is SQL": {"type": "integer); DROP TABLE x; --"},
    "a length that is SQL": {"type": "string", "length": "5); --"},
    "a length that is true": {"type": "string", "length": True},
    "an ondelete that is SQL": {"type": "reference t", "ondelete": "CASCADE; DROP TABLE x"},
    "the name of another": {"name": "ID"},
    "the column of another": {"rname": "id"},
}


@pytest.mark.parametrize("changed", REFUSED.values(), ids=REFUSED)
def test_a_table_is_refused_under_a_name(changed: dict[str, Any]):
    with pytest.raises(BadOp, match="cannot be queued"):
        TableSchema(**{"name": "t", "columns": (Column("id", "id"),), **changed})


@pytest.mark.parametrize("changed", COLUMNS.values(), ids=COLUMNS)
def test_a_table_is_refused_for_a_field_with(changed: dict[str, Any]):
    column = Column(**{"name": "n", "type": "integer", **changed})

    with pytest.raises(BadOp, match="cannot be queued"):
        TableSchema("t", (Column("id", "id"), column))


NO_DEFINITIONS = [
    "",
    "{",
    "[]",
    "null",
    "5",
    '{"table":"t"}',
    '{"table":["t"],"rname":null,"columns":[["id","id",null,0,0,null]]}',
    '{"table":"t","rname":null,"columns":5}',
    '{"table":"t","rname":null,"columns":[["id"]]}',
    "[" * 100000,
    '{"table":"t","rname":{},"columns":[["id","id",null,0,0,null]]}',
    '{"table":"t","rname":null,"columns":[[1,2]]}',
    '{"table":"t","rname":null,"columns":[["id",["id"],null,0,0,null]]}',
    '{"table":"\\ud800"}',
]


@pytest.mark.parametrize("text", NO_DEFINITIONS)
def test_a_text_that_is_no_definition_is_refused(text: str):
    with pytest.raises(BadOp):
        TableSchema.from_json(text)


def test_a_definition_is_not_taken_for_one_of_another_hash():
    one, other = (TableSchema("t", (Column("id", "id"), Column(name, "integer"))) for name in ("a", "b"))

    assert TableSchema.from_json(one.to_json(), one.hash) == one
    with pytest.raises(BadOp, match="is another than the one of the hash"):
        TableSchema.from_json(one.to_json(), other.hash)


@pytest.mark.parametrize("rname", ["`strange name`", '"strange name"', "[strange name]"])
def test_a_name_in_the_database_is_kept_without_the_quotes_of_one_of_them(db: Any, rname: str):
    assert schema_of(db.define_table("t", Field("n"), rname=rname)).name_there == "strange name"
