"""Lay queued ops over a node's row, so that a user sees an edit before it is applied anywhere.

The row and the watermark come from one statement, so they are of one moment. The entries behind that watermark are
exactly the ops that the row has not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.bounds import keep_newest
from pipeline.dal.filters import narrowed_here
from pipeline.dal.objects import has_filters, real_name
from pipeline.errors import BadOp, NewerOp, NotAnOp, ShardUnavailable
from pipeline.model.op import Entry, Op, Position, decode
from pipeline.model.schema import TableSchema, schema_of
from pipeline.oplog.contract import Entries
from pipeline.reads.connections import NodeReader
from pipeline.reads.onward import Onward
from pipeline.reads.pending.op_effect import Unforeseeable, Values, row_after
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import HOLDING, Mark, known_keys
from pipeline.shard.records.row_keys import row_keys
from pipeline.shard.records.set_aside import holders

#: Entries that are looked through for one row. 1000 take about 5 ms; a longer queue is not worth it.
MOST_ENTRIES = 1000
#: How often a row is read again because its bucket moved on in between.
OVERLAY_TRIES = 5


class CannotOverlay(Exception):
    """The queued ops cannot be laid over the row: wait for them instead."""


class Overlay:
    """Computes rows that are not there yet.

    Args:
        log: has the queued ops, and the schemas that they name.
    """

    def __init__(self, log: Entries):
        self._log = log
        self._schemas: dict[str, TableSchema] = {}

    def row(self, reader: NodeReader, callers: Any, row_id: int, bucket: int, onward: Onward) -> Any:
        """Return a row with the queued ops of its bucket laid over it, or None if it is not there then.

        A row that the present request's filters hide is not there.

        A row that they touch has `pending` True (`_pending`, where the table has a field of that name).

        Args:
            reader: the node.
            callers: the table, of the caller's DAL.
            row_id: the row's id.
            bucket: the bucket of the row.
            onward: where the row leads to.

        Raises:
            CannotOverlay: too many entries, an unknown schema, or an effect that only the database can compute.
        """
        table = reader.table(callers)
        for _ in range(OVERLAY_TRIES):
            snapshot = _snapshot(reader, table, row_id, bucket)
            (mark, state), raw = snapshot
            entries = self._behind(mark, bucket)
            fresh = _not_applied(reader, mark, bucket, entries)
            if fresh is None:
                continue
            if state == HOLDING and fresh:
                fresh = self._not_parked(reader, table, bucket, fresh)
                if _snapshot(reader, table, row_id, bucket) != snapshot:
                    continue  # a replay moves no watermark
            stored = _values(reader, table, raw)
            values = stored
            try:
                for op in fresh:
                    for member in op.members:
                        if member.table == real_name(table):
                            values = row_after(member, self._schema(member, table), row_id, values)
            except Unforeseeable as error:
                raise CannotOverlay(str(error)) from error
            if values is None or not _shown(reader, table, callers, values):
                return None
            row = reader.as_read(callers, values, onward)
            if values is not stored:
                row["_pending" if "pending" in table.fields else "pending"] = True
            return row
        raise CannotOverlay("the bucket moves too fast")

    def _behind(self, mark: Position, bucket: int) -> list[Entry]:
        """Return the entries behind a watermark, in order, none missing."""
        entries = self._log.read({bucket: mark}, {bucket: MOST_ENTRIES + 1})[bucket]
        if len(entries) > MOST_ENTRIES:
            raise CannotOverlay(f"more than {MOST_ENTRIES} ops are queued before it")
        before = mark
        for entry in entries:
            follows = before.seq + 1 if entry.position.epoch == before.epoch else 0
            if entry.position.seq != follows:
                raise CannotOverlay("the log has been trimmed, or has lost entries")
            before = entry.position
        return entries

    def _not_parked(self, reader: NodeReader, table: Any, bucket: int, ops: Sequence[Op]) -> list[Op]:
        """Leave out the ops that wait behind an op of their row that is set aside, as the shard will."""
        schemas = {one.schema: self._schema(one, table) for op in ops for one in op.named}
        keys = [row_keys(op, schemas) for op in ops]
        held = {key for _, key in holders(reader.session, {(bucket, key) for own in keys for key in own})}
        free = []
        for op, own in zip(ops, keys, strict=True):
            if held.isdisjoint(own):
                free.append(op)
            else:
                held |= own
        return free

    def _schema(self, op: Op, table: Any) -> TableSchema:
        schema = self._schemas.get(op.schema)
        if schema is None:
            schema = schema_of(table)
            if schema.hash != op.schema:
                text = self._log.schema(op.schema)
                if text is None:
                    raise CannotOverlay(f"definition {op.schema} of table {op.table} is not known")
                try:
                    schema = TableSchema.from_json(text, op.schema)
                except BadOp as error:
                    raise CannotOverlay(str(error)) from error
            keep_newest(self._schemas, op.schema, schema)
        return schema


def _snapshot(reader: NodeReader, table: Any, row_id: int, bucket: int) -> tuple[Mark, tuple[Any, ...] | None]:
    """Return the watermark and the row, raw, in one statement."""
    # not pyDAL's own SELECT: the line 3 leaves values out of its text
    columns, own_id = ", ".join(field.sqlsafe for field in table), table._id.sqlsafe
    row = f"SELECT {columns} FROM {table.sql_fullref} WHERE {own_id} = {int(row_id)}"
    found = reader.rows(
        f"SELECT w.epoch, w.seq, w.state, r.* FROM pipeline_watermarks AS w LEFT JOIN ({row}) AS r ON 1=1"
        f" WHERE w.bucket = {bucket}"
    )
    if not found:
        raise ShardUnavailable(reader.node, f"it has no watermark of bucket {bucket}: run pipeline migrate")
    epoch, seq, state, *raw = found[0]
    there = raw[table.fields.index(table._id.name)] is not None
    return Mark(Position(epoch, seq), state), tuple(raw) if there else None


def _not_applied(reader: NodeReader, mark: Position, bucket: int, entries: Sequence[Entry]) -> list[Op] | None:
    """Return the ops of entries that the node has not applied; None if it moved on while it was asked."""
    # in a new epoch producers send again what may have been applied in the old one
    renewed = mark.epoch > 0 and any(entry.position.epoch != mark.epoch for entry in entries)
    senders = {(bucket, entry.producer) for entry in entries}
    seen = ledger_queries.sequences(reader.session, senders) if renewed else {}
    fresh = _decoded(e for e in entries if e.producer and e.producer_seq > seen.get((bucket, e.producer), 0))
    keys = {key for op in fresh if (key := op.scoped_key)}
    used = {key for _, key in known_keys(reader.session, ((bucket, key) for key in keys))} if keys else set()
    if (renewed or keys) and reader.marks([bucket])[bucket] != mark:
        return None
    return _once(fresh, used)


def _decoded(entries: Iterable[Entry]) -> list[Op]:
    """Return the ops of entries, without what a worker will set aside."""
    found = []
    for entry in entries:
        try:
            found.append(decode(entry.payload))
        except NotAnOp:
            continue
        except NewerOp as error:
            raise CannotOverlay(str(error)) from error
    return found


def _once(ops: Iterable[Op], used: set[str]) -> list[Op]:
    """Leave out what the shard will: an op whose idempotency key was used before."""
    found = []
    for op in ops:
        key = op.scoped_key
        if key not in used:
            found.append(op)
        if key:
            used.add(key)
    return found


def _values(reader: NodeReader, table: Any, raw: tuple[Any, ...] | None) -> Values:
    if raw is None:
        return None
    parse = reader.adapter.parse_value
    return {field.name: parse(value, field._itype, field.type) for field, value in zip(table, raw, strict=True)}


def _shown(reader: NodeReader, table: Any, callers: Any, values: dict[str, Any]) -> bool:
    """Return whether the caller's filters would find a row with such values; the node says so, as for any row."""
    if not has_filters(callers):
        return True
    adapter, query = reader.adapter, reader.own(narrowed_here(callers._id == values[callers._id.name]))
    columns = ", ".join(field.sqlsafe for field in table)
    literals = ", ".join(str(adapter.represent(values.get(field.name), field.type)) for field in table)
    # the empty part gives each value its column's type and collation
    row = f"SELECT {columns} FROM {table.sql_fullref} WHERE 1=0 UNION ALL SELECT {literals}"
    return bool(reader.rows(f"SELECT 1 FROM ({row}) AS {table.sql_shortref} WHERE {adapter.expand(query)}"))
