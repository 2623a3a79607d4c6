"""Define the caller's tables on a node's DAL when first used, and rewrite queries in the node's own dialect.

A definition is shared by all threads and has columns only. What belongs to a request comes from the caller's own table
at each read. Such things are common filters, virtual fields, methods, `filter_out`, `represent`, and what refers to a
row.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.bounds import MOST_DEFINITIONS, keep_newest
from pipeline.dal import compile_in_each_thread, for_all_threads, kind_of, real_name, rebuilt_on, referee, renamed
from pipeline.dal.sql_texts import guard
from pipeline.dal.trees import narrowed
from pipeline.model.schema import signature_of
from pipeline.per_process import PerProcess
from pipeline.reads.onward import Onward, Referee, Referrers, RowsDAL

#: Tables that are remembered: web2py makes its own anew at each request.
MOST_MET = 1000
#: What a field does for a request, and no column has.
NO_BEHAVIOUR = dict.fromkeys(("default", "update", "compute", "represent", "filter_in", "filter_out", "requires"))
#: pyDAL's own tenant filter would take the tenant of whoever defined the table here; see `NodeTables.filtered`.
NO_TENANT = "-"


_making = PerProcess(threading.Lock)
#: Where a table that has been bound carries the caller's.
_CALLERS = "_pipeline_callers"
_CALLBACKS = tuple(f"_{when}_{what}" for when in ("before", "after") for what in ("insert", "update", "delete"))


class _Callers(threading.local):
    """The tables that this thread's callers last came with, by name, and where the rows of their read lead to."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.onward: Onward | None = None


class _Referees:
    """What pyDAL's parser takes for its adapter and its DAL, to find the table of a reference."""

    def __init__(self, callers: _Callers, db: Any):
        self._callers, self._db, self.db = callers, db, self

    def __getitem__(self, name: str) -> Any:
        onward = self._callers.onward
        return self._db[name] if onward is None else Referee(onward, name)


