"""Find ops that decode, and yet fit neither their kind nor their schema: no release enqueues such ops."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from pipeline.dal.trees import is_tree
from pipeline.model.op import COPY, GROUP, INSERT, READ, ROW_WRITES, UPSERT, Op
from pipeline.model.schema import Column
from pipeline.shard.table_facts import Facts


def misfit(op: Op, known: Mapping[str, Facts]) -> str:
    """Return why an op cannot be applied, or the empty string. Called once per op, so cheap for the usual ones.

    Args:
        op: a row write or a group.
        known: the facts of every schema that the op names, by hash.
    """
    if op.kind in ROW_WRITES:
        return _row_misfit(op, known)
    if op.kind != GROUP or not op.ops or op.source is not None:
        return f"a {op.kind!r} that is no row write, or a group without members"
    return next((fault for member in op.ops if (fault := _row_misfit(member, known))), "")


def is_like(op: Op, shapes: Container[tuple[int, ...]]) -> bool:
    """Return whether an op is an insert of plain values for columns that fit its schema.

    Args:
        op: of any kind.
        shapes: the columns of inserts that fitted.
    """
    return (
        op.columns in shapes
        and op.kind == INSERT
        and len(op.columns) == len(op.values)
        and not (op.ops or op.key or op.renew or op.expressions)
        and op.where is None
        and op.source is None
        and list not in map(type, op.values)
    )


def _row_misfit(op: Op, known: Mapping[str, Facts]) -> str:
    if op.ops or op.kind not in ROW_WRITES or (op.source is None) is (op.kind == COPY):
        return f"a {op.kind!r} with members, with a source or without one"
    if len(op.columns) != len(op.values):
        return f"{len(op.columns)} columns with {len(op.values)} values"
    columns = known[op.schema].schema.columns
    width = len(columns)
    if max(op.columns, default=-1) >= width:
        return f"column {max(op.columns)} of a table that has {width}"
    if list in map(type, op.values) and (odd := _odd_list(op, columns)):
        return f"a list for the column {odd!r}"
    if op.kind == UPSERT and not op.key:
        return "an upsert without a key"
    if op.key or op.renew or op.expressions or op.where is not None or op.source is not None:
        return _rare_misfit(op, width, known)
    return ""


def _odd_list(op: Op, columns: Sequence[Column]) -> str:
    """Return a column that gets a list and holds none, or the empty string."""
    given = ((columns[number], value) for number, value in zip(op.columns, op.values, strict=True))
    return next((c.name for c, value in given if type(value) is list and not c.type.startswith("list:")), "")


def _rare_misfit(op: Op, width: int, known: Mapping[str, Facts]) -> str:
    """Check what a plain insert has not. The expressions of a copy are about the columns of its source."""
    named = (*op.key, *op.renew, *(column for column, _ in op.expressions))
    if named and max(named) >= width:
        return f"column {max(named)} of a table that has {width}"
    read = op.source
    theirs = width if read is None else len(known[read.schema].schema.columns)
    if read is not None and (read.kind != READ or not (read.where is None or is_tree(read.where, theirs))):
        return "a copy whose source is no row"
    if not (op.where is None or is_tree(op.where, width)):
        return "a condition that is none, or is too deep"
    if not all(is_tree(tree, theirs) for _, tree in op.expressions):
        return "an expression that is none, or is too deep"
    return ""
