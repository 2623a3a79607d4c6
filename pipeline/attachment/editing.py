"""What a form that edits a record has changed: an edit form hands all its fields to `update`, touched or not.

Such an update would take back what others have changed meanwhile, so only the fields that differ from the record shown
are queued. It holds inside the form alone: any other update means every value that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pipeline.dal.objects import kind_of, real_name
from pipeline.enqueue.row_plans import Final
from pipeline.errors import BadValue

_shown: ContextVar[tuple[str, Any] | None] = ContextVar("pipeline_shown", default=None)
_NOTHING = object()


@contextmanager
def editing(table: Any, record: Any) -> Iterator[None]:
    """Take updates of a table inside the block for a form's, which shows *record*; None: it creates one."""
    before = _shown.set((real_name(table), record) if record else None)
    try:
        yield
    finally:
        _shown.reset(before)


def changed(table: Any, values: Final) -> Final:
    """Return the values that differ from the record that a form shows; all, where no form is at work."""
    shown = _shown.get()
    if shown is None or shown[0] != real_name(table):
        return values
    return differing(values, shown[1])


def differing(values: Mapping[str, Any], record: Any, check: Mapping[str, Callable[[Any], Any]] | None = None) -> Final:
    """Return the values that differ from a record's, compared in the form that is stored if *check* is given."""
    return Final((name, value) for name, value in values.items() if not _same(name, value, record, check))


def _same(name: str, value: Any, record: Any, check: Mapping[str, Callable[[Any], Any]] | None) -> bool:
    old = record.get(name, _NOTHING)
    if old is _NOTHING or kind_of(value):
        return False
    if check is None:
        return bool(old == value)
    try:
        return bool(check[name](value) == check[name](old))
    except BadValue:
        return False
