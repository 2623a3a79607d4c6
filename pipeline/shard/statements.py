"""Render ops of one shape as one SQL statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from pipeline.dal.trees import pinned
from pipeline.errors import PipelineError
from pipeline.model import DELETE, GROUP, INSERT, UPDATE, UPSERT, Op
from pipeline.model.sheet import Sheet
from pipeline.shard.dialect import Dialect
from pipeline.shard.table_facts import Facts

#: Most rows of one INSERT or DELETE. More gain nothing measurable; what a bad op fails with is executed twice.
MAX_ROWS = 250
#: Most rows of one UPDATE: each is a branch of a CASE that the server walks for every row.
MAX_BRANCHES = 100

#: The largest statement that a worker sends, whatever the server takes.
MOST_STATEMENT_BYTES = 16_000_000

_encode_lines = msgspec.json.Encoder().encode_lines
_ARITHMETIC = {"+", "-", "*", "%"}
_COMPARISONS = {"=", "<>", "<", "<=", ">", ">="}
#: What the databases compare as it is; texts they compare by a collation.
_EXACT = ("integer", "bigint", "id", "reference", "double", "float", "decimal", "boolean", "date", "time", "datetime")


class CannotRender(PipelineError):
    """The op holds something that this version cannot turn into SQL."""


def most(kind: str) -> int:
    """Return how many ops of *kind* may be one statement; a versioned update is a group."""
    return MAX_BRANCHES if kind in (UPDATE, GROUP) else MAX_ROWS


def statement(kind: str, ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    """Return the SQL of ops that `apply.grouping` found to be of one shape.

    Args:
        kind: insert, update, delete or upsert.
        ops: of this kind.
        facts: of the table.
        dialect: of the database.
    """
    return _WRITERS[kind](ops, facts, dialect)


def rows_of(sheets: Sequence[Sheet], facts: Facts, *, numbers: bool = False) -> list[str]:
    """Return the literals of each row of sheets of one shape, as `insert_of` takes them.

    A line of JSON is a row of literals where no text needs an escape: sessions on MySQL read double quotes as quotes.
    So a row of 20 columns takes 1.3 µs, and 3.2 µs as a format text.

    Args:
        sheets: in order.
        facts: of the table.
        numbers: whether a number is written as such where pyDAL writes its text; see `Facts.still_of_numbers`.
    """
    columns: list[Sequence[Any]] = [list(chain.from_iterable(sheet.ids for sheet in sheets))]
    for nth, column in enumerate(sheets[0].columns):
        values = list(chain.from_iterable(sheet.values[nth] for sheet in sheets))
        form = facts.json_forms[column]
        if form and form.has(values):
            columns.append(values if numbers else form.as_texts(values))
        else:
            columns.append(_raw(map(facts.encode[column], values)))
    text = _encode_lines(zip(*columns, strict=True)).decode()
    rows = text[1:-2].split("]\n[")
    if len(rows) == len(columns[0]):
        return rows
    # a literal has such a line's end
    return [msgspec.json.encode(row)[1:-1].decode() for row in zip(*columns, strict=True)]


def _raw(literals: Iterable[str]) -> list[msgspec.Raw]:
    return list(map(msgspec.Raw, map(str.encode, literals)))


def insert_of(columns: Sequence[int], rows: Sequence[str], facts: Facts, how: str = "INSERT") -> str:
    """Return the SQL that inserts rows of sheets.

    Args:
        columns: the numbers of the columns that have values beside the id.
        rows: of `rows_of`.
        facts: of the table.
        how: how the statement begins.
    """
    names = [facts.names[facts.schema.id_index], *(facts.names[column] for column in columns)]
    return f"{how} INTO {facts.table} ({', '.join(names)}) VALUES ({'), ('.join(rows)})"


def copy_statement(ops: Sequence[Op], facts: Facts, source: Facts, dialect: Dialect) -> str:
    """Return the SQL of copies: rows of one table from rows of another, which stay as they are until the commit.

    Args:
        ops: one, or several that `apply.footprint` found to be of one shape and of different rows.
        facts: of the table that gets the rows.
        source: of the table that is read.
        dialect: of the database.
    """
    first, reads = ops[0], [op.source for op in ops if op.source is not None]
    if len(reads) < len(ops) or any(op.id is None for op in ops):
        raise CannotRender("a copy names the row that it makes and the row that it reads")
    given = [(column, facts.encode[column](value)) for column, value in zip(first.columns, first.values, strict=True)]
    given += [(column, _copied(tree, source)) for column, tree in first.expressions]
    names = [facts.names[facts.schema.id_index], *(facts.names[column] for column, _ in given)]
    made = [str(op.id) for op in ops]
    row_id = made[0] if len(ops) == 1 else _by_row(reads, made, source)
    where = _rows(reads, source, dialect) if reads[0].id is not None else _condition(reads[0].where, source, dialect)
    return (
        f"INSERT INTO {facts.table} ({', '.join(names)}) "
        f"SELECT {', '.join([row_id, *(sql for _, sql in given)])} FROM {source.table} WHERE {where}{dialect.hold}"
    )


def row_named(op: Op, facts: Facts, dialect: Dialect) -> str | None:
    """Return the condition that names the one row of an op, or None where only the database knows which rows it means.

    Args:
        op: a row write.
        facts: of its table.
        dialect: of the database.
    """
    schema = facts.schema
    row = pinned(op.where, schema.id_index) if op.id is None and op.where else op.id
    if op.kind == UPSERT and op.key != (schema.id_index,):
        given = dict(zip(op.columns, op.values, strict=True))
        return " AND ".join(f"{facts.names[c]} = {facts.encode[c](given[c])}" for c in op.key)
    return None if type(row) is not int else f"{facts.names[schema.id_index]} = {row}"


def _copied(tree: Any, source: Facts) -> str:
    head, column = tree
    if head != "c":
        raise CannotRender(f"a copy takes columns as they are, not {head!r}")
    return source.names[int(column)]


def _insert(ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    first = ops[0]
    encode = [facts.encode[column] for column in first.columns]
    names = [facts.names[column] for column in first.columns]
    if first.id is not None:
        names.insert(0, facts.names[facts.schema.id_index])
        rows = [
            f"({op.id}, {', '.join([f(v) for f, v in zip(encode, op.values, strict=True)])})"
            if encode
            else f"({op.id})"
            for op in ops
        ]
    elif encode:
        rows = [f"({', '.join([f(v) for f, v in zip(encode, op.values, strict=True)])})" for op in ops]
    else:
        names, rows = [facts.names[facts.schema.id_index]], ["(NULL)"] * len(ops)
    return f"INSERT INTO {facts.table} ({', '.join(names)}) VALUES {', '.join(rows)}"


def _upsert(ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    first = ops[0]
    key = [facts.names[column] for column in first.key]
    renew = [facts.names[column] for column in first.renew]
    return _insert(ops, facts, dialect) + dialect.on_conflict(key, renew)


def _update(ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    first = ops[0]
    if first.id is None:
        sets = ", ".join(f"{facts.names[c]}={sql}" for c, sql in _sets(first, facts, dialect))
        return f"UPDATE {facts.table} SET {sets} WHERE {_condition(first.where, facts, dialect)}"
    per_op = [_sets(op, facts, dialect) for op in ops]
    parts = []
    for i, (column, sql) in enumerate(per_op[0]):
        values = [sets[i][1] for sets in per_op]
        if any(value != sql for value in values):
            sql = _by_row(ops, values, facts)
        parts.append(f"{facts.names[column]}={sql}")
    where = _rows(ops, facts, dialect) + _order("UPDATE", ops, facts, dialect)
    return f"UPDATE {facts.table} SET {', '.join(parts)} WHERE {where}"


def _order(event: str, ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    """Return the tail by which a statement fires triggers in the order of its ops, where that matters."""
    if dialect.in_order is None or len(ops) == 1 or not facts.constraints.fired(event):
        return ""
    return dialect.in_order(facts.names[facts.schema.id_index], _ids(ops))


def _by_row(ops: Sequence[Op], values: Sequence[str], facts: Facts) -> str:
    """Return the SQL of a value that each row has for itself."""
    branches = " ".join(f"WHEN {op.id} THEN {value}" for op, value in zip(ops, values, strict=True))
    return f"CASE {facts.names[facts.schema.id_index]} {branches} END"


def _rows(ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    """Return the condition that names the rows of ops by their ids, each narrowed by its condition."""
    id_name = facts.names[facts.schema.id_index]
    named = f"{id_name} IN ({_ids(ops)})"
    if all(op.where is None for op in ops):
        return named
    each = [f"{id_name} = {op.id}" + (f" AND {_condition(op.where, facts, dialect)}" if op.where else "") for op in ops]
    return f"{named} AND ({' OR '.join(f'({one})' for one in each)})"


def _delete(ops: Sequence[Op], facts: Facts, dialect: Dialect) -> str:
    first = ops[0]
    if first.id is None:
        return f"DELETE FROM {facts.table} WHERE {_condition(first.where, facts, dialect)}"
    where = f"{facts.names[facts.schema.id_index]} IN ({_ids(ops)}){_order('DELETE', ops, facts, dialect)}"
    return f"DELETE FROM {facts.table} WHERE {where}"


def _ids(ops: Sequence[Op]) -> str:
    return ", ".join(str(op.id) for op in ops)


def _sets(op: Op, facts: Facts, dialect: Dialect) -> list[tuple[int, str]]:
    plain = [(column, facts.encode[column](value)) for column, value in zip(op.columns, op.values, strict=True)]
    return plain + [(column, _expression(tree, column, facts, dialect)) for column, tree in op.expressions]


def _expression(tree: Any, column: int, facts: Facts, dialect: Dialect) -> str:
    """Render `["+", ["c", 3], ["v", 1]]` and the like; a value that is no number takes the column's encoder."""
    head, *rest = tree
    if head == "c":
        number: int = rest[0]
        return facts.names[number]
    if head == "v":
        (value,) = rest
        return repr(value) if type(value) in (int, float) else facts.encode[column](value)
    if head in _ARITHMETIC:
        return f"({f' {head} '.join(_expression(part, column, facts, dialect) for part in _operands(tree))})"
    left, right = (_expression(part, column, facts, dialect) for part in rest)
    if head == "||":
        return dialect.concat(left, right)
    if head == "/":
        return dialect.divide(left, right)
    raise CannotRender(f"unknown expression {head!r}")


