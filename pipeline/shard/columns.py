"""Read the columns and indexes of a table as the database has them, for `check` and `migrate`."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.model.schema import TableSchema
from pipeline.shard.ledger import text_literal
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import bare_name


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
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query(f"PRAGMA table_info({session.dialect.quote(table)})")
        return [DatabaseColumn(row[1], str(row[2]).lower(), not row[3], None) for row in found]
    found = session.query(
        "SELECT column_name, column_type, is_nullable, character_set_name FROM information_schema.columns"
        f" WHERE table_schema = DATABASE() AND table_name = {text_literal(table)} ORDER BY ordinal_position"
    )
    return [DatabaseColumn(name, kind.lower(), nullable == "YES", charset) for name, kind, nullable, charset in found]


def indexes_of(session: NodeSession, table: str) -> list[tuple[bool, tuple[str, ...]]]:
    """Return of each index, the primary key too, whether it is unique, and its columns in lower case.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        quote = session.dialect.quote
        names = [(bool(row[2]), str(row[1])) for row in session.query(f"PRAGMA index_list({quote(table)})")]
        return [
            (unique, tuple(str(row[2]).lower() for row in session.query(f"PRAGMA index_info({quote(name)})")))
            for unique, name in names
        ]
    found = session.query(
        "SELECT index_name, non_unique, column_name FROM information_schema.statistics"
        f" WHERE table_schema = DATABASE() AND table_name = {text_literal(table)} ORDER BY index_name, seq_in_index"
    )
    indexes: dict[str, tuple[bool, list[str]]] = {}
    for name, many, column in found:
        indexes.setdefault(name, (not int(many), []))[1].append(str(column).lower())
    return [(unique, tuple(columns)) for unique, columns in indexes.values()]


def id_type(session: NodeSession, schema: TableSchema) -> str | None:
    """Return the type of a table's id column, or None where the table is missing.

    Args:
        session: of the node.
        schema: the table's schema.
    """
    name = bare_name(schema.columns[schema.id_index].rname or schema.id_name).lower()
    for column in columns_of(session, bare_name(schema.rname or schema.name)):
        if column.name.lower() == name:
            return column.type
    return None


def holds_64_bits(kind: str) -> bool:
    """Return whether an id column of the type *kind* holds 63-bit ids; every INTEGER of SQLite does."""
    return kind.startswith("bigint") or kind == "integer"
