"""Convert what a caller may give for numbers, texts, blobs, booleans, JSON and lists to the exact form that travels.

Convert numbers: from what a caller may give for integer, float and decimal columns to the exact form that travels.
Nothing is rounded and nothing is clamped: a number that the column cannot hold exactly is refused.

pyDAL keeps a list as one text, `|a|b|`; it travels as a JSON list. Blank items are refused, and a unit separator at an
item's end, since pyDAL's form loses both. With `no_blanks` blank items are left out: web2py's list widget sends one for
each empty input.
"""

from __future__ import annotations

import json
import math
import operator
import re
import sys
from base64 import b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, InvalidOperation
from typing import Any
from uuid import UUID

from pipeline.errors import Refused
from pipeline.model.schema import Column

#: Lowest and highest value of the integer types. An id begins at 1: AUTO_INCREMENT replaces a 0 by a number of its own.
RANGES = {
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
    "id": (1, 2**63 - 1),
    "reference": (0, 2**63 - 1),
}
#: MariaDB sends a FLOAT with FLT_DIG = 6 significant digits, so only such values come back as they were sent.
FLOAT_DIGITS = 6
#: The range of normal IEEE 754 singles, to six digits.
FLOAT_RANGE = (1.17550e-38, 3.40282e38)
#: DECIMAL has up to 65 digits.
_WIDEST = Context(prec=65)
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?")
#: Classes of web2py and pyDAL that mean their str(): a translation, a password to be hashed. Known by name, since a
#: worker or a plain script has neither framework.
LAZY_TEXTS = frozenset({"lazyT", "LazyCrypt"})
#: Texts that mean a boolean to pyDAL and to a reader alike; 'on' is an HTML checkbox. Without 'no' and 'off', which
#: pyDAL stores as True.
BOOLEANS = {"T": True, "True": True, "true": True, "1": True, "on": True}
#: What pyDAL stores as its `str` where the column is a text: the text says all of it.
_PRINTED = frozenset((bool, int, float, Decimal, date, datetime, time, UUID))
#: pyDAL writes of a moment within JSON what this many characters hold: no microseconds, no time zone.
JSON_MOMENT = len("2024-05-01 09:30:00")
#: pyDAL puts this beside a `|` at an item's end, and strips it there on reading.
UNIT_SEPARATOR = "\x1f"


def whole(column: Column) -> Callable[[object], int]:
    """Return the converter of an integer, bigint, id or reference column."""
    low, high = RANGES[column.kind]

    def convert(value: object) -> int:
        number = _whole(value)
        if not low <= number <= high:
            raise Refused(value, f"a {column.type} holds {low} to {high}; send a number in that range")
        return number

    return convert


def double(value: object) -> float:
    """Convert *value* to a finite float. Minus zero becomes zero, its equal: MariaDB keeps no sign there."""
    number = _float(value)
    if not math.isfinite(number):
        raise Refused(value, "NaN and infinity cannot be stored; send None")
    return number + 0.0


def single(value: object) -> float:
    """Convert *value* to a float that survives a FLOAT column, which keeps six significant digits."""
    number = double(value)
    low, high = FLOAT_RANGE
    if number and not (low <= abs(number) <= high and float(f"{number:.{FLOAT_DIGITS}g}") == number):
        advice = "declare the field 'double', or send float(f'{value:.6g}')"
        raise Refused(value, f"a float column keeps {FLOAT_DIGITS} significant digits; {advice}")
    return number


def decimal(column: Column) -> Callable[[object], str]:
    """Return the converter to text with exactly the digits of *column* after the point, such as '12.50'."""
    precision, scale = column.digits
    unit = Decimal(1).scaleb(-scale)
    exact = Context(prec=max(precision, 1), traps=[Inexact, InvalidOperation])

    def convert(value: object) -> str:
        number = _decimal(value)
        if not number.is_finite():
            raise Refused(value, "NaN and infinity cannot be stored; send None")
        try:
            fitted = number.quantize(unit, context=exact)
        except (Inexact, InvalidOperation):
            raise Refused(value, f"a {column.type} cannot hold all its digits; round it yourself") from None
        return format(fitted if fitted else abs(fitted), "f")

    return convert


