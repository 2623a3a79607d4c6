"""Read what a worker must know of a table on one shard: its constraints in the database, and its value encoders.

Grouping must respect unique indexes and foreign keys. Constraints are read from the database, not from the model: an
index that was added by hand counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.model.schema import TableSchema
from pipeline.shard.ledger import text_literal
from pipeline.shard.literals import encoder
from pipeline.shard.session import NodeSession


@dataclass(frozen=True)
class Facts:
    """One schema on one shard. Column numbers are those of the schema.

    Attributes:
        encode: the encoder of each column.
        names: the columns' names, quoted.
        table: the table's name, quoted.
    """

    schema: TableSchema
    constraints: Constraints
    encode: tuple[Callable[[Any], str], ...]
    names: tuple[str, ...]  # quoted as the database wants them
    table: str  # quoted

    @cached_property
    def unique(self) -> tuple[tuple[int, ...], ...]:
        """The unique indexes whose columns the schema knows, the id left out."""
        known = [self._numbers(columns) for columns in self.constraints.unique]
        return tuple(columns for columns in known if columns and columns != (self.schema.id_index,))

    @cached_property
    def hidden_unique(self) -> bool:
        """Whether a unique index has columns that the schema does not know."""
        return any(self._numbers(columns) is None for columns in self.constraints.unique)

    @cached_property
    def unique_columns(self) -> frozenset[int]:
        """The columns that take part in a unique index."""
        return frozenset(column for columns in self.unique for column in columns)

    @cached_property
    def parents(self) -> tuple[tuple[int | None, str], ...]:
        """(column, parent table) of each foreign key to a parent's id; column None where it is another kind."""
        found = []
        for own, parent, theirs in self.constraints.parents:
            numbers = self._numbers(own)
            simple = numbers is not None and len(numbers) == 1 and theirs == ("id",)
            found.append((numbers[0] if simple and numbers else None, parent))
        return tuple(found)

    @cached_property
    def database_name(self) -> str:
        """The table's name in the database, for conflict keys."""
        return bare_name(self.schema.rname or self.schema.name)

    @cached_property
    def plain(self) -> bool:
        """Whether nothing but the primary key can make two inserts conflict."""
        return not (self.unique or self.hidden_unique or self.parents)

    def has(self, column: str | None) -> bool:
        """Return whether the schema has a column.

        Args:
            column: its name in the database; None is no column.
        """
        return column is not None and self._numbers((column,)) is not None

    def _numbers(self, columns: tuple[str, ...]) -> tuple[int, ...] | None:
        by_name = {bare_name(c.rname or c.name).lower(): i for i, c in enumerate(self.schema.columns)}
        numbers = [by_name.get(column.lower()) for column in columns]
        return None if None in numbers else tuple(n for n in numbers if n is not None)


def facts_of(session: NodeSession, schema: TableSchema) -> Facts:
    """Read what a database enforces on a table.

    Args:
        session: of the shard's primary.
        schema: the table's schema.
    """
    quote = session.dialect.quote
    return Facts(
        schema,
        constraints_of(session, bare_name(schema.rname or schema.name)),
        tuple(encoder(session.adapter, column) for column in schema.columns),
        tuple(column.rname or quote(column.name) for column in schema.columns),
        schema.rname or quote(schema.name),
    )


def bare_name(name: str) -> str:
    """Return the identifier *name* without its quotes and its database."""
    return name.rpartition(".")[2].strip("`\"'[]")


@dataclass(frozen=True, slots=True)
class Constraints:
    """The constraints of one table; names are the database's.

    Attributes:
        unique: the columns of each unique index, the primary key left out.
        parents: (columns, parent table, parent columns) of each foreign key.
        children: tables whose foreign keys point here.
    """

    unique: tuple[tuple[str, ...], ...] = ()
    parents: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = ()
    children: tuple[str, ...] = ()


def constraints_of(session: NodeSession, table: str) -> Constraints:
    """Read a table's constraints.

    Args:
        session: of the node.
        table: its name in the database.
    """
    return _READERS[session.dialect.name](session, table)


def _mysql(session: NodeSession, table: str) -> Constraints:
    name = text_literal(table)
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


def _sqlite(session: NodeSession, table: str) -> Constraints:
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


_READERS: Mapping[str, Callable[[NodeSession, str], Constraints]] = {"mysql": _mysql, "sqlite": _sqlite}
