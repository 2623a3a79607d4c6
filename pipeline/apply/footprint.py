"""Find what ops touch: rows, values of unique indexes, parents; and ops that decode, and yet fit no kind or schema.

An op that does not show what it touches (an update by query, an old unique value) touches all of its table.

A versioned update is an atomic group that copies a row and updates just that row. Many become two statements, and those
of different rows may change places: each copies and updates its own row only.

Say what a refused op needs, too: which ops may touch what it was refused for.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec.structs import replace

from pipeline.dal.trees import is_condition_tree, is_expression_tree, pinned
from pipeline.model import COPY, DELETE, GROUP, INSERT, READ, ROW_WRITES, UPDATE, UPSERT, Op
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.driver_errors import (
    code_of,
    is_about_parents,
    is_about_values,
    is_driver_error,
    is_signal,
    may_be_early,
)
from pipeline.shard.records.set_aside import alike
from pipeline.shard.table_facts import Facts

Numbers = tuple[int, ...]
#: A kind, the columns with values, the key and the columns to renew.
Shape = tuple[str, Numbers, Numbers, Numbers]
ConflictKey = Hashable
StatementShape = Hashable
#: The class of ops that know exactly which row they touch. Ops of a class that is a text need no order for it.
ROW = "row"
#: The class of ops of which nothing is known: they conflict with everything on their table.
ANY = None
#: The events on which triggers are fired.
EVENTS = ("INSERT", "UPDATE", "DELETE")
#: Those of an op's statement.
EVENTS_OF = {
    INSERT: ("INSERT",),
    COPY: ("INSERT",),
    UPSERT: ("INSERT", "UPDATE"),
    UPDATE: ("UPDATE",),
    DELETE: ("DELETE",),
}


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


@dataclass(slots=True)
class Footprint:
    """What an op touches. `claims` are (thing, class): ops of different classes on a table keep their order."""

    writes: list[ConflictKey] = field(default_factory=list)
    reads: list[ConflictKey] = field(default_factory=list)
    claims: list[tuple[ConflictKey, ConflictKey]] = field(default_factory=list)


def is_plain(op: Op, facts: Facts) -> bool:
    """Return whether an op with an id can conflict on nothing but its id, and the ids of parents among its values.

    Args:
        op: a row write.
        facts: of its table.
    """
    if op.kind == INSERT:
        return facts.plain
    if facts.hidden_unique or facts.constraints.fired(op.kind.upper()):
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


def prints_of(op: Op, known: Mapping[str, Facts]) -> list[Footprint]:
    """Return what an op touches, and what it reads if it is a copy.

    Args:
        op: a row write.
        known: the facts of every schema that the op names, by hash.
    """
    prints = [footprint(op, known[op.schema])]
    return prints if op.source is None else [*prints, _read(op.source, known[op.source.schema])]


def versioned_print(pair: Versioned, known: Mapping[str, Facts]) -> Footprint:
    """Return what a versioned update touches in all.

    Args:
        pair: the versioned update.
        known: the facts of every schema that it names, by hash.
    """
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
    changed = {*op.columns, *(column for column, _ in op.expressions)} if op.expressions else given.keys()
    if facts.parents and op.kind != DELETE:
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
    if facts.constraints.triggers:
        _fire(print_, facts, op)
    return print_


def _fire(print_: Footprint, facts: Facts, op: Op) -> None:
    """Keep the order of an op with all ops on tables that its triggers may read or write.

    An INSERT fires triggers row by row, in the order of its ops. An UPDATE or a DELETE does where it can be told to.
    """
    joined = op.kind in (INSERT, UPSERT) or (op.kind != COPY and op.id is not None and facts.in_order)
    cls = ("fires", statement_shape(op)) if joined else ANY
    print_.claims += [(table, cls) for table in facts.constraints.fired(*EVENTS_OF[op.kind])]


def reach(op: Op, facts: Facts) -> tuple[frozenset[str], int | None]:
    """Return the tables of which an op may change any row, and the one row that it changes of its own table.

    Args:
        op: a row write.
        facts: of the op's table.

    Returns:
        The names in the database; the id, or None where it may be any row.
    """
    tables = facts.constraints.fired(*EVENTS_OF[op.kind])
    if op.kind == DELETE:
        tables |= {*facts.constraints.children}
    if op.kind in (UPDATE, DELETE):
        return tables, _row(op, facts.schema.id_index)
    # an upsert changes the row that has any unique value of it
    known = op.kind != UPSERT or not (facts.unique or facts.hidden_unique)
    return tables, op.id if known else None


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
        print_.claims.append((table, _upsert_class(op.key)))
    values = tuple([alike(given.get(column)) for column in op.key])
    print_.claims.append(((table, op.key, values), statement_shape(op)))
    _keep_turn(print_, facts, op, op.key)


@lru_cache(maxsize=1000)
def _upsert_class(key: tuple[int, ...]) -> str:
    return f"upsert {key}"


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
        values = tuple([alike(given.get(column)) for column in columns])
        if None not in values:
            print_.writes.append((facts.database_name, columns, values))
            _keep_turn(print_, facts, op, columns)


def _keep_turn(print_: Footprint, facts: Facts, op: Op, columns: tuple[int, ...]) -> None:
    """Keep the order of ops of different shapes where texts are unique: only the collation knows which texts are equal.

    To utf8mb4_unicode_ci all emojis are equal, and control characters are nothing. Within a shape ops keep their order.
    """
    if not facts.texts.isdisjoint(columns):
        print_.claims.append(((facts.database_name, columns), statement_shape(op)))


def _parents(print_: Footprint, facts: Facts, given: dict[int, Any], changed: Set[int]) -> None:
    for column, parent in facts.parents:
        if column is None:
            print_.claims.append((parent, ("child", facts.database_name)))
        elif column in changed:
            # an upserted parent's row may have kept an older id, so the child waits for all upserts of the parent too
            print_.reads.append((parent, given.get(column)))
            # the id of a parent that is computed is not known
            print_.claims.append((parent, ROW if column in given else ("child", facts.database_name)))


def statement_shape(op: Op) -> StatementShape | None:
    """Return what ops must share to be one statement, or None for an op that takes a statement of its own.

    Args:
        op: a row write.
    """
    if op.kind == INSERT:
        return (INSERT, op.schema, op.columns, op.id is None)
    if op.kind == UPSERT:
        return (UPSERT, op.schema, op.columns, op.key, op.renew, op.id is None)
    if op.id is None:
        return None
    if op.kind == UPDATE:
        return (UPDATE, op.schema, op.columns, tuple(column for column, _ in op.expressions))
    return (DELETE, op.schema)


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


def versioned_shape(pair: Versioned) -> Hashable:
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


class Needed(NamedTuple):
    """What may help an op that a constraint refuses; where nothing is named, any other op may.

    Attributes:
        rows: rows to which it refers, by the names of their tables in the database: an op may make one.
        freed: the name of its own table, where a value is taken: an op on that may free the value.
        cascades: whether an op on another table may, too, as its deletes may go on here.
        read: tables, by these names, whose rows decide what a trigger says: any op on one may help.
    """

    rows: Mapping[str, Collection[int]] = MappingProxyType({})
    freed: str = ""
    cascades: bool = False
    read: Collection[str] = ()


#: Of what an op needs nothing is known.
ANYTHING = Needed()


def needed_by(op: Op, facts: Facts, error: Exception) -> Needed | None:
    """Return what may help an op that a constraint refuses; None: no other op can.

    Args:
        op: a row write.
        facts: of its table.
        error: as the driver raised it.
    """
    if not is_driver_error(error):
        return None
    events, own = EVENTS_OF.get(op.kind, EVENTS), facts.database_name.lower()
    if not may_be_early(error):
        return _read_by_triggers(facts, events, error)
    if op.kind not in (INSERT, UPSERT, UPDATE) or facts.constraints.writes(*events):
        return ANYTHING
    if is_about_parents(error):
        # SQLite says the same where others refer to the row
        clear = op.kind == INSERT or code_of(error) is not None or not facts.constraints.children
        return Needed(_referred(op, facts)) if clear else ANYTHING
    if is_about_values(error) and own not in facts.constraints.reached:
        return Needed(freed=own, cascades=bool(facts.constraints.parents))
    return ANYTHING


def _read_by_triggers(facts: Facts, events: Collection[str], error: Exception) -> Needed | None:
    """Return what may help an op that a trigger may have refused; None: no trigger looks at more than the op's row.

    A trigger may say any number itself, and may fill a column, from other rows, with a value that a constraint refuses.
    """
    read = {name.lower() for name in facts.constraints.changed_by(*events)}
    hidden = "@" in read or (is_signal(error) and not facts.constraints.has_triggers(*events))
    return ANYTHING if hidden else Needed(read=read) if read else None


def references(op: Op, facts: Facts) -> Iterator[tuple[str, int]]:
    """Yield the rows to which an op refers by foreign keys of one column: a table in the database, and an id.

    Args:
        op: a row write.
        facts: of its table.
    """
    for column, parent in facts.parents:
        if column in op.columns and type(value := op.values[op.columns.index(column)]) is int:
            yield parent.lower(), value


def _referred(op: Op, facts: Facts) -> Mapping[str, Collection[int]]:
    """Return the ids to which an op refers, by the names of their tables; nothing where these are not all known."""
    found: dict[str, set[int]] = {}
    for column, parent in facts.parents:
        if column is None or parent.lower() in facts.constraints.reached:
            return {}
        if column in op.columns:
            value = op.values[op.columns.index(column)]
            if type(value) is int:
                found.setdefault(parent.lower(), set()).add(value)
            elif value is not None:
                return {}
        elif op.kind != UPDATE or any(column == number for number, _ in op.expressions):
            return {}
    return found
