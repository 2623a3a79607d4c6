"""Group ops into multi-row statements with the effect of running them one by one. Pure: no I/O.

An op joins the first group of its shape that is behind every group that conflicts with the op. Ops conflict on a
row (table and id), on a value of a unique index, and on a row that a foreign key points to. Where it is unknown what an
op touches (an update by query, an old unique value), the op conflicts with all of its table. A copy also reads a row of
another table, so it conflicts with every write to that row.

Two kinds of groups have ops that conflict with each other: upserts of one key, since an INSERT takes its rows in order;
and atomic groups, whose members the executor groups by these same rules.

Debezium and Confluent batch by kind, and so reorder ops (kafka-connect-jdbc#1562); this rule avoids that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.apply.versioned_update import Versioned, shape, versioned, with_known_link
from pipeline.model.op import COPY, DELETE, GROUP, INSERT, UPDATE, UPSERT, Entry, Op
from pipeline.shard.records.row_keys import alike
from pipeline.shard.statements import most
from pipeline.shard.table_facts import Facts

ConflictKey = Hashable
StatementShape = Hashable


class Item(NamedTuple):
    """An op to apply, with its entry."""

    entry: Entry
    op: Op


@dataclass(slots=True)
class Group:
    """Ops that can be one statement: same kind, table and columns."""

    kind: str
    facts: Facts | None  # None for atomic groups that are no versioned updates
    items: list[Item]
    #: Of such atomic groups, all their members in statements.
    members: list[Group] = field(default_factory=list)


@dataclass(slots=True)
class Footprint:
    """What an op touches. `claims` are (thing, class): ops of different classes on a table keep their order."""

    writes: list[ConflictKey] = field(default_factory=list)
    reads: list[ConflictKey] = field(default_factory=list)
    claims: list[tuple[ConflictKey, ConflictKey]] = field(default_factory=list)


#: The class of ops that know exactly which row they touch. Ops of a class that is a text need no order for it.
ROW = "row"
#: The class of ops of which nothing is known: they conflict with everything on their table.
ANY = None


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
                planner.add(item, known[pair.update.schema], _versioned_print(pair, known), shape(pair))
        elif op.id is None or not planner.add_plain(item, known[op.schema]):
            planner.add_one(item, known[op.schema], _prints(op, known))
    return planner.groups


class _Plan(NamedTuple):
    """What plain ops of one shape share: their table, its classes, and (parent, value's number, its classes)."""

    table: str
    classes: dict[ConflictKey, int]
    parents: list[tuple[str, int, dict[ConflictKey, int]]]


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
            self.add(item, facts, prints[0], _shape(item.op))
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
        read = [(parent, op.values[index]) for parent, index, _ in plan.parents]
        for ref, (_, _, of_parent) in zip(read, plan.parents, strict=True):
            floor = max(floor, self._written.get(ref, -1) + 1)
            if len(of_parent) > (ROW in of_parent):
                floor = max(floor, _behind_all(of_parent))
        opened = self._open.get(shape)
        at = opened[0] if opened and opened[0] >= floor else self._place(op.kind, facts, shape, floor)
        self.groups[at].items.append(item)
        touched[key] = self._written[key] = at
        if classes.get(ROW, -1) < at:
            classes[ROW] = at
        for ref, (_, _, of_parent) in zip(read, plan.parents, strict=True):
            if touched.get(ref, -1) < at:
                touched[ref] = at
            if of_parent.get(ROW, -1) < at:
                of_parent[ROW] = at
        return True

    def _planned(self, shape: StatementShape, facts: Facts, op: Op) -> _Plan | None:
        """Look up once per shape what each of its ops needs; None where one may conflict on more than ids."""
        classes, columns, plan = self._classes, op.columns, None
        if _is_plain(op, facts):
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
                run.add_one(member, facts, _prints(op, known))
        for print_ in prints:
            self._record(print_, at)

    def _prints_of(self, item: Item, known: Mapping[str, Facts]) -> list[Footprint]:
        return [print_ for op in item.op.ops for print_ in _prints(op, known)]

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
            floor = max(floor, self._touched.get(key, -1) + 1)
        for key in print_.reads:
            floor = max(floor, self._written.get(key, -1) + 1)
        for table, cls in print_.claims:
            for other, at in self._classes.get(table, {}).items():
                if other != cls or cls is ANY:
                    floor = max(floor, at + 1)
                elif not isinstance(cls, str):
                    # within a class order counts: the database numbers rows, texts are unique, upserts are of one row
                    floor = max(floor, at + ordered)
        return floor

    def _record(self, print_: Footprint, at: int) -> None:
        for key in print_.writes:
            self._written[key] = max(at, self._written.get(key, -1))
            self._touched[key] = max(at, self._touched.get(key, -1))
        for key in print_.reads:
            self._touched[key] = max(at, self._touched.get(key, -1))
        for table, cls in print_.claims:
            classes = self._classes.setdefault(table, {})
            classes[cls] = max(at, classes.get(cls, -1))


def _is_plain(op: Op, facts: Facts) -> bool:
    """Return whether an op with an id can conflict on nothing but its id, and the ids of parents among its values."""
    if op.kind == INSERT:
        return facts.plain
    if facts.hidden_unique:
        return False
    if op.kind == DELETE:
        return not (facts.unique or facts.constraints.children)
    computed = {column for column, _ in op.expressions}
    changed = computed | set(op.columns)
    return (
        op.kind == UPDATE
        and facts.unique_columns.isdisjoint(changed)
        and all(column is not None and column not in computed for column, _ in facts.parents)
    )


def _behind_all(classes: Mapping[ConflictKey, int]) -> int:
    """Return the first group behind all ops on a table that know less than which row they touch."""
    return max((at + 1 for name, at in classes.items() if name != ROW), default=0)


def _prints(op: Op, known: Mapping[str, Facts]) -> list[Footprint]:
    """Return what an op touches, and what it reads if it is a copy."""
    prints = [footprint(op, known[op.schema])]
    return prints if op.source is None else [*prints, _read(op.source, known[op.source.schema])]


def _versioned_print(pair: Versioned, known: Mapping[str, Facts]) -> Footprint:
    """Return what a versioned update touches in all."""
    source = known[pair.update.schema]
    copy = with_known_link(pair, source.schema.id_index)
    prints = (footprint(copy, known[copy.schema]), footprint(pair.update, source))
    return Footprint(
        [key for print_ in prints for key in print_.writes],
        [key for print_ in prints for key in print_.reads],
        [claim for print_ in prints for claim in print_.claims],
    )


def _read(read: Op, facts: Facts) -> Footprint:
    """Return what a copy touches of its source: a write to the row keeps its order with the copy."""
    table = facts.database_name
    if read.id is None:
        return Footprint(claims=[(table, ANY)])
    return Footprint(reads=[(table, read.id)], claims=[(table, ROW)])


def footprint(op: Op, facts: Facts) -> Footprint:
    """Return what an op touches on a shard.

    Args:
        op: a row write.
        facts: of the op's table.
    """
    print_, table = Footprint(), facts.database_name
    if op.id is not None:
        print_.writes.append((table, op.id))
    given = dict(zip(op.columns, op.values, strict=True))
    changed = set(given) | {column for column, _ in op.expressions}
    if op.kind != DELETE:
        _parents(print_, facts, given, changed)
    if op.kind == COPY:
        # only the database knows the values
        print_.claims.append((table, ANY if facts.unique or facts.hidden_unique else ROW))
    elif op.kind == INSERT:
        print_.claims.append((table, ANY if facts.hidden_unique else _insert_class(op)))
        _unique_values(print_, facts, op, given)
    elif op.kind == UPSERT:
        _upsert(print_, facts, op, given)
    elif op.kind == UPDATE:
        known = op.id is not None and not facts.hidden_unique and not changed & facts.unique_columns
        print_.claims.append((table, ROW if known else ANY))
    else:
        _delete(print_, facts, op)
    return print_


def _insert_class(op: Op) -> ConflictKey:
    """Return the class of an insert: the database numbers rows in their order, above all ids that callers gave."""
    return ROW if op.id is not None else ("numbered", op.columns)


def _upsert(print_: Footprint, facts: Facts, op: Op, given: dict[int, Any]) -> None:
    table = facts.database_name
    if op.key == (facts.schema.id_index,):
        print_.claims.append((table, ANY if facts.unique or facts.hidden_unique else ROW))
        return
    if op.id is None:
        print_.claims.append((table, ("upsert", op.key, op.columns, op.renew)))
    else:
        print_.claims.append((table, f"upsert {op.key}"))
    values = tuple(alike(given.get(column)) for column in op.key)
    print_.claims.append(((table, op.key, values), _shape(op)))
    _keep_turn(print_, facts, op, op.key)


def _delete(print_: Footprint, facts: Facts, op: Op) -> None:
    table = facts.database_name
    if op.id is None:
        cls: ConflictKey = ANY
    elif facts.unique or facts.hidden_unique:
        cls = DELETE  # frees a unique value that is not known
    else:
        cls = ROW
    print_.claims.append((table, cls))
    for child in facts.constraints.children:
        print_.claims.append((child, ("cascade", table) if op.id is not None else ANY))


def _unique_values(print_: Footprint, facts: Facts, op: Op, given: dict[int, Any]) -> None:
    for columns in facts.unique:
        values = tuple(alike(given.get(column)) for column in columns)
        if None not in values:
            print_.writes.append((facts.database_name, columns, values))
            _keep_turn(print_, facts, op, columns)


def _keep_turn(print_: Footprint, facts: Facts, op: Op, columns: tuple[int, ...]) -> None:
    """Keep the order of ops of different shapes where texts are unique: only the collation knows which texts are equal.

    To utf8mb4_unicode_ci all emojis are equal, and control characters are nothing. Within a shape ops keep their order.
    """
    if not facts.texts.isdisjoint(columns):
        print_.claims.append(((facts.database_name, columns), _shape(op)))


def _parents(print_: Footprint, facts: Facts, given: dict[int, Any], changed: set[int]) -> None:
    for column, parent in facts.parents:
        if column is None:
            print_.claims.append((parent, ("child", facts.database_name)))
        elif column in changed:
            # an upserted parent's row may have kept an older id, so the child waits for all upserts of the parent too
            print_.reads.append((parent, given.get(column)))
            # the id of a parent that is computed is not known
            print_.claims.append((parent, ROW if column in given else ("child", facts.database_name)))


def _shape(op: Op) -> StatementShape | None:
    """Return what ops must share to be one statement, or None for an op that takes a statement of its own."""
    if op.kind == INSERT:
        return (INSERT, op.schema, op.columns, op.id is None)
    if op.kind == UPSERT:
        return (UPSERT, op.schema, op.columns, op.key, op.renew, op.id is None)
    if op.id is None:
        return None
    if op.kind == UPDATE:
        return (UPDATE, op.schema, op.columns, tuple(column for column, _ in op.expressions))
    return (DELETE, op.schema)
