"""The door: each value becomes its one canonical form, or is refused with a sentence that helps."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import product
from typing import Any

import pytest

from pipeline.errors import BadValue
from pipeline.model.schema import Column
from pipeline.model.values import are_canonical, checker, lenient

UTC_PLUS_5 = timezone(timedelta(hours=5))
SECRET = "correct horse battery staple"


class Colour(str, Enum):  # noqa: UP042  # what applications have
    RED = "red"


class lazyT:  # noqa: N801  # web2py's own name
    def __str__(self) -> str:
        return "Guten Tag"


class LazyCrypt:
    def __str__(self) -> str:
        return "pbkdf2(1000,20,sha512)$salt$hash"


class Reference(int):
    """Like pyDAL's: an int with a row behind it."""


class Row(dict[str, Any]):
    """Like pyDAL's: known by its name and its id."""


class IndexOnly:
    """Like numpy.int64: no int, but exactly one."""

    def __index__(self) -> int:
        return 7


def short(value: object) -> str:
    """Return a name that is the same in every process: without an address."""
    return f"{value!r:.30}".partition(" at 0x")[0]


ACCEPTED = [
    ("integer", 7, 7),
    ("integer", -(2**31), -(2**31)),
    ("integer", 2**31 - 1, 2**31 - 1),
    ("integer", "7", 7),
    ("integer", "-7", -7),
    ("integer", 7.0, 7),
    ("integer", Decimal("7.0"), 7),
    ("integer", True, 1),
    ("integer", IndexOnly(), 7),
    ("integer", "", None),
    ("integer", None, None),
    ("bigint", 2**63 - 1, 2**63 - 1),
    ("bigint", -(2**63), -(2**63)),
    ("bigint", str(2**63 - 1), 2**63 - 1),
    ("id", 1, 1),
    ("big-id", 2**63 - 1, 2**63 - 1),
    ("reference person", Reference(7), 7),
    ("reference person", Row(id=7), 7),
    ("reference person", 0, 0),
    ("big-reference person", "7", 7),
    ("boolean", True, True),
    ("boolean", 0, False),
    ("boolean", "T", True),
    ("boolean", "False", False),
    ("boolean", "on", True),
    ("boolean", "", None),
    ("string", "x" * 10, "x" * 10),
    ("string", "\U0001f600" * 10, "\U0001f600" * 10),
    ("string", "", ""),
    ("string", "a\0b", "a\0b"),
    ("string", Colour.RED, "red"),
    ("string", lazyT(), "Guten Tag"),
    ("text", "x" * 100_000, "x" * 100_000),
    ("double", 0.1, 0.1),
    ("double", -0.0, 0.0),
    ("double", "-0", 0.0),
    ("double", 2**53, float(2**53)),
    ("double", "0.1", 0.1),
    ("double", Decimal("0.1"), 0.1),
    ("double", 1.7976931348623157e308, 1.7976931348623157e308),
    ("float", 0.1, 0.1),
    ("float", 123456, 123456.0),
    ("decimal(10,2)", Decimal("12.5"), "12.50"),
    ("decimal(10,2)", Decimal("-0"), "0.00"),
    ("decimal(10,2)", 12, "12.00"),
    ("decimal(10,2)", 12.5, "12.50"),
    ("decimal(10,2)", "1.25e1", "12.50"),
    ("decimal(10,2)", Decimal("99999999.99"), "99999999.99"),
    ("decimal(2,2)", "0.99", "0.99"),
    ("decimal(65,30)", "9" * 35 + "." + "9" * 30, "9" * 35 + "." + "9" * 30),
    ("date", date(2024, 2, 29), "2024-02-29"),
    ("date", "2024-02-29", "2024-02-29"),
    ("date", datetime(2024, 2, 29), "2024-02-29"),
    ("date", date(1000, 1, 1), "1000-01-01"),
    ("time", time(23, 59, 59), "23:59:59"),
    ("time", "7:05", "07:05:00"),
    ("datetime", datetime(2024, 2, 29, 12, 34, 56), "2024-02-29 12:34:56"),
    ("datetime", "2024-02-29T12:34", "2024-02-29 12:34:00"),
    ("datetime", "2024-02-29 12:34:56.000", "2024-02-29 12:34:56"),
    ("datetime", date(2024, 2, 29), "2024-02-29 00:00:00"),
    ("datetime", datetime(9999, 12, 31, 23, 59, 59), "9999-12-31 23:59:59"),
    ("blob", b"\0\xff", "AP8="),
    ("blob", bytearray(b"a"), "YQ=="),
    ("blob", memoryview(b"a"), "YQ=="),
    ("blob", "é", "w6k="),
    ("blob", b"", ""),
    ("json", {"a": [1, None, 0.5]}, '{"a": [1, null, 0.5]}'),
    ("json", "text", '"text"'),
    ("json", "", '""'),
    ("json", "\U0001f600", '"\\ud83d\\ude00"'),
    ("json", None, None),
    ("list:string", ["a", "b|c"], ["a", "b|c"]),
    ("list:string", "a", ["a"]),
    ("list:string", [], []),
    ("list:string", "", None),
    ("list:integer", (1, "2"), [1, 2]),
    ("list:integer", 0, [0]),
    ("list:reference person", [Reference(1), Row(id=2)], [1, 2]),
]
REFUSED = [
    ("integer", 2**31, "holds -2147483648 to 2147483647"),
    ("integer", 3.9, "round"),
    ("integer", "3.9", "send an int"),
    ("integer", "0x7", "send an int"),
    ("integer", "٧", "send an int"),
    ("integer", float("inf"), "not a whole number"),
    ("integer", Decimal("1e999999"), "not a whole number"),
    ("integer", Decimal("sNaN"), "not a whole number"),
    ("integer", [1], "send an int"),
    ("bigint", 2**63, "send a number in that range"),
    ("id", 0, "holds 1 to"),
    ("reference person", -1, "holds 0 to"),
    ("reference person", Row(name="x"), "without its id"),
    ("boolean", "no", "send True or False"),
    ("boolean", "off", "send True or False"),
    ("boolean", 2, "send True or False"),
    ("string", "x" * 11, "it has 11 characters, the column holds 10"),
    ("string", "\ud800", "lone surrogates"),
    ("string", ["x"], "send a str"),
    ("string", 7, "str(value)"),
    ("string", b"x", "decode()"),
    ("string", LazyCrypt(), "it has 32 characters, the column holds 10"),
    ("text", "\ud800", "lone surrogates"),
    ("double", float("nan"), "send None"),
    ("double", float("-inf"), "send None"),
    ("double", 2**53 + 1, "bigint"),
    ("double", 10**400, "bigint"),
    ("double", "0.1000000000000000055", "send float(value)"),
    ("double", "1e400", "send None"),
    ("double", "1_0", "not a number"),
    ("double", Decimal("sNaN"), "send None"),
    ("float", 0.1234567, "declare the field 'double'"),
    ("float", 16777217, "declare the field 'double'"),
    ("float", 1e39, "declare the field 'double'"),
    ("decimal(10,2)", Decimal("12.505"), "round it yourself"),
    ("decimal(10,2)", 123456789, "round it yourself"),
    ("decimal(10,2)", "NaN", "not a number"),
    ("decimal(10,2)", Decimal("NaN"), "send None"),
    ("decimal(10,2)", float("inf"), "send None"),
    ("decimal(10,2)", 0.1 + 0.2, "round it yourself"),
    ("decimal(10,2)", Decimal("1e999999"), "round it yourself"),
    ("decimal(10,2)", 10**4000, "more digits"),
    ("date", datetime(2024, 2, 29, 1), "value.date()"),
    ("date", "0000-00-00", "no such day"),
    ("date", "2023-02-29", "no such day"),
    ("date", date(999, 12, 31), "1000"),
    ("date", "29.02.2024", "YYYY-MM-DD"),
    ("date", 20240229, "send a datetime"),
    ("time", "24:00:00", "no such time"),
    ("time", time(1, 2, 3, 4), "replace(microsecond=0)"),
    ("time", time(1, 2, 3, tzinfo=UTC_PLUS_5), "time zone"),
    ("time", timedelta(hours=1), "send a datetime.time"),
    ("datetime", datetime(2024, 2, 29, tzinfo=UTC_PLUS_5), "astimezone(timezone.utc).replace(tzinfo=None)"),
    ("datetime", datetime(2024, 2, 29, 1, 2, 3, 4), "replace(microsecond=0)"),
    ("datetime", "2024-02-29 12:34:56Z", "without a time zone"),
    ("datetime", "2024-02-29 12:34:56.5", "without a fraction"),
    ("blob", 7, "send bytes"),
    ("blob", "\ud800", "lone surrogates"),
    ("json", float("nan"), "finite float"),
    ("json", [float("inf")], "finite float"),
    ("json", {1: "a"}, "str keys"),
    ("json", (1, 2), "list"),
    ("json", {"a": date(2024, 1, 1)}, "JSON must be made of"),
    ("list:string", ["a", ""], "blank"),
    ("list:string", [" "], "blank"),
    ("list:string", ["a\x1f"], "strip it"),
    ("list:string", [None], "send a str"),
    ("list:string", {"a"}, "send a str"),
    ("list:integer", ["x"], "send an int"),
    ("list:integer", [2**63], "in that range"),
    ("list:reference person", [-1], "in that range"),
    ("geometry()", "POINT(1 1)", "cannot carry"),
    ("reference person.code", 1, "cannot carry"),
    ("decimal", 1, "cannot carry"),
]