def rounded(type_: str, value: object) -> object:
    """Return a value for a decimal column with the digits that MySQL keeps: a half is rounded away from zero.

    What is no finite number, or too large, comes back as it is.

    Args:
        type_: pyDAL's, such as `decimal(10,2)`.
        value: what pyDAL would write.
    """
    unit = Decimal(1).scaleb(-Column("", type_).digits[1])
    try:
        number = _decimal(value)
        return number.quantize(unit, ROUND_HALF_UP, _WIDEST) if number.is_finite() else value
    except (Refused, InvalidOperation):
        return value


def _whole(value: object) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        if _WHOLE.fullmatch(value) is None:
            raise Refused(value, "it is not a whole number; send an int")
        return int(str.__str__(value))
    if isinstance(value, float):
        if not value.is_integer():
            raise Refused(value, "it is not a whole number; send round(value) if that is meant")
        return int(value)
    if isinstance(value, Decimal):
        return _whole_decimal(value)
    if type(value).__name__ == "Row":
        return _row_id(value)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # numpy's integers are not ints but have an index
    except TypeError:
        raise Refused(value, "send an int") from None


def _whole_decimal(value: Decimal) -> int:
    # Bounded first: int(Decimal('1e999999')) builds a million digits.
    if not value.is_finite() or value.adjusted() > 40 or value != value.to_integral_value():
        raise Refused(value, "it is not a whole number; send an int")
    return int(value)


def _row_id(row: object) -> int:
    try:
        return _whole(row["id"])  # type: ignore[index]  # a pyDAL Row, known by its name only
    except KeyError:
        raise Refused(row, "it was selected without its id; send the id itself") from None


def _float(value: object) -> float:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        if not (-sys.float_info.max <= value <= sys.float_info.max and int(float(value)) == value):
            raise Refused(value, "a double cannot hold all its digits; declare the field 'bigint' or 'decimal(p,s)'")
        return float(value)
    number = _decimal(value)
    nearest = float(number) if not number.is_snan() else math.nan
    if math.isfinite(nearest) and Decimal(repr(nearest)) != number:
        raise Refused(value, "a double cannot hold all its digits; send float(value), or declare 'decimal(p,s)'")
    return nearest


