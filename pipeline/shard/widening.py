"""Judge a column's type in MySQL or MariaDB: whether it holds what a field promises, whether a change is exact."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from pipeline.model.schema import Column


class Widening(Enum):
    """What a change of a type does to the values that are there."""

    EXACT = "every value stays what it is"
    NARROWS = "the server refuses the change while a value does not fit"
    LOSSY = "values are bent, cut or told apart otherwise"


_TYPE = re.compile(r"([a-z]+)(?:\(([0-9,]+)\))?(.*)")
#: Bytes of whole numbers, and how many digits the largest has.
_INTEGERS = {"tinyint": (1, 3), "smallint": (2, 5), "mediumint": (3, 8), "int": (4, 10), "bigint": (8, 20)}
#: Bytes that a type without a length of its own holds, texts and bytes apart.
_TEXTS = {"tinytext": 2**8 - 1, "text": 2**16 - 1, "mediumtext": 2**24 - 1, "longtext": 2**32 - 1}
_BLOBS = {"tinyblob": 2**8 - 1, "blob": 2**16 - 1, "mediumblob": 2**24 - 1, "longblob": 2**32 - 1}
#: Of a character, utf8mb4.
_MOST_BYTES = 4
#: A DOUBLE is exact for whole numbers of up to so many bytes.
_DOUBLE_BYTES = 4


class _Type(NamedTuple):
    word: str
    sizes: tuple[int, ...]
    unsigned: bool


def plain_type(there: str) -> str:
    """Return a type without the display width, which MySQL 8 no longer shows.

    Args:
        there: a type as the database shows it, such as `int(11)`.
    """
    return re.sub(r"\b((?:tiny|small|medium|big)?int)\(\d+\)", r"\1", there.replace(" zerofill", ""))


def widening(there: str, wanted: str) -> Widening:
    """Return what changing a column's type does.

    Args:
        there: the type as the database shows it, in lower case.
        wanted: the new type, in lower case.
    """
    before, after = _parsed(there), _parsed(wanted)
    if before == after or _widens(before, after):
        return Widening.EXACT
    both_whole = before.word in _INTEGERS and after.word in _INTEGERS
    same = (before.word, before.unsigned) == (after.word, after.unsigned)
    refusing = before.word in ("varchar", "varbinary") or (
        before.word == "decimal" and before.sizes[1:] == after.sizes[1:]
    )
    return Widening.NARROWS if both_whole or (same and refusing) else Widening.LOSSY


def refused_type(there: str, wanted: str) -> str:
    """Return why a column does not become another type, and what to do.

    Args:
        there: the type in the database.
        wanted: the type that the definition asks for.
    """
    return (
        f"changing {there} to {wanted} is no widening: values could be cut or bent. Add a field of the new type under "
        "another name, copy the values, and drop the old field later; or take the old type back into the model"
    )


def _parsed(kind: str) -> _Type:
    match = _TYPE.match(plain_type(kind))
    assert match is not None, kind
    sizes = tuple(int(part) for part in match[2].split(",")) if match[2] else ()
    if match[1] == "decimal":
        sizes = (*(sizes or (10,)), 0)[:2]
    return _Type(match[1], sizes, "unsigned" in match[3])


def _widens(before: _Type, after: _Type) -> bool:
    if before.word in _INTEGERS:
        return _holds_whole_numbers(before, after)
    if before.word == "decimal" and after.word == "decimal":
        (digits, scale), (more, finer) = before.sizes, after.sizes
        return finer >= scale and more - finer >= digits - scale and (before.unsigned or not after.unsigned)
    if before.word in ("char", "varchar", *_TEXTS):
        return _holds_texts(before, after, _TEXTS, "varchar", _MOST_BYTES)
    if before.word in ("varbinary", *_BLOBS):
        return _holds_texts(before, after, _BLOBS, "varbinary", 1)
    if before.word in ("time", "datetime", "timestamp") and before.word == after.word:
        return (after.sizes or (0,)) >= (before.sizes or (0,))
    return (before.word, after.word) in (("float", "double"), ("date", "datetime"))


def _holds_whole_numbers(before: _Type, after: _Type) -> bool:
    own_bytes, own_digits = _INTEGERS[before.word]
    if after.word == "double":
        return own_bytes <= _DOUBLE_BYTES
    if after.word == "decimal":
        digits, scale = after.sizes
        return digits - scale >= own_digits and (before.unsigned or not after.unsigned)
    if after.word not in _INTEGERS:
        return False
    bytes_after = _INTEGERS[after.word][0]
    if before.unsigned == after.unsigned:
        return bytes_after >= own_bytes
    return before.unsigned and bytes_after > own_bytes


def _holds_texts(before: _Type, after: _Type, unlimited: dict[str, int], limited: str, most_bytes: int) -> bool:
    """Return whether texts, or bytes, fit. CHAR cuts blanks at the end, so only CHAR becomes CHAR."""
    if before.word in unlimited:
        return unlimited.get(after.word, -1) >= unlimited[before.word]
    [size] = before.sizes or (1,)
    if after.word in unlimited:
        return unlimited[after.word] >= size * most_bytes
    kept = after.word == limited or (before.word == after.word == "char")
    return kept and (after.sizes or (1,))[0] >= size


def type_fault(column: Column, there: str) -> str | None:
    """Return what is wrong with a column; the sentence continues after the column's name.

    Args:
        column: the published definition.
        there: the column's type in the database.

    Returns:
        None if every value of the field fits.
    """
    match = _TYPE.match(there)
    word, size = (match[1], match[2] or "") if match else (there, "")
    kind = column.kind
    if kind == "string":
        return _string(column, there, word, size)
    if kind == "decimal":
        return _decimal(column, there, word, size)
    wanted = _accepted(kind)
    if not wanted or word in wanted:
        return None
    return f"is {there}, but the published definition is {column.type!r}"


def _string(column: Column, there: str, word: str, size: str) -> str | None:
    length = column.length or 512
    room = _TEXTS.get(word) or (int(size) if word in ("varchar", "char") and size else None)
    if room is None:
        return f"is {there}, but the published definition is {column.type!r}"
    if room < length:
        return f"is {there}, but the published length is {length}: longer texts are rejected"
    return None


def _decimal(column: Column, there: str, word: str, size: str) -> str | None:
    digits, scale = column.digits
    numbers = [int(part) for part in size.split(",")] if size else [0, 0]
    if word == "decimal" and numbers[1] >= scale and numbers[0] - numbers[1] >= digits - scale:
        return None
    return f"is {there}, but the published definition is {column.type!r}"


def _accepted(kind: str) -> tuple[str, ...]:
    """Return the types that hold a kind; nothing for an unknown kind."""
    if kind.startswith("list:") or kind in ("text", "json"):
        return ("text", "mediumtext", "longtext", "json")
    return {
        "boolean": ("char", "varchar"),
        "integer": ("int", "bigint"),
        "bigint": ("bigint",),
        "reference": ("bigint",),
        # a FLOAT keeps about 6 digits: `admin/check/schemas.py` warns
        "float": ("double", "float", "decimal"),
        "double": ("double", "float"),
        "blob": ("blob", "mediumblob", "longblob"),
        "date": ("date",),
        "time": ("time",),
        "datetime": ("datetime", "timestamp"),
    }.get(kind, ())
