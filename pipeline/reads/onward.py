"""Read on from rows that the pipeline has read: their references, back references and `Rows.join`.

A node has the rows of one shard, so what a row leads to is read by the rules of any read. Such a row is read on the
shard that has it, as fresh as the first row. Tables that stay in the application's own database are read there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.config import Topology
from pipeline.dal import real_name, tables_in
from pipeline.errors import BadRead
from pipeline.reads import After
from pipeline.reads.read_place import places_of_query
from pipeline.reads.routing import Bounds
from pipeline.shard.driver_errors import no_such_table


class Onward(NamedTuple):
    """Where rows that were read lead to.

    Attributes:
        reads: the deployment's `Reads`.
        topology: who has which bucket.
        db: the caller's DAL, of the present request.
        after, bounds: of the read that found the rows.
        pending: whether queued ops were laid over the row.
        near: a `PrimaryDAL` where the rows were read in its transaction.
    """

    reads: Any
    topology: Topology
    db: Any
    after: After
    bounds: Bounds
    pending: bool = False
    near: Any = None

    def row(self, name: str, row_id: int) -> Any:
        """Return a row by its id, or None.

        Args:
            name: of the table.
            row_id: the row's id.
        """
        table, carries = self.db[name], self.topology.bucket_in(row_id) is not None
        if not self.topology.ours(name):
            return table[row_id]
        if self.near is not None and self._is_near(table._id == row_id, ()):
            return self.near(table._id == row_id).select().first()
        try:
            found = self.reads.get(table, row_id, pending=self.pending and carries, **self._options())
        except Exception as error:
            if not no_such_table(error):
                raise
        else:
            if found is not None or carries or name in self.topology.configured:
                return found
        return table[row_id]

    def rows(self, query: Any, *fields: Any, **options: Any) -> Any:
        """Return the rows that a query finds, of all shards.

        Args:
            query: of the caller's DAL.
            fields: of the result.
            options: pyDAL's.
        """
        if self._stays(query, fields):
            return self.db(query).select(*fields, **options)
        if self._is_near(query, fields):
            return self.near(query).select(*fields, **options)
        return self.reads.select(query, *fields, **self._options(), **options)

    def number(self, query: Any, distinct: Any = None) -> Any:
        """Return how many rows match.

        Args:
            query: of the caller's DAL.
            distinct: as for `count` of the pipeline.
        """
        if self._stays(query, ()):
            return self.db(query).count(distinct)
        if self._is_near(query, ()):
            return self.near(query).count(distinct)
        return self.reads.count(query, distinct, **self._options())

    def _options(self) -> dict[str, Any]:
        bounds = self.bounds
        return {
            "after": self.after,
            "max_lag_s": bounds.max_lag_s,
            "wait_s": bounds.wait_s,
            "on_stale": bounds.on_stale,
        }

    def _is_near(self, query: Any, fields: Any) -> bool:
        """Return whether the rows of a query are all where the first ones were read in a transaction."""
        if self.near is None:
            return False
        tables = list(tables_in([query, *fields]))
        if all(self.topology.table(real_name(table)).reference for table in tables):
            return True
        places = places_of_query(self.topology, query, tables)
        shards = {self.topology.serves(one) for place in places if place.row is not None for one in place.buckets or ()}
        return {place.shard for place in places} | shards == {self.near.shard}

    def _stays(self, query: Any, fields: Any) -> bool:
        """Return whether a query reads the application's own database alone."""
        names = {real_name(table) for table in tables_in([query, *fields])}
        theirs = {name for name in names if not self.topology.ours(name)}
        if theirs and theirs != names:
            raise BadRead(
                f"{min(theirs)!r} stays in the application's database and {min(names - theirs)!r} does not: read one "
                "after the other"
            )
        return bool(theirs)


class Referee:
    """The table that a reference of a read row means: pyDAL takes the row from it when one of its fields is asked for.

    Args:
        onward: of the row.
        name: of the table.
    """

    __slots__ = ("_name", "_onward")

    def __init__(self, onward: Onward, name: str):
        self._onward, self._name = onward, name

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            return self._onward.row(self._name, int(key))
        return self._onward.db[self._name][key]

    def __contains__(self, key: object) -> bool:
        return key in self._onward.db[self._name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._onward.db[self._name], name)

    def __str__(self) -> str:
        return self._name


class RowsDAL:
    """The DAL of pyDAL's `Rows`: the caller's tables, and what further reads go through.

    Args:
        onward: of the rows.
    """

    __slots__ = ("_onward",)

    def __init__(self, onward: Onward):
        self._onward = onward

    def __call__(self, query: Any = None, ignore_common_filters: Any = None) -> Any:
        """Return the set of a query."""
        return RowSet(self._onward, self._onward.db(query, ignore_common_filters).query)

    def __getitem__(self, name: Any) -> Any:
        return self._onward.db[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._onward.db, name)

    def __reduce__(self) -> Any:
        return _same, (self._onward.db,)  # rows are pickled with the caller's DAL, as pyDAL's are


def _same(db: Any) -> Any:
    return db


class RowSet:
    """A set of rows to read, as pyDAL's `Set`; it writes nothing."""

    def __init__(self, onward: Onward, query: Any):
        self._onward, self.query = onward, query

    def __call__(self, query: Any, ignore_common_filters: bool = False) -> RowSet:
        """Return the part of the rows that a further query finds."""
        return RowSet(self._onward, self._onward.db(self.query)(query, ignore_common_filters).query)

    where = __call__

    def select(self, *fields: Any, **options: Any) -> Any:
        """Return the rows."""
        return self._onward.rows(self.query, *fields, **options)

    def iterselect(self, *fields: Any, **options: Any) -> Iterator[Any]:
        """Yield the rows."""
        return iter(self.select(*fields, **options))

    def count(self, distinct: Any = None) -> Any:
        """Return how many rows there are."""
        return self._onward.number(self.query, distinct)

    def isempty(self) -> bool:
        """Return whether there is no row."""
        return not self.count()

    def __deepcopy__(self, memo: Any) -> RowSet:
        return self  # `Rows.render` copies rows

    def _refused(self, *args: Any, **options: Any) -> Any:
        raise BadRead("rows that the pipeline has read lead to reads only: use enqueue_update or enqueue_delete")

    update = delete = update_naive = delete_naive = validate_and_update = _refused


class Referrers(RowSet):
    """The rows that refer to a row, by one field.

    Args:
        onward: of the row.
        field: the field that refers, of the caller's DAL.
        row_id: the row's id.
    """

    def __init__(self, onward: Onward, field: Any, row_id: int):
        self._onward, self._field, self._id = onward, field, row_id

    @property
    def query(self) -> Any:  # made when it is needed: most rows are never asked
        """Return what finds them."""
        return self._field == self._id
