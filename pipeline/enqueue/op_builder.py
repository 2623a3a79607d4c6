"""Make ops of calls in pyDAL's words, each with its bucket, copies for versions of rows too; or refuse the call.

Copies: the version of a row that an update is about to change, made by the worker, which has the current row. A copy is
beside its row: in the same bucket, and before the update in one atomic group.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import cycle
from typing import Any, NamedTuple

from pipeline.bounds import MOST_DEFINITIONS, keep_newest
from pipeline.config import Topology
from pipeline.config.settings import TableSettings
from pipeline.dal import kind_of, query_of
from pipeline.dal.sql_texts import vouch_for_selects
from pipeline.dal.trees import Tree, is_query, pinned, table_of
from pipeline.enqueue.final_values import FUNCTIONS, CompiledTable, SchemaPublisher
from pipeline.enqueue.held_ops import Chunk
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.row_ids import RowIds
from pipeline.enqueue.table_plan import TablePlan
from pipeline.errors import BadOp, BadQuery, ShardKeyError, Unavailable, UnknownTable, shown
from pipeline.events import Event
from pipeline.model import COPY, READ, Addressed, Op
from pipeline.model.receipt import Receipt
from pipeline.model.schema import Column, TableSchema, schema_of, signature_of
from pipeline.per_process import chance

#: Columns of an archive that take what is of another type in the row.
_WIDER = {"bigint": ("integer", "reference", "id")}
#: Where a table object carries its plan. web2py makes its tables anew at each request: in the builder, plans would
#: outlive them. A thousand of them made each of web2py's garbage collections, one per 100 requests, take 50 ms.
PLAN = "_pipeline_plan"
logger = logging.getLogger("pipeline.door")


class Archive(NamedTuple):
    """Where the versions of a table's rows go: a pyDAL table, and its field that refers to the row."""

    table: Any
    link: str


def check_archive(of: CompiledTable, into: CompiledTable, link: str) -> None:
    """Refuse an archive that cannot hold the versions of a table, or whose rows would not stand by them.

    Raises:
        BadOp: a field is missing or of another type. ShardKeyError: a version may belong to another bucket.
    """
    source, rules, archive, its_rules = of.schema, of.rules, into.schema, into.rules
    _copied(source, archive, link)
    if rules.reference or its_rules.reference:
        if not (rules.reference and its_rules.reference):
            raise ShardKeyError(
                f"{source.name!r} and its archive {archive.name!r} must both be reference tables, or neither: "
                f"set [tables.{source.name if its_rules.reference else archive.name}] reference = true"
            )
        return
    if its_rules.shard_key in (None, archive.id_name) and its_rules.rule == "hash":
        return  # its id is made to carry the bucket of the row
    own_key = rules.shard_key in (None, source.id_name)
    wanted = link if own_key else rules.shard_key
    if its_rules.shard_key != wanted or _rule(rules) != _rule(its_rules):
        raise ShardKeyError(
            f"the versions of a row of {source.name!r} must be on its shard: leave shard_key out of "
            f"[tables.{archive.name}], or set shard_key = {wanted!r} and the rule of {source.name!r}"
        )


def row_of(update: Op, schema: TableSchema) -> int:
    """Return the id of the one row that an update is about.

    Raises:
        ShardKeyError: it does not name its row by its id, so it may be about many, and each version needs an id.
    """
    row = update.id if update.where is None else pinned(update.where, schema.id_index)
    if row is None:
        raise ShardKeyError(f"an update of {schema.name!r} that keeps versions names its row by {schema.id_name!r}")
    return int(row)


def copy_before(update: Op, schema: TableSchema, archive: CompiledTable, into: Archive, row_id: int) -> Op:
    """Return the copy that keeps what an update is about to change; it copies nothing where nothing would change.

    Args:
        schema: of the table that is updated.
        row_id: of the copy.
    """
    row, where = update.id, update.where or ["=", schema.id_index, update.id]
    if not update.expressions:
        same = [["same", column, value] for column, value in zip(update.columns, update.values, strict=True)]
        where, row = ["and", where, ["not", ["and", *same]]], None
    columns, values = _own_values(archive, schema, into)
    return Op(
        COPY,
        archive.schema.name,
        archive.schema.hash,
        update.at_ms,
        row_id,
        columns,
        values,
        expressions=_copied(schema, archive.schema, into.link),
        source=Op(READ, schema.name, schema.hash, update.at_ms, row, where=None if row is not None else where),
    )


