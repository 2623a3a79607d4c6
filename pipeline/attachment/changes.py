"""Updates and deletes of an attached table: one op where the query tells its place, else one op for each row it finds.

A row that was found is changed only if it still matches when the op is applied: the op carries the whole query.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.attachment.editing import changed
from pipeline.attachment.lookup import primary_rows
from pipeline.errors import BadOp, ShardKeyError
from pipeline.ids import carries_bucket
from pipeline.pydal_objects import conjuncts, op_name, pinned_values, real_name, with_filters
from pipeline.write.gate import Final

#: How long a write that must look for its rows waits for what was queued before it, s.
SETTLE_S = 5.0
#: More rows than this are not changed by one call: the request would hold that many ops.
MOST = 10_000


class Found(NamedTuple):
    """A row that a query named, and its shard key; None where the id is the key."""

    id: int
    key: Any


class Changes:
    """Writes to the rows of one attached table."""

    def __init__(self, sink: Any, client: Callable[[], Any], table: Any):
        self._sink, self._client, self._table = sink, client, table
        key = client().topology.table(real_name(table)).shard_key
        self._key: str | None = None if key == table._id.name else key

    def update(self, query: Any, values: Final) -> int:
        """Queue an update; return how many ops it became.

        Raises:
            BadOp: it would change a row's shard key, or the log cannot carry it; nothing was queued.
        """
        values = changed(self._table, values)
        if not values:
            return 1  # the row that a form shows stays as it is
        if self._key in values and self._key is not None:
            return self._update_with_key(query, values)
        try:
            self._sink.enqueue_update(query, values)
        except ShardKeyError:
            return self._each(query, lambda one, key: self._sink.enqueue_update(one, values, **key))
        return 1

    def delete(self, query: Any) -> int:
        """Queue a delete; return how many ops it became."""
        try:
            self._sink.enqueue_delete(query)
        except ShardKeyError:
            return self._each(query, lambda one, key: self._sink.enqueue_delete(one, **key))
        return 1

    def _update_with_key(self, query: Any, values: Final) -> int:
        """Queue an update that gives the shard key too, as `update_record()` does: it may repeat it, not change it."""
        assert self._key is not None
        field, new = self._table[self._key], values[self._key]
        named = bool(pinned_values(query, self._table, self._table._id.name))
        rows, rest = self._found(query, settle=not named), Final((n, v) for n, v in values.items() if n != self._key)
        check = self._client().door.gate(self._table).check[self._key]
        if any(check(row.key) != check(new) for row in rows):
            raise ShardKeyError(
                f"{self._table._tablename}.{self._key} is the shard key and cannot be changed: the row may live on "
                "another shard then; insert it anew and delete the old row"
            )
        if not rows and named:
            # it may be queued still: its op comes first
            self._sink.enqueue_update(_narrowed(query, field == new), values)
            return 1
        return self._enqueue(rows, query, lambda one, key: self._sink.enqueue_update(one, rest, **key)) if rest else 1

    def _each(self, query: Any, enqueue: Callable[[Any, dict[str, Any]], Any]) -> int:
        return self._enqueue(self._named(query) or self._found(query, settle=True), query, enqueue)

    def _enqueue(self, rows: list[Found], query: Any, enqueue: Callable[[Any, dict[str, Any]], Any]) -> int:
        for row in rows:
            enqueue(_narrowed(query, self._table._id == row.id), {} if row.key is None else {"shard_key": row.key})
        return len(rows)

    def _named(self, query: Any) -> list[Found]:
        """Return the rows of `id.belongs([5, 6])` if their ids tell the shard: then nobody need look for them."""
        table = self._table
        for part in conjuncts(query):
            if op_name(part) == "belongs" and part.first is table._id and isinstance(part.second, list | tuple | set):
                named = sorted({int(one) for one in part.second})
                if self._key is None or all(map(carries_bucket, named)):
                    return [Found(one, None) for one in named]
        return []

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
        found = primary_rows(self._client(), table, with_filters(query, table), fields, MOST + 1)
        if len(found) > MOST:
            raise BadOp(
                f"the query on {name!r} names more than {MOST:,} rows: fix the shard key in it with ==, or change the "
                "rows in smaller parts"
            )
        return [Found(int(row[table._id.name]), row[self._key] if self._key else None) for row in found]

    def _settle(self, name: str) -> None:
        if self._sink.unsent(name):
            raise BadOp(
                f"this write to {name!r} must look for its rows in the database, where those that the same request has "
                "queued are not yet: fix the id or the shard key in the query with ==, or write in another request"
            )
        self._client().barrier(name, SETTLE_S)


def _narrowed(query: Any, part: Any) -> Any:
    """Return a query and one part more; its filters are ignored if the query's were."""
    both = copy.copy(part & query)
    both.ignore_common_filters = getattr(query, "ignore_common_filters", False)
    return both
