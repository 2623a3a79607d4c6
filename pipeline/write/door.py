"""The door: a call in pyDAL's words becomes an op with its bucket, or an error that says what to change."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline import clock, ids
from pipeline.errors import BadOp, BadQuery, CrossBucket, ShardKeyError, Unavailable, UnknownTable
from pipeline.op import DELETE, INSERT, UPDATE, UPSERT, Op
from pipeline.schema import schema_of, signature_of
from pipeline.settings import TableSettings
from pipeline.topology import Topology
from pipeline.write.gate import Gate, Known, RowPlan, with_values
from pipeline.write.trees import Tree, condition, is_query, kind_of, pinned, table_of

#: Tables of web2py itself: never published for being defined, only for being written to or configured.
NOT_OURS = ("auth_", "web2py_session_", "scheduler_")
#: Longest idempotency key; the shard keeps it in an indexed column.
MAX_KEY = 190


#: Table objects remembered at once; web2py makes new ones at every request.
MOST_MET = 1000
_log = logging.getLogger("pipeline.door")


class Addressed(NamedTuple):
    """An op and the bucket whose log it goes to."""

    bucket: int
    op: Op


class Door:
    """Makes ops. Thread-safe.

    Args:
        new_id: makes an id of a bucket.
        publish: makes a definition known to the workers; cheap where it is known already.
        approve: called once per definition, before its first op; raises where the database cannot hold the ids.
    """

    def __init__(
        self,
        topology: Topology,
        new_id: Callable[[int], int],
        publish: Callable[[Gate], None],
        approve: Callable[[Gate], None],
    ):
        self._topology, self._new_id, self._publish, self._approve = topology, new_id, publish, approve
        self._configured = frozenset(topology.configured)
        self._ready: set[Gate] = set()
        self._met: dict[int, Known] = {}
        self._gates: dict[tuple[Any, ...], Gate] = {}
        self._tables = threading.local()
        self._latest: dict[str, Any] = {}
        self._turn = random.randrange(topology.buckets)

    # definitions --------------------------------------------------------------------------------------------

    def define(self, db: Any) -> None:
        """Remember a DAL, so that its tables may be named by text. Lazy tables stay lazy."""
        self._tables.db = db
        for name in db.tables:
            self._latest[name] = db
            if name in self._configured or not name.startswith(NOT_OURS):
                try:
                    self._publish(self._gate(db[name]))
                except (Unavailable, BadOp) as error:
                    # a page that only reads must not fail for it; the first op tries again, and raises
                    _log.warning("table %s is not published yet: %s", name, error)

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
        known = self._met.get(id(table))
        if known is not None and known.table() is table:
            return table, known
        table = self.table(table)
        known = self._met.get(id(table))
        if known is None or known.table() is not table:
            if len(self._met) >= MOST_MET:
                self._met.clear()
            known = self._met[id(table)] = Known(table, self.gate(table), self._rules(table))
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
        return self._new_row(known.gate, known.rules, known.plan(table, values), values, shard_key, key)

    def inserts(self, table: Any, rows: Iterable[Mapping[str, Any]], shard_key: Any = None) -> Iterator[Addressed]:
        """Make an insert of each row."""
        table, known = self._known(table)
        gate, rules = known.gate, known.rules
        plan, keys = None, None
        for row in rows:
            if plan is None or row.keys() != keys:
                plan, keys = gate.row_plan(table, row), row.keys()
            yield self._new_row(gate, rules, plan, row, shard_key, None)

    def update(
        self, target: Any, row_id: Any, values: Mapping[str, Any], shard_key: Any = None, key: str | None = None
    ) -> Addressed:
        """Make an update of a row or of the rows of a shard key."""
        if not values:
            raise BadOp("nothing to update: give at least one field")
        table, gate, where = self._target(target, row_id)
        rules = self._rules(table)
        plain, computed = gate.update_values(table, values)
        bucket, row = self._place(gate, rules, where, shard_key)
        self._keeps_its_place(gate, rules, where, plain, computed)
        return Addressed(bucket, with_values(self._op(UPDATE, gate, row, where, key), gate, plain, computed))

    def delete(self, target: Any, row_id: Any, shard_key: Any = None, key: str | None = None) -> Addressed:
        """Make a delete of a row or of the rows of a shard key."""
        table, gate, where = self._target(target, row_id)
        bucket, row = self._place(gate, self._rules(table), where, shard_key)
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
        table = self.table(table)
        gate, rules = self.gate(table), self._rules(table)
        fields = (key_fields,) if isinstance(key_fields, str) else tuple(key_fields)
        self._upsert_key(gate, rules, fields, values)
        place = self._new_row(gate, rules, gate.row_plan(table, values), values, shard_key, key)
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
        self,
        gate: Gate,
        rules: TableSettings,
        plan: RowPlan,
        values: Mapping[str, Any],
        shard_key: Any,
        key: str | None,
    ) -> Addressed:
        columns, final, row = plan.row(values)
        bucket = self._bucket_of_new(gate, rules, columns, final, row, shard_key)
        if row is None and rules.ids == "pipeline":
            row = self._new_id(bucket if bucket < self._topology.buckets else self._next_bucket())
        schema = gate.schema
        if key is not None:
            _check_key(key)
        op = Op(INSERT, schema.name, schema.hash, clock.wall_ms(), row, columns, tuple(final), None, (), (), (), key)
        return Addressed(bucket, op)

    def _bucket_of_new(
        self,
        gate: Gate,
        rules: TableSettings,
        columns: tuple[int, ...],
        final: list[Any],
        row: int | None,
        shard_key: Any,
    ) -> int:
        name, topology = gate.schema.name, self._topology
        if rules.reference:
            return topology.reference_bucket
        if rules.shard_key is None or rules.shard_key == gate.schema.id_name:
            if shard_key is not None:
                raise ShardKeyError(f"table {name!r} is sharded by its own id: leave shard_key= out of an insert")
            return self._next_bucket() if row is None else topology.bucket_of(name, row)
        column = gate.column_of.get(rules.shard_key)
        own = final[columns.index(column)] if column in columns else None
        if own is None:
            raise ShardKeyError(f"table {name!r} is sharded by {rules.shard_key!r}: the insert must give it a value")
        if shard_key is not None and gate.check[rules.shard_key](shard_key) != own:
            raise ShardKeyError(f"shard_key= differs from the value of {name}.{rules.shard_key}: leave it out")
        bucket = topology.bucket_of(name, own)
        if row is not None and ids.carries_bucket(row) and ids.bucket_of(row) != bucket:
            raise ShardKeyError(
                f"the id given for {name!r} carries bucket {ids.bucket_of(row)}, its shard key belongs to {bucket}: "
                "let the pipeline make the id"
            )
        return bucket

    def _target(self, target: Any, row_id: Any) -> tuple[Any, Gate, Tree]:
        """Return table, gate and condition of `query`, or of `table, id`."""
        if is_query(target):
            if row_id is not None:
                raise BadQuery("give a query, or a table and an id, not both")
            table = table_of(target)
            gate = self.gate(table)
            return table, gate, condition(target, gate.schema, gate.check)
        table = self.table(target)
        gate = self.gate(table)
        if row_id is None:
            raise BadQuery(
                f"say which rows of {gate.schema.name!r}: pass a query such as db.{gate.schema.name}.id == 5"
            )
        return table, gate, ["=", gate.schema.id_index, gate.check[gate.schema.id_name](row_id)]

    def _place(self, gate: Gate, rules: TableSettings, where: Tree, shard_key: Any) -> tuple[int, int | None]:
        """Return the bucket of the rows that a condition names, and the one id if it names just that."""
        schema, topology, name = gate.schema, self._topology, gate.schema.name
        row = pinned(where, schema.id_index)
        only = row if where[0] == "=" and row is not None else None
        if rules.reference:
            return topology.reference_bucket, only
        found: set[int] = set()
        by_id = rules.shard_key is None or rules.shard_key == schema.id_name
        if not by_id:
            assert rules.shard_key is not None
            if rules.shard_key not in gate.column_of:
                raise ShardKeyError(f"table {name!r} has no field {rules.shard_key!r}, by which the settings shard it")
            value = pinned(where, gate.column_of[rules.shard_key])
            found |= {topology.bucket_of(name, v) for v in (value,) if v is not None}
            if shard_key is not None:
                found.add(topology.bucket_of(name, gate.check[rules.shard_key](shard_key)))
            if row is not None and ids.carries_bucket(row):
                found.add(ids.bucket_of(row))
        elif row is not None:
            found.add(topology.bucket_of(name, row))
        if len(found) > 1:
            raise CrossBucket(
                f"the query on {name!r} names rows of two buckets: its id and its shard key do not belong together"
            )
        if not found:
            key = schema.id_name if by_id else rules.shard_key
            raise ShardKeyError(
                f"cannot tell the shard of this write to {name!r}: the query must fix {key!r} with =="
                + ("" if by_id else ", or pass shard_key=")
            )
        return found.pop(), only

    def _keeps_its_place(
        self, gate: Gate, rules: TableSettings, where: Tree, plain: Mapping[str, Any], computed: Mapping[str, Any]
    ) -> None:
        name, key = gate.schema.name, rules.shard_key
        if gate.schema.id_name in plain or gate.schema.id_name in computed:
            raise BadOp(f"the id of a row of {name!r} cannot be changed: insert a new row and delete the old one")
        if key is None or rules.reference or (key not in plain and key not in computed):
            return
        if key in computed or pinned(where, gate.column_of[key]) != plain[key]:
            raise ShardKeyError(
                f"{name}.{key} is the shard key and cannot be changed: the row may live on another shard then; "
                "insert it anew and delete the old row"
            )

    def _upsert_key(self, gate: Gate, rules: TableSettings, fields: tuple[str, ...], values: Mapping[str, Any]) -> None:
        name, schema = gate.schema.name, gate.schema
        gate.known(dict.fromkeys(fields))
        absent = [field for field in fields if values.get(field) is None]
        if not fields or absent:
            raise BadOp(
                f"an upsert into {name!r} needs a value for each of its key fields" + (f": {absent}" if absent else "")
            )
        single = len(fields) == 1 and (fields[0] == schema.id_name or schema.columns[schema.index[fields[0]]].unique)
        if not single and set(fields) not in [set(group) for group in rules.unique]:
            raise BadOp(
                f"an upsert into {name!r} needs a unique index on ({', '.join(fields)}): add it as "
                f"[tables.{name}] unique = [{list(fields)}], and run pipeline migrate"
            )
        key = rules.shard_key
        if key and not rules.reference and fields != (schema.id_name,) and key not in fields:
            raise ShardKeyError(f"the key of an upsert into {name!r} must contain its shard key {key!r}")
        if not key and not rules.reference and fields != (schema.id_name,):
            raise ShardKeyError(f"table {name!r} is sharded by its id, so it can be upserted by its id only")

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

    def _next_bucket(self) -> int:
        """Return the bucket of the next row that may live anywhere: each in turn."""
        self._turn = (self._turn + 1) % self._topology.buckets
        return self._turn


def _check_key(key: str | None) -> str | None:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= MAX_KEY):
        raise BadOp(f"idempotency_key must be a text of 1 to {MAX_KEY} characters")
    return key