@lru_cache(maxsize=256)
def _copied(source: TableSchema, archive: TableSchema, link: str) -> tuple[tuple[int, list[Any]], ...]:
    """Return which column of the archive is which of the source."""
    # a worker copies into an archive only what the archive's definition refers to
    if link not in archive.index or archive.columns[archive.index[link]].parent != source.name:
        raise BadOp(
            f"the archive {archive.name!r} needs a field {link!r} that refers to {source.name!r}, "
            f'such as Field("{link}", "reference {source.name}")'
        )
    found = {archive.index[link]: source.id_index}
    for number, column in enumerate(archive.columns):
        theirs = source.index.get(column.name)
        if theirs is None or theirs == source.id_index or column.name in (link, archive.id_name):
            continue
        if not _holds(column, source.columns[theirs]):
            raise BadOp(
                f"{archive.name}.{column.name} cannot hold every value of {source.name}.{column.name}: "
                "give both fields the same type and length"
            )
        found[number] = theirs
    return tuple((number, ["c", found[number]]) for number in sorted(found))


def _holds(column: Column, source: Column) -> bool:
    if column.kind != source.kind:
        return source.kind in _WIDER.get(column.kind, ())
    if column.kind == "decimal":
        return column.digits == source.digits
    return column.length is None or (source.length is not None and column.length >= source.length)


def _own_values(archive: CompiledTable, source: TableSchema, into: Archive) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Return the defaults of the archive's own fields, which the source has not."""
    given: dict[int, Any] = {}
    for field in into.table:
        name, default = field.name, field.default
        if name in source.index or name in (into.link, archive.schema.id_name) or default is None:
            continue
        given[archive.column_of[name]] = archive.lenient[name](default() if isinstance(default, FUNCTIONS) else default)
    return tuple(given), tuple(given.values())


def _rule(rules: TableSettings) -> tuple[Any, ...]:
    return rules.rule, rules.bounds, dict(rules.lookup)


