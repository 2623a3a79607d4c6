"""Statements that an operator may run to mend what `check` finds. None is run from here."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import PipelineError
from pipeline.model.column import Column
from pipeline.model.schema import TableSchema
from pipeline.shard.ddl import column_sql, index_name
from pipeline.shard.dialect import MySQL, dialect_of

_quote = MySQL().quote


def wide_id(table: str, column: str) -> str:
    """Make an id column hold 64 bits."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} BIGINT NOT NULL AUTO_INCREMENT"


def innodb(table: str) -> str:
    """Make a table transactional."""
    return f"ALTER TABLE {_quote(table)} ENGINE=InnoDB"


def utf8mb4(table: str) -> str:
    """Make all texts of a table hold every character."""
    return f"ALTER TABLE {_quote(table)} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"


def dynamic(table: str) -> str:
    """Let indexes be as long as utf8mb4 needs; tables of MySQL 5.6 and before have rows that allow 767 bytes."""
    return f"ALTER TABLE {_quote(table)} ROW_FORMAT=DYNAMIC"


def database_utf8mb4(database: str) -> str:
    """Make tables that are created without saying so hold every character."""
    return f"ALTER DATABASE {_quote(database)} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"


def add_column(schema: TableSchema, column: Column, table: str, engine: str) -> str:
    """Add a column that a table lacks."""
    return _with_column("ADD COLUMN", schema, column, table, engine)


def modify_column(schema: TableSchema, column: Column, table: str) -> str:
    """Make a column what its definition says."""
    return _with_column("MODIFY", schema, column, table, "mysql")


def double(table: str, column: str) -> str:
    """Make a FLOAT column give back what was stored."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} DOUBLE"


def default_for(table: str, column: str, kind: str) -> str:
    """Let an INSERT leave a column out."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} {kind.upper()} NULL"


def wide_reference(table: str, column: str, kind: str, rest: str) -> str:
    """Make a column hold the ids that it refers to; *rest* is what its definition says besides."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} {kind}{rest}"


def primary_key(table: str, column: str) -> str:
    """Make a column that numbers its rows the primary key."""
    return f"{wide_id(table, column)}, ADD PRIMARY KEY ({_quote(column)})"


def new_id(table: str, old: Iterable[str]) -> str:
    """Number the rows of a table; the columns that were its primary key stay unique."""
    added = "ADD COLUMN `id` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY FIRST"
    old = tuple(old)
    if not old:
        return f"ALTER TABLE {_quote(table)} {added}"
    unique = f"ADD UNIQUE INDEX {_quote(index_name(table, 'uk', old))} ({', '.join(map(_quote, old))})"
    return f"ALTER TABLE {_quote(table)} DROP PRIMARY KEY, {added}, {unique}"


def drop_foreign_key(table: str, name: str) -> str:
    """Let rows of one table stand without the rows that they refer to."""
    return f"ALTER TABLE {_quote(table)} DROP FOREIGN KEY {_quote(name)}"


def add_foreign_key(table: str, name: str, own: Iterable[str], parent: str, theirs: Iterable[str], rules: str) -> str:
    """Add a foreign key as it was."""
    columns, parents = ", ".join(map(_quote, own)), ", ".join(map(_quote, theirs))
    return (
        f"ALTER TABLE {_quote(table)} ADD CONSTRAINT {_quote(name)} FOREIGN KEY ({columns})"
        f" REFERENCES {_quote(parent)} ({parents}){rules}"
    )


def add_key(table: str, column: str, via: str, parent: str, parent_id: str, parent_column: str) -> list[str]:
    """Add a shard key to a table, filled from the rows that its rows refer to, and index it."""
    own, key = _quote(table), _quote(column)
    return [
        f"ALTER TABLE {own} ADD COLUMN {key} BIGINT",
        f"UPDATE {own} JOIN {_quote(parent)} ON {own}.{_quote(via)} = {_quote(parent)}.{_quote(parent_id)}"
        f" SET {own}.{key} = {_quote(parent)}.{_quote(parent_column)}",
        f"CREATE INDEX {_quote(index_name(table, 'ix', (column,)))} ON {own} ({key})",
    ]


def unique_index(table: str, fields: Iterable[str], engine: str) -> str:
    """Create a unique index."""
    quote, fields = dialect_of(f"{engine}:").quote, tuple(fields)
    columns = ", ".join(map(quote, fields))
    return f"CREATE UNIQUE INDEX {quote(index_name(table, 'uk', fields))} ON {quote(table)} ({columns})"


def grant(verbs: Iterable[str], database: str, account: str) -> str:
    """Let a user do what the pipeline does."""
    user, _, host = account.rpartition("@")
    where = f"{_quote(database.replace('_', chr(92) + '_'))}.*"
    return f"GRANT {', '.join(verbs)} ON {where} TO '{user}'@'{host}'"


def _with_column(verb: str, schema: TableSchema, column: Column, table: str, engine: str) -> str:
    dialect = dialect_of(f"{engine}:")
    try:
        sql = column_sql(schema, column, dialect)
    except PipelineError as error:
        return str(error)
    return f"ALTER TABLE {dialect.quote(table)} {verb} {sql.replace(' PRIMARY KEY', '')}"
