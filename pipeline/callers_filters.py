"""Filters of the caller on a DAL that many share: each query is narrowed by the common filters of the present request.

A table of ours is made from the first caller's, for all threads and requests. What limits a request to its user's or
tenant's rows must come from the caller's own DAL, at each query.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from pipeline.pydal_objects import real_name, rebuilt


class CallersFilters(threading.local):
    """Stands in for `common_filter` of one shared DAL's adapter; each thread has its own caller."""

    def __init__(self, db: Any):
        self._db = db
        self._callers: Any = None

    @classmethod
    def on(cls, db: Any) -> CallersFilters:
        """Return those of a shared DAL, put there at first."""
        found = vars(db._adapter).get("common_filter")
        if not isinstance(found, cls):
            found = db._adapter.common_filter = cls(db)
        return found

    def of(self, callers: Any) -> None:
        """Let this thread's queries be narrowed as *callers* would narrow them, until another DAL is named."""
        self._callers = callers

    def __call__(self, query: Any, tables: Iterable[Any]) -> Any:
        """Return what pyDAL makes of a query before it asks."""
        for table in tables:
            own = self._db[table] if isinstance(table, str) else table
            for part in self._filters(real_name(own), query):
                narrowed = rebuilt(part, self._db, lambda other, own=own: self._as(own, other))
                query = narrowed if query is None else query & narrowed
        return query

    def _filters(self, name: str, query: Any) -> Iterable[Any]:
        if self._callers is None or name not in self._callers.tables:
            return
        table = self._callers[name]  # a lazy one is made now
        if table._common_filter is not None:
            yield table._common_filter(query)
        tenant = self._callers._request_tenant
        if tenant in table.fields and table[tenant].default is not None:
            yield table[tenant] == table[tenant].default

    def _as(self, own: Any, other: Any) -> Any:
        """Return our table for the caller's; an alias of ours is meant where its own table is named."""
        return own if real_name(own) == real_name(other) else self._db[real_name(other)]
