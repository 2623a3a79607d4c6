"""Hand out a node's DAL for one read, with how the node was chosen. The DAL itself is shared by all threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from pipeline.dal import kind_of, rebuilt_on, tables_in
from pipeline.dal.sql_texts import raw
from pipeline.errors import BadRead, UnknownTable
from pipeline.reads.connections import NodeReader
from pipeline.reads.node_tables import NodeTables
from pipeline.reads.onward import Onward


class ReadInfo(NamedTuple):
    """How a read was routed.

    Attributes:
        node: its name, such as `s0-r1`.
        role: primary or replica.
        lag_s: an upper bound of how old what it shows may be; None where it is unknown. The primary's is 0.
        waited_s: how long the read waited for what it must see.
        stale: True where it may be older than was asked for: the caller chose that, or the primary is away.
        reason: of the choice; see `policy`.
    """

    node: str
    role: str
    lag_s: float | None
    waited_s: float
    stale: bool
    reason: str


def callers_names(names: Sequence[str], columns: Sequence[Any], fields: Sequence[Any]) -> list[str]:
    """Return the names of a result's columns; an expression's is what the caller's DAL calls it, for `row[expression]`.

    Args:
        names: what the node's DAL calls the columns.
        columns: the expressions of the result, as the node's DAL has them.
        fields: what the caller asked for; a table's ALL stands for as many columns as it has.
    """
    renamed = list(names)
    at = 0
    for field in fields:
        if kind_of(field) == "SQLALL":
            at += len(field._table.fields)
            continue
        if kind_of(field) == "Expression" and kind_of(columns[at]) == "Expression":
            renamed[at] = str(field)
        at += 1
    return renamed


def besides(query: Any, left_out: str) -> Any:
    """Return a query narrowed by a text of SQL; pyDAL narrows it by filters where it would have before.

    Args:
        query: of a node's DAL.
        left_out: the further condition.
    """
    made = query & raw(left_out)
    made.ignore_common_filters = getattr(query, "ignore_common_filters", False)
    return made


def refuse_cache(cache: Any) -> None:
    """Refuse pyDAL's `cache=` of a read: it would return rows of any age as if they were fresh.

    Raises:
        BadRead: it says what to do instead.
    """
    if cache:
        raise BadRead(
            "cache= would return rows that lack what the reader must see: leave it out, or keep a result of your own, "
            "such as cache.ram(KEY, lambda: pipeline.select(...).as_list(), SECONDS)"
        )


@cache
def _uncached(own: type[Any]) -> type[Any]:
    """Return a class of sets, like pyDAL's *own*, that refuse `cache=`; so do the sets that are made of one."""

    class Uncached(own):  # type: ignore[misc]  # of either line of pyDAL
        def __call__(self, query: Any, *args: Any, **options: Any) -> Any:
            self._refuse(query, (), {})
            return uncached(super().__call__(query, *args, **options), self._refuse)

        def count(self, distinct: Any = None, cache: Any = None) -> Any:
            refuse_cache(cache)
            self._refuse(self.query, (distinct,), {})
            return super().count(distinct)

        def select(self, *fields: Any, **options: Any) -> Any:
            refuse_cache(options.get("cache"))
            self._refuse(self.query, fields, options)
            return super().select(*fields, **options)

        def iterselect(self, *fields: Any, **options: Any) -> Any:
            refuse_cache(options.get("cache"))
            self._refuse(self.query, fields, options)
            return super().iterselect(*fields, **options)

    return Uncached


