"""Values on their way back: what stands in the log becomes what a pyDAL select would give."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadValue
from pipeline.model.schema import Column
from pipeline.model.values import checker, python_value


@pytest.mark.parametrize(
    ("type_", "canonical", "expected"),
    [
        ("decimal(10,2)", "12.50", Decimal("12.50")),
        ("date", "2024-02-29", date(2024, 2, 29)),
        ("time", "01:02:03", time(1, 2, 3)),
        ("datetime", "2024-02-29 01:02:03", datetime(2024, 2, 29, 1, 2, 3)),
        ("blob", "AP8=", b"\0\xff"),
        ("blob", "YQ==", "a"),
        ("json", '{"a": [1]}', {"a": [1]}),
        ("list:string", ["a"], ["a"]),
        ("bigint", 7, 7),
        ("date", None, None),
    ],
)
def test_python_value_gives_what_a_pydal_select_would(type_: str, canonical: Any, expected: object):
    found = python_value(Column("c", type_), canonical)

    assert found == expected
    assert type(found) is type(expected)


NATIVE: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.integers(),
    "bigint": st.integers(),
    "double": st.floats(),
    "float": st.floats(width=16),
    "decimal(12,3)": st.decimals(places=3),
    "boolean": st.booleans(),
    "string": st.text(),
    "text": st.text(),
    "blob": st.binary(),
    "date": st.dates(),
    "time": st.times(),
    "datetime": st.datetimes(),
    "json": st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    "list:string": st.lists(st.text()),
    "list:integer": st.lists(st.integers()),
}


@pytest.mark.parametrize("type_", NATIVE)
@given(data=st.data())
def test_a_native_value_is_read_back_equal_or_was_refused(type_: str, data: st.DataObject):
    column = Column("c", type_, 20)
    value = data.draw(NATIVE[type_])

    try:
        canonical = checker("t", column)(value)
    except BadValue:
        return

    found = python_value(column, json.loads(json.dumps(canonical)))
    assert found == (value.decode() if isinstance(value, bytes) and isinstance(found, str) else value)
    if found != "":  # an empty blob reads as '', which pyDAL would take for None
        assert checker("t", column)(found) == canonical
