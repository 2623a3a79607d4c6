"""Queue updates and deletes of an attached table: one op where the query names its place, else one op for each row.

The rows that a query names are read from the primaries, since replicas may lack the latest. A row is changed only if it
still matches when its op is applied: the op carries the whole query.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

from pipeline.attachment.forms import changed
from pipeline.calls import Calls
from pipeline.client import Client
from pipeline.dal.objects import conjuncts, op_name, pinned_values, real_name, with_filters
from pipeline.enqueue.final_values import Final
from pipeline.enqueue.version_copy import Archive
from pipeline.errors import BadOp, ShardKeyError
from pipeline.model.ids import carries_bucket
from pipeline.model.receipt import Receipt
from pipeline.reads.node_tables import NodeTables

#: How long a write that must look for its rows waits for what was queued before it, s.
SETTLE_S = 5.0
#: More rows than this are not changed by one call: the request would hold that many ops.
MOST_ROWS = 10_000


class Found(NamedTuple):
    """A row that a query named, and its shard key; None where the id is the key."""

    id: int
    key: Any


class Changes:
    """Writes to the rows of one attached table.

    Args:
        calls: take them.
        table: the attached table.
        archive: where an update keeps each row as it was before. Then it is one op for each row, for each needs an id.
        own: whether what the request has queued is sent, and waited for, where rows must be looked for.
    """

    def __init__(self, calls: Calls, table: Any, archive: Archive | None = None, *, own: bool = False):
        self._calls, self._table, self._archive, self._own = calls, table, archive, own
        #: Of what was queued.
        self.receipts: list[Receipt] = []
        key = calls.client.topology.table(real_name(table)).shard_key
        self._key: str | None = None if key == table._id.name else key

    def update(self, query: Any, values: Final) -> int:
        """Queue an update to *values* of the rows that *query* names; return how many ops it became.

        Raises:
            BadOp: it would change a row's shard key, or the log cannot carry it; nothing was queued.
        """
        values = changed(self._table, values)
        if not values:
            return 1  # the row that a form shows stays as it is
        if self._nobody(query):
            return 0
        try:
            self._put(query, values)
        except ShardKeyError:
            if self._key is not None and self._key in values:
                return self._update_with_key(query, values)
            return self._each(query, lambda one, key: self._put(one, values, **key))
        return 1

    def delete(self, query: Any) -> int:
        """Queue a delete of the rows that *query* names; return how many ops it became."""
        if self._nobody(query):
            return 0
        try:
            self._remove(query)
        except ShardKeyError:
            return self._each(query, lambda one, key: self._remove(one, **key))
        return 1

    def _nobody(self, query: Any) -> bool:
        """Return whether a query asks for an id that no row has: `request.args(0) or 0`, or one that was not given."""
        row_id = self._table._id
        return any(op_name(p) == "eq" and p.first is row_id and _no_id(p.second) for p in conjuncts(query))

    def _put(self, query: Any, values: Final, **key: Any) -> None:
        """Queue one op; with an archive, a copy and an update in one group."""
        if self._archive is None:
            self.receipts.append(self._calls.enqueue_update(query, values, **key))
            return
        made = self._calls.client.op_builder.versioned_update(query, values, self._archive, **key)
        self.receipts.append(self._calls.take_together(made))

    def _remove(self, query: Any, **key: Any) -> None:
        self.receipts.append(self._calls.enqueue_delete(query, **key))

    def _update_with_key(self, query: Any, values: Final) -> int:
        """Queue an update that gives the shard key too, as `update_record()` does: it may repeat it, not change it."""
        assert self._key is not None
        field, new = self._table[self._key], values[self._key]
        named = bool(pinned_values(query, self._table, self._table._id.name))
        rows, rest = self._found(query, settle=not named), Final((n, v) for n, v in values.items() if n != self._key)
        check = self._calls.client.op_builder.plan(self._table).compiled.check[self._key]
        if any(check(row.key) != check(new) for row in rows):
            raise ShardKeyError(
                f"{self._table._tablename}.{self._key} is the shard key and cannot be changed: the row may live on "
                "another shard then; insert it anew and delete the old row"
            )
        if not rows and named:
            # it may be queued still: its op comes first
            self._put(_narrowed(query, (field == new) & query), values)
            return 1
        return self._enqueue(rows, query, lambda one, key: self._put(one, rest, **key)) if rest else 1

    def _each(self, query: Any, enqueue: Callable[[Any, dict[str, Any]], Any]) -> int:
        listed = self._listed(query)
        if listed is None:
            return self._enqueue(self._found(query, settle=True), query, enqueue)
        part, ids = listed
        rest = [one for one in conjuncts(query) if one is not part]
        for row_id in ids:  # each op carries its own id, not the whole list
            enqueue(_narrowed(query, reduce(and_, rest, self._table._id == row_id)), {})
        return len(ids)

    def _enqueue(self, rows: list[Found], query: Any, enqueue: Callable[[Any, dict[str, Any]], Any]) -> int:
        for row in rows:
            enqueue(
                _narrowed(query, (self._table._id == row.id) & query), {} if row.key is None else {"shard_key": row.key}
            )
        return len(rows)

    def _listed(self, query: Any) -> tuple[Any, list[int]] | None:
        """Return the part `id.belongs([5, 6])` of a query, and its ids, if they name the shard: no database is read."""
        table = self._table
        for part in conjuncts(query):
            if op_name(part) == "belongs" and part.first is table._id and isinstance(part.second, list | tuple | set):
                ids = sorted({int(one) for one in part.second})
                if self._key is None or all(map(carries_bucket, ids)):
                    self._check_count(len(ids))
                    return part, ids
        return None

    def _found(self, query: Any, *, settle: bool) -> list[Found]:
        """Return the rows that a query names, as the primaries have them now.

        Args:
            settle: wait before until all that was queued is applied, so that no row is overlooked.

        Raises:
            BadOp: this request has ops that wait for its commit, so nobody can look at their rows.
            WaitTimeout: the workers are behind.
        """
        table = self._table
        fields = [table._id] if self._key is None else [table._id, table[self._key]]
        name = real_name(table)
        if settle:
            self._settle(name)
        found = primary_rows(self._calls.client, table, with_filters(query, table), fields, MOST_ROWS + 1)
        self._check_count(len(found))
        return [Found(int(row[table._id.name]), row[self._key] if self._key else None) for row in found]

    def _check_count(self, rows: int) -> None:
        if rows > MOST_ROWS:
            raise BadOp(
                f"the query on {real_name(self._table)!r} names more than {MOST_ROWS:,} rows: fix the shard key in it "
                "with ==, or change the rows in smaller parts"
            )

    def _settle(self, name: str) -> None:
        if self._own and self._calls.unsent(name):
            self._calls.see_own({name})
        if self._calls.unsent(name):
            raise BadOp(
                f"this write to {name!r} must look for its rows in the database, where those that the same request has "
                "queued are not yet: fix the id or the shard key in the query with ==, attach the table with "
                'reads="own", call db.commit() before, or write in another request'
            )
        self._calls.client.barrier(name, SETTLE_S)


def _no_id(value: Any) -> bool:
    if isinstance(value, str):
        return not value or (value.removeprefix("-").isdecimal() and int(value) < 1)
    return value is None or (isinstance(value, int) and value < 1)


def _narrowed(query: Any, narrower: Any) -> Any:
    """Return a query that is made of another: the table's filters are ignored if they were."""
    made = copy.copy(narrower)
    made.ignore_common_filters = getattr(query, "ignore_common_filters", False)
    return made


def primary_rows(client: Client, table: Any, query: Any, fields: Iterable[Any], most: int) -> list[Any]:
    """Return rows of all shards, as the primaries have them.

    Args:
        client: whose shards.
        table: a table of the application's DAL.
        query: on it.
        fields: of the table, that the rows have.
        most: rows of each shard.

    Raises:
        ShardUnavailable: a primary did not answer; nothing is left out.
    """
    found: list[Any] = []
    topology, name, wanted = client.topology, real_name(table), [field.name for field in fields]
    for shard in topology.shards[:1] if topology.table(name).reference else topology.shards:
        session = client.nodes.primary(shard)
        with session.translated(), session.transaction():
            tables = NodeTables.on(session.db)
            own, at = tables.table(table), tables.own(query)
            at.ignore_common_filters = True  # they are in the query
            found += session.db(at).select(*(own[field] for field in wanted), limitby=(0, most))
    return found
