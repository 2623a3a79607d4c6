"""Which table refers to which, and so by which key each would be sharded: a guess, for a person to confirm.

The guess: the table that most others refer to is what everything turns on (customer, account, tenant). It is sharded by
its own id; what refers to it, directly or through others, goes by the column that names it. A small table that is
referred to and refers to nothing is copied to every shard.

One database, all that was read of it, and what follows for each column and each foreign key. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.admin.check.buckets import together
from pipeline.config.settings import TableSettings
from pipeline.config.topology import Topology
from pipeline.shard.catalog import Catalog, CatalogTable, ForeignKey
from pipeline.shard.columns import holds_64_bits
from pipeline.shard.survey import Survey

#: Tables of web2py, py4web, Celery and of the pipeline itself: they stay where they are, written as ever.
STAYING = re.compile(r"(auth|scheduler|web2py|py4web|pipeline|celery|plugin)_\w*", re.IGNORECASE)
#: What a configuration and pyDAL can name; another name in the database needs an `rname` in the model.
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
#: More rows than this are a lot to copy to every shard.
MOST_COPIED_ROWS = 10_000


class Reference(NamedTuple):
    """A column that names a row of another table. `declared`: by a foreign key; else by its name alone."""

    table: str
    column: str
    parent: str
    declared: bool


class Added(NamedTuple):
    """A shard key that a table lacks, found through the table that it refers to."""

    table: str
    column: str
    via: Reference


class Kin(NamedTuple):
    """What was concluded."""

    taken: tuple[str, ...]
    references: tuple[Reference, ...]
    tables: Mapping[str, TableSettings]
    added: tuple[Added, ...]
    anchor: str | None


def kin(catalog: Catalog, decided: Mapping[str, TableSettings], shards: int) -> Kin:
    """Return how the tables would be spread.

    Args:
        decided: what the configuration says already; it is not guessed about.
        shards: with a single one nothing has to be spread.
    """
    taken = tuple(
        name for name in catalog.tables if name in decided or (_NAME.fullmatch(name) and not STAYING.fullmatch(name))
    )
    references = tuple(_references(catalog))
    ours = [ref for ref in references if ref.table in taken and ref.parent in taken and ref.table != ref.parent]
    anchor = _anchor(catalog, taken, ours)
    if shards == 1 or anchor is None:
        return Kin(taken, references, dict(decided), (), anchor)
    tables, added = dict(decided), []
    key = _key_of(anchor, ours, decided)
    copied = {name for name in taken if name not in decided and _copied(catalog.tables[name], anchor, ours)}
    tables |= {name: TableSettings(name, reference=True) for name in copied}
    for name in _parents_first(taken, ours):
        if name in tables or name == anchor:
            continue
        own = [ref for ref in ours if ref.table == name]
        direct = next((ref.column for ref in own if ref.parent == anchor and _NAME.fullmatch(ref.column)), None)
        via = next((ref for ref in own if ref.parent in tables and tables[ref.parent].shard_key), None)
        if direct:
            tables[name] = TableSettings(name, shard_key=direct)
        elif via:
            new = key if key not in catalog.tables[name].columns else f"{anchor}_{key}"
            tables[name] = TableSettings(name, shard_key=new)
            added.append(Added(name, new, via))
    # what the configuration names and the table does not have
    for name in decided:
        column = decided[name].shard_key
        if name in catalog.tables and column and column not in catalog.tables[name].columns:
            parents = [
                ref for ref in ours if ref.table == name and ref.parent in tables and tables[ref.parent].shard_key
            ]
            added += [Added(name, column, ref) for ref in parents[:1]]
    return Kin(taken, references, tables, tuple(added), anchor)


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
    """Return what the anchor's key is called in most tables."""
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
    """What was found, and how it would be spread."""

    survey: Survey
    catalog: Catalog
    kin: Kin
    topology: Topology

    def stays(self, foreign: ForeignKey) -> bool:
        """Return whether a row will always stand on the shard of the row it refers to."""
        ours = [name in self.kin.taken for name in (foreign.table, foreign.parent)]
        if len(self.topology.shards) == 1 or not any(ours):
            return True
        return all(ours) and together(self.topology, foreign.table, foreign.columns, foreign.parent)

    def narrow(self) -> dict[tuple[str, str], str]:
        """Return (table, column) of what must hold 64 bits and does not, with the type that it needs.

        A foreign key that stays joins two columns of one type: what one needs the other needs too.
        """
        wide = {(name, key) for name in self.kin.taken if (key := self.catalog.tables[name].id)}
        wide |= {(ref.table, ref.column) for ref in self.kin.references if ref.table in self.kin.taken}
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

    def _type(self, table: str, column: str) -> str:
        return self.catalog.tables[table].columns[column].type
