"""Group ops into multi-row statements with the effect of running them one by one. Pure: no I/O.

An op joins the first group of its shape that is behind every group that conflicts with the op. Ops conflict on a row
(table and id), on a value of a unique index, and on a row that a foreign key points to. An op that does not show what
it touches (an update by query, an old unique value) conflicts with all of its table. A copy also reads a row of another
table, so it conflicts with every write to that row.

Ops that conflict with each other share a group in two cases. An INSERT takes upserts of one key in order. The members
of atomic groups are grouped by these same rules.

A sheet stays whole where its rows can conflict on nothing but their ids and their parents' ids. No other op of the
batch may touch these tables. Else its ops are grouped as all others.

Debezium and Confluent batch by kind, and so reorder ops (kafka-connect-jdbc#1562); this rule avoids that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.apply.footprint import (
    ANY,
    EVENTS,
    ROW,
    ConflictKey,
    Footprint,
    StatementShape,
    is_plain,
    prints_of,
    statement_shape,
    versioned,
    versioned_print,
    versioned_shape,
)
from pipeline.model import COPY, GROUP, Entry, Op, Position
from pipeline.model.sheet import SheetEntry
from pipeline.shard.statements import most
from pipeline.shard.table_facts import Facts

#: The most rows of one INSERT of sheets, and the bytes that it is aimed at. The rows of a batch in the order of their
#: ids take the server 2.1 µs each, those of 1,000 rows 2.4: the next bucket's ids are between the last one's.
SHEETS_ROWS, SHEETS_BYTES = 5_000, 500_000


class Item(NamedTuple):
    """An op to apply, with its entry."""

    entry: Entry
    op: Op

    @property
    def place(self) -> tuple[int, Position]:
        """The op's bucket, and its position there."""
        return self.entry.bucket, self.entry.position


def items_of(sheets: Iterable[SheetEntry]) -> list[Item]:
    """Return the ops of sheets, one by one.

    Args:
        sheets: in order.
    """
    return [Item(*pair) for sheet in sheets for pair in sheet.pairs()]


def item_of(sheets: Iterable[SheetEntry], nth: int) -> Item:
    """Return one op of sheets.

    Args:
        sheets: in order.
        nth: which of all their ops.
    """
    for entry in sheets:
        rows = len(entry.sheet.ids)
        if nth < rows:
            return Item(*next(entry.part(nth, nth + 1).pairs()))
        nth -= rows
    raise IndexError(nth)


@dataclass(slots=True)
class Group:
    """Ops that can be one statement: same kind, table and columns."""

    kind: str
    facts: Facts | None  # None for atomic groups that are no versioned updates
    items: list[Item]
    #: Of such atomic groups, all their members in statements.
    members: list[Group] = field(default_factory=list)


def grouped(items: Iterable[Item], known: Mapping[str, Facts]) -> list[Group]:
    """Return groups whose execution in order has the effect of the ops one by one.

    Args:
        items: in the order of their logs.
        known: the facts of every schema that an op names, by hash.
    """
    planner = _Planner()
    for item in items:
        op = item.op
        if op.ops:
            if (pair := versioned(op, known)) is None:
                planner.add_atomic(item, known)
            else:
                planner.add(item, known[pair.update.schema], versioned_print(pair, known), versioned_shape(pair))
        elif op.id is None or not planner.add_plain(item, known[op.schema]):
            planner.add_one(item, known[op.schema], prints_of(op, known))
    return planner.groups


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
        if facts.read_by_inserts is None:
            return False
        own |= {facts.database_name, *facts.read_by_inserts}
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
    for entry in _sheets_by_time(sheets):
        facts, shape = known[entry.sheet.schema], (entry.sheet.schema, entry.sheet.columns)
        table, others = facts.database_name, facts.read_by_inserts or ()
        floor = max([read.get(table, -1), *(written.get(other, -1) for other in others)]) + 1
        at = opened.get(shape, -1)
        if at < floor:
            at = opened[shape] = len(groups)
            groups.append([])
        groups[at].append(entry)
        written[table] = max(at, written.get(table, -1))
        read |= {other: max(at, read.get(other, -1)) for other in others}
    return groups


