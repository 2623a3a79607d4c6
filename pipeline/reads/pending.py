"""Lay queued ops over a node's row, each computed as the databases compute it, so that a user sees an edit at once.

Compute what a queued op will make of a row, the way the databases compute it. Pure.
`Unforeseeable` is raised where only the database knows the result: collations, divisions, a value that will not fit.
The caller then waits for the op instead of showing a guess.

Lay queued ops over a node's row, so that a user sees an edit before it is applied anywhere.
The row and the watermark come from one statement, so they are of one moment. The entries behind that watermark are
exactly the ops that the row has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any, NamedTuple

from pipeline.bounds import keep_newest
from pipeline.config.buckets import key_text
from pipeline.config.settings import TableSettings
from pipeline.dal import has_filters, real_name
from pipeline.dal.trees import narrowed_here
from pipeline.errors import BadOp, NewerOp, NotAnOp, ShardUnavailable
from pipeline.model import COPY, DELETE, INSERT, UPDATE, UPSERT, Entry, Op, Position, decode
from pipeline.model.schema import Column, TableSchema, column_of, schema_of
from pipeline.model.values import python_value
from pipeline.model.values.texts import RANGES
from pipeline.oplog import Entries
from pipeline.reads.connections import NodeReader
from pipeline.reads.onward import Onward
from pipeline.shard.records import HELD_IN, Mark, known_keys, ledger_queries
from pipeline.shard.records.set_aside import holders, row_keys

#: A row's values by field, as pyDAL reads them; None where there is no row.
Values = dict[str, Any] | None
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "<>": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_COMPARABLE = ("integer", "bigint", "id", "reference", "double", "decimal", "boolean", "date", "time", "datetime")
_WHOLE = ("integer", "bigint", "id", "reference")
_SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
#: Entries that are looked through for one row. 1000 take about 5 ms; a longer queue is not worth it.
MOST_ENTRIES = 1000
#: How often a row is read again because its bucket moved on in between.
OVERLAY_TRIES = 5


class Unforeseeable(Exception):
    """What the database will do with an op cannot be computed exactly here."""


def row_after(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    """Return what a row is after one row write; the same object if it is not touched.

    Args:
        op: the row write.
        schema: of its table.
        row_id: the row's id.
        values: the row before, None where there is none.
    """
    return _EFFECTS[op.kind](op, schema, row_id, values)


def _inserted(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if op.id != row_id or values is not None:
        return values  # a second row with the same id will be refused
    empty: dict[str, Any] = {column.name: None for column in schema.columns}
    return empty | _given(op, schema) | {schema.id_name: row_id}


def _updated(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if values is None or not _touches(op, schema, row_id, values):
        return values
    computed = {}
    for number, tree in op.expressions:
        column = schema.columns[number]
        computed[column.name] = _stored(column, _computed(tree, schema, column, values))
    return values | _given(op, schema) | computed


def _deleted(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    return None if values is not None and _touches(op, schema, row_id, values) else values


def _upserted(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if op.key == (schema.id_index,):
        if op.id != row_id:
            return values
        if values is None:
            return _inserted(op, schema, row_id, None)
        return values | _given(op, schema, only=op.renew)
    if op.id == row_id:
        raise Unforeseeable("whether an upsert makes a row depends on the other rows")
    if values is None:
        return None
    given = _given(op, schema)
    same = [_equal(schema.columns[key], values[schema.columns[key].name], given) for key in op.key]
    if False in same:
        return values
    if None in same:
        raise Unforeseeable("whether two texts are the same key is for the database to say")
    return values | _given(op, schema, only=op.renew)


def _copied(op: Op, schema: TableSchema, row_id: int, values: Values) -> Values:
    if op.id != row_id or values is not None:
        return values
    raise Unforeseeable("what a copy will find in its source is for the database to say")


_EFFECTS: Mapping[str, Callable[[Op, TableSchema, int, Values], Values]] = {
    INSERT: _inserted,
    UPDATE: _updated,
    DELETE: _deleted,
    UPSERT: _upserted,
    COPY: _copied,
}


def _given(op: Op, schema: TableSchema, only: tuple[int, ...] | None = None) -> dict[str, Any]:
    pairs = zip(op.columns, op.values, strict=True)
    columns = schema.columns
    return {columns[n].name: python_value(columns[n], v) for n, v in pairs if only is None or n in only}


def _equal(column: Any, value: Any, given: Mapping[str, Any]) -> bool | None:
    other = given.get(column.name)
    if value is None or other is None:
        return False  # NULLs are never the same key
    return True if value == other else None if _is_text(column) else False


def _touches(op: Op, schema: TableSchema, row_id: int, values: dict[str, Any]) -> bool:
    if op.where is None:
        return op.id == row_id
    return _holds(op.where, schema, values) is True


# conditions -----------------------------------------------------------------------------------------------------


def _holds(tree: Any, schema: TableSchema, values: dict[str, Any]) -> bool | None:
    """Return whether a condition holds; None is SQL's unknown."""
    head, *rest = tree
    if head in ("and", "or"):
        parts = [_holds(part, schema, values) for part in rest]
        final = head == "or"
        return final if final in parts else None if None in parts else not final
    if head == "not":
        inner = _holds(rest[0], schema, values)
        return None if inner is None else not inner
    column = schema.columns[rest[0]]
    value = values[column.name]
    if head == "null":
        return value is None
    if head == "in":
        found = [_compared("=", column, value, other) for other in rest[1]]
        return True if True in found else None if None in found else False
    return _compared(head, column, value, rest[1])


