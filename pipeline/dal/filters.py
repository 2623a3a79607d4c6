"""Narrow each query on a shared DAL by the common filters of the present request.

A table of a shared DAL is made from its first caller's, for all threads and requests. The limits to one user's or
tenant's rows must come from the present caller's own table, at each query.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.dal.objects import has_filters, kind_of, tables_in
from pipeline.dal.sql_texts import check_query


def narrowed(query: Any, callers: Iterable[tuple[Any, Callable[[Any], Any]]]) -> Any:
    """Return *query* with the limits of the callers' tables that it names.

    Args:
        query: None for all rows.
        callers: each table, as it is now, and what makes a query on it one of our DAL.
    """
    for table, own in callers:
        for part in limits_of(table, query):
            check_query(part)
            query = own(part) if query is None else query & own(part)
    return query


def narrowed_here(query: Any, tables: Iterable[Any] | None = None) -> Any:
    """Return *query* with the limits of its tables, asked for in this thread: another has no request, and no user.

    Args:
        query: pyDAL does not narrow the result again.
        tables: those that count; None: all of the query.
    """
    if getattr(query, "ignore_common_filters", False):
        return query
    named = tables_in(query) if tables is None else tables
    own = {table._tablename: table for table in named if has_filters(table)}
    if not own:
        return query
    if kind_of(query) == "Table":
        query = query._db(query).query
    found = copy.copy(narrowed(query, ((table, lambda part: part) for table in own.values())))
    found.ignore_common_filters = True
    return found


def limits_of(table: Any, query: Any) -> Iterator[Any]:
    """Yield the limits to a table's rows, as they are now.

    Args:
        table: of the caller's DAL.
        query: what is asked of the table; None: all rows.
    """
    if table._common_filter is not None:
        yield table._common_filter(query)
    tenant = table._db._request_tenant
    if tenant in table.fields and table[tenant].default is not None:
        yield table[tenant] == table[tenant].default
