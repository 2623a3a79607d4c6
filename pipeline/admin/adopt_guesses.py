"""Guess which table refers to which, declared or not, and by which key each would be sharded; a person confirms it.

Find columns that hold another table's ids without being declared so, by their names and by their values.
Only columns that cannot hold 53 bits matter here: a server cuts an id there to 2147483647, or refuses it. The newest
rows are read, and no more of a table.

Guess which table refers to which, and so by which key each would be sharded; a person confirms the guess. The anchor is
the table that most others refer to (customer, account, tenant). The anchor is sharded by its own id. A table that
refers to the anchor, directly or through others, is sharded by the column that names the anchor. A small table that is
referred to and refers to nothing is copied to every shard. Any other table goes with the table that it refers to.

A `Case` holds one database, all that was read of it, and what follows for each column and each foreign key. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config import Topology
from pipeline.config.settings import TableSettings
from pipeline.shard import NodeSession
from pipeline.shard.co_location import together
from pipeline.shard.columns import holds_64_bits
from pipeline.shard.ddl import MYSQL
from pipeline.shard.survey import Catalog, CatalogTable, Survey
from pipeline.shard.table_facts import ForeignKey

#: A column that is named like an id.
_NAMED = re.compile(r"(.+_)?(record|row|object|item)?_?(id|ref|fk)|(id|fk)_.+|record|current_record", re.IGNORECASE)
#: A column beside it that says which table the ids are of.
_WHICH = re.compile(r"(.+_)?(table|tablename|model|entity|kind_of)(_?name)?|object_type|content_type", re.IGNORECASE)
#: How many rows of a table are read, and how many different values of a column are compared.
ROWS, VALUES = 10_000, 200
#: Without a name that says so, fewer different values show nothing: a quantity too is 1, 2 or 3.
LEAST = 5
_quote = MYSQL.quote
#: Tables of web2py, py4web, Celery and of the pipeline itself stay in their database.
STAYING = re.compile(r"(auth|scheduler|web2py|py4web|pipeline|celery|plugin)_\w*", re.IGNORECASE)
#: A name that a configuration and pyDAL can use; any other name needs an `rname` in the model.
USABLE_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
#: The most rows of a table that is copied to every shard.
MOST_COPIED_ROWS = 10_000


def soft_references(
    session: NodeSession, catalog: Catalog, references: Collection[Reference], taken: Collection[str]
) -> list[Soft]:
    """Return the columns of all tables that seem to hold ids of the pipeline's tables, and cannot hold new ones.

    Args:
        session: of the database; it only reads.
        catalog: the whole database.
        references: what is declared, or known by a table's name.
        taken: the tables that the pipeline takes.
    """
    known = {(ref.table, ref.column) for ref in references}
    parents = {name: span for name in taken if (span := _span(session, catalog.tables[name]))}
    found = []
    for table in catalog.tables.values():
        beside = any(_WHICH.fullmatch(column) for column in table.columns)
        for column in table.columns.values():
            whole = "int" in column.type and not holds_64_bits(column.type) and "(1)" not in column.type
            own = column.automatic or column.name.lower() == "id" or table.primary == (column.name,)
            if not whole or own or (table.name, column.name) in known:
                continue
            named = bool(_NAMED.fullmatch(column.name))
            values = _values(session, table, column.name)
            fitting = tuple(
                name
                for name, (least, most) in parents.items()
                if values
                and least <= min(values)
                and max(values) <= most
                and _has(session, catalog.tables[name], values)
            )
            if named and (fitting or not values or beside):
                found.append(Soft(table.name, column.name, () if beside else fitting, named=True))
            elif len(fitting) == 1 and len(values) >= LEAST:
                found.append(Soft(table.name, column.name, fitting, named=False))
    return found


def model_lines(soft: Soft) -> Iterator[str]:
    """Yield what the model must say of a column.

    Args:
        soft: the column.
    """
    if soft.table.startswith("auth_"):
        field = f"db.{soft.table}.{soft.column}"
        yield f'{field}.type, {field}.requires = "bigint", None  # behind auth.define_tables()'
    else:
        kinds = [f'"reference {parent}"' for parent in soft.parents[:1]]
        yield f'{soft.table}: Field("{soft.column}", {" or ".join([*kinds, chr(34) + "bigint" + chr(34)])})'


def _span(session: NodeSession, table: CatalogTable) -> tuple[int, int] | None:
    """Return the smallest and the largest id of a table; None where it has no rows or no id."""
    if table.id is None:
        return None
    [(least, most)] = session.query(
        f"SELECT MIN({_quote(table.id)}), MAX({_quote(table.id)}) FROM {_quote(table.name)}"
    )
    return None if least is None else (int(least), int(most))


def _values(session: NodeSession, table: CatalogTable, column: str) -> list[int]:
    """Return different values of the newest rows; web2py writes 0 where no row is meant."""
    newest = f" ORDER BY {_quote(table.id)} DESC" if table.id else ""
    rows = f"SELECT {_quote(column)} AS held FROM {_quote(table.name)}{newest} LIMIT {ROWS}"
    return [
        int(v) for (v,) in session.query(f"SELECT DISTINCT held FROM ({rows}) AS newest WHERE held > 0 LIMIT {VALUES}")
    ]


def _has(session: NodeSession, table: CatalogTable, ids: list[int]) -> bool:
    """Return whether a table has a row of each id."""
    listed = ", ".join(map(str, ids))
    where = f"{_quote(table.id or 'id')} IN ({listed})"
    return bool(session.query(f"SELECT COUNT(*) FROM {_quote(table.name)} WHERE {where}")[0][0] == len(ids))


class Reference(NamedTuple):
    """A column that names a row of another table.

    Attributes:
        declared: whether a foreign key says so; otherwise the column's name alone does.
    """

    table: str
    column: str
    parent: str
    declared: bool


class Soft(NamedTuple):
    """A column that seems to hold ids.

    Attributes:
        parents: the tables whose ids all its values are; empty where there are none, or a column beside it says which.
        named: whether its name says so too: then it must be widened.
    """

    table: str
    column: str
    parents: tuple[str, ...]
    named: bool


class Added(NamedTuple):
    """A shard key that a table lacks, found through the table that it refers to."""

    table: str
    column: str
    via: Reference


class ShardKeyGuess(NamedTuple):
    """What was concluded.

    Attributes:
        taken: the tables that the pipeline takes.
        references: all of the database.
        tables: by name, as a configuration says them.
        added: shard keys to add.
        anchor: the table that most others refer to; None where nothing refers.
    """

    taken: tuple[str, ...]
    references: tuple[Reference, ...]
    tables: Mapping[str, TableSettings]
    added: tuple[Added, ...]
    anchor: str | None


def guess_shard_keys(catalog: Catalog, decided: Mapping[str, TableSettings], shards: int) -> ShardKeyGuess:
    """Return how the tables would be spread.

    Args:
        catalog: the whole database.
        decided: the tables of the configuration, which are not guessed.
        shards: how many there shall be; with one, nothing has to be spread.
    """
    taken = tuple(
        name
        for name in catalog.tables
        if name in decided or (USABLE_NAME.fullmatch(name) and not STAYING.fullmatch(name))
    )
    references = tuple(_references(catalog))
    ours = [ref for ref in references if ref.table in taken and ref.parent in taken and ref.table != ref.parent]
    anchor = _anchor(catalog, taken, ours)
    if shards == 1 or anchor is None:
        return ShardKeyGuess(taken, references, dict(decided), (), anchor)
    tables, added = dict(decided), []
    root = {name: str(anchor) for name in decided}  # the table by whose ids each is sharded
    copied = {name for name in taken if name not in decided and _copied(catalog.tables[name], anchor, ours)}
    tables |= {name: TableSettings(name, reference=True) for name in copied}
    for name in _parents_first(taken, ours):
        if name in tables or name in (anchor, *root.values()):
            continue
        own = [ref for ref in ours if ref.table == name]
        via = _followed(own, anchor, tables)
        if via and via.parent not in tables:
            tables[name] = TableSettings(name, shard_key=via.column)
            root[name] = via.parent
        elif via:
            root[name] = root[via.parent]
            key = _key_of(root[name], ours, decided if root[name] == anchor else {})
            new = key if key not in catalog.tables[name].columns else f"{root[name]}_{key}"
            tables[name] = TableSettings(name, shard_key=new)
            added.append(Added(name, new, via))
    # shard keys that the configuration names and a table lacks
    for name in decided:
        column = decided[name].shard_key
        if name in catalog.tables and column and column not in catalog.tables[name].columns:
            parents = [
                ref for ref in ours if ref.table == name and ref.parent in tables and tables[ref.parent].shard_key
            ]
            added += [Added(name, column, ref) for ref in parents[:1]]
    return ShardKeyGuess(taken, references, tables, tuple(added), anchor)


def _followed(own: list[Reference], anchor: str, tables: Mapping[str, TableSettings]) -> Reference | None:
    """Return the reference to the row with which a table's row goes: the anchor's, else one that leads to a key."""
    usable = [ref for ref in own if USABLE_NAME.fullmatch(ref.column)]
    to_anchor = [ref for ref in usable if ref.parent == anchor]
    to_key = [ref for ref in own if ref.parent in tables and tables[ref.parent].shard_key]
    to_id = [ref for ref in usable if ref.parent not in tables]
    return next(iter([*to_anchor, *to_key, *to_id]), None)


def _references(catalog: Catalog) -> Iterable[Reference]:
    declared = set()
    for foreign in catalog.foreign_keys:
        if len(foreign.columns) == 1:
            declared.add((foreign.table, foreign.columns[0]))
            yield Reference(foreign.table, foreign.columns[0], foreign.parent, True)
    names = {name.lower(): name for name in catalog.tables}
    for table in catalog.tables.values():
        for column in table.columns.values():
            word = re.sub(r"_?id$", "", column.name.lower())
            parent = names.get(word) or names.get(f"{word}s")
            whole = re.match(r"(big)?int\b", column.type)
            if parent and whole and table.primary != (column.name,) and (table.name, column.name) not in declared:
                yield Reference(table.name, column.name, parent, False)


def _anchor(catalog: Catalog, taken: Iterable[str], references: list[Reference]) -> str | None:
    """Return the table that most others refer to, of several the largest; None where nothing refers."""
    children = {name: {ref.table for ref in references if ref.parent == name} for name in taken}
    parents = [name for name, found in children.items() if found]
    return max(parents, key=lambda name: (len(children[name]), catalog.tables[name].rows), default=None)


def _copied(table: CatalogTable, anchor: str, references: list[Reference]) -> bool:
    refers = any(ref.table == table.name for ref in references)
    referred = any(ref.parent == table.name for ref in references)
    return referred and not refers and table.name != anchor and table.rows <= MOST_COPIED_ROWS


def _key_of(anchor: str, references: list[Reference], decided: Mapping[str, TableSettings]) -> str:
    """Return the most common name of the anchor's key."""
    names = [ref.column for ref in references if ref.parent == anchor]
    names += [one.shard_key for one in decided.values() if one.shard_key]
    return max(names, key=names.count)