def _nothing(query: Any, fields: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuse no read."""


def uncached(found: Any, refuse: Any = _nothing) -> Any:
    """Let a set of pyDAL's, just made, refuse `cache=`; return it.

    Args:
        found: the set.
        refuse: called with query, fields and options of each read of the set, before it is sent.
    """
    own: Any = type(found)
    found.__class__ = own if own.__name__ == "Uncached" else _uncached(own)
    found._refuse = refuse
    return found


class CallersDAL:
    """A DAL that all threads share, as one caller's: with the caller's tables, fields and filters.

    Args:
        tables: of the shared DAL.
        onward: where rows lead to.
        find_table: returns a table of this thread's by its name, where the caller's own DAL has none. Without it, only
            tables that the shared DAL has been asked for may be named.
    """

    __slots__ = ("_bound", "_db", "_find_table", "_onward", "_tables")

    def __init__(self, tables: NodeTables, onward: Onward, find_table: Callable[[str], Any] | None = None):
        self._tables, self._db, self._onward, self._find_table = tables, tables.db, onward, find_table
        self._bound: dict[str, Any] = {}
        tables.come((), onward)

    def __call__(self, query: Any = None, *args: Any, **options: Any) -> Any:
        """Return pyDAL's Set of a query."""
        self._tables.come(tables_in(query), self._onward)
        return self._db(rebuilt_on(query, self._db, self._own), *args, **options)

    def __getattr__(self, name: str) -> Any:
        db = self._db
        if name in db.tables or not hasattr(db, name):
            return self[name]
        return getattr(db, name)

    def __getitem__(self, name: str) -> Any:
        if self._find_table is not None:
            try:
                return self._own(self._callers_own(name))
            except UnknownTable:
                if name not in self._db.tables:
                    raise AttributeError(f"table {name!r} is not defined here") from None
        return self._db[name]

    def __contains__(self, name: object) -> bool:
        return name in self._db

    def __iter__(self) -> Iterator[Any]:
        return (self[name] for name in self._db.tables)

    def _callers_own(self, name: str) -> Any:
        db = self._onward.db
        return db[name] if name in db.tables or self._find_table is None else self._find_table(name)

    def _own(self, table: Any) -> Any:
        """Return the shared DAL's table for one of the caller's, with what the caller's fields do."""
        name = table._tablename
        if self._tables.is_own(table):
            return self._bound.get(name, table)
        if name not in self._bound:
            self._bound[name] = self._tables.bound(table, self)
        return self._bound[name]


class PrimaryDAL(CallersDAL):
    """The primary of one shard, in a transaction that is its caller's to end.

    Args:
        tables: of the primary's DAL.
        shard: its name.
        onward: where rows lead to; what this shard alone has is read here, in the transaction.
        find_table: as for `CallersDAL`.
    """

    __slots__ = ("shard",)

    def __init__(self, tables: NodeTables, shard: str, onward: Onward, find_table: Callable[[str], Any]):
        self.shard = shard
        super().__init__(tables, onward._replace(near=self), find_table)


class NodeDAL(CallersDAL):
    """A read-only pyDAL DAL. Tables and queries of the caller's own DAL may be used with it.

    Args:
        reader: the node.
        read_info: how it was chosen.
        onward, find_table: as for `CallersDAL`.
        excluded: the buckets of which the node may have rows that another shard serves, where that shard is read, too.
    """

    __slots__ = ("excluded", "read_info", "reader")

    def __init__(
        self,
        reader: NodeReader,
        read_info: ReadInfo,
        onward: Onward,
        find_table: Callable[[str], Any] | None = None,
        excluded: tuple[int, ...] = (),
    ):
        self.reader, self.read_info, self.excluded = reader, read_info, excluded
        super().__init__(reader.tables, onward, find_table)

    def where(self, query: Any, left_out: str = "") -> Any:
        """Return pyDAL's Set of a query of the caller's, in any thread: its fields do nothing but to name columns.

        Args:
            query: of the caller's DAL.
            left_out: SQL of a further condition.
        """
        self._tables.come(tables_in(query), self._onward)
        found = self._db(self._tables.own(query))
        return self._db(besides(found.query, left_out)) if left_out else found

    def select(self, query: Any, fields: Sequence[Any], options: Mapping[str, Any], left_out: str = "") -> Any:
        """Return the rows that a query of the caller's finds, with expressions named as the caller's own DAL does.

        Args:
            query: of the caller's DAL.
            fields: of the result; none: all of the query's tables.
            options: pyDAL's.
            left_out: SQL of a further condition.
        """
        own = {name: self.reader.own(value) for name, value in options.items()}
        parse = self.reader.adapter.parse

        def named(rows: Any, columns: Any, names: Sequence[str], cacheable: bool = False) -> Any:
            return parse(rows, columns, callers_names(names, columns, fields), cacheable=cacheable)

        own.setdefault("processor", named)
        return self.where(query, left_out).select(*[self.reader.own(field) for field in fields], **own)

    def __call__(self, query: Any = None, *args: Any, **options: Any) -> Any:
        """Return pyDAL's Set of a query."""
        return uncached(super().__call__(query, *args, **options))

    def __repr__(self) -> str:
        return f"<DAL of node {self.read_info.node}, read-only>"
