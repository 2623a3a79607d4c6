"""Copies: the version of a row that an update is about to change, made by the worker, which has the current row.

A copy stands by its row: in the same bucket, and before the update in one atomic group.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from pipeline.config.settings import TableSettings
from pipeline.dal.trees import pinned
from pipeline.enqueue.final_values import FUNCTIONS, CompiledTable
from pipeline.errors import BadOp, ShardKeyError
from pipeline.model.op import COPY, READ, Op
from pipeline.model.schema import Column, TableSchema

#: Columns of an archive that take what is of another type in the row.
_WIDER = {"bigint": ("integer", "reference", "id")}


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
