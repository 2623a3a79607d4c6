"""Recognise versioned updates: atomic groups that copy a row and update just that row.

Many versioned updates become two statements. Those of different rows may change places: each copies and updates its own
row only. `grouping` compares what else versioned updates touch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from pipeline.dal.trees import pinned
from pipeline.model.op import COPY, GROUP, UPDATE, Op
from pipeline.shard.table_facts import Facts


class Versioned(NamedTuple):
    """The two ops of a versioned update. Both name the row by its id, and may narrow it by a condition."""

    copy: Op
    update: Op


def versioned(op: Op, known: Mapping[str, Facts]) -> Versioned | None:
    """Return the copy and the update of a versioned update, or None for any other op.

    Args:
        op: an atomic group of one copy and one update, about one row with a known id; or another op.
        known: the facts of the update's schema, by hash.
    """
    if op.kind != GROUP or [member.kind for member in op.ops] != [COPY, UPDATE]:
        return None
    copy, update = op.ops
    if copy.source is None or copy.id is None or copy.source.schema != update.schema:
        return None
    id_index = known[update.schema].schema.id_index
    row = _row(update, id_index)
    if row is None or row != _row(copy.source, id_index):
        return None
    return Versioned(replace(copy, source=replace(copy.source, id=row)), replace(update, id=row))


def shape(pair: Versioned) -> Hashable:
    """Return what versioned updates must share to be two statements together.

    Args:
        pair: one versioned update.
    """
    copy, update = pair
    into = (copy.schema, copy.columns, repr((copy.values, copy.expressions)))
    return (GROUP, into, update.schema, update.columns, tuple(column for column, _ in update.expressions))


def with_known_link(pair: Versioned, id_index: int) -> Op:
    """Return the copy with the row's id as a value wherever it copies that id, so that its parent is known.

    Args:
        pair: one versioned update.
        id_index: the number of the id column of the row's table.
    """
    copy, row = pair.copy, pair.update.id
    links = tuple(column for column, tree in copy.expressions if tree == ["c", id_index])
    return replace(
        copy,
        columns=(*copy.columns, *links),
        values=(*copy.values, *(row for _ in links)),
        expressions=tuple(one for one in copy.expressions if one[0] not in links),
    )


def _row(op: Op, id_index: int) -> int | None:
    row = op.id if op.where is None else pinned(op.where, id_index)
    return row if type(row) is int else None
