"""Show one op that was set aside beside the row as it is now, and edit its values.

An edit passes the checks that a call passes. The op as it was before is kept in the record of actions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from pipeline.admin.dead import DeadOp, Where, dead_ops, waiting_behind
from pipeline.admin.stops import who
from pipeline.client import Client
from pipeline.enqueue.final_values import CompiledTable
from pipeline.errors import BadOp, BadValue, NewerOp, NotAnOp
from pipeline.model import GROUP, INSERT, UPDATE, UPSERT, Op, decode, encode
from pipeline.model.schema import TableSchema
from pipeline.model.values import TEXT_KINDS, python_value
from pipeline.shard import NodeSession, records
from pipeline.shard.records import replays, set_aside
from pipeline.shard.records.moves import moving
from pipeline.shard.records.replays import Place
from pipeline.shard.statements import row_named
from pipeline.shard.table_facts import Facts, facts_of


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of a row that an op writes.

    Attributes:
        column: its name.
        now: what the database has now, None where there is no row or the rows are not known.
        new: what the op would write, for people; None: it leaves the column alone.
        typed: the same as `typed_values` reads it; None: it is no value that an edit may change.
    """

    column: str
    now: Any
    new: str | None
    typed: str | None = None


@dataclass(frozen=True, slots=True)
class RowWrite:
    """One row write of an op, beside the row as it is now.

    Attributes:
        table, kind: what it is.
        row: what names the row: its id, its key, or a condition.
        there: whether the row is there now; None where only the database knows which rows are meant.
        cells: its columns.
    """

    table: str
    kind: str
    row: str
    there: bool | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One op that was set aside.

    Attributes:
        found: the op and its shard.
        writes: its row writes; empty where this version cannot decode the op.
        behind: how many ops wait behind it.
    """

    found: DeadOp
    writes: tuple[RowWrite, ...]
    behind: int


def show(pipeline: Client, place: Place, shard: str | None = None) -> Shown:
    """Return an op and the rows that it is about.

    Args:
        pipeline: the deployment.
        place: of the op.
        shard: where; needed for a reference table only, whose ops are on every shard.

    Raises:
        BadOp: there is no such op.
    """
    found = _one(pipeline, place, shard)
    primary = pipeline.nodes.primary(found.shard)
    op = _decoded(found)
    with primary.translated(), primary.transaction():
        writes = [_write(primary, one, _schema(pipeline, primary, one)) for one in (op.members if op else ())]
    behind = waiting_behind(pipeline, found.shard, {place[0]: [place[1]]})
    return Shown(found, tuple(writes), behind)


def edit(
    pipeline: Client,
    place: Place,
    values: Mapping[str, Any],
    *,
    shard: str | None = None,
    member: int = 0,
    by: str = "",
) -> DeadOp:
    """Change values of an op that is set aside; a replay applies them. Return the op as it is now.

    Args:
        pipeline: the deployment.
        place: of the op.
        values: by field; each passes the checks of a call.
        shard: where; needed for a reference table only.
        member: which row write of an atomic group, from 0.
        by: who orders it, for the record of actions; by default the user of this process.

    Raises:
        BadOp: there is no such op, or a value or a field is refused; nothing is changed.
    """
    found = _one(pipeline, place, shard)
    primary = pipeline.nodes.primary(found.shard)
    with primary.translated(), primary.transaction():
        records.lock_buckets(primary, [place[0]])
        if moving(primary, found.shard, [place[0]]):
            raise BadOp(f"bucket {place[0]} is being moved: wait for that, or run: pipeline move give-up {place[0]}")
        again = replays.ops_where(primary, Where((place,)).sql(set_aside.ASIDE))
        op = _decoded(DeadOp(found.shard, again[0])) if again else None
        if op is None:
            raise BadOp(f"the op at {_text(place)} is not set aside any more, or is no op of this version")
        changed = _edited(pipeline, primary, op, values, member)
        replays.change_op(primary, place, encode(changed))
        before = {place: again[0].entry.payload.decode()}
        replays.note_actions(primary, by or who(), "edit", {place: again[0].state}, before)
    return _one(pipeline, place, found.shard)


def typed_values(
    pipeline: Client, place: Place, texts: Mapping[str, str], *, shard: str | None = None, member: int = 0
) -> dict[str, Any]:
    """Return the values that texts of a command line mean: `null`, a number, a list; for a text column the text.

    Args:
        pipeline: the deployment.
        place: of the op.
        texts: by field.
        shard: where; needed for a reference table only.
        member: which row write of an atomic group, from 0.
    """
    found = _one(pipeline, place, shard)
    op = _decoded(found)
    if op is None or member >= len(op.members):
        return dict(texts)  # `edit` says what is wrong
    primary = pipeline.nodes.primary(found.shard)
    with primary.translated(), primary.transaction():
        schema = _schema(pipeline, primary, op.members[member])
    kinds = {column.name: column.kind for column in schema.columns}
    return {name: _typed(text, kinds.get(name, "string")) for name, text in texts.items()}


def _typed(text: str, kind: str) -> Any:
    if text == "null":
        return None
    if kind in TEXT_KINDS:
        return text
    try:
        return json.loads(text, parse_float=str)
    except ValueError:
        return text


def _edited(pipeline: Client, primary: NodeSession, op: Op, values: Mapping[str, Any], at: int) -> Op:
    if at >= len(op.members):
        raise BadOp(f"the op has {len(op.members)} row writes, from 0; there is no {at}")
    member = op.members[at]
    if member.kind not in (INSERT, UPDATE, UPSERT):
        raise BadOp(f"a {member.kind} has no values to edit: drop it, or replay it")
    changed = _with_values(member, CompiledTable(_schema(pipeline, primary, member), pipeline.topology), values)
    if op.kind != GROUP:
        return changed
    return replace(op, ops=(*op.ops[:at], changed, *op.ops[at + 1 :]))


def _with_values(op: Op, compiled: CompiledTable, values: Mapping[str, Any]) -> Op:
    compiled.known(values)
    fixed = {compiled.schema.id_name, compiled.rules.shard_key, *(compiled.schema.columns[c].name for c in op.key)}
    if kept := [name for name in values if name in fixed]:
        raise BadOp(f"{kept[0]} says which row the op is about: drop the op and enqueue another")
    final = {compiled.column_of[name]: compiled.check[name](value) for name, value in values.items()}
    for name, value in values.items():
        if value is None and name in compiled.required:
            raise BadValue(compiled.schema.name, name, "is notnull: give it a value")
    merged = dict(zip(op.columns, op.values, strict=True)) | final
    expressions = tuple(one for one in op.expressions if one[0] not in final)
    renew = tuple(sorted({*op.renew, *final})) if op.kind == UPSERT else op.renew
    return replace(op, columns=tuple(merged), values=tuple(merged.values()), expressions=expressions, renew=renew)


def _write(primary: NodeSession, op: Op, schema: TableSchema) -> RowWrite:
    facts = facts_of(primary, schema)
    new = {
        column: in_words(python_value(schema.columns[column], v))
        for column, v in zip(op.columns, op.values, strict=True)
    }
    new |= {column: _formula(tree, schema) for column, tree in op.expressions}
    row, known = _name(op, schema), _row_now(primary, op, facts)
    now = known[0] if known else None
    if op.id is not None and op.kind in (INSERT, UPSERT):
        new[schema.id_index] = str(op.id)
    typed = {
        column: v if isinstance(v, str) else json.dumps(v) for column, v in zip(op.columns, op.values, strict=True)
    }
    cells = tuple(
        Cell(column.name, now[i] if now else None, new.get(i), typed.get(i)) for i, column in enumerate(schema.columns)
    )
    return RowWrite(op.table, op.kind, row, None if known is None else bool(known), cells)


def in_words(value: Any) -> str:
    """Return a value for people: texts in quotes, numbers and times as they are typed.

    Args:
        value: of a column.
    """
    return str(value) if isinstance(value, Decimal | date | time) else repr(value)


def _name(op: Op, schema: TableSchema) -> str:
    if op.key and op.key != (schema.id_index,):
        given = dict(zip(op.columns, op.values, strict=True))
        return ", ".join(f"{schema.columns[column].name}={given.get(column)!r}" for column in op.key)
    return f"{schema.id_name}={op.id}" if op.id is not None else _formula(op.where or [], schema)


def _row_now(primary: NodeSession, op: Op, facts: Facts) -> list[tuple[Any, ...]] | None:
    """Return the row that an op names, in a list, an empty one if it is not there; None if it names no one row."""
    where = row_named(op, facts, primary.dialect)
    if where is None:
        return None
    return primary.rows(f"SELECT {', '.join(facts.names)} FROM {facts.table} WHERE {where} LIMIT 1")


def _formula(tree: Any, schema: TableSchema) -> str:
    """Return a condition or an expression for people."""
    if not isinstance(tree, list) or not tree:
        return repr(tree)
    head, *rest = tree
    if head == "c":
        return schema.columns[rest[0]].name
    if head == "v":
        return repr(rest[0])
    if head in ("and", "or", "+", "-", "*", "/", "%", "||"):
        return f" {head} ".join(_formula(part, schema) for part in rest)
    if head == "not":
        return f"not ({_formula(rest[0], schema)})"
    column = schema.columns[rest[0]].name
    return f"{column} is null" if head == "null" else f"{column} {head} {rest[1]!r}"


def _one(pipeline: Client, place: Place, shard: str | None) -> DeadOp:
    found = list(dead_ops(pipeline, Where((place,), shard=shard), states=(*set_aside.ASIDE, "replayed", "dropped")))
    if not found:
        raise BadOp(f"no op was set aside at {_text(place)}: see pipeline dead list")
    if len(found) > 1:
        raise BadOp(f"the op at {_text(place)} is on {', '.join(one.shard for one in found)}: name one with --shard")
    return found[0]


def _decoded(found: DeadOp) -> Op | None:
    try:
        return decode(found.op.entry.payload)
    except (NotAnOp, NewerOp):
        return None


def _schema(pipeline: Client, primary: NodeSession, op: Op) -> TableSchema:
    text = pipeline.log.schema(op.schema) or records.stored_schema(primary, op.schema)
    if text is None:
        raise BadOp(f"schema {op.schema} of table {op.table} is not known: define the table in a process first")
    return TableSchema.from_json(text, op.schema)


def _text(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
