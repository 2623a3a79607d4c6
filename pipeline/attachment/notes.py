"""What a `_before_*` callback of ours has seen of a write, for the adapter's method that comes right behind it.

pyDAL hands the callback a set and the row, the adapter the set's query and the row's pairs. Both are compared by
identity: a later callback may have forbidden the write that was noted.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from itertools import chain
from typing import Any, Generic, TypeVar

Seen = TypeVar("Seen")


class Notes(Generic[Seen]):
    """The last note of each thread or task."""

    def __init__(self, name: str):
        self._last: ContextVar[tuple[Any, Any, Seen] | None] = ContextVar(f"pipeline_{name}", default=None)

    def put(self, query: Any, row: Any, seen: Seen) -> None:
        """Note what was seen of a write; *row* is None for a delete."""
        self._last.set((query, row, seen))

    def take(self, query: Any, pairs: Iterable[tuple[Any, Any]] | None) -> Seen | None:
        """Return what was seen of just this write, and forget it."""
        last = self._last.get()
        self._last.set(None)
        if last is None or last[0] is not query:
            return None
        _, row, seen = last
        theirs = None if row is None else row.op_values()
        return seen if _identities(theirs) == _identities(pairs) else None


def _identities(pairs: Iterable[tuple[Any, Any]] | None) -> list[int] | None:
    return None if pairs is None else list(map(id, chain.from_iterable(pairs)))