@pytest.mark.parametrize(("type_", "value", "canonical"), ACCEPTED, ids=short)
def test_a_value_that_the_column_holds_exactly_gets_its_canonical_form(type_: str, value: object, canonical: object):
    check = checker("t", Column("c", type_, 10))

    found = check(value)

    assert repr(found) == repr(canonical)  # repr tells 1 from True, and 0.0 from -0.0


@pytest.mark.parametrize(("type_", "value", "advice"), REFUSED, ids=short)
def test_a_value_that_the_column_would_bend_is_refused_with_advice(type_: str, value: object, advice: str):
    check = checker("t", Column("c", type_, 10))

    with pytest.raises(BadValue) as refused:
        check(value)

    assert advice in str(refused.value)
    assert str(refused.value).startswith("t.c ")
    assert (refused.value.table, refused.value.field) == ("t", "c")


@pytest.mark.parametrize(
    "type_", ["integer", "boolean", "double", "decimal(9,2)", "date", "time", "datetime", "string"]
)
def test_a_refusal_never_repeats_the_value_nor_chains_an_error_that_does(type_: str):
    check = checker("t", Column("c", type_, 10))

    with pytest.raises(BadValue) as refused:
        check(SECRET)

    assert SECRET not in str(refused.value)
    assert "this str" in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("type_", ["integer", "string", "json", "list:string", "date"])
