"""Read pyDAL's objects by duck type: both lines of pyDAL have `op.__name__`, `first`, `second`.

Nothing of pyDAL is imported.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from types import NoneType
from typing import Any

from pipeline.errors import BadOp

#: Values of these types are no part of a query, and nothing to be called.
PLAIN = frozenset((bool, int, float, str, Decimal, date, datetime, time))
_CLASSES = ("Table", "Field", "Query", "Expression", "Select", "Set", "SQLALL")
#: Kinds of so many types are kept; under py4web each field of a shared DAL has a type of its own.
_MOST_TYPES = 2048


def kind_of(value: Any) -> str:
    """Return Table, Field, Query, Expression, Select, Set or SQLALL for a *value* of pyDAL's; else the empty string."""
    type_: Any = type(value)
    return _kind_of_type(type_)


@lru_cache(_MOST_TYPES)  # a query's parts are asked for their kind twenty times on the way to an op
def _kind_of_type(type_: Any) -> str:
    if not issubclass(type_, int | str | float | NoneType):
        for cls in type_.__mro__:
            if cls.__name__ in _CLASSES and cls.__module__.startswith("pydal.") and cls.__module__ != "pydal.ast":
                return str(cls.__name__)
    return ""


def query_of(target: Any) -> Any:
    """Return the query of a set of rows, `db(query)`; any other value as it is.

    Args:
        target: what a caller gives to name rows.

    Raises:
        BadOp: a set of no table's rows.
    """
    if kind_of(target) != "Set":
        return target
    if target.query is None:
        raise BadOp("db() names no rows: give a query, such as db.purchase.id == 5, or db(query)")
    return target.query


def op_name(part: Any) -> str:
    """Return the name of the operator of a query or expression: `eq`, `_and`, `aggregate`, …; or its SQL text.

    Args:
        part: the query or expression.
    """
    op = getattr(part, "op", None)
    return getattr(op, "__name__", None) or str(op)


def field_table(field: Any) -> Any:
    """Return a field's table."""
    return field._table if hasattr(field, "_table") else field.table


def tables_in(part: Any, inner: bool = False) -> Iterator[Any]:
    """Yield the tables in a query, an expression, or a list of them, each as often as it is named.

    Args:
        part: the query, expression or list; any other value names no table.
        inner: whether those in subselects are meant, too.
    """
    waiting, met = [part], set()
    while waiting:  # no recursion: a query may be deeper than Python's stack
        part = waiting.pop()
        if type(part) in PLAIN:
            continue
        kind = kind_of(part)
        if kind in ("SQLALL", "Field"):
            part = part._table if kind == "SQLALL" else field_table(part)
            kind = kind_of(part) if inner else "Table"
        if kind == "Table":
            yield part
        elif kind in ("Query", "Expression"):
            waiting += (part.second, part.first)
        elif kind == "Select" and inner and id(part) not in met:
            met.add(id(part))
            waiting += (part._query, part._qfields, part._cte_recursive, *part._attributes.values())
        elif isinstance(part, list | tuple | set | frozenset) and id(part) not in met:
            met.add(id(part))  # a list may be in itself
            waiting += reversed(list(part))


def real_name(table: Any) -> str:
    """Return the name under which a table was defined: an alias has another.

    Args:
        table: a pyDAL table.
    """
    return str(getattr(table, "_dalname", table._tablename))


def changed_by_delete(db: Any, name: str) -> set[str]:
    """Return the tables of which rows go, or lose a reference, where rows of a table are deleted.

    Args:
        db: the DAL.
        name: the table's name.
    """
    found, waiting = set[str](), [name]
    while waiting:
        for field in db[waiting.pop()]._referenced_by:
            table, rule = real_name(field._table), str(field.ondelete or "CASCADE").upper()
            if table not in found and rule not in ("NO ACTION", "RESTRICT"):
                found.add(table)
                waiting += [table] if rule == "CASCADE" else []
    return found


def renamed(table: Any) -> bool:
    """Return whether a table has another name in the database; pyDAL fills `rname` with the quoted one if not.

    Args:
        table: a pyDAL table.
    """
    return bool(table._rname) and table._rname.strip("\"'`[]") != real_name(table)


def referee(type_: Any) -> str | None:
    """Return the table that a field of the type *type_* refers to, or None."""
    if not isinstance(type_, str) or not type_.startswith(("reference ", "big-reference ")):
        return None
    return type_.partition(" ")[2].strip().partition(".")[0]


def reference_to(table: Any, row_id: int | None) -> Any:
    """Return an id as pyDAL's own insert does: a number that fetches its row when one of its fields is read.

    Args:
        table: the pyDAL table of the row.
        row_id: the id; None stays None.
    """
    if row_id is None:
        return None
    module = next(cls.__module__ for cls in type(table).__mro__ if cls.__module__.startswith("pydal."))
    made = sys.modules[module].Reference(row_id)
    made._table, made._record = table, None
    return made


