"""Narrow each query on a shared DAL by the common filters of the present request.

A table of a shared DAL is made from its first caller's, for all threads and requests. The limits to one user's or
tenant's rows must come from the present caller's own table, at each query.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from pipeline.dal.objects import has_filters, kind_of, real_name, rebuilt_on


def narrowed(query: Any, callers: Iterable[tuple[Any, Callable[[Any], Any]]]) -> Any:
    """Return *query* with the limits of the callers' tables that it names.

    Args:
        query: None for all rows.
        callers: each table, as it is now, and what makes a query on it one of our DAL.
    """
    for table, own in callers:
        for part in _limits(table, query):
            query = own(part) if query is None else query & own(part)
    return query


def _limits(table: Any, query: Any) -> Iterator[Any]:
    if table._common_filter is not None:
        yield table._common_filter(query)
    tenant = table._db._request_tenant
    if tenant in table.fields and table[tenant].default is not None:
        yield table[tenant] == table[tenant].default


def limited(query: Any, tables: Iterable[Any]) -> Any:
    """Return *query* narrowed by the filters of its caller's *tables*; pyDAL does not narrow the result again."""
    if getattr(query, "ignore_common_filters", False):
        return query
    own = {table._tablename: table for table in tables if has_filters(table)}
    if not own:
        return query
    if kind_of(query) == "Table":
        query = query._db(query).query
    found = narrowed(query, ((table, lambda part: part) for table in own.values()))
    found.ignore_common_filters = True
    return found


class CallersFilters(threading.local):
    """The `common_filter` of one shared DAL's adapter; each thread has its own caller."""

    def __init__(self, db: Any):
        self._db = db
        self._callers: Any = None

    @classmethod
    def on(cls, db: Any) -> CallersFilters:
        """Return the filters of a shared DAL, and install them at first.

        Args:
            db: the shared DAL.
        """
        found = vars(db._adapter).get("common_filter")
        if not isinstance(found, cls):
            found = db._adapter.common_filter = cls(db)
        return found

    def of(self, callers: Any) -> None:
        """Let this thread's queries be narrowed as *callers* would narrow them, until another DAL is named."""
        self._callers = callers

    def __call__(self, query: Any, tables: Iterable[Any]) -> Any:
        """Return what pyDAL runs for *query*: narrowed by the filters of the caller's own *tables*."""
        return narrowed(query, self._asked(tables))

    def _asked(self, tables: Iterable[Any]) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
        for table in tables:
            own = self._db[table] if isinstance(table, str) else table
            if self._callers is not None and (name := real_name(own)) in self._callers.tables:
                yield self._callers[name], partial(self._ours, own)  # a lazy table is made now

    def _ours(self, own: Any, part: Any) -> Any:
        return rebuilt_on(part, self._db, lambda other: self._as(own, other))

    def _as(self, own: Any, other: Any) -> Any:
        """Return our table for the caller's: *own*, perhaps an alias, for the table that it is made from."""
        return own if real_name(own) == real_name(other) else self._db[real_name(other)]
