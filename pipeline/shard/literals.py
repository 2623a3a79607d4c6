"""Write literals: from the canonical form of a value to the SQL text of one database.

Values come out of the log, where others may have written them. So each closure takes the canonical form of its column's
type, and refuses everything else: no value can leave its literal.

pyDAL's `expand` knows every dialect, but costs microseconds a value. So each column gets a short closure that must
first give the text of `expand` for a list of probes. Else `expand` stays. MySQL sessions must run with
NO_BACKSLASH_ESCAPES: to double the quote is the whole escape.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any, NamedTuple

from pipeline.errors import Rejected
from pipeline.model.schema import Column
from pipeline.model.values import Canonical, python_value

Encode = Callable[[Any], str]

#: Prices and moments repeat: one that was checked lately costs 0.2 µs, as much as one that is not checked.
KNOWN = 2_048
#: What SQLite keeps exactly of a decimal, which it turns into a binary float: DBL_DIG.
SQLITE_DIGITS = 15


def encoder(adapter: Any, column: Column) -> Encode:
    """Return the function from a canonical value of *column* to a literal for *adapter* (`db._adapter`).

    Raises:
        ValueError, TypeError: (the returned function) the value is not of the column's canonical form.
        Rejected: (the returned function) the value passed its checker, but this database cannot hold it exactly.
    """
    slow = _expanding(adapter, column)
    candidates = _candidates(column, slow)
    if not candidates:
        return _only_null
    probes = _probes(column)
    literals = [slow(probe) for probe in probes]
    for fast in candidates:
        if [fast(probe) for probe in probes] == literals:
            return _limited(adapter, column, fast)
    return _limited(adapter, column, _both(candidates[-1], slow))


class JsonForm(NamedTuple):
    """What values of a column are, if JSON writes them as the database reads them.

    Attributes:
        kind: their type.
        lines: what their texts match, each as a line; None: texts that need no escape.
        of_numbers: the types of columns that read a number as its text, which pyDAL writes; none: pyDAL writes numbers.
    """

    kind: type
    lines: re.Pattern[str] | None = None
    of_numbers: Sequence[str] = ()

    def has(self, values: Sequence[Any]) -> bool:
        """Return whether all values are such, or None.

        Args:
            values: of the column.
        """
        kinds = set(map(type, values))
        if not kinds <= {self.kind, type(None)}:
            return False
        if self.kind is not str:
            return True
        texts = [value for value in values if value is not None] if type(None) in kinds else values
        if self.lines is not None:
            return self.lines.fullmatch("".join([f"{text}\n" for text in texts])) is not None
        text = "".join(texts)
        return text.isprintable() and '"' not in text and "\\" not in text

    def as_texts(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return values that it has so that each column reads them as pyDAL's, whatever its type is now.

        Args:
            values: of the column.
        """
        return [None if value is None else str(value) for value in values] if self.of_numbers else values


def json_form(encode: Encode, column: Column, column_type: str | None) -> JsonForm | None:
    """Return which values of a column JSON writes as MySQL reads them; None: none.

    pyDAL puts a bigint into quotes, which costs MySQL more: 0.7 µs a row of 20 columns, five of them bigint. Without
    quotes a number means the same to a column of numbers, and another value to an ENUM. A column may become one: who
    writes numbers sees to it in the same transaction that it has not. Prices and moments are checked
    all at once, 0.06 µs each; one alone takes 1 µs.

    Args:
        encode: made by `encoder`.
        column: its column.
        column_type: as MySQL names it, in lower case, without its length; None where another database has the column.
    """
    if column_type is None:
        return None
    if column.kind == "decimal":
        return JsonForm(str, _lines(_digits(column))) if column_type == "decimal" else None
    form = _JSON.get(encode)
    return form if form is None or not form.of_numbers or column_type in form.of_numbers else None


def _only_null(value: Any) -> str:
    if value is not None:
        raise ValueError("no value of such a type is ever queued")
    return "NULL"


def _both(strict: Encode, slow: Encode) -> Encode:
    """Return *slow* for the values that *strict* takes."""

    def encode(canonical: Canonical) -> str:
        strict(canonical)
        return slow(canonical)

    return encode


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
    if column.kind in ("integer", "bigint", "id", "reference"):
        return _refusing(where, encode, _too_long, "SQLite keeps whole numbers of 64 bits")
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
    return f"{value:.17e}" if type(value) is float else _null(value, "a value of type float")


def _too_near_zero(literal: str) -> bool:
    exponent = literal.partition("e-")[2]
    return len(exponent) == 3 and exponent > "280"


def _too_long(literal: str) -> bool:
    return len(literal) > len("NULL") and not -(2**63) <= int(literal.strip("'")) < 2**63


def _has_nul(literal: str) -> bool:
    return "\0" in literal


def _too_many_digits(literal: str) -> bool:
    return literal != "NULL" and len(literal.strip("'").replace(".", "").lstrip("-0")) > SQLITE_DIGITS