def conjuncts(query: Any) -> Iterator[Any]:
    """Yield the parts of *query* that must all hold."""
    waiting = [query]
    while waiting:
        query = waiting.pop()
        if kind_of(query) == "Query":
            if op_name(query) == "_and":
                waiting += (query.second, query.first)
            else:
                yield query


def pinned_values(query: Any, table: Any, field: str) -> list[Any]:
    """Return the values to which a query fixes a field with `==`, or with `belongs` and one value.

    Args:
        query: the query.
        table: the field's table.
        field: the field's name.
    """
    found = []
    for part in conjuncts(query):
        first, name = part.first, op_name(part)
        if kind_of(first) != "Field" or first.name != field or field_table(first)._tablename != table._tablename:
            continue
        second = part.second
        if name == "belongs" and isinstance(second, list | tuple | set | frozenset) and len(second) == 1:
            (second,) = second
        elif name != "eq":
            continue
        if second is not None and not kind_of(second):
            found.append(second)
    return found


def has_filters(table: Any) -> bool:
    """Return whether the application limits every query of a table: by a `common_filter`, or to a tenant's rows.

    Args:
        table: a pyDAL table.
    """
    tenant = getattr(table._db, "_request_tenant", None)
    return table._common_filter is not None or (tenant in table.fields and table[tenant].default is not None)


def with_filters(query: Any, table: Any) -> Any:
    """Return what pyDAL runs for a query: narrowed by the table's filters, unless the query ignores them.

    Args:
        query: the query.
        table: the table whose filters hold.
    """
    if getattr(query, "ignore_common_filters", False) or not has_filters(table):
        return query
    return table._db._adapter.common_filter(query, [table])


def rebuilt_on(part: Any, db: Any, table: Any) -> Any:
    """Return a query, expression or field as one of another DAL: its tables, its dialect.

    Args:
        part: from any DAL; what is no pyDAL object comes back as it is.
        db: the DAL to rebuild for.
        table: returns db's own table for a table of the other DAL.
    """
    kind = kind_of(part)
    if kind == "Field":
        return table(field_table(part))[part.name]
    if kind == "Table":
        return table(part)
    if kind == "SQLALL":
        return table(part._table).ALL
    if kind in ("Query", "Expression"):
        made = copy.copy(part)
        made.db = made._db = db
        made.op = _op_of(part, db)
        made.first, made.second = rebuilt_on(part.first, db, table), rebuilt_on(part.second, db, table)
        return made
    if kind == "Select":
        options = {name: rebuilt_on(value, db, table) for name, value in part._attributes.items()}
        fields = [rebuilt_on(field, db, table) for field in part._qfields]
        query = rebuilt_on(part._query, db, table)
        return db(query).nested_select(*fields, correlated=part._correlated, **options)
    if type(part) in (list, tuple):
        # a value may be a list of any depth, which holds nothing of pyDAL's
        return type(part)(rebuilt_on(item, db, table) if kind_of(item) else item for item in part)
    return part


def _op_of(part: Any, db: Any) -> Any:
    op = part.op
    if isinstance(op, str) or not hasattr(db._adapter.dialect, op_name(part)):
        return op
    if type(op).__name__ == "DialectOp":  # of the line 3: bound to a DAL, not to its dialect
        return type(op)(db, op_name(part))
    return getattr(db._adapter.dialect, op_name(part))


def compile_in_each_thread(adapter: Any) -> None:
    """Give each thread a compiler of its own, on an adapter that threads share.

    The compiler of pyDAL's newer line keeps the values and tables of the statement that it is making. Of two threads
    at once, one got a statement without tables, or could get the other's values.

    Args:
        adapter: of either line; the older has no compiler.
    """
    if (kind := type(getattr(adapter, "compiler", None))) is not NoneType:
        # a local object is made anew, by the same call, in each thread
        adapter.compiler = type(kind.__name__, (threading.local, kind), {})(adapter)


def for_all_threads(field: Any) -> Any:
    """Make *field* the same in every thread, and return it.

    py4web keeps `filter_out`, `represent`, `default` and others of every Field per thread. py4web restores such values
    in each request, but for the application's own tables only. So a table of ours, made in one thread, has no such
    value in another.
    """
    kind = type(field)
    names = [name for base in kind.__mro__ for name, slot in vars(base).items() if _per_thread(slot)]
    if names:
        values = {name: getattr(field, name) for name in names}
        # values of plain names stay in the object
        field.__class__ = type(kind.__name__, (kind,), dict.fromkeys(names))
        for name, value in values.items():
            setattr(field, name, value)
    return field


def _per_thread(slot: Any) -> bool:
    return type(slot).__name__ == "ThreadSafeVariable"