def _compared(head: str, column: Any, value: Any, canonical: Any) -> bool | None:
    if value is None or canonical is None:
        return None
    other = python_value(column, canonical)
    if column.kind in _COMPARABLE:
        return _ORDER[head](value, other)
    if value == other and _is_text(column):
        return head in ("=", "<=", ">=")  # the same text is the same under every collation
    raise Unforeseeable("how two texts compare is for the database to say")


# expressions ----------------------------------------------------------------------------------------------------


def _computed(tree: Any, schema: TableSchema, target: Any, values: dict[str, Any]) -> Any:
    head, *rest = tree
    if head == "c":
        return values[schema.columns[rest[0]].name]
    if head == "v":
        (value,) = rest
        return value if isinstance(value, int | float) else python_value(target, value)
    left, right = (_computed(part, schema, target, values) for part in rest)
    if left is None or right is None:
        return None
    if head == "||":
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        raise Unforeseeable("a text is joined to what is no text")
    return _arithmetic(head, left, right)


def _arithmetic(sign: str, left: Any, right: Any) -> Any:
    kinds = {type(left), type(right)}
    if any(issubclass(kind, bool) or not issubclass(kind, int | float | Decimal) for kind in kinds):
        raise Unforeseeable("arithmetic on what is no number")
    if all(issubclass(kind, int) for kind in kinds):
        return _whole(sign, int(left), int(right))
    if float in kinds:
        if not (isinstance(left, float) or isinstance(right, float)) or Decimal in kinds or sign not in "+-*":
            raise Unforeseeable("a division, or numbers of several kinds")
        return _finite(_SIGNS[sign](float(left), float(right)))
    if sign not in "+-*":
        raise Unforeseeable("databases differ in the digits of a quotient")
    with localcontext() as context:
        context.prec = 200
        return _SIGNS[sign](Decimal(left), Decimal(right))


def _whole(sign: str, left: int, right: int) -> int:
    if sign == "%" and right:
        result = int(math.copysign(1, left)) * (abs(left) % abs(right))
    elif sign in _SIGNS:
        result = _SIGNS[sign](left, right)
    else:
        raise Unforeseeable("a quotient of whole numbers")
    if not -(2**63) <= result < 2**63:
        raise Unforeseeable("out of range")
    return result


def _finite(result: float) -> float:
    if math.isfinite(result):
        return result
    raise Unforeseeable("out of range")


def _stored(column: Any, value: Any) -> Any:
    """Return what a column keeps of a computed value."""
    if value is None:
        if column.notnull:
            raise Unforeseeable("NULL will be refused")
        return None
    if column.kind in _WHOLE and isinstance(value, int):
        low, high = RANGES[column.kind]
        if low <= value <= high:
            return value
    elif column.kind == "double" and isinstance(value, int | float):
        return float(value)
    elif column.kind == "decimal" and isinstance(value, int | Decimal):
        digits, scale = column.digits
        rounded = Decimal(value).quantize(Decimal(1).scaleb(-scale), rounding=ROUND_HALF_UP)
        if abs(rounded) < Decimal(10) ** (digits - scale):
            return rounded
    elif isinstance(value, str) and column.kind in ("string", "text") and len(value) <= (column.length or len(value)):
        return value
    raise Unforeseeable("the database will round it, or refuse it")


def _is_text(column: Any) -> bool:
    return column.kind not in _COMPARABLE


class CannotOverlay(Exception):
    """The queued ops cannot be laid over the row: wait for them instead."""


class QueuedOps(NamedTuple):
    """The ops behind a watermark, and of a bucket one of whose keys has a shard of its own, whose rows they are about.

    Attributes:
        bucket: the number of the watermark, and of the log.
        key: the field by which rows are told apart; empty: all are of one shard.
        of: that key, by its text; `is_piece`: whether the rows with it are meant, or all others.
    """

    bucket: int
    table: TableSettings | None = None
    key: str = ""
    of: str = ""
    is_piece: bool = False

    def has(self, column: Column, values: Mapping[str, Any]) -> bool:
        """Return whether a row is of the queue.

        Args:
            column: the key's.
            values: the row's.
        """
        if self.table is None:
            return True
        value = values.get(self.key)
        return (value is not None and key_text(self.table, column, value) == self.of) is self.is_piece


class Overlay:
    """Computes rows that are not there yet.

    Args:
        log: has the queued ops, and the schemas that they name.
    """

    def __init__(self, log: Entries):
        self._log = log
        self._schemas: dict[str, TableSchema] = {}

    def row(self, reader: NodeReader, callers: Any, row_id: int, queue: QueuedOps, onward: Onward) -> Any:
        """Return a row with the queued ops of its bucket laid over it, or None if it is not there then.

        A row that the present request's filters hide is not there.

        A row that they touch has `pending` True (`_pending`, where the table has a field of that name).

        Args:
            reader: the node.
            callers: the table, of the caller's DAL.
            row_id: the row's id.
            queue: of the row's bucket.
            onward: where the row leads to.

        Raises:
            CannotOverlay: too many entries, an unknown schema, or an effect that only the database can compute.
        """
        table, bucket = reader.table(callers), queue.bucket
        for _ in range(OVERLAY_TRIES):
            snapshot = _snapshot(reader, table, row_id, bucket)
            (mark, state), raw = snapshot
            entries = self._behind(mark, bucket)
            fresh = _not_applied(reader, mark, bucket, entries)
            if fresh is None:
                continue
            if state in HELD_IN and fresh:
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
            if queue.table is not None and not queue.has(column_of(callers[queue.key]), values):
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
