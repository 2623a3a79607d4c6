"""Read the columns and indexes of a table as the database has them, for `check` and `migrate`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from pipeline.model.schema import TableSchema
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import bare_name, pragma, rows_about


class DatabaseColumn(NamedTuple):
    """One column of a table: type in lower case as the database writes it, character set or None."""

    name: str
    type: str
    nullable: bool
    charset: str | None


def columns_of(session: NodeSession, table: str) -> list[DatabaseColumn]:
    """Return a table's columns in order; an empty list where there is no such table.

    Args:
        session: of the node.
        table: its name in the database, perhaps with that of the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query(pragma(session.dialect, table, "table_info"))
        return [DatabaseColumn(row[1], str(row[2]).lower(), not row[3], None) for row in found]
    found = session.query(
        "SELECT column_name, column_type, is_nullable, character_set_name FROM information_schema.columns"
        f" WHERE {rows_about([table])} ORDER BY ordinal_position"
    )
    return [DatabaseColumn(name, kind.lower(), nullable == "YES", charset) for name, kind, nullable, charset in found]


def is_view(session: NodeSession, table: str) -> bool:
    """Return whether what has a table's name is a view.

    Args:
        session: of the node.
        table: its name in the database, perhaps with that of the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query("SELECT name FROM sqlite_master WHERE type = 'view'")
        return bare_name(table) in {name for (name,) in found}
    views = f"SELECT 1 FROM information_schema.tables WHERE {rows_about([table])} AND table_type LIKE '%VIEW'"
    return bool(session.query(views))


class DatabaseIndex(NamedTuple):
    """One index of a table, the primary key too; its columns in lower case."""

    name: str
    unique: bool
    columns: tuple[str, ...]


def indexes_of(session: NodeSession, table: str) -> list[DatabaseIndex]:
    """Return a table's indexes.

    Args:
        session: of the node.
        table: its name in the database, perhaps with that of the database.
    """
    if session.dialect.name == "sqlite":
        about = partial(pragma, session.dialect, table)
        found = [
            (str(row[1]), not row[2], column[2])
            for row in session.query(about("index_list"))
            for column in session.query(about("index_info", str(row[1])))
        ]
    else:
        found = session.query(
            "SELECT index_name, non_unique, column_name FROM information_schema.statistics"
            f" WHERE {rows_about([table])} ORDER BY index_name, seq_in_index"
        )
    indexes: dict[str, tuple[bool, list[str]]] = {}
    for name, many, column in found:
        indexes.setdefault(name, (not int(many), []))[1].append(str(column).lower())
    return [DatabaseIndex(name, unique, tuple(columns)) for name, (unique, columns) in indexes.items()]


def id_type(session: NodeSession, schema: TableSchema) -> str | None:
    """Return the type of a table's id column, or None where the table is missing.

    Args:
        session: of the node.
        schema: the table's schema.
    """
    name = bare_name(schema.columns[schema.id_index].rname or schema.id_name).lower()
    for column in columns_of(session, schema.rname or schema.name):
        if column.name.lower() == name:
            return column.type
    return None


def holds_rows(session: NodeSession, table: str) -> bool:
    """Return whether a table of the application exists and has a row.

    Args:
        session: of the node.
        table: its name in the database, perhaps with that of the database.
    """
    if not columns_of(session, table):
        return False
    name = ".".join(map(session.dialect.quote, table.split(".")))
    return bool(session.query(f"SELECT 1 FROM {name} LIMIT 1"))


def holds_64_bits(kind: str) -> bool:
    """Return whether an id column of the type *kind* holds ids of 53 bits; every INTEGER of SQLite does."""
    return kind.startswith("bigint") or kind == "integer"
