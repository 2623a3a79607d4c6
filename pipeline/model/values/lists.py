"""List columns: pyDAL keeps them as one text, `|a|b|`; they travel as JSON lists.

pyDAL's form loses blank items and a unit separator at an item's end, so both are refused. Where pyDAL itself would have
written, blank items are left out: web2py's widget for lists sends one for each input that the user left empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.model.column import Column
from pipeline.model.values import numbers
from pipeline.model.values.refused import Refused
from pipeline.model.values.texts import text

#: pyDAL puts this beside a `|` at an item's end, and strips it there on reading.
UNIT_SEPARATOR = "\x1f"


def items(column: Column, no_blanks: bool = False) -> Callable[[object], list[Any]]:
    """Return the converter of a list column. One value alone becomes a list of one, as in pyDAL."""
    convert_item = _item(column)

    def convert(value: object) -> list[Any]:
        given = value if isinstance(value, list | tuple) else [value]
        return [convert_item(item) for item in given if not (no_blanks and is_blank(item))]

    return convert


def is_blank(item: object) -> bool:
    """Return whether pyDAL would drop an item on reading."""
    return isinstance(item, str) and not item.strip()


def _item(column: Column) -> Callable[[object], object]:
    if column.kind == "list:string":
        return _string_item
    return numbers.whole(Column(column.name, "bigint" if column.kind == "list:integer" else "reference"))


def _string_item(value: object) -> str:
    item = text(value)
    if not item.strip():
        raise Refused(value, "pyDAL drops blank items of a list:string on reading; leave it out")
    if item.startswith(UNIT_SEPARATOR) or item.endswith(UNIT_SEPARATOR):
        raise Refused(value, r"pyDAL drops a '\x1f' at the end of a list item; strip it")
    return item