def _parents_first(taken: Iterable[str], references: list[Reference]) -> list[str]:
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in done or name in path:
            return
        for ref in references:
            if ref.table == name:
                visit(ref.parent, (*path, name))
        done[name] = None

    for name in taken:
        visit(name, ())
    return list(done)


@dataclass(frozen=True, slots=True)
class Case:
    """One database: what was found, and how it would be spread."""

    survey: Survey
    catalog: Catalog
    guess: ShardKeyGuess
    topology: Topology
    soft: tuple[Soft, ...] = ()

    def stays(self, foreign: ForeignKey) -> bool:
        """Return whether each row is always on the shard of the row that it refers to.

        Args:
            foreign: the foreign key.
        """
        ours = [name in self.guess.taken for name in (foreign.table, foreign.parent)]
        if len(self.topology.shards) == 1 or not any(ours):
            return True
        return all(ours) and together(self.topology, foreign.table, foreign.columns, foreign.parent)

    def narrow(self) -> dict[tuple[str, str], str]:
        """Return (table, column) of each column that must hold 64 bits and does not, with the type that it needs.

        A foreign key that stays joins two columns of one type, so both columns need the same.
        """
        wide = {(name, key) for name in self.guess.taken if (key := self.catalog.tables[name].id)}
        wide |= {(ref.table, ref.column) for ref in self.guess.references if self._needs_wide(ref)}
        wide |= {(soft.table, soft.column) for soft in self.soft if soft.named}
        joined = [
            ((key.table, key.columns[0]), (key.parent, key.parent_columns[0]))
            for key in self.catalog.foreign_keys
            if len(key.columns) == 1 and self.stays(key)
        ]
        while more := {b for pair in joined for a, b in (pair, pair[::-1]) if a in wide} - wide:
            wide |= more
        kinds = {place: self._type(*place) for place in wide}
        unsigned = {place for place, kind in kinds.items() if holds_64_bits(kind) and "unsigned" in kind}
        while more := {b for pair in joined for a, b in (pair, pair[::-1]) if a in unsigned} - unsigned:
            unsigned |= more
        wanted = {place: "BIGINT UNSIGNED" if place in unsigned else "BIGINT" for place in sorted(wide)}
        return {
            place: kind
            for place, kind in wanted.items()
            if "int" in kinds[place]
            and not (holds_64_bits(kinds[place]) and ("unsigned" in kinds[place]) == (place in unsigned))
        }

    def _needs_wide(self, ref: Reference) -> bool:
        """Return whether a column gets ids of the pipeline, or is one of its own; a table that stays gets them too."""
        taken = self.guess.taken
        return ref.table in taken or (ref.parent in taken and bool(USABLE_NAME.fullmatch(ref.table)))

    def torn(self) -> dict[str, tuple[Reference, list[Reference]]]:
        """Return by table the reference that it goes with, and those to rows that may be on another shard."""
        found = {}
        for name in self.guess.taken:
            own = [ref for ref in self.guess.references if ref.table == name and ref.parent in self.guess.taken]
            spread = [ref for ref in own if not self.topology.table(ref.parent).reference and ref.parent != name]
            near = [ref for ref in spread if together(self.topology, name, (ref.column,), ref.parent)]
            far = [ref for ref in spread if ref not in near]
            if near and far:
                found[name] = (near[0], far)
        return found

    def _type(self, table: str, column: str) -> str:
        return self.catalog.tables[table].columns[column].type
