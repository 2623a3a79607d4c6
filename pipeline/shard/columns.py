"""Read the columns and indexes of a table as the database has them, for `check` and `migrate`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from pipeline.config.topology import Topology
from pipeline.model.schema import Column, TableSchema
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import pragma, rows_about


class DatabaseColumn(NamedTuple):
    """One column of a table: type in lower case as the database writes it; character set and collation of a text."""

    name: str
    type: str
    nullable: bool
    charset: str | None
    collation: str | None


def columns_of(session: NodeSession, table: str) -> list[DatabaseColumn]:
    """Return a table's columns in order; an empty list where there is no such table.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query(pragma(session.dialect, table, "table_info"))
        return [DatabaseColumn(row[1], str(row[2]).lower(), not row[3], None, None) for row in found]
    found = session.query(
        "SELECT column_name, column_type, is_nullable, character_set_name, collation_name"
        f" FROM information_schema.columns WHERE {rows_about([table])} ORDER BY ordinal_position"
    )
    return [DatabaseColumn(name, kind.lower(), nullable == "YES", *rest) for name, kind, nullable, *rest in found]


def is_view(session: NodeSession, table: str) -> bool:
    """Return whether what has a table's name is a view.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        found = session.query("SELECT name FROM sqlite_master WHERE type = 'view'")
        return table in {name for (name,) in found}
    views = f"SELECT 1 FROM information_schema.tables WHERE {rows_about([table])} AND table_type LIKE '%VIEW'"
    return bool(session.query(views))


def bytes_of(session: NodeSession, table: str) -> int:
    """Return how large a table is with its indexes, as its database estimates it; 0 where the database does not say.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if session.dialect.name == "sqlite":
        return 0
    sizes = f"SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE {rows_about([table])}"
    return int(session.query(sizes)[0][0] or 0)


class DatabaseIndex(NamedTuple):
    """One index of a table, the primary key too; its columns in lower case."""

    name: str
    unique: bool
    columns: tuple[str, ...]


def indexes_of(session: NodeSession, table: str) -> list[DatabaseIndex]:
    """Return a table's indexes.

    Args:
        session: of the node.
        table: its name in the database.
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


#: The collation of a text by which rows are spread: all others take different texts for equal.
EXACT = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_TEXTS = ("string", "text", "json")


def text_key(schema: TableSchema, topology: Topology) -> Column | None:
    """Return the column by which a table's rows are spread, if it is a text; else None.

    Args:
        schema: the table's schema.
        topology: the rules of all tables.
    """
    at = schema.index.get(topology.table(schema.name).shard_key or "")
    return schema.columns[at] if at is not None and schema.columns[at].kind in _TEXTS else None


def tells_apart(collation: str | None) -> bool:
    """Return whether a collation finds only the same characters equal, blanks at the end aside.

    Args:
        collation: its name; None where the column is no text, or the database knows no collations.
    """
    return collation is None or collation.endswith("_bin")


def unusable(session: NodeSession, schema: TableSchema, topology: Topology) -> str | None:
    """Return why no op of a table can be taken, and what to do; None where one can, or the table is missing.

    Args:
        session: of the node.
        schema: the table's schema.
        topology: the rules of all tables.
    """
    found = {column.name.lower(): column for column in columns_of(session, schema.name_there)}

    def of(column: Column) -> DatabaseColumn | None:
        return found.get(column.name_there.lower())

    name, id = schema.name, of(schema.columns[schema.id_index])
    if id and topology.table(name).ids == "pipeline" and not holds_64_bits(id.type):
        return (
            f"table {name!r} keeps its ids in a column of type {id.type}, which cannot hold a 53-bit id: "
            f"run ALTER TABLE {name} MODIFY {schema.id_name} BIGINT NOT NULL AUTO_INCREMENT, "
            f'or set [tables.{name}] ids = "database"'
        )
    key = text_key(schema, topology)
    there = of(key) if key else None
    if key is None or there is None or tells_apart(there.collation):
        return None
    return (
        f"{name}.{key.name} is the shard key, and its collation {there.collation} takes different texts for equal: "
        f"their rows would be in different buckets. Run pipeline migrate, which makes the column {EXACT}"
    )


def holds_rows(session: NodeSession, table: str) -> bool:
    """Return whether a table of the application exists and has a row.

    Args:
        session: of the node.
        table: its name in the database.
    """
    if not columns_of(session, table):
        return False
    name = session.dialect.quote(table)
    return bool(session.query(f"SELECT 1 FROM {name} LIMIT 1"))


def holds_64_bits(kind: str) -> bool:
    """Return whether an id column of the type *kind* holds ids of 53 bits; every INTEGER of SQLite does."""
    return kind.startswith("bigint") or kind == "integer"
