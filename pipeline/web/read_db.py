"""Give a controller that only reads a DAL: one node of one shard for the whole request, with the caller's tables.

With several shards no node has all rows of a sharded table. Such a table is refused by name, unless the shard key tells
which shard is meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.client import Client
from pipeline.dal.objects import real_name, tables_in
from pipeline.errors import BadRead
from pipeline.reads.gather.over_shards import answered
from pipeline.reads.node_dal import NodeDAL, uncached
from pipeline.reads.read_place import ReadPlace
from pipeline.web.own_reads import OwnReads

_WORD = re.compile(r"\w+")


class ReadDAL:
    """A node's DAL, read-only. Tables and queries of the caller's own DAL may be used with it.

    Args:
        node: opened for the request.
        names: of the caller's tables.
        refuse: raises where the rows of a table are not all there.
    """

    __slots__ = ("_names", "_node", "_refuse")

    def __init__(self, node: NodeDAL, names: Collection[str], refuse: Refusal):
        self._node, self._names, self._refuse = node, frozenset(names), refuse

    def __call__(self, query: Any = None, *args: Any, **options: Any) -> Any:
        """Return pyDAL's Set of a query."""
        self._refuse.read(query)
        return uncached(self._node(query, *args, **options), self._refuse.read)

    def executesql(self, query: str, *args: Any, **options: Any) -> Any:
        """Run a statement, as pyDAL's method of the name does."""
        for word in self._names.intersection(_WORD.findall(query)):
            self._refuse(word)
        return self._node.executesql(query, *args, **options)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:  # the node itself may not have been asked for it yet
            self._refuse(name)
        return getattr(self._node, name)

    def __getitem__(self, name: str) -> Any:
        self._refuse(name)
        return self._node[name]

    def __contains__(self, name: object) -> bool:
        return name in self._node

    def __iter__(self) -> Iterator[Any]:
        return iter(self._node)

    def __repr__(self) -> str:
        return repr(self._node)


class Refusal:
    """Refuses tables whose rows are not all on the node.

    Args:
        request: reads; it warns of tables that it has written since the node was chosen.
        keyed: whether a shard key was given: then the caller means the rows with that key, and its neighbours.
    """

    def __init__(self, request: OwnReads, keyed: bool):
        self._request, self._topology, self._written = request, request.client.topology, request.written
        self._whole = keyed or len(self._topology.shards) == 1

    def read(self, query: Any, fields: Sequence[Any] = (), options: Mapping[str, Any] = {}) -> None:
        """Refuse a read that names such a table, in a subselect or a join too, or whose text may.

        Raises:
            BadRead: naming what to use instead.
        """
        if query is None:
            return
        for table in tables_in([query, *fields, *options.values()], inner=True):
            self(real_name(table))
        if self._whole:
            return
        place = ReadPlace(self._topology.shards[0], None)
        for _ in answered(self._topology, [place], query, fields, options):
            raise AssertionError("a subselect of tables that each shard has")

    def __call__(self, name: str) -> None:
        """Refuse a table.

        Raises:
            BadRead: naming what to use instead.
        """
        self._request.before_node(name, self._written)
        shards = len(self._topology.shards)
        if self._whole or self._topology.table(name).reference:
            return
        key = self._topology.table(name).shard_key or "id"
        raise BadRead(
            f"the rows of {name!r} are on {shards} shards, and read_db is one node: use pipeline.select(...) for all "
            f"of them, or read_db(db, {name!r}, shard_key=…) for those with one {key!r}"
        )


def table_for(client: Client, db: Any) -> Any:
    """Return a table by which a node may be chosen when the caller has named none: one of which a node has all rows.

    Args:
        client: whose shards.
        db: the application's DAL.

    Raises:
        BadRead: there is none.
    """
    lazy = getattr(db, "_LAZY_TABLES", {})
    names = sorted(db.tables, key=lambda name: name in lazy)
    shards = len(client.topology.shards)
    for name in names:
        if client.topology.table(name).reference or shards == 1:
            return db[name]
    raise BadRead(
        f"there are {shards} shards and no reference table: say which rows are meant, read_db(db, TABLE, shard_key=…), "
        "or use pipeline.select(...)"
    )
