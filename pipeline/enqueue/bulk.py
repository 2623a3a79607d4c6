"""Make the chunks of a bulk call column by column: a sheet for each bucket, where rows are as usual.

Rows that are not are left to the way of all rows: others' fields, a value that is refused, filters, defaults that are
called, ids that the caller or the database gives. So a call means the same on both ways, errors included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pipeline import clock
from pipeline.enqueue.final_values import CompiledTable
from pipeline.enqueue.held_ops import Chunk
from pipeline.enqueue.row_ids import RowIds
from pipeline.model.sheet import Sheet

if TYPE_CHECKING:
    from pipeline.enqueue.table_plan import RowPlan

Columns = Sequence[Sequence[Any]]


def chunk_of(
    plan: RowPlan, compiled: CompiledTable, rows: Sequence[Mapping[str, Any]], row_ids: RowIds, turn: Iterator[int]
) -> Chunk | None:
    """Return rows as a chunk; None where they have to be made one by one.

    Args:
        plan: of the first of the rows.
        compiled: their table.
        rows: as a caller gave them.
        row_ids: makes their ids.
        turn: gives the bucket of the next rows that may live anywhere.
    """
    if not _usual(compiled) or (columns := plan.columns(rows)) is None:
        return None
    schema, key = compiled.schema, compiled.rules.shard_key
    if key is None or key == schema.id_name:
        order, parts = _in_turn(columns, len(rows), compiled.topology.buckets, turn)
    elif plan.key_at is None or None in columns[plan.key_at]:
        return None
    else:
        order = list(map(compiled.bucket_of, columns[plan.key_at]))
        parts = _by_bucket(columns, order)
    now_ms = clock.wall_ns() // 1000 / 1000  # of the whole call: its rows refer to none of their own table
    sheets = {}
    for bucket, values in parts.items():
        ids = row_ids.many(bucket, len(values[0]), now_ms)
        sheets[bucket] = Sheet(schema.name, schema.hash, now_ms, ids, plan.numbers, values)
    return Chunk.of(order, sheets)


def _usual(compiled: CompiledTable) -> bool:
    rules, schema = compiled.rules, compiled.schema
    return (
        rules.ids == "pipeline"
        and not rules.reference
        and not any(column.kind.startswith("list:") or column.parent == schema.name for column in schema.columns)
    )


def _in_turn(
    columns: Columns, count: int, buckets: int, turn: Iterator[int]
) -> tuple[list[int], dict[int, list[Sequence[Any]]]]:
    """Return the bucket of each row, and the rows of each bucket: as many of each as if they took turns."""
    each, more = divmod(count, buckets)
    order: list[int] = []
    parts = {}
    for nth, bucket in enumerate(islice(turn, min(count, buckets))):
        begin = len(order)
        order += [bucket] * (each + (nth < more))
        parts[bucket] = [column[begin : len(order)] for column in columns]
    return order, parts


def _by_bucket(columns: Columns, order: Sequence[int]) -> dict[int, list[Sequence[Any]]]:
    places: dict[int, list[int]] = {}
    for row, bucket in enumerate(order):
        try:
            places[bucket].append(row)
        except KeyError:
            places[bucket] = [row]
    parts: dict[int, list[Sequence[Any]]] = {}
    for bucket, at in places.items():
        if len(at) == 1:
            parts[bucket] = [(column[at[0]],) for column in columns]
        else:
            some = itemgetter(*at)
            parts[bucket] = [some(column) for column in columns]
    return parts