def test_none_is_refused_on_a_notnull_column(type_: str):
    check = checker("t", Column("c", type_, notnull=True))

    with pytest.raises(BadValue, match="notnull"):
        check(None)


def test_an_empty_string_is_none_on_a_notnull_integer_but_a_value_on_a_notnull_string():
    number, name = checker("t", Column("c", "integer", notnull=True)), checker("t", Column("c", "string", notnull=True))

    with pytest.raises(BadValue, match="notnull"):
        number("")

    assert name("") == ""


def test_lenient_takes_a_moment_in_utc_as_what_it_is_and_none_of_another_zone():
    aware = datetime(2024, 2, 29, 1, 2, 3, 999999, tzinfo=UTC)  # as py4web's auth.signature has it

    assert lenient("t", Column("c", "datetime"))(aware) == "2024-02-29 01:02:03"
    assert lenient("t", Column("c", "date"))(aware) == "2024-02-29"
    with pytest.raises(BadValue, match="time zone"):
        lenient("t", Column("c", "datetime"))(aware.astimezone(UTC_PLUS_5))
    with pytest.raises(BadValue, match="time zone"):
        checker("t", Column("c", "datetime"))(aware.replace(microsecond=0))


def test_lenient_cuts_microseconds_and_a_days_time_and_nothing_else():
    moment, clock = lenient("t", Column("c", "datetime")), lenient("t", Column("c", "time"))

    assert moment(datetime(2024, 2, 29, 1, 2, 3, 999999)) == "2024-02-29 01:02:03"
    assert moment("2024-02-29 01:02:03.9") == "2024-02-29 01:02:03"
    assert clock(time(1, 2, 3, 4)) == "01:02:03"
    assert lenient("t", Column("c", "date"))(datetime(2024, 2, 29, 1, 2, 3, 4)) == "2024-02-29"
    for kind in ("datetime", "date"):
        with pytest.raises(BadValue, match="time zone"):
            lenient("t", Column("c", kind))(datetime(2024, 2, 29, tzinfo=UTC_PLUS_5))
    with pytest.raises(BadValue, match="HH:MM:SS"):
        clock(datetime(2024, 2, 29, 1))
    with pytest.raises(BadValue, match="time of day"):
        checker("t", Column("c", "date"))(datetime(2024, 2, 29, 1))


def test_an_unsupported_type_is_an_error_at_its_first_use_and_names_the_type():
    check = checker("t", Column("place", "geometry()"))  # building it is no error: the table's other columns work

    with pytest.raises(BadValue, match=r"t\.place has the type 'geometry\(\)'"):
        check(None)


ODD = [
    *(0, 1, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, -(2**63) - 1, True, False, None, Reference(5)),
    *(0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1.7976931348623157e308, Decimal("1.50")),
    *("", "a", "\u00e9", "x" * 20, "x" * 21, "\ud800", "\u2028", Colour.RED, date(2026, 1, 1), b"a"),
]


@pytest.mark.parametrize(
    "type", ["integer", "bigint", "id", "reference t", "double", "float", "decimal(10,2)", "boolean", "string", "text"]
)
def test_values_that_are_canonical_together_are_left_as_they_are_one_by_one(type: str):
    column = Column("c", type, 20 if type == "string" else None)
    check = checker("t", column)

    together = [pair for pair in product(ODD, ODD) if are_canonical(column, pair)]

    assert all(repr([*map(check, pair)]) == repr([*pair]) for pair in together)
    plain = {"double": (1.5, -2.5), "string": ("a", "\u00e9"), "text": ("", "x" * 21)}
    usual = plain.get(type, (1, 2) if type in ("integer", "bigint", "id", "reference t") else None)
    assert usual is None or are_canonical(column, usual)
