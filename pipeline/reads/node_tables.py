"""Define the caller's tables on a node's DAL when first asked for, and rewrite queries in the node's own dialect.

A definition is shared by all threads. What belongs to a request, such as a common filter, comes from the caller's own
table at each read.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.dal.filters import narrowed
from pipeline.dal.objects import for_all_threads, real_name, rebuilt_on, referee, renamed
from pipeline.model.schema import signature_of

#: Tables that are remembered: web2py makes its own anew at each request.
MOST_MET = 1000
#: pyDAL's own tenant filter would take the tenant of whoever defined the table here; see `NodeTables.filtered`.
NO_TENANT = "-"


class _Callers(threading.local):
    """The tables that this thread's callers last came with, by name."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}


class NodeTables:
    """The tables of one node's DAL. Threads may share it.

    Args:
        db: the node's DAL.
    """

    def __init__(self, db: Any):
        self._db = db
        self._lock = threading.RLock()
        #: For this thread, until its next call.
        self.callers = _Callers()
        self._defined: dict[str, tuple[Any, ...]] = {}
        self._met: dict[int, tuple[weakref.ref[Any], Any]] = {}
        db._request_tenant = NO_TENANT
        db._adapter.common_filter = self.filtered

    def table(self, table: Any) -> Any:
        """Return this node's own table for a table of the caller's DAL, defined when first asked for.

        Args:
            table: of the caller's DAL; one of the node's own comes back as it is.
        """
        if table._db is self._db:
            return table
        self.callers.tables[table._tablename] = table
        met = self._met.get(id(table))
        if met is not None and met[0]() is table:
            return met[1]
        own = self._define(table)
        if table._tablename != real_name(table):
            return own.with_alias(table._tablename)
        if len(self._met) >= MOST_MET:
            self._met.clear()
        self._met[id(table)] = (weakref.ref(table), own)
        return own

    def own(self, part: Any) -> Any:
        """Return a query, field or expression of the caller's DAL as one of this node's.

        Args:
            part: what is no pyDAL object comes back as it is.
        """
        return rebuilt_on(part, self._db, self.table)

    def _define(self, table: Any) -> Any:
        name, signature = real_name(table), signature_of(table)[1:]
        with self._lock:
            if self._defined.get(name) != signature:
                original = getattr(table._db, name, table) if table._tablename != name else table
                virtual = [_unbound(v) for v in (*original._virtual_fields, *original._virtual_methods)]
                options = {"rname": original._rname} if renamed(original) else {}
                self._db.define_table(
                    name,
                    *[self._field(field, original) for field in original],
                    *virtual,
                    migrate=False,
                    redefine=name in self._defined,
                    format=original._format,
                    **options,
                )
                self._defined[name] = signature
                # pyDAL needs a table's definition to read a reference to it
                for other in _referred(original):
                    if other not in self._db.tables:
                        self._define(original._db[other])
            return self._db[name]

    def _field(self, field: Any, table: Any) -> Any:
        """Return a field of one's own; a reference to a table that the caller has not defined is a number."""
        target = referee(field.type)
        if target is None or target in table._db.tables:
            return for_all_threads(field.clone())
        return for_all_threads(field.clone(type="bigint", _itype="bigint"))

    def filtered(self, query: Any, tables: Iterable[Any]) -> Any:
        """Add the common filters of the caller's tables, as they are now: they may be this request's user's.

        Args:
            query: None for all rows.
            tables: those that it asks, or their names.
        """
        names = (table if isinstance(table, str) else table._tablename for table in tables)
        met = self.callers.tables
        return narrowed(query, ((met[name], self.own) for name in names if name in met))


def _referred(table: Any) -> Iterator[str]:
    for field in table:
        target = referee(field.type)
        if target is not None and target in table._db.tables:
            yield target


def _unbound(virtual: Any) -> Any:
    """Return a virtual field or method that another table may take."""
    free = copy.copy(virtual)
    if hasattr(free, "tablename"):
        free.tablename = None
    return free
