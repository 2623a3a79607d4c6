"""Tell which sheets of a batch may be inserted as they are, and in which order; the others are taken apart.

A sheet stays whole where its rows can conflict on nothing but their ids and their parents' ids, and where no other op
of the batch touches these tables. Then the order of statements decides nothing, but that a parent's table comes before
or behind its children's as the calls did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.apply.footprint import EVENTS
from pipeline.apply.grouping import Item
from pipeline.model.sheet import SheetEntry
from pipeline.shard.table_facts import Facts

#: The most rows of one INSERT of sheets, and the bytes that it is aimed at. What fails is executed again op by op.
MOST_ROWS, AIM_BYTES = 1_000, 500_000


def may_stay(sheets: Sequence[SheetEntry], items: Iterable[Item], known: Mapping[str, Facts]) -> bool:
    """Return whether sheets have the effect of their ops one by one, in any order with the other ops.

    Args:
        sheets: of one batch.
        items: the other ops of the batch.
        known: the facts of every schema that one names, by hash.
    """
    hashes = {entry.sheet.schema for entry in sheets}
    own: set[str] = set()
    for facts in (known[hash] for hash in hashes):
        parents = {parent for _, parent in facts.parents}
        if not facts.plain or facts.database_name in parents:
            return False
        own |= {facts.database_name, *parents}
    others = {one.schema for item in items for one in item.op.named}
    return own.isdisjoint(table for hash in others for table in _reached(known[hash])) and _are_apart(sheets)


def grouped_sheets(sheets: Iterable[SheetEntry], known: Mapping[str, Facts]) -> list[list[SheetEntry]]:
    """Return sheets that `may_stay`, those of one shape together, in the order in which to insert them.

    Args:
        sheets: bucket by bucket, of each in order.
        known: the facts of every schema that one names, by hash.
    """
    groups: list[list[SheetEntry]] = []
    opened: dict[tuple[str, tuple[int, ...]], int] = {}
    written: dict[str, int] = {}
    read: dict[str, int] = {}
    for entry in _by_time(sheets):
        facts, shape = known[entry.sheet.schema], (entry.sheet.schema, entry.sheet.columns)
        table, parents = facts.database_name, {parent for _, parent in facts.parents}
        floor = max([read.get(table, -1), *(written.get(parent, -1) for parent in parents)]) + 1
        at = opened.get(shape, -1)
        if at < floor:
            at = opened[shape] = len(groups)
            groups.append([])
        groups[at].append(entry)
        written[table] = max(at, written.get(table, -1))
        read |= {parent: max(at, read.get(parent, -1)) for parent in parents}
    return groups


def portions(group: Sequence[SheetEntry]) -> Iterator[list[SheetEntry]]:
    """Yield the sheets of each statement.

    Args:
        group: sheets of one shape.
    """
    some: list[SheetEntry] = []
    rows = size_bytes = 0
    for entry in group:
        rows, size_bytes = rows + len(entry.sheet), size_bytes + entry.sheet.size_bytes
        if some and (rows > MOST_ROWS or size_bytes > AIM_BYTES):
            yield some
            some, rows, size_bytes = [], len(entry.sheet), entry.sheet.size_bytes
        some.append(entry)
    if some:
        yield some


def _reached(facts: Facts) -> Iterator[str]:
    """Yield the tables that an op on a table may touch."""
    yield facts.database_name
    yield from (parent for _, parent in facts.parents)
    yield from facts.constraints.children
    yield from facts.constraints.fired(*EVENTS)


def _are_apart(sheets: Sequence[SheetEntry]) -> bool:
    """Return whether no id comes twice in one table; each id of the pipeline is given once, others callers choose."""
    by_table: dict[str, list[Sequence[int]]] = {}
    for entry in sheets:
        by_table.setdefault(entry.sheet.table, []).append(entry.sheet.ids)
    return all(len(set().union(*ids)) == sum(map(len, ids)) for ids in by_table.values())


def _by_time(sheets: Iterable[SheetEntry]) -> list[SheetEntry]:
    """Order sheets as `earlier_ops.by_time` orders ops."""
    latest: dict[int, float] = {}
    timed: list[tuple[float, int, SheetEntry]] = []
    for entry in sheets:
        at_ms = latest[entry.bucket] = max(entry.sheet.at_ms, latest.get(entry.bucket, 0.0))
        timed.append((at_ms, len(timed), entry))
    return [entry for _, _, entry in sorted(timed, key=lambda one: one[:2])]