def _condition(tree: Any, facts: Facts, dialect: Dialect) -> str:
    """Render `["and", ["=", 3, 7], ["in", 4, [1, 2]]]` and the like; `["same", 3, null]` is "just this value".

    `["sql", text]` is a worker's own: no log holds it, see `trees.is_condition_tree`.
    """
    head, *rest = tree
    if head == "sql":
        return str(rest[0])
    if head in ("and", "or"):
        return f"({f' {head.upper()} '.join(_condition(part, facts, dialect) for part in _parts(tree))})"
    if head == "not":
        return f"NOT ({_condition(rest[0], facts, dialect)})"
    column = rest[0]
    name, encode = facts.names[column], facts.encode[column]
    if head == "null":
        return f"{name} IS NULL"
    if head == "in":
        return f"{name} IN ({', '.join(map(encode, rest[1]))})" if rest[1] else "1=0"
    if head == "same":
        return dialect.same(name, encode(rest[1]), text=facts.schema.columns[column].kind not in _EXACT)
    if head in _COMPARISONS:
        return f"{name} {head} {encode(rest[1])}"
    raise CannotRender(f"unknown condition {head!r}")


def _parts(tree: Any) -> list[Any]:
    """Return what a condition joins by its AND or OR, also in conditions that it nests: SQLite nests 90 brackets."""
    head, waiting, found = tree[0], list(tree[:0:-1]), []
    while waiting:
        part = waiting.pop()
        if part[0] == head:
            waiting += part[:0:-1]
        else:
            found.append(part)
    return found


def _operands(tree: Any) -> list[Any]:
    """Return the operands of a chain such as `(a - b) - c`, which SQL computes from the left without brackets."""
    head, found = tree[0], []
    while tree[0] == head:
        _, tree, right = tree
        found.append(right)
    return [tree, *reversed(found)]


_WRITERS: dict[str, Callable[[Sequence[Op], Facts, Dialect], str]] = {
    INSERT: _insert,
    UPDATE: _update,
    DELETE: _delete,
    UPSERT: _upsert,
}
