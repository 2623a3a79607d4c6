"""Write literals: from the canonical form of a value to the SQL text of one database.

pyDAL's `expand` knows every dialect, but costs microseconds a value. So each column gets a short closure that must
first give the text of `expand` for a list of probes. Where it does not, `expand` stays. MySQL sessions must run with
NO_BACKSLASH_ESCAPES: to double the quote is the whole escape.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.errors import Rejected
from pipeline.model.schema import Column
from pipeline.model.values import Canonical, python_value

Encode = Callable[[Any], str]

#: What SQLite keeps exactly of a decimal, which it turns into a binary float: DBL_DIG.
SQLITE_DIGITS = 15


def encoder(adapter: Any, column: Column) -> Encode:
    """Return the function from a canonical value of *column* to a literal for *adapter* (`db._adapter`).

    Raises:
        Rejected: (the returned function) the value passed its checker, but this database cannot hold it exactly.
    """
    slow = _expanding(adapter, column)
    probes = _probes(column)
    if len(probes) == 1:
        return slow  # an unknown type: no checker lets a value of such a type through
    literals = [slow(probe) for probe in probes]
    for fast in _candidates(column, slow):
        if [fast(probe) for probe in probes] == literals:
            return _limited(adapter, column, fast)
    return _limited(adapter, column, slow)


def _expanding(adapter: Any, column: Column) -> Encode:
    expand, type_ = adapter.expand, column.type

    def encode(canonical: Canonical) -> str:
        return str(expand(_for_pydal(column, canonical), type_))

    return encode


def _for_pydal(column: Column, canonical: Canonical) -> Any:
    """Return the Python value that makes `expand` write *canonical*."""
    if column.kind == "decimal":
        return canonical  # never a Decimal: its str() of small numbers is '1E-7', which MySQL reads as a binary float
    if column.kind == "blob" and isinstance(canonical, str):
        return b64decode(canonical)  # never the str that pyDAL reads back: an empty one would become NULL
    return python_value(column, canonical)


def _limited(adapter: Any, column: Column, encode: Encode) -> Encode:
    """Add the limits that only SQLite has; every other database refuses such values itself, in strict mode."""
    if adapter.dbengine not in ("sqlite", "spatialite"):
        return encode
    where = f"column {column.name!r}"
    if column.kind in ("double", "float"):
        return _refusing(where, _long_float, _too_near_zero, "SQLite does not read numbers below 1e-280 exactly")
    if column.kind == "decimal" and column.digits[0] > SQLITE_DIGITS:
        return _refusing(where, encode, _too_many_digits, f"SQLite keeps {SQLITE_DIGITS} digits of a decimal")
    if column.kind in ("string", "text", "list:string"):
        return _refusing(where, encode, _has_nul, "SQLite takes no NUL character in a literal")
    return encode


def _refusing(where: str, encode: Encode, is_bad: Callable[[str], bool], reason: str) -> Encode:
    def encode_or_reject(canonical: Any) -> str:
        literal = encode(canonical)
        if is_bad(literal):
            raise Rejected(where, reason)
        return literal

    return encode_or_reject


def _long_float(value: Any) -> str:
    """Write 18 digits: SQLite 3.40 rounds twice and read 4 of 200,000 shortest literals as the neighbouring double."""
    return "NULL" if value is None else f"{value:.17e}"


def _too_near_zero(literal: str) -> bool:
    exponent = literal.partition("e-")[2]
    return len(exponent) == 3 and exponent > "280"


def _has_nul(literal: str) -> bool:
    return "\0" in literal


def _too_many_digits(literal: str) -> bool:
    return literal != "NULL" and len(literal.strip("'").replace(".", "").lstrip("-0")) > SQLITE_DIGITS


# fast closures --------------------------------------------------------------------------------------------------


def _candidates(column: Column, slow: Encode) -> Sequence[Encode]:
    if column.kind == "boolean":
        flags: dict[Any, str] = {flag: slow(flag) for flag in (None, True, False)}
        return [flags.__getitem__]
    if column.kind.startswith("list:"):
        return [_bars]
    return [_bare, _quoted_number] if column.kind in _NUMBERS else [_bare_text, _quoted]


def _bare(value: Any) -> str:
    return "NULL" if value is None else repr(value)


def _quoted_number(value: Any) -> str:
    return "NULL" if value is None else f"'{value!r}'"


def _bare_text(value: Any) -> str:
    return "NULL" if value is None else str(value)


def _quoted(value: Any) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def _bars(value: Any) -> str:
    """Write pyDAL's `|a|b|`: a bar inside is doubled, and a unit separator sets it off from the delimiter."""
    if value is None:
        return "NULL"
    return _quoted("|" + "|".join(map(_bar_item, value)) + "|")


def _bar_item(item: object) -> str:
    text = str(item)
    if "|" not in text:
        return text
    text = text.replace("|", "||")
    return ("\x1f" if text[0] == "|" else "") + text + ("\x1f" if text[-1] == "|" else "")


# probes: every value that needs care somewhere ---------------------------------------------------------


def _probes(column: Column) -> list[Canonical]:
    kind = column.kind
    if kind == "decimal":
        return [None, *(f"{n:.{column.digits[1]}f}" for n in (0, 1, -1, 0.125, 12345678))]
    return [None, *_PROBES.get(kind, ())]


_NUMBERS = frozenset({"integer", "bigint", "id", "reference", "double", "float"})
_WHOLES = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
_FLOATS = (0.0, 1.0, -1.5, 0.1, 1e16, 1e-7, 1e22, 5e-324, 1.7976931348623157e308)
_QUOTES = ("it's", "''", '"', "`", "\\", "\\'", "a\\")
_TEXTS = ("", "a", *_QUOTES, "%", "%s", "%%", ":a", "?", "é", "\U0001f600", "\r\n\t", "\0", "\x1a")
_BYTES = (b"", b"a", b"\0\xff", b"'\\%", bytes(range(256)))
_LISTS: Sequence[Canonical] = ([], ["a"], ["a", "b"], ["|"], ["||", "a|", "|b", "c|d"], [*_QUOTES, "%", "\U0001f600"])
_PROBES: dict[str, Sequence[Canonical]] = {
    "integer": _WHOLES,
    "bigint": _WHOLES,
    "id": _WHOLES,
    "reference": _WHOLES,
    "double": _FLOATS,
    "float": _FLOATS,
    "boolean": (True, False),
    "string": _TEXTS,
    "text": _TEXTS,
    "blob": [b64encode(raw).decode() for raw in _BYTES],
    "json": [*map(json.dumps, _TEXTS), '{"it\'s": [1, 0.5, null, true]}', "[]", "{}"],
    "date": ("1000-01-01", "2024-02-29", "9999-12-31"),
    "time": ("00:00:00", "23:59:59"),
    "datetime": ("1000-01-01 00:00:00", "2024-02-29 12:34:56", "9999-12-31 23:59:59"),
    "list:string": _LISTS,
    "list:integer": ([], [0], [1, -2, 2**63 - 1]),
    "list:reference": ([], [0], [1, 2, 2**63 - 1]),
}
