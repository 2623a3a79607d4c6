"""Write the SQL that repairs what `check` and `adopt` find in MySQL and MariaDB; nothing is run here."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.shard.ddl import MYSQL, index_name
from pipeline.shard.dialect import dialect_of

_quote = MYSQL.quote


def ignore_it(table: str) -> str:
    """Return how a table is left to its database, by its name in the model."""
    return f'leave it to its database, [pipeline] ignore = ["{table}"], and run pipeline tables forget {table}'


def wide_id(table: str, column: str) -> str:
    """Make the id column *column* of *table* hold 64 bits."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} BIGINT NOT NULL AUTO_INCREMENT"


def innodb(table: str) -> str:
    """Make *table* transactional."""
    return f"ALTER TABLE {_quote(table)} ENGINE=InnoDB"


def utf8mb4(table: str) -> str:
    """Make all texts of *table* hold every character."""
    return f"ALTER TABLE {_quote(table)} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"


def dynamic(table: str) -> str:
    """Let indexes of *table* be as long as utf8mb4 needs; rows of tables from MySQL 5.6 and before allow 767 bytes."""
    return f"ALTER TABLE {_quote(table)} ROW_FORMAT=DYNAMIC"


def database_utf8mb4(database: str) -> str:
    """Make new tables in *database* hold every character by default."""
    return f"ALTER DATABASE {_quote(database)} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"


def widen_to_double(table: str, column: str) -> str:
    """Make *column* of *table*, a FLOAT, give back what was stored."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} DOUBLE"


def default_for(table: str, column: str, kind: str) -> str:
    """Let an INSERT into *table* leave out *column*, of the type *kind*."""
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} {kind.upper()} NULL"


def wide_reference(table: str, column: str, kind: str, rest: str) -> str:
    """Make a column hold the ids that it refers to.

    Args:
        table: its name in the database.
        column: the column's name in the database.
        kind: the column's new type.
        rest: the rest of the column's definition.
    """
    return f"ALTER TABLE {_quote(table)} MODIFY {_quote(column)} {kind}{rest}"


def primary_key(table: str, column: str) -> str:
    """Make *column*, which numbers the rows of *table*, the primary key."""
    return f"{wide_id(table, column)}, ADD PRIMARY KEY ({_quote(column)})"


def new_id(table: str, old: Iterable[str]) -> str:
    """Number the rows of *table*; the columns *old*, its primary key so far, stay unique."""
    added = "ADD COLUMN `id` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY FIRST"
    old = tuple(old)
    if not old:
        return f"ALTER TABLE {_quote(table)} {added}"
    unique = f"ADD UNIQUE INDEX {_quote(index_name(table, 'uk', old))} ({', '.join(map(_quote, old))})"
    return f"ALTER TABLE {_quote(table)} DROP PRIMARY KEY, {added}, {unique}"


def drop_foreign_key(table: str, name: str) -> str:
    """Drop the foreign key *name*, so that rows of *table* may refer to rows that are missing."""
    return f"ALTER TABLE {_quote(table)} DROP FOREIGN KEY {_quote(name)}"


def add_foreign_key(table: str, name: str, own: Iterable[str], parent: str, theirs: Iterable[str], rules: str) -> str:
    """Add a foreign key with its former name and rules.

    Args:
        table: the table that refers.
        name: of the foreign key.
        own: the columns that refer.
        parent: the table referred to.
        theirs: the columns referred to.
        rules: ON DELETE and ON UPDATE, as SQL.
    """
    columns, parents = ", ".join(map(_quote, own)), ", ".join(map(_quote, theirs))
    return (
        f"ALTER TABLE {_quote(table)} ADD CONSTRAINT {_quote(name)} FOREIGN KEY ({columns})"
        f" REFERENCES {_quote(parent)} ({parents}){rules}"
    )


def add_key(table: str, column: str, kind: str, via: str, parent: str, parent_id: str, parent_column: str) -> list[str]:
    """Add a shard key to a table, filled from the rows that its rows refer to, and index it.

    Args:
        table: the table that gets the key.
        column: the name of the key.
        kind: its type, as SQL.
        via: the column of *table* that refers to the parent.
        parent: the table referred to.
        parent_id: the column that *via* refers to.
        parent_column: the parent's own key.
    """
    own, key = _quote(table), _quote(column)
    return [
        f"ALTER TABLE {own} ADD COLUMN {key} {kind}",
        f"UPDATE {own} JOIN {_quote(parent)} ON {own}.{_quote(via)} = {_quote(parent)}.{_quote(parent_id)}"
        f" SET {own}.{key} = {_quote(parent)}.{_quote(parent_column)}",
        f"CREATE INDEX {_quote(index_name(table, 'ix', (column,)))} ON {own} ({key})",
    ]


def unique_index(table: str, fields: Iterable[str], engine: str) -> str:
    """Create a unique index.

    Args:
        table: its name in the database.
        fields: the columns' names in the database.
        engine: `mysql` or `sqlite`.
    """
    quote, fields = dialect_of(f"{engine}:").quote, tuple(fields)
    columns = ", ".join(map(quote, fields))
    name = quote(index_name(table, "uk", fields))
    return f"CREATE UNIQUE INDEX {name} ON {quote(table)} ({columns})"


def grant(verbs: Iterable[str], database: str, account: str) -> str:
    """Let a user do what the pipeline does.

    Args:
        verbs: the privileges.
        database: its name.
        account: `user@host`.
    """
    user, _, host = account.rpartition("@")
    where = f"{_quote(database.replace('_', chr(92) + '_'))}.*"
    return f"GRANT {', '.join(verbs)} ON {where} TO '{user}'@'{host}'"
