"""What the database itself enforces on a table: unique indexes and foreign keys. Grouping must respect them.

Read from the database, not from the model: an index that somebody added by hand counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.shard.ledger import text
from pipeline.shard.session import Session


@dataclass(frozen=True, slots=True)
class Constraints:
    """Names are the database's.

    Attributes:
        unique: the columns of each unique index, the primary key left out.
        parents: (columns, parent table, parent columns) of each foreign key.
        children: tables whose foreign keys point here.
    """

    unique: tuple[tuple[str, ...], ...] = ()
    parents: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = ()
    children: tuple[str, ...] = ()


def constraints_of(session: Session, table: str) -> Constraints:
    """Read a table's constraints."""
    return _READERS[session.dialect.name](session, table)


def _mysql(session: Session, table: str) -> Constraints:
    name = text(table)
    unique = session.rows(
        "SELECT index_name, column_name FROM information_schema.statistics WHERE table_schema = DATABASE()"
        f" AND table_name = {name} AND non_unique = 0 AND index_name <> 'PRIMARY' ORDER BY index_name, seq_in_index"
    )
    parents = session.rows(
        "SELECT constraint_name, column_name, referenced_table_name, referenced_column_name"
        f" FROM information_schema.key_column_usage WHERE table_schema = DATABASE() AND table_name = {name}"
        " AND referenced_table_name IS NOT NULL ORDER BY constraint_name, ordinal_position"
    )
    children = session.rows(
        "SELECT DISTINCT table_name FROM information_schema.key_column_usage WHERE table_schema = DATABASE()"
        f" AND referenced_table_schema = DATABASE() AND referenced_table_name = {name}"
    )
    indexes: dict[str, list[str]] = {}
    for index, column in unique:
        indexes.setdefault(index, []).append(column)
    return Constraints(tuple(map(tuple, indexes.values())), _foreign_keys(parents), tuple(row[0] for row in children))


def _sqlite(session: Session, table: str) -> Constraints:
    quote = session.dialect.quote
    unique = []
    for row in session.rows(f"PRAGMA index_list({quote(table)})"):
        if row[2] and row[3] != "pk":
            unique.append(tuple(column[2] for column in session.rows(f"PRAGMA index_info({quote(row[1])})")))
    parents = [
        (row[0], row[3], row[2], row[4] or "id") for row in session.rows(f"PRAGMA foreign_key_list({quote(table)})")
    ]
    children = []
    for (other,) in session.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
        if any(row[2].lower() == table.lower() for row in session.rows(f"PRAGMA foreign_key_list({quote(other)})")):
            children.append(other)
    return Constraints(tuple(unique), _foreign_keys(parents), tuple(children))


def _foreign_keys(rows: Sequence[tuple[object, ...]]) -> tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...]:
    keys: dict[object, tuple[list[str], str, list[str]]] = {}
    for name, column, parent, parent_column in rows:
        own, _, theirs = keys.setdefault(name, ([], str(parent), []))
        own.append(str(column))
        theirs.append(str(parent_column))
    return tuple((tuple(own), parent, tuple(theirs)) for own, parent, theirs in keys.values())


_READERS: Mapping[str, Callable[[Session, str], Constraints]] = {"mysql": _mysql, "sqlite": _sqlite}