def _decimal(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int):
        if value.bit_length() > 300:
            raise Refused(value, "it has more digits than any decimal column; send a smaller number")
        return Decimal(int(value))
    if isinstance(value, float):
        return Decimal(float.__repr__(value))
    if isinstance(value, str):
        if _NUMBER.fullmatch(value) is None:
            raise Refused(value, "it is not a number; send a number such as '12.50'")
        return Decimal(str.__str__(value))
    try:
        return Decimal(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise Refused(value, "send an int, a float or a decimal.Decimal") from None


BOOLEANS |= {"F": False, "False": False, "false": False, "0": False}


def text(value: object) -> str:
    """Convert *value* to a str that UTF-8 can carry."""
    if isinstance(value, str):
        plain = str.__str__(value)  # not str(value): a str Enum would give its name
    elif type(value).__name__ in LAZY_TEXTS:
        plain = str(value)
    elif isinstance(value, bytes | bytearray | memoryview):
        raise Refused(value, "send bytes(value).decode() if it is text, or declare the field 'blob'")
    else:
        raise Refused(value, "send a str; str(value) if that is meant")
    if not plain.isascii():
        _utf8(value, plain)
    return plain


def plain(printed: bool) -> Callable[[object], str]:
    """Return the converter of a text column.

    Args:
        printed: whether numbers, moments, UUIDs and UTF-8 bytes are taken as pyDAL takes them: as their text.
    """
    return _printed if printed else text


def _printed(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise Refused(value, "these bytes are not UTF-8, so no text; declare the field 'blob'") from None
    return _printed_item(value)


def _printed_item(value: object) -> str:
    """Return the text of a list's item: to pyDAL bytes in a list are the text of their repr, so they are refused."""
    if type(value) in _PRINTED:
        try:
            return str(value)
        except ValueError as error:  # an int beyond Python's limit
            raise Refused(value, str(error)) from None
    return int.__repr__(value) if isinstance(value, int) else text(value)  # a Reference is its id


def string(column: Column, printed: bool) -> Callable[[object], str]:
    """Return the converter of a string, password or upload column.

    Args:
        column: its `length` limits the text, in characters.
        printed: as for `plain`.
    """
    longest, to_text = column.length, plain(printed)

    def convert(value: object) -> str:
        plain = to_text(value)
        if longest is not None and len(plain) > longest:
            advice = "shorten it, or make the field longer"
            raise Refused(value, f"it has {len(plain)} characters, the column holds {longest}; {advice}")
        return plain

    return convert


def blob(value: object) -> str:
    """Convert *value*, bytes, to base64 text, pyDAL's own form. A str means its UTF-8 bytes, as pyDAL reads it back."""
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(bytes(value)).decode("ascii")
    if isinstance(value, str):
        return b64encode(_utf8(value, str.__str__(value))).decode("ascii")
    raise Refused(value, "send bytes")


def boolean(value: object) -> bool:
    """Convert *value* to a bool where its meaning is beyond doubt."""
    if type(value).__name__ in ("bool", "bool_"):  # numpy's are not Python's
        return bool(value)
    if isinstance(value, str):
        known = BOOLEANS.get(value)
    else:
        known = {0: False, 1: True}.get(value) if isinstance(value, int) else None
    if known is None:
        raise Refused(value, "send True or False")
    return known


def json_text(printed: bool) -> Callable[[object], str]:
    """Return the converter of a json column: to the JSON text that pyDAL stores; a str is a JSON string.

    What JSON would bend (a tuple, a date, a key that is no str) is refused: a read must give what was sent.

    Args:
        printed: whether tuples, Decimals and moments are taken as pyDAL takes them; a key is a str all the same.
    """
    return (lambda value: _json(value, _json_part)) if printed else _exact_json


def _exact_json(value: object) -> str:
    return _json(value, lambda same: same)


def _json_part(value: object) -> object:
    """Return a part of JSON as pyDAL writes it: a Decimal as its text, a moment without microseconds."""
    if isinstance(value, dict):
        return {key: _json_part(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_part(part) for part in value]
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime | time) and value.tzinfo is not None and value.utcoffset() != timedelta():
        raise Refused(value, "pyDAL drops its time zone within JSON; send value.isoformat()")
    if isinstance(value, date | time):
        return value.isoformat()[:JSON_MOMENT].replace("T", " ")
    return value


def _json(value: object, part: Callable[[object], object]) -> str:
    try:
        given = part(value)
        plain = json.dumps(given, allow_nan=False)
        exact = json.loads(plain) == given
    except (TypeError, ValueError, RecursionError):
        exact = False
    if not exact:
        made_of = "dict (with str keys), list, str, int, finite float, bool and None"
        raise Refused(value, f"JSON must be made of {made_of} only, all the way down")
    return plain


def items(column: Column, no_blanks: bool = False) -> Callable[[object], list[Any]]:
    """Return the converter of a list column. One value alone becomes a list of one, as in pyDAL.

    Args:
        column: of a `list:` type.
        no_blanks: whether blank items are left out, and items are taken as `plain` takes texts, bytes aside; else
            they are refused.
    """
    convert_item = _item(column, no_blanks)

    def convert(value: object) -> list[Any]:
        given = value if isinstance(value, list | tuple) else [value]
        if no_blanks and given is not value and not value and not isinstance(value, str):
            raise Refused(value, "pyDAL stores an empty list for it; send a list")
        return [convert_item(item) for item in given if not (no_blanks and is_blank(item))]

    return convert


def is_blank(item: object) -> bool:
    """Return whether pyDAL would drop an item on reading."""
    return isinstance(item, str) and not item.strip()


def _item(column: Column, printed: bool) -> Callable[[object], object]:
    if column.kind == "list:string":
        return (lambda value: _string_item(_printed_item(value))) if printed else _string_item
    return whole(Column(column.name, "bigint" if column.kind == "list:integer" else "reference"))


def _string_item(value: object) -> str:
    item = text(value)
    if not item.strip():
        raise Refused(value, "pyDAL drops blank items of a list:string on reading; leave it out")
    if item.startswith(UNIT_SEPARATOR) or item.endswith(UNIT_SEPARATOR):
        raise Refused(value, r"pyDAL drops a '\x1f' at the end of a list item; strip it")
    return item


def _utf8(value: object, plain: str) -> bytes:
    try:
        return plain.encode()
    except UnicodeEncodeError:
        why = "it has lone surrogates, which UTF-8 cannot carry; decode it again from its bytes"
        raise Refused(value, why) from None