class OpBuilder:
    """Knows the tables and their definitions; their plans make the ops. Thread-safe.

    Args:
        topology: where rows belong.
        row_ids: makes the ids of new rows.
        schemas: publishes a definition before its first op, and refuses one that the database cannot hold.
        publisher: has it compared how a table is spread before its first op.
    """

    def __init__(self, topology: Topology, row_ids: RowIds, schemas: SchemaPublisher, publisher: Publisher):
        self._topology, self._row_ids, self._schemas, self._publisher = topology, row_ids, schemas, publisher
        self._compiled: dict[tuple[Any, ...], CompiledTable] = {}
        self._ready: dict[CompiledTable, bool] = {}
        self._tables = threading.local()
        self._latest: dict[str, Any] = {}
        self._seen_lazy: dict[str, bool] = {}
        self._most = MOST_DEFINITIONS
        start = chance.randrange(topology.buckets)
        self._turn = cycle((*range(start, topology.buckets), *range(start)))

    # tables -------------------------------------------------------------------------------------------------

    def define(self, db: Any) -> None:
        """Remember a DAL, so that its tables may be named by text. Lazy tables are read once per process."""
        self._tables.db = db
        vouch_for_selects(db._adapter)
        lazy = getattr(db, "_LAZY_TABLES", {})
        schemas = []
        self._most = max(self._most, 2 * len(db.tables))  # one DAL's tables push each other out of no cache
        for name in db.tables:
            keep_newest(self._latest, name, db, self._most)
            if name in lazy and name in self._seen_lazy:
                continue
            if self._topology.ours(name):
                if name in lazy:
                    keep_newest(self._seen_lazy, name, True, self._most)
                try:
                    schemas.append(self._compiled_of(db[name]).schema)
                except BadOp as error:
                    logger.warning(Event("table_not_published", table=name, error=error))
        try:
            self._schemas.publish(schemas)
        except (Unavailable, BadOp) as error:
            # a page that only reads must not fail for it; the first op of a table tries again, and raises
            logger.warning(Event("tables_not_published", tables=len(schemas), error=error))

    @property
    def names(self) -> Iterable[str]:
        """The names of the tables that were defined in this process."""
        return self._latest.keys()

    def table(self, table: Any) -> Any:
        """Return the pyDAL table that is meant."""
        if not isinstance(table, str):
            if kind_of(table) == "Table":
                return table
            raise BadOp(f"expected a pyDAL table or its name, got {type(table).__name__}")
        db = getattr(self._tables, "db", None)
        if db is None or table not in db.tables:
            db = self._latest.get(table)
        if db is None:
            raise UnknownTable(table, self._latest)
        return db[table]

    def plan(self, table: Any) -> TablePlan:
        """Return the plan of a table, given as pyDAL's or by name; its definition is published before."""
        table = self.table(table)
        plan: TablePlan | None = getattr(table, PLAN, None)
        # an alias is a copy that has its table's; and two clients may share a table
        if plan is None or plan.table is not table or plan.row_ids is not self._row_ids:
            compiled = self._compiled_of(table)
            if compiled not in self._ready:
                self._schemas.publish([compiled.schema])
                self._schemas.approve(compiled.schema)
                self._publisher.admit([compiled.schema.name])
                keep_newest(self._ready, compiled, True, self._most)
            plan = TablePlan(table, compiled, self._row_ids, self._turn)
            setattr(table, PLAN, plan)
        return plan

    def check_archive(self, table: Any, archive: Archive) -> None:
        """Refuse an archive that cannot keep the versions of a table; sends nothing."""
        check_archive(self._compiled_of(table), self._compiled_of(archive.table), archive.link)

    # ops ----------------------------------------------------------------------------------------------------

    def insert(self, table: Any, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None) -> Addressed:
        """Make an insert."""
        plan = getattr(table, PLAN, None)
        if plan is None or plan.table is not table or plan.row_ids is not self._row_ids:  # as `plan`, once per op
            plan = self.plan(table)
        return plan.new_row(values, shard_key, key)

    def insert_again(
        self, table: Any, values: Mapping[str, Any], again: Receipt, shard_key: Any = None, key: str | None = None
    ) -> Addressed:
        """Make an insert that may be queued already, for the same row; see `Dispatch.take_again`."""
        if not isinstance(again, Receipt):
            raise BadOp(f"again= takes the receipt that the same call raised, not {shown(again)}")
        id_name = self.plan(table).compiled.schema.id_name
        row = {} if again.row is None or key is not None else {id_name: again.row}
        return self.insert(table, {**values, **row}, shard_key, key)

    def inserts(
        self, table: Any, rows: Iterable[Mapping[str, Any]], shard_key: Any = None, *, at_once: bool = False
    ) -> Iterator[Addressed | Chunk]:
        """Make an insert of each row; *at_once*: they may be made in chunks."""
        return self.plan(table).new_rows(rows, shard_key, at_once=at_once)

    def update(
        self, target: Any, row_id: Any, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None
    ) -> Addressed:
        """Make an update of a row or of the rows of a shard key."""
        if not values:
            raise BadOp("nothing to update: give at least one field")
        plan, where = self._target(target, row_id)
        return plan.update(where, values, shard_key, key)

    def versioned_update(
        self, query: Any, values: Mapping[str, Any], archive: Archive, shard_key: Any = None
    ) -> tuple[Addressed, Addressed]:
        """Make an update of one row, and before it the copy that keeps the row as it was: send them in one group.

        Raises:
            ShardKeyError: the query does not name the row by its id, or copies do not stand by their rows.
        """
        table = table_of(query)
        self.check_archive(table, archive)
        update = self.update(query, None, values, shard_key)
        bucket, op, schema = update.bucket, update.op, self.plan(table).compiled.schema
        # ids of one bucket grow: so the versions of a row have the order in which they were made
        whose, buckets = row_of(op, schema), self._topology.buckets
        row = self._row_ids.new(bucket if bucket < buckets else whose % buckets, op.at_ms)
        return Addressed(bucket, copy_before(op, schema, self.plan(archive.table).compiled, archive, row)), update

    def delete(self, target: Any, row_id: Any, shard_key: Any = None, key: str | None = None) -> Addressed:
        """Make a delete of a row or of the rows of a shard key."""
        plan, where = self._target(target, row_id)
        return plan.delete(where, shard_key, key)

    def upsert(
        self,
        table: Any,
        key_fields: Iterable[str],
        values: Mapping[str, Any],
        shard_key: Any = None,
        key: str | None = None,
    ) -> Addressed:
        """Make an insert that becomes an update where a row with the same key fields is there."""
        fields = (key_fields,) if isinstance(key_fields, str) else tuple(key_fields)
        return self.plan(table).upsert(fields, values, shard_key, key)

    # parts --------------------------------------------------------------------------------------------------

    def _target(self, target: Any, row_id: Any) -> tuple[TablePlan, Tree]:
        """Return the plan and the condition of `query`, of `db(query)`, or of `table, id`."""
        target = query_of(target)
        if not is_query(target):
            plan = self.plan(target)
            return plan, plan.where_id(row_id)
        if row_id is not None:
            raise BadQuery("give a query, or a table and an id, not both")
        plan = self.plan(table_of(target))
        return plan, plan.where(target)

    def _compiled_of(self, table: Any) -> CompiledTable:
        signature = signature_of(table)
        compiled = self._compiled.get(signature)
        if compiled is None:
            if self._topology.ignores(table._tablename):
                raise BadOp(f"{table._tablename!r} is left to its database by [pipeline] ignore: write it through db")
            compiled = keep_newest(
                self._compiled, signature, CompiledTable(schema_of(table), self._topology), self._most
            )
        return compiled


def merged(values: Mapping[str, Any], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a call that gives a mapping: every key of it is a field, keywords add to it."""
    if type(values) is not dict and not isinstance(values, Mapping):
        raise BadOp(f"expected the fields as a mapping or as keywords, got {type(values).__name__}")
    return {**values, **fields} if fields else values
