"""Find ops that decode, and yet fit neither their kind nor their schema: no release enqueues such ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from pipeline.dal.trees import is_condition_tree, is_expression_tree
from pipeline.model.op import COPY, DELETE, GROUP, INSERT, READ, ROW_WRITES, UPDATE, UPSERT, Op
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.table_facts import Facts

Numbers = tuple[int, ...]
#: A kind, the columns with values, the key and the columns to renew.
Shape = tuple[str, Numbers, Numbers, Numbers]


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


def is_like(op: Op, fitting: Mapping[str, Mapping[Shape, str]]) -> bool:
    """Return whether an op is of plain values, and of a shape that fits its schema; or a group of such ops.

    Args:
        op: of any kind.
        fitting: the shapes that fitted, each with the table of the schema, by the schema's hash.
    """
    if op.ops:
        return op.kind == GROUP and op.source is None and all(not one.ops and is_like(one, fitting) for one in op.ops)
    shapes = fitting.get(op.schema)
    return (
        shapes is not None
        and shapes.get(shape_in(op)) == op.table
        and len(op.columns) == len(op.values)
        and not op.expressions
        and op.where is None
        and op.source is None
        and (op.id is not None or op.kind in (INSERT, UPSERT))
        and list not in map(type, op.values)
    )


def shape_in(op: Op) -> Shape:
    """Return what decides whether a row write of plain values fits its schema.

    Args:
        op: a row write.
    """
    return op.kind, op.columns, op.key, op.renew


def _row_misfit(op: Op, known: Mapping[str, Facts]) -> str:
    if op.ops or op.kind not in ROW_WRITES or (op.source is None) is (op.kind == COPY):
        return f"a {op.kind!r} with members, with a source or without one"
    if len(op.columns) != len(op.values):
        return f"{len(op.columns)} columns with {len(op.values)} values"
    schema = known[op.schema].schema
    if op.table != schema.name:
        return f"an op of {op.table!r} with the schema of {schema.name!r}"
    computed, width = tuple(column for column, _ in op.expressions), len(schema.columns)
    if fault := _columns_misfit(op.kind, op.columns, computed, op.key, op.renew, width, schema.id_index):
        return fault
    if list in map(type, op.values) and (odd := _odd_list(op, schema.columns)):
        return f"a list for the column {odd!r}"
    return _rare_misfit(op, schema, known)


def _odd_list(op: Op, columns: Sequence[Column]) -> str:
    """Return a column that gets a list and holds none, or the empty string."""
    given = ((columns[number], value) for number, value in zip(op.columns, op.values, strict=True))
    return next((c.name for c, value in given if type(value) is list and not c.type.startswith("list:")), "")


@lru_cache(maxsize=2000)
def _columns_misfit(
    kind: str, columns: Numbers, computed: Numbers, key: Numbers, renew: Numbers, width: int, id_index: int
) -> str:
    """Check the numbers of columns: each is of the table, and none is written twice. The id is a field of its own."""
    written = (*columns, *computed)
    highest = max((*written, *key, *renew), default=-1)
    if highest >= width:
        return f"column {highest} of a table that has {width}"
    if len(set(written)) < len(written) or id_index in written:
        return "a column that is written twice, or the id as a column"
    if kind == UPDATE and not written:
        return "an update of nothing"
    if kind == UPSERT and not (key and {*key, *renew} <= {*columns, id_index}):
        return "an upsert without a key, or without its values"
    if kind != UPSERT and (key or renew):
        return f"a {kind!r} with the key of an upsert"
    if kind not in (UPDATE, COPY) and computed:
        return f"a {kind!r} with expressions"
    return ""


def _rare_misfit(op: Op, schema: TableSchema, known: Mapping[str, Facts]) -> str:
    """Check what a plain insert has not."""
    width = len(schema.columns)
    if op.kind in (UPDATE, DELETE) and op.id is None and op.where is None:
        return f"a {op.kind!r} of no row"
    if not (op.where is None or (op.kind in (UPDATE, DELETE) and is_condition_tree(op.where, width))):
        return "a condition that is none, or is too deep"
    if op.source is not None:
        return _copy_misfit(op, op.source, schema, known[op.source.schema].schema)
    if not all(is_expression_tree(tree, width) for _, tree in op.expressions):
        return "an expression that is none, or is too deep"
    return ""


def _copy_misfit(op: Op, read: Op, archive: TableSchema, source: TableSchema) -> str:
    """Check that a copy reads the table whose archive its own table is, and each column into the column of its name."""
    width = len(source.columns)
    if read.kind != READ or read.table != source.name or (read.id is None) is (read.where is None):
        return "a copy whose source is no row"
    if read.where is not None and not is_condition_tree(read.where, width):
        return "a copy under a condition that is none, or is too deep"
    for number, tree in op.expressions:
        if not is_expression_tree(tree, width) or tree[0] != "c":
            return "a copy that computes"
        column, theirs = archive.columns[number], source.columns[tree[1]]
        if theirs.name != column.name and not (tree[1] == source.id_index and column.parent == source.name):
            return f"a copy of {source.name}.{theirs.name} into {archive.name}.{column.name}"
    if not any(tree == ["c", source.id_index] for _, tree in op.expressions):
        return f"a copy from {source.name!r}, of which {archive.name!r} is no archive"
    return ""
