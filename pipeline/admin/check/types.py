"""Judge whether a column of MySQL or MariaDB holds exactly what a pyDAL field promises."""

from __future__ import annotations

import re

from pipeline.model.schema import Column

_TEXTS = {"tinytext": 255, "text": 65_535, "mediumtext": 16_777_215, "longtext": 2**32 - 1}
_INTEGERS = ("tinyint", "smallint", "mediumint", "int", "bigint")
_TYPE = re.compile(r"([a-z]+)(?:\(([0-9,]+)\))?(.*)")


def fault(column: Column, there: str) -> str | None:
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
        "integer": _INTEGERS[3:],
        "bigint": _INTEGERS[4:],
        "reference": _INTEGERS[4:],
        # a FLOAT keeps about 6 digits: `schemas.storage` warns
        "float": ("double", "float", "decimal"),
        "double": ("double", "float"),
        "blob": ("blob", "mediumblob", "longblob"),
        "date": ("date",),
        "time": ("time",),
        "datetime": ("datetime", "timestamp"),
    }.get(kind, ())
