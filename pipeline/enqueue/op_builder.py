"""The door: a call in pyDAL's words becomes an op with its bucket, or an error that says what to change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline import clock
from pipeline.config.settings import TableSettings
from pipeline.config.topology import Topology
from pipeline.dal.objects import has_filters, kind_of, with_filters
from pipeline.dal.trees import Tree, condition, is_query, table_of
from pipeline.enqueue.bucket_choice import Placing, check_upsert_key, keeps_its_place
from pipeline.enqueue.row_plans import Final, Gate, Known, RowPlan, with_values
from pipeline.enqueue.version_copy import Archive, check_archive, copy_before, row_of
from pipeline.errors import BadOp, BadQuery, Unavailable, UnknownTable
from pipeline.model.op import DELETE, INSERT, UPDATE, UPSERT, Addressed, Op
from pipeline.model.schema import schema_of, signature_of

#: Tables of web2py itself, and our own: never published for being defined, only for being written to or configured.
NOT_OURS = ("auth_", "web2py_session_", "scheduler_", "pipeline_")
#: Longest idempotency key; the shard keeps it in an indexed column.
MAX_KEY = 190
#: Where a table object carries what is known of it. web2py makes its tables anew at each request: with the door, they
#: would outlive it. A thousand of them made each of web2py's garbage collections, one per 100 requests, take 50 ms.
KNOWN = "_pipeline_known"
logger = logging.getLogger("pipeline.door")


class OpBuilder:
    """Makes ops. Thread-safe.

    Args:
        new_id: makes an id of a bucket.
        publish: makes a definition known to the workers; cheap where it is known already.
        approve: called once per definition, before its first op; raises where the database cannot hold the ids.
    """

    def __init__(
        self,
        topology: Topology,
        new_id: Callable[[int, int], int],
        publish: Callable[[Gate], None],
        approve: Callable[[Gate], None],
    ):
        self._topology, self._new_id, self._publish, self._approve = topology, new_id, publish, approve
        self._configured = frozenset(topology.configured)
        self._ready: set[Gate] = set()
        self._sign = object()  # tells this door from others
        self._gates: dict[tuple[Any, ...], Gate] = {}
        self._tables = threading.local()
        self._latest: dict[str, Any] = {}
        self._seen_lazy: set[str] = set()
        self._placing = Placing(topology)

    # definitions --------------------------------------------------------------------------------------------

    def define(self, db: Any) -> None:
        """Remember a DAL, so that its tables may be named by text. Lazy tables are looked at once per process."""
        self._tables.db = db
        lazy = getattr(db, "_LAZY_TABLES", {})
        for name in db.tables:
            self._latest[name] = db
            if name in lazy and name in self._seen_lazy:
                continue
            if name in self._configured or not name.startswith(NOT_OURS):
                try:
                    if name in lazy:
                        self._seen_lazy.add(name)
                    self._publish(self._gate(db[name]))
                except (Unavailable, BadOp) as error:
                    # a page that only reads must not fail for it; the first op tries again, and raises
                    logger.warning("table %s is not published yet: %s", name, error)

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

    def siblings(self, table: Any) -> list[Any]:
        """Return the tables of the same DAL, so that they can be joined; a lazy one only if it is the one asked for."""
        db, lazy = table._db, getattr(table._db, "_LAZY_TABLES", {})
        return [db[name] for name in db.tables if name not in lazy or name == table._tablename]

    def gate(self, table: Any) -> Gate:
        """Return the gate of a table that an op is made for; its definition is published before."""
        gate = self._gate(table)
        if gate not in self._ready:
            self._publish(gate)
            self._approve(gate)
            self._ready.add(gate)
        return gate

    def _known(self, table: Any) -> tuple[Any, Known]:
        """Return the pyDAL table that is meant, and what is known of it."""
        known: Known | None = getattr(table, KNOWN, None)
        if known is not None and known.table is table and known.op_builder is self._sign:
            return table, known
        table = self.table(table)
        known = getattr(table, KNOWN, None)
        # an alias is a copy that has its table's; and two clients may share a table
        if known is None or known.table is not table or known.op_builder is not self._sign:
            rule = self._topology.rule_of(table._tablename)
            known = Known(table, self.gate(table), self._rules(table), rule, self._sign)
            setattr(table, KNOWN, known)
        return table, known

    def _gate(self, table: Any) -> Gate:
        signature = signature_of(table)
        gate = self._gates.get(signature)
        if gate is None:
            gate = self._gates[signature] = Gate(schema_of(table))
        return gate

    # ops ----------------------------------------------------------------------------------------------------

    def insert(self, table: Any, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None) -> Addressed:
        """Make an insert."""
        table, known = self._known(table)
        plan = known.gate.row_plan(table, values) if isinstance(values, Final) else known.plan(table, values)
        return self._new_row(known, plan, values, shard_key, key)

    def inserts(self, table: Any, rows: Iterable[Mapping[str, Any]], shard_key: Any = None) -> Iterator[Addressed]:
        """Make an insert of each row."""
        table, known = self._known(table)
        gate, rules = known.gate, known.rules
        plan, keys = None, None
        for row in rows:
            if plan is None or row.keys() != keys:
                plan, keys = gate.row_plan(table, row, rules.shard_key), row.keys()
            yield self._new_row(known, plan, row, shard_key, None)

    def update(
        self, target: Any, row_id: Any, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None
    ) -> Addressed:
        """Make an update of a row or of the rows of a shard key."""
        if not values:
            raise BadOp("nothing to update: give at least one field")
        table, gate, where = self._target(target, row_id)
        rules = self._rules(table)
        plain, computed = gate.update_values(table, values)
        bucket, row = self._placing.of_rows(gate, rules, where, shard_key)
        keeps_its_place(gate, rules, where, plain, computed)
        return Addressed(bucket, with_values(self._op(UPDATE, gate, row, where, key), gate, plain, computed))

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
        bucket, op = update.bucket, update.op
        schema, buckets = self.gate(table).schema, self._topology.buckets
        # ids of one bucket grow: so the versions of a row have the order in which they were made
        whose = row_of(op, schema)
        row = self._new_id(bucket if bucket < buckets else whose % buckets, op.at_ms)
        return Addressed(bucket, copy_before(op, schema, self.gate(archive.table), archive, row)), update

    def check_archive(self, table: Any, archive: Archive) -> None:
        """Refuse an archive that cannot keep the versions of a table; asks nobody."""
        source, its = self._gate(table).schema, self._gate(archive.table).schema
        check_archive(source, self._rules(table), its, self._rules(archive.table), archive.link)

    def delete(self, target: Any, row_id: Any, shard_key: Any = None, key: str | None = None) -> Addressed:
        """Make a delete of a row or of the rows of a shard key."""
        table, gate, where = self._target(target, row_id)
        bucket, row = self._placing.of_rows(gate, self._rules(table), where, shard_key)
        return Addressed(bucket, self._op(DELETE, gate, row, where, key))

    def upsert(
        self,
        table: Any,
        key_fields: Iterable[str],
        values: Mapping[str, Any],
        shard_key: Any = None,
        key: str | None = None,
    ) -> Addressed:
        """Make an insert that becomes an update where a row with the same key fields is there."""
        table, known = self._known(table)
        gate, rules = known.gate, known.rules
        fields = (key_fields,) if isinstance(key_fields, str) else tuple(key_fields)
        check_upsert_key(gate, rules, fields, values)
        place = self._new_row(known, gate.row_plan(table, values), values, shard_key, key)
        renewed, _ = gate.update_values(table, {k: v for k, v in values.items() if k not in fields})
        renew = tuple(sorted(gate.column_of[name] for name in renewed))
        op = place.op
        extra = {gate.column_of[name]: value for name, value in renewed.items()}
        merged = dict(zip(op.columns, op.values, strict=True)) | extra
        columns = tuple(sorted(merged))
        return Addressed(
            place.bucket,
            Op(
                UPSERT,
                op.table,
                op.schema,
                op.at_ms,
                op.id,
                columns,
                tuple(merged[column] for column in columns),
                key=tuple(gate.column_of[name] for name in fields),
                renew=renew,
                idempotency_key=key,
            ),
        )

    # parts --------------------------------------------------------------------------------------------------

    def _new_row(
        self, known: Known, plan: RowPlan, values: Mapping[str, Any], shard_key: Any, key: str | None
    ) -> Addressed:
        (columns, final, row), now_ms, at = plan.row(values), clock.wall_ms(), plan.key_at
        id_given = row is not None
        if at is not None and row is None and shard_key is None and final[at] is not None:
            bucket = known.rule(final[at])  # nearly always
        else:
            bucket = self._placing.of_new(known.gate, known.rules, columns, final, row, shard_key, key)
        if row is None and known.rules.ids == "pipeline":
            row = self._new_id(bucket if bucket < self._topology.buckets else self._placing.next(), now_ms)
        schema = known.gate.schema
        if key is not None:
            _check_key(key)
        op = Op(INSERT, schema.name, schema.hash, now_ms, row, columns, tuple(final), None, (), (), (), key)
        return Addressed(bucket, op, id_given)

    def _target(self, target: Any, row_id: Any) -> tuple[Any, Gate, Tree]:
        """Return table, gate and condition of `query`, or of `table, id`."""
        if is_query(target):
            if row_id is not None:
                raise BadQuery("give a query, or a table and an id, not both")
            table = table_of(target)
            gate = self.gate(table)
            return table, gate, condition(with_filters(target, table), gate.schema, gate.lenient)
        table = self.table(target)
        gate = self.gate(table)
        if row_id is None:
            raise BadQuery(
                f"say which rows of {gate.schema.name!r}: pass a query such as db.{gate.schema.name}.id == 5"
            )
        row = gate.check[gate.schema.id_name](row_id)
        if has_filters(table):
            return table, gate, condition(with_filters(table._id == row, table), gate.schema, gate.lenient)
        return table, gate, ["=", gate.schema.id_index, row]

    def _rules(self, table: Any) -> TableSettings:
        return self._topology.table(table._tablename)

    def _op(self, kind: str, gate: Gate, row: int | None, where: Tree, key: str | None) -> Op:
        condition_ = None if row is not None else where
        return Op(
            kind,
            gate.schema.name,
            gate.schema.hash,
            clock.wall_ms(),
            row,
            where=condition_,
            idempotency_key=_check_key(key),
        )


def _check_key(key: str | None) -> str | None:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= MAX_KEY):
        raise BadOp(f"idempotency_key must be a text of 1 to {MAX_KEY} characters")
    return key