class NodeTables:
    """The tables of one node's DAL. Threads may share it.

    Args:
        db: the node's DAL.
    """

    def __init__(self, db: Any):
        self.db = self._db = db
        self._lock = threading.RLock()
        #: For this thread, until its next call.
        self.callers = _Callers()
        self._defined: dict[str, tuple[Any, ...]] = {}
        self._met: dict[int, tuple[weakref.ref[Any], Any]] = {}
        db._request_tenant = NO_TENANT
        db._referee_name = None  # of the node's own tables nothing refers to a row
        adapter = db._adapter
        #: pyDAL's own parser, for fields of the caller's.
        self.parse = adapter.parse
        self._iterparse, self._add_operators = adapter.iterparse, adapter._add_operators_to_parsed_row
        adapter.common_filter, adapter.parse, adapter.iterparse = self.filtered, self._parsed, self._iterparsed
        adapter._add_operators_to_parsed_row = self._lead_on
        adapter.parser.adapter = _Referees(self.callers, db)
        compile_in_each_thread(adapter)
        guard(adapter)

    @classmethod
    def on(cls, db: Any) -> NodeTables:
        """Return the tables of a shared DAL, one object for all.

        Args:
            db: the shared DAL.
        """
        with _making():
            found = getattr(vars(db._adapter).get("common_filter"), "__self__", None)
            return found if isinstance(found, cls) else cls(db)

    def come(self, tables: Iterable[Any], onward: Onward) -> None:
        """Note, for this thread, whose rows are read next.

        Args:
            tables: of the caller's DAL.
            onward: where the rows lead to.
        """
        self.callers.onward = onward
        met = self.callers.tables
        if len(met) > MOST_DEFINITIONS:
            met.clear()  # of requests that are over: nobody else removes them
        for table in tables:
            if table._db is not self._db and _CALLERS not in vars(table):  # as `is_own`, once per read
                met[table._tablename] = table
            elif real_name(table) in onward.db.tables:
                met.pop(table._tablename, None)  # of an earlier request, perhaps

    def forget(self) -> None:
        """Let this thread's next rows be those of no caller: as the columns have them."""
        self.callers.tables.clear()
        self.callers.onward = None

    def table(self, table: Any) -> Any:
        """Return this node's own table for a table of the caller's DAL, defined when first asked for.

        Args:
            table: of the caller's DAL; one of the node's own comes back as it is.
        """
        if table._db is self._db or _CALLERS in vars(table):  # as `is_own`, once per read
            return table
        self.callers.tables[table._tablename] = table
        met = self._met.get(id(table))
        if met is not None and met[0]() is table:
            return met[1]
        own = self._define(table)
        if table._tablename != real_name(table):
            return own.with_alias(table._tablename)
        keep_newest(self._met, id(table), (weakref.ref(table), own), MOST_MET)
        return own

    def is_own(self, table: Any) -> bool:
        """Return whether a table is one of this node's, bound or not."""
        return table._db is self._db or _CALLERS in vars(table)

    def bound(self, table: Any, db: Any) -> Any:
        """Return this node's own table for a table of the caller's DAL, with what the caller's fields do.

        Args:
            table: of the caller's DAL.
            db: has such tables by their names. web2py's grids take a table's DAL, and ask it for the table.
        """
        own = self.table(table)
        made = copy.copy(own)
        its = vars(made)
        for field in own:
            its[field.name] = table[field.name].clone(type=field.type, _itype=field._itype)
            its[field.name].bind(made)
            its[field.name].db = its[field.name]._db = db  # not before: pyDAL asks for what a reference refers to
        its["_db"] = db
        its["_id"] = its[own._id.name]
        if "id" in its:
            its["id"] = made._id
        its["ALL"] = type(own.ALL)(made)
        its.update((name, list(its[name])) for name in _CALLBACKS)
        virtual = [*table._virtual_fields, *table._virtual_methods]
        its.update((one.name, one) for one in virtual if one.name not in made.fields)
        for name in ("_virtual_fields", "_virtual_methods", "virtualfields", "_format"):
            its[name] = getattr(table, name)
        its[_CALLERS] = table
        return made

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
                options = {"rname": original._rname} if renamed(original) else {}
                self._make_room(name)
                self._db.define_table(
                    name,
                    *[self._field(field, original) for field in original],
                    migrate=False,
                    format=original._format,
                    **options,
                )
                self._defined[name] = signature
                # pyDAL needs a table's definition to read a reference to it
                for other in _referred(original):
                    if other not in self._db.tables:
                        self._define(original._db[other])
            return self._db[name]

    def _make_room(self, name: str) -> None:
        """Forget a table's former definition, and the oldest tables where there are too many."""
        if name in self._defined:
            self._undefine(name)
        while len(self._defined) >= MOST_DEFINITIONS:
            self._undefine(next(iter(self._defined)))

    def _undefine(self, name: str) -> None:
        """Forget a table; a thread that reads it at this moment has the object, and `_named` makes it anew by name."""
        own = self._db[name]
        del self._defined[name]
        for field in own:
            if (referent := getattr(field, "referent", None)) is not None:
                parent = referent._table
                parent._referenced_by = [other for other in parent._referenced_by if other._table is not own]
                parent._referenced_by_list = [other for other in parent._referenced_by_list if other._table is not own]
        for met, (_, found) in [*self._met.items()]:
            if found is own:
                self._met.pop(met, None)
        self._db.tables.remove(name)
        del self._db[name]

    def _named(self, name: str) -> Any:
        """Return this node's own table by its name, made anew from the caller's where it had to make room."""
        try:
            return self._db[name]
        except AttributeError:
            if name not in self.callers.tables:
                raise
            return self._define(self.callers.tables[name])

    def _field(self, field: Any, table: Any) -> Any:
        """Return a field of one's own; a reference to a table that the caller has not defined is a number."""
        target = referee(field.type)
        if target is None or target in table._db.tables:
            return for_all_threads(field.clone(**NO_BEHAVIOUR))
        return for_all_threads(field.clone(type="bigint", _itype="bigint", **NO_BEHAVIOUR))

    def filtered(self, query: Any, tables: Iterable[Any]) -> Any:
        """Add the common filters of the caller's tables, as they are now: they may be this request's user's.

        Args:
            query: None for all rows.
            tables: those that it asks, or their names.
        """
        own = (self._named(table) if isinstance(table, str) else table for table in tables)
        pairs = ((self._callers_table(table), partial(self._on, table)) for table in own)
        return narrowed(query, ((callers, on) for callers, on in pairs if callers is not None))

    def _on(self, own: Any, part: Any) -> Any:
        """Return a part of a caller's query on *own*, perhaps an alias, for the table that it is made from."""
        return rebuilt_on(
            part, self._db, lambda other: own if real_name(own) == real_name(other) else self.table(other)
        )

    def _callers_table(self, table: Any) -> Any:
        """Return the caller's table for one of this node's, or None where the caller has none."""
        if (bound_from := vars(table).get(_CALLERS)) is not None and bound_from._tablename == table._tablename:
            return bound_from
        name, met, onward = table._tablename, self.callers.tables, self.callers.onward
        if name not in met and onward is not None and real_name(table) in onward.db.tables:
            original = onward.db[real_name(table)]
            met[name] = original if name == real_name(table) else original.with_alias(name)
        return met.get(name)

    # rows ---------------------------------------------------------------------------------------------------

    def _parsed(self, rows: Any, fields: Any, names: Any, blob_decode: bool = True, cacheable: bool = False) -> Any:
        """Return rows as the caller's own DAL would read them; in the place of pyDAL's `parse`."""
        found = self.parse(rows, self._callers_own(fields), names, blob_decode=blob_decode, cacheable=cacheable)
        if self.callers.onward is not None:
            found.db = RowsDAL(self.callers.onward)
        return found

    def as_read(self, table: Any, values: Mapping[str, Any], onward: Onward) -> Any:
        """Return a row of values, as pyDAL reads them, as if it had been read.

        Args:
            table: of the caller's DAL.
            values: by field.
            onward: where the row leads to.
        """
        self.come((table,), onward)
        reading = copy.copy(self._db._adapter)
        reading.parse_value = self._referring
        fields, row = list(table), [values[name] for name in table.fields]
        names = [reading._colexpand(field, {}) for field in fields]
        return type(reading).parse(reading, [row], fields, names).first()

    def _referring(self, value: Any, kind: str, type_: str, blob_decode: bool = True) -> Any:
        """Return a value that has been read, a reference as one that leads on; in the place of pyDAL's parser."""
        parse = self._db._adapter.parser.parse
        if value is not None and kind == "reference":
            return parse(value, kind, type_)
        if value is not None and kind == "list:reference":
            return [parse(one, "reference", type_.removeprefix("list:")) for one in value]
        return value

    def _iterparsed(self, sql: str, fields: Any, names: Any, **options: Any) -> Any:
        return self._iterparse(sql, self._callers_own(fields), names, **options)

    def _callers_own(self, fields: Sequence[Any]) -> list[Any]:
        return [
            self._callers_field(field) if kind_of(field) == "Field" and self.is_own(field._table) else field
            for field in fields
        ]

    def _callers_field(self, field: Any) -> Any:
        table = self._callers_table(field._table)
        return field if table is None else table[field.name]

    def _lead_on(self, row_id: int, table: Any, row: Any) -> None:
        """Give a row what changes it, which a node refuses, and the rows that refer to it."""
        near = table._db is self._db or _CALLERS in vars(table)  # as `is_own`, once per row
        try:
            own = table if near else self._db[table._dalname]
        except AttributeError:  # it had to make room
            own = self._define(table)
        onward = self.callers.onward
        self._add_operators(row_id, own, row)
        if onward is not None and onward.near is not None:
            for name in self._db.record_operators:
                getattr(row, name).db = onward.near
        if onward is None or own is table:
            return
        pattern = table._db._referee_name
        for field in table._referenced_by:
            link = pattern and pattern % {"table": field._tablename, "field": field.name}
            if link and link not in row and link != table._tablename:
                row[link] = Referrers(onward, field, row_id)
        if table._db._lazy_tables:
            row["__get_lazy_reference__"] = lambda name: lazily(onward, table, row_id, name)


def lazily(onward: Onward, table: Any, row_id: int, name: str) -> Any:
    """Return the rows of the table *name*, which may not be made yet, that refer to a row."""
    if name in onward.db.tables:
        onward.db[name]
        for field in table._referenced_by:
            if field._tablename == name:
                return Referrers(onward, field, row_id)
    raise AttributeError(name)


def _referred(table: Any) -> Iterator[str]:
    for field in table:
        target = referee(field.type)
        if target is not None and target in table._db.tables:
            yield target
