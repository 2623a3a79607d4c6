"""Literals: what passed the door is read back equal from SQLite through pyDAL, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydal import DAL, Field
from pydal.validators import CRYPT

from pipeline.errors import BadValue, Rejected
from pipeline.model.schema import Column
from pipeline.model.values import checker, python_value
from pipeline.shard.literals import encoder, json_form

COLUMNS = [
    Column("c_integer", "integer"),
    Column("c_bigint", "bigint"),
    Column("c_reference", "reference parent"),
    Column("c_double", "double"),
    Column("c_float", "float"),
    Column("c_money", "decimal(10,2)"),
    Column("c_decimal", "decimal(30,12)"),
    Column("c_boolean", "boolean"),
    Column("c_string", "string", 40),
    Column("c_text", "text"),
    Column("c_blob", "blob"),
    Column("c_json", "json"),
    Column("c_date", "date"),
    Column("c_time", "time"),
    Column("c_datetime", "datetime"),
    Column("c_strings", "list:string"),
    Column("c_integers", "list:integer"),
    Column("c_references", "list:reference parent"),
]
ANY_SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 2**63),
    st.floats(),
    st.decimals(),
    st.decimals(-(10**9), 10**9, places=2),
    st.text(st.characters()),
    st.text("|'\"\\%\0\x1f\r\n ab\U0001f600", max_size=12),
    st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,12})?", fullmatch=True),
    st.binary(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes().map(lambda moment: moment.replace(microsecond=0)),
    st.datetimes(timezones=st.timezones()),
)
ANY = ANY_SCALAR | st.lists(ANY_SCALAR, max_size=4) | st.dictionaries(st.text(max_size=5), ANY_SCALAR, max_size=3)


@pytest.fixture(scope="module")
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory", adapter_args={"foreign_keys": False})
    db.define_table("parent")
    db.define_table("t", *(Field(column.name, column.type, length=column.length) for column in COLUMNS))
    yield db
    db.close()


def stored(db: Any, column: Column, literal: str) -> Any:
    """Insert one literal and read it through pyDAL."""
    db.executesql(f"INSERT INTO t ({column.name}) VALUES ({literal})")
    row_id = db.executesql("SELECT last_insert_rowid()")[0][0]
    return db(db.t.id == row_id).select(db.t[column.name]).first()[column.name]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.type)
@given(value=ANY)
@example(value="it's \\' 100% \U0001f600\r\n")
@example(value="\0")
@example(value=["|", "a|", "|b", "c||d"])
@example(value=[])
@example(value=b"\0\xff")
@example(value=b"")
@example(value=5e-324)
@example(value=0.0044912536624864270)
@example(value="123456789012345678.123456789012")
@example(value={"it's": [None, "\\"]})
def test_any_value_is_refused_or_read_back_equal(db: Any, column: Column, value: object):
    try:
        canonical = checker("t", column)(value)
        literal = encoder(db._adapter, column)(canonical)
    except (BadValue, Rejected):
        return

    found = stored(db, column, literal)

    assert found == python_value(column, canonical)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.type)
def test_none_is_null_for_every_type(db: Any, column: Column):
    assert encoder(db._adapter, column)(None) == "NULL"


class Unlimited:
    """An adapter that writes literals as SQLite's, of a database without SQLite's limits."""

    dbengine = "other"

    def __init__(self, db: Any) -> None:
        self.expand = db._adapter.expand


@pytest.fixture(scope="module")
def other(db: Any) -> Unlimited:
    return Unlimited(db)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.type)
@given(values=st.lists(ANY, min_size=1, max_size=4))
@example(values=[1, -(2**63)])
@example(values=[True, 1])
@example(values=[1, None])
@example(values=[0.1, -0.0, 5e-324])
@example(values=["100%s", "\\ \0"])
@example(values=["a", "it's"])
def test_values_of_a_column_are_written_together_as_each_by_itself(
    other: Unlimited, column: Column, values: list[object]
):
    check, encode = checker("t", column), encoder(other, column)
    try:
        canonical = [check(value) for value in values]
        literals = [encode(value) for value in canonical]
    except (BadValue, Rejected):
        return

    form = json_form(encode, column, "decimal" if column.kind == "decimal" else "bigint")

    if form is not None and form.has(canonical):
        for value, literal in zip(canonical, literals, strict=True):
            text = json.dumps(value, ensure_ascii=False)
            assert text == (f'"{value}"' if isinstance(value, str) else "null" if value is None else repr(value))
            assert literal.strip("'").replace("''", "'") == ("NULL" if value is None else str(value).strip("'"))


def test_whole_numbers_floats_and_texts_without_escapes_are_written_as_json(other: Unlimited):
    of_each: list[list[object]] = [[1], [2], [3], [0.5], [0.5]]
    forms = [json_form(encoder(other, one), one, "bigint") for one in COLUMNS[: len(of_each)]]

    found = [form is not None and form.has(value) for form, value in zip(forms, of_each, strict=True)]
    assert found == [True, True, True, True, False]  # pyDAL quotes a float
    form = json_form(encoder(other, Column("c", "text")), Column("c", "text"), "text")
    assert form is not None
    assert [form.has(["a", one]) for one in ("b", "it's", None, "b\\", '"', "\n", 5)] == [True] * 3 + [False] * 4


def test_pydals_own_objects_are_taken_for_what_they_stand_for(db: Any):
    reference = db.parent.insert()
    row = db(db.parent.id == reference).select().first()
    password, _ = CRYPT(key="sha512:secret")("open sesame")
    to_parent = checker("t", Column("c", "reference parent"))

    assert to_parent(reference) == to_parent(row) == int(reference)
    assert type(to_parent(reference)) is int
    assert checker("t", Column("c", "password", 512))(password) == str(password)
    assert checker("t", Column("c", "list:reference parent"))([reference, row]) == [int(reference)] * 2


class Oracular:
    """An adapter whose dialect writes texts and booleans in its own way."""

    dbengine = "other"

    def __init__(self) -> None:
        self.calls = 0

    def expand(self, value: Any, type_: str) -> str:
        self.calls += 1
        if value is None:
            return "NULL"
        if isinstance(value, bool):
            return str(int(value))
        return "N'" + str(value).replace("'", "''").replace("\\", "\\\\") + "'"


def test_where_the_dialect_differs_each_value_goes_through_expand():
    adapter = Oracular()
    encode = encoder(adapter, Column("c", "text"))
    calls = adapter.calls

    assert encode("a\\'b") == "N'a\\\\''b'"
    assert adapter.calls == calls + 1


def test_where_the_dialect_agrees_no_value_goes_through_expand(db: Any):
    class Counting:
        dbengine, calls = "other", 0

        def expand(self, value: Any, type_: str) -> Any:
            self.calls += 1
            return db._adapter.expand(value, type_)

    adapter = Counting()
    encoders = [encoder(adapter, column) for column in COLUMNS]
    calls = adapter.calls

    for encode in encoders:
        encode(None)

    assert calls > len(COLUMNS)
    assert adapter.calls == calls


def test_booleans_follow_the_dialect():
    encode = encoder(Oracular(), Column("c", "boolean"))

    assert [encode(value) for value in (True, False, None)] == ["1", "0", "NULL"]


@pytest.mark.parametrize(
    ("column", "canonical", "reason"),
    [
        (Column("c", "text"), "a\0b", "NUL"),
        (Column("c", "list:string"), ["a\0b"], "NUL"),
        (Column("c", "double"), 1e-290, "1e-280"),
        (Column("c", "decimal(30,2)"), "12345678901234.56", "15 digits"),
    ],
)
def test_what_only_sqlite_cannot_hold_is_rejected_by_name(db: Any, column: Column, canonical: Any, reason: str):
    encode = encoder(db._adapter, column)

    with pytest.raises(Rejected, match=reason) as rejected:
        encode(canonical)

    assert "'c'" in str(rejected.value)
