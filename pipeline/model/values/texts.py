"""Convert texts, blobs, booleans, JSON and lists: from what a caller may give to the exact form that travels.

pyDAL keeps a list as one text, `|a|b|`; it travels as a JSON list. Blank items are refused, and a unit separator at an
item's end, since pyDAL's form loses both. With `no_blanks` blank items are left out: web2py's list widget sends one for
each empty input.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from pipeline.errors import Refused
from pipeline.model.schema import Column
from pipeline.model.values import numbers

#: Classes of web2py and pyDAL that mean their str(): a translation, a password to be hashed. Known by name, since a
#: worker or a plain script has neither framework.
LAZY_TEXTS = frozenset({"lazyT", "LazyCrypt"})
#: Texts that mean a boolean to pyDAL and to a reader alike; 'on' is an HTML checkbox. Without 'no' and 'off', which
#: pyDAL stores as True.
BOOLEANS = {"T": True, "True": True, "true": True, "1": True, "on": True}
BOOLEANS |= {"F": False, "False": False, "false": False, "0": False}
#: What pyDAL stores as its `str` where the column is a text: the text says all of it.
_PRINTED = frozenset((bool, int, float, Decimal, date, datetime, time, UUID))
#: pyDAL writes of a moment within JSON what this many characters hold: no microseconds, no time zone.
JSON_MOMENT = len("2024-05-01 09:30:00")
#: pyDAL puts this beside a `|` at an item's end, and strips it there on reading.
UNIT_SEPARATOR = "\x1f"


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
    return numbers.whole(Column(column.name, "bigint" if column.kind == "list:integer" else "reference"))


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
