"""Guess which table refers to which, and so by which key each would be sharded; a person confirms the guess.

The anchor is the table that most others refer to (customer, account, tenant). It is sharded by its own id. A table that
refers to the anchor, directly or through others, is sharded by the column that names the anchor. A small table that is
referred to and refers to nothing is copied to every shard. Any other table goes with the table that it refers to.

A `Case` holds one database, all that was read of it, and what follows for each column and each foreign key. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config.settings import TableSettings
from pipeline.config.topology import Topology
from pipeline.shard.catalog import Catalog, CatalogTable
from pipeline.shard.co_location import together
from pipeline.shard.columns import holds_64_bits
from pipeline.shard.reach import ForeignKey
from pipeline.shard.survey import Survey

#: Tables of web2py, py4web, Celery and of the pipeline itself stay in their database.
STAYING = re.compile(r"(auth|scheduler|web2py|py4web|pipeline|celery|plugin)_\w*", re.IGNORECASE)
#: A name that a configuration and pyDAL can use; any other name needs an `rname` in the model.
USABLE_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
#: The most rows of a table that is copied to every shard.
MOST_COPIED_ROWS = 10_000


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