# fast closures --------------------------------------------------------------------------------------------------


def _candidates(column: Column, slow: Encode) -> Sequence[Encode]:
    """Return closures for the values of a column; none where the pipeline carries no value of such a type."""
    kind = column.kind
    if kind == "boolean":
        flags: dict[Any, str] = {flag: slow(flag) for flag in (None, True, False)}
        return [flags.__getitem__]
    if kind == "decimal":
        return [_decimal(column), _decimal(column, "'")]
    return _BY_KIND.get(kind, ())


def _number(kind: type, quote: str = "") -> Encode:
    def encode(value: Any) -> str:
        if type(value) is kind:
            return repr(value) if not quote else f"'{value!r}'"
        return _null(value, f"a value of type {kind.__name__}")

    return encode


def _decimal(column: Column, quote: str = "") -> Encode:
    fits = re.compile(_digits(column)).fullmatch

    @lru_cache(KNOWN)
    def encode(value: Any) -> str:
        if type(value) is str and fits(value):
            return value if not quote else f"'{value}'"
        return _null(value, f"the digits of a {column.type}")

    return encode


def _digits(column: Column) -> str:
    precision, scale = column.digits
    point = rf"\.[0-9]{{{scale}}}" if scale else ""
    return rf"-?[0-9]{{1,{max(1, precision - scale)}}}{point}"


def _moment(kind: type[date | time], length: int, marks: str, at: slice) -> Encode:
    """Return the closure for one form of moments, known by its length and by what is between its numbers."""
    parse = kind.fromisoformat

    @lru_cache(KNOWN)
    def encode(value: Any) -> str:
        if type(value) is str and len(value) == length and value[at] == marks and parse(value):
            return f"'{value}'"
        return _null(value, "a date or a time")

    return encode


def _quoted(value: Any) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def _blob(value: Any) -> str:
    if value is not None:
        a2b_base64(value, strict_mode=True)
    return _quoted(value)


def _json(value: Any) -> str:
    if value is not None:
        _decode_json(value)
    return _quoted(value)


def _bars(item: type) -> Encode:
    """Return the closure for pyDAL's `|a|b|`: a bar inside is doubled, and set off from the delimiter."""

    def encode(value: Any) -> str:
        if type(value) is list and {item}.issuperset(map(type, value)):
            return _quoted("|" + "|".join(map(_bar_item, value)) + "|")
        return _null(value, f"a list of {item.__name__}")

    return encode


def _bar_item(item: object) -> str:
    text = str(item)
    if "|" not in text:
        return text
    text = text.replace("|", "||")
    return ("\x1f" if text[0] == "|" else "") + text + ("\x1f" if text[-1] == "|" else "")


def _null(value: Any, instead: str) -> str:
    if value is not None:
        raise ValueError(f"{instead} is wanted, not {value!r:.80}")
    return "NULL"


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


_decode_json = json.JSONDecoder(parse_constant=_no_number).decode
_WHOLE = (_number(int), _number(int, "'"))
_DOUBLE = (_number(float), _number(float, "'"))
_BY_KIND: dict[str, Sequence[Encode]] = {
    **dict.fromkeys(("integer", "bigint", "id", "reference"), _WHOLE),
    **dict.fromkeys(("double", "float"), _DOUBLE),
    **dict.fromkeys(("string", "text"), (_quoted,)),
    "date": (_moment(date, 10, "--", slice(4, 8, 3)),),
    "time": (_moment(time, 8, "::", slice(2, 6, 3)),),
    "datetime": (_moment(datetime, 19, "-- ::", slice(4, 17, 3)),),
    "blob": (_blob,),
    "json": (_json,),
    "list:string": (_bars(str),),
    **dict.fromkeys(("list:integer", "list:reference"), (_bars(int),)),
}


def _lines(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern}\n)*")


_DATE = "[1-9][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
#: By the encoder: what JSON writes alike.
_JSON: dict[Encode, JsonForm] = {
    _WHOLE[0]: JsonForm(int),
    _WHOLE[1]: JsonForm(int, of_numbers=("tinyint", "smallint", "mediumint", "int", "bigint")),
    _DOUBLE[0]: JsonForm(float),
    _quoted: JsonForm(str),
    _BY_KIND["date"][0]: JsonForm(str, _lines(_DATE)),
    _BY_KIND["time"][0]: JsonForm(str, _lines(_TIME)),
    _BY_KIND["datetime"][0]: JsonForm(str, _lines(f"{_DATE} {_TIME}")),
}


# probes: every value that needs care somewhere ---------------------------------------------------------


def _probes(column: Column) -> list[Canonical]:
    kind = column.kind
    if kind == "decimal":
        precision, scale = column.digits
        largest = 12345678 % 10 ** max(1, precision - scale)
        return [None, *(f"{n:.{scale}f}" for n in (0, 1, -1, 0.125, largest))]
    return [None, *_PROBES.get(kind, ())]


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
