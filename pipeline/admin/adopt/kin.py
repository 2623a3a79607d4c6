"""Which table refers to which, and so by which key each would be sharded: a guess, for a person to confirm.

The guess: the table that most others refer to is what everything turns on (customer, account, tenant). It is sharded by
its own id; what refers to it, directly or through others, goes by the column that names it. A small table that is
referred to and refers to nothing is copied to every shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.config.settings import TableSettings
from pipeline.shard.catalog import Catalog, CatalogTable

#: Tables of web2py, py4web, Celery and of the pipeline itself: they stay where they are, written as ever.
STAYING = re.compile(r"(auth|scheduler|web2py|py4web|pipeline|celery|plugin)_\w*", re.IGNORECASE)
#: What a configuration and pyDAL can name; another name in the database needs an `rname` in the model.
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
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
        name for name in catalog.tables if name in decided or (NAME.fullmatch(name) and not STAYING.fullmatch(name))
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
        direct = next((ref.column for ref in own if ref.parent == anchor and NAME.fullmatch(ref.column)), None)
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