def taken_sheets(rest: deque[SheetEntry], most_rows: int) -> list[SheetEntry]:
    """Take the sheets of one statement, and return them: at least a part of the first.

    Args:
        rest: sheets of one shape, one at least.
        most_rows: the most rows.
    """
    some: list[SheetEntry] = []
    size_bytes = 0
    while rest and most_rows > 0:
        entry = rest.popleft()
        size_bytes += entry.sheet.size_bytes
        if some and size_bytes > SHEETS_BYTES:
            rest.appendleft(entry)
            break
        if len(entry.sheet) > most_rows:
            rest.appendleft(entry.part(most_rows))
            entry = entry.part(0, most_rows)
        some.append(entry)
        most_rows -= len(entry.sheet)
    return some


class _Plan(NamedTuple):
    """What plain ops of one shape share: their table, its classes, and (parent, value's number, its classes)."""

    table: str
    classes: dict[ConflictKey, int]
    parents: list[tuple[str, int, dict[ConflictKey, int]]]


_NOTHING: Mapping[ConflictKey, int] = {}


class _Planner:
    def __init__(self) -> None:
        self._plans: dict[StatementShape, _Plan | None] = {}
        self.groups: list[Group] = []
        self._open: dict[StatementShape, list[int]] = {}
        self._written: dict[ConflictKey, int] = {}
        self._touched: dict[ConflictKey, int] = {}
        self._classes: dict[ConflictKey, dict[ConflictKey, int]] = {}
        #: The planner of the members of each run of atomic groups, by the run's number.
        self._runs: dict[int, _Planner] = {}

    def add_one(self, item: Item, facts: Facts, prints: list[Footprint]) -> None:
        """Add an op that is no atomic group. A copy is a group of its own, behind every op that conflicts with it."""
        if item.op.kind != COPY:
            self.add(item, facts, prints[0], statement_shape(item.op))
            return
        at = self._new(Group(COPY, facts, [item]), None)
        for print_ in prints:
            self._record(print_, at)

    def add(self, item: Item, facts: Facts, print_: Footprint, shape: StatementShape | None) -> None:
        at = self._place(item.op.kind, facts, shape, self._floor(print_))
        self.groups[at].items.append(item)
        self._record(print_, at)

    def add_plain(self, item: Item, facts: Facts) -> bool:
        """Do what `add` does, for the commonest op: it can conflict on its id and its parents' ids only. Return whether
        the op is such a one.
        """
        op, touched = item.op, self._touched
        computed = tuple(column for column, _ in op.expressions) if op.expressions else ()
        shape = (op.kind, op.schema, op.columns, computed)
        plan = self._plans[shape] if shape in self._plans else self._planned(shape, facts, op)
        if plan is None:
            return False
        key, classes = (plan.table, op.id), plan.classes
        floor = touched.get(key, -1) + 1
        if len(classes) > (ROW in classes):
            floor = max(floor, _behind_all(classes))
        read: list[tuple[ConflictKey, dict[ConflictKey, int]]] = []
        for parent, index, of_parent in plan.parents:
            ref: ConflictKey = (parent, op.values[index])
            read.append((ref, of_parent))
            floor = max(floor, self._written.get(ref, -1) + 1)
            if len(of_parent) > (ROW in of_parent):
                floor = max(floor, _behind_all(of_parent))
        opened = self._open.get(shape)
        at = opened[0] if opened and opened[0] >= floor else self._place(op.kind, facts, shape, floor)
        self.groups[at].items.append(item)
        touched[key] = self._written[key] = at
        if classes.get(ROW, -1) < at:
            classes[ROW] = at
        for ref, of_parent in read:
            if touched.get(ref, -1) < at:
                touched[ref] = at
            if of_parent.get(ROW, -1) < at:
                of_parent[ROW] = at
        return True

    def _planned(self, shape: StatementShape, facts: Facts, op: Op) -> _Plan | None:
        """Look up once per shape what each of its ops needs; None where one may conflict on more than ids."""
        classes, columns, plan = self._classes, op.columns, None
        if is_plain(op, facts):
            kept = [(columns.index(c), p) for c, p in facts.parents if c in columns]
            parents = [(p, number, classes.setdefault(p, {})) for number, p in kept]
            plan = _Plan(facts.database_name, classes.setdefault(facts.database_name, {}), parents)
        self._plans[shape] = plan
        return plan

    def add_atomic(self, item: Item, known: Mapping[str, Facts]) -> None:
        """Add an atomic group to the first run of such groups that has, or is behind, all that conflicts with it."""
        # runs with which a batch begins hold nothing back: what follows is behind them, or joins the last of them
        only = len(self._runs) == len(self.groups)
        prints = [] if only else self._prints_of(item, known)
        last = -1 if only else max(self._floor(print_, ordered=True) for print_ in prints) - 1
        at = self._place(GROUP, None, GROUP, last)
        group, run = self.groups[at], self._runs.setdefault(at, _Planner())
        group.items.append(item)
        group.members = run.groups
        if len(group.items) == most(GROUP):
            self._open[GROUP].remove(at)
        for op in item.op.ops:
            facts, member = known[op.schema], Item(item.entry, op)
            if op.id is None or not run.add_plain(member, facts):
                run.add_one(member, facts, prints_of(op, known))
        for print_ in prints:
            self._record(print_, at)

    def _prints_of(self, item: Item, known: Mapping[str, Facts]) -> list[Footprint]:
        return [print_ for op in item.op.ops for print_ in prints_of(op, known)]

    def _new(self, group: Group, shape: StatementShape | None) -> int:
        self.groups.append(group)
        at = len(self.groups) - 1
        if shape is not None:
            self._open.setdefault(shape, []).append(at)
        return at

    def _place(self, kind: str, facts: Facts | None, shape: StatementShape | None, floor: int) -> int:
        """Return the first group of a shape from *floor* on, perhaps a new one."""
        opened = self._open.get(shape)
        if not opened or opened[-1] < floor:
            return self._new(Group(kind, facts, []), shape)
        return opened[bisect_left(opened, floor)]

    def _floor(self, print_: Footprint, *, ordered: bool = False) -> int:
        """Return the first group that an op may join; *ordered*: the first behind all that the op may not pass."""
        floor = 0
        for key in print_.writes:
            if (at := self._touched.get(key, -1)) >= floor:
                floor = at + 1
        for key in print_.reads:
            if (at := self._written.get(key, -1)) >= floor:
                floor = at + 1
        for table, cls in print_.claims:
            for other, at in self._classes.get(table, _NOTHING).items():
                if at < floor:
                    continue
                if other != cls or cls is ANY:
                    floor = at + 1
                elif not isinstance(cls, str):
                    # within a class order counts: the database numbers rows, texts are unique, upserts are of one row
                    floor = at + ordered
        return floor

    def _record(self, print_: Footprint, at: int) -> None:
        written, touched = self._written, self._touched
        for key in print_.writes:
            if written.get(key, -1) < at:
                written[key] = at
            if touched.get(key, -1) < at:
                touched[key] = at
        for key in print_.reads:
            if touched.get(key, -1) < at:
                touched[key] = at
        for table, cls in print_.claims:
            classes = self._classes.setdefault(table, {})
            if classes.get(cls, -1) < at:
                classes[cls] = at


def _behind_all(classes: Mapping[ConflictKey, int]) -> int:
    """Return the first group behind all ops on a table that know less than which row they touch."""
    return max((at + 1 for name, at in classes.items() if name != ROW), default=0)


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


def _sheets_by_time(sheets: Iterable[SheetEntry]) -> list[SheetEntry]:
    """Order sheets as `order.by_time` orders ops."""
    latest: dict[int, float] = {}
    timed: list[tuple[float, int, SheetEntry]] = []
    for entry in sheets:
        at_ms = latest[entry.bucket] = max(entry.sheet.at_ms, latest.get(entry.bucket, 0.0))
        timed.append((at_ms, len(timed), entry))
    return [entry for _, _, entry in sorted(timed, key=lambda one: one[:2])]
