"""Write the SQL that creates an application's tables, or repairs what `check` and `adopt` find; run nothing.

Tables have bigint ids, utf8mb4, InnoDB and exact types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.config import Topology
from pipeline.errors import PipelineError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import columns
from pipeline.shard.dialect import Dialect, MySQL, dialect_of

#: pyDAL's types. FLOAT is made DOUBLE: MariaDB gives back only 6 digits of a FLOAT.
_MYSQL = {
    "string": "VARCHAR({length})", "password": "VARCHAR({length})", "upload": "VARCHAR({length})",
    "text": "LONGTEXT", "json": "LONGTEXT", "blob": "LONGBLOB", "boolean": "CHAR(1)",
    "integer": "INT", "bigint": "BIGINT", "float": "DOUBLE", "double": "DOUBLE", "decimal": "DECIMAL({p},{s})",
    "date": "DATE", "time": "TIME", "datetime": "DATETIME", "reference": "BIGINT", "big-reference": "BIGINT",
}  # fmt: skip
_SQLITE = {
    "string": "CHAR({length})", "password": "CHAR({length})", "upload": "CHAR({length})",
    "text": "TEXT", "json": "TEXT", "blob": "BLOB", "boolean": "CHAR(1)",
    "integer": "INTEGER", "bigint": "INTEGER", "float": "DOUBLE", "double": "DOUBLE", "decimal": "DOUBLE",
    "date": "DATE", "time": "TIME", "datetime": "TIMESTAMP", "reference": "INTEGER", "big-reference": "INTEGER",
}  # fmt: skip
#: What most statements of this file are written for.
MYSQL = MySQL()
_quote = MYSQL.quote


def create_table(
    schema: TableSchema, topology: Topology, dialect: Dialect, parents: Mapping[str, TableSchema] | None = None
) -> Iterator[str]:
    """Yield the statements that create a table: its unique indexes too, and an index on its shard key.

    Args:
        schema: the table's schema.
        topology: which columns are looked up by.
        dialect: of the database.
        parents: the table that a reference gets a foreign key to, by the field's name; see `co_location.held`.

    Raises:
        PipelineError: a column has a type that cannot be created here.
    """
    parents = parents or {}
    parts = [column_sql(schema, column, topology, dialect, parents.get(column.name)) for column in schema.columns]
    if dialect.name == "mysql":
        parts += [foreign_key(schema, schema.columns[schema.index[field]], of) for field, of in parents.items()]
    lines = ",\n  ".join(parts)
    tail = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci" if dialect.name == "mysql" else ""
    yield f"CREATE TABLE IF NOT EXISTS {dialect.quote(schema.name_there)} (\n  {lines}\n){tail}"
    for index in indexes(schema, topology):
        yield create_index(schema, index, dialect)


class Index(NamedTuple):
    """An index of a table, its columns by their names in the model."""

    unique: bool
    fields: tuple[str, ...]


def indexes(schema: TableSchema, topology: Topology) -> list[Index]:
    """Return the indexes that a table needs: the unique ones of model and configuration, and those for look-ups.

    Args:
        schema: the table's schema.
        topology: the table's shard key and unique columns.
    """
    rules = topology.table(schema.name)
    unique = [*rules.unique, *((c.name,) for c in schema.columns if c.unique and (c.name,) not in rules.unique)]
    names = [c.name for c in schema.columns if c.type.startswith(("reference ", "big-reference "))]
    if rules.shard_key and rules.shard_key in schema.index and rules.shard_key != schema.id_name:
        names.append(rules.shard_key)
    leading = {fields[0] for fields in unique}
    plain = [(name,) for name in dict.fromkeys(names) if name not in leading]
    return [*(Index(True, fields) for fields in unique), *(Index(False, fields) for fields in plain)]


def create_index(schema: TableSchema, index: Index, dialect: Dialect) -> str:
    """Return the statement that creates an index. MySQL has no IF NOT EXISTS here, unlike MariaDB.

    Args:
        schema: the table's schema.
        index: what to create.
        dialect: of the database.
    """
    kind = "UNIQUE " if index.unique else ""
    name = dialect.quote(index_name(schema.name, "uk" if index.unique else "ix", index.fields))
    on = ", ".join(_quoted(schema, field, dialect) for field in index.fields)
    table = dialect.quote(schema.name_there)
    if dialect.name == "mysql":
        return f"CREATE {kind}INDEX {name} ON {table} ({on})"
    return f"CREATE {kind}INDEX IF NOT EXISTS {name} ON {table} ({on})"


def drop_index(schema: TableSchema, name: str, dialect: Dialect) -> str:
    """Return the statement that drops an index.

    Args:
        schema: the table's schema.
        name: the index.
        dialect: of the database.
    """
    table = dialect.quote(schema.name_there)
    if dialect.name == "mysql":
        return f"ALTER TABLE {table} DROP INDEX {dialect.quote(name)}"  # MariaDB's DROP INDEX takes no ALGORITHM
    return f"DROP INDEX {dialect.quote(name)}"


def column_sql(
    schema: TableSchema, column: Column, topology: Topology, dialect: Dialect, parent: TableSchema | None = None
) -> str:
    """Return a column as CREATE TABLE writes it.

    Args:
        schema: the table's schema.
        column: one of its columns.
        topology: which column is the shard key.
        dialect: of the database.
        parent: the table to which the column has a foreign key; SQLite takes it here or never.

    Raises:
        PipelineError: the column has a type that cannot be created here.
    """
    name, kind = _quoted(schema, column.name, dialect), column_type(schema, column, dialect)
    if column.name == schema.id_name:
        mysql = dialect.name == "mysql"
        return f"{name} {kind} {'NOT NULL AUTO_INCREMENT PRIMARY KEY' if mysql else 'PRIMARY KEY AUTOINCREMENT'}"
    key = f" {_references(column, parent, dialect)}" if parent and dialect.name == "sqlite" else ""
    exact = dialect.name == "mysql" and columns.text_key(schema, topology) == column
    return f"{name} {kind}{f' {columns.EXACT}' if exact else ''}{' NOT NULL' if column.notnull else ''}{key}"


def foreign_key(schema: TableSchema, column: Column, parent: TableSchema) -> str:
    """Return a foreign key as pyDAL writes it for MySQL and MariaDB: the server gives it a name.

    Args:
        schema: the table's schema.
        column: the column that refers.
        parent: the table that it refers to.
    """
    return f"FOREIGN KEY ({_quoted(schema, column.name, MYSQL)}) {_references(column, parent, MYSQL)}"


def add_foreign_key(schema: TableSchema, column: Column, parent: TableSchema) -> str:
    """Return the statement that gives a table of MySQL or MariaDB a foreign key.

    Args:
        schema, column, parent: as for `foreign_key`.
    """
    return f"ALTER TABLE {_quote(schema.name_there)} ADD {foreign_key(schema, column, parent)}"


def _references(column: Column, parent: TableSchema, dialect: Dialect) -> str:
    table = dialect.quote(parent.name_there)
    return f"REFERENCES {table} ({_quoted(parent, parent.id_name, dialect)}) ON DELETE {column.ondelete}"


def column_type(schema: TableSchema, column: Column, dialect: Dialect) -> str:
    """Return the type that a column is created with.

    Args:
        schema: the table's schema.
        column: one of its columns.
        dialect: of the database.

    Raises:
        PipelineError: the column has a type that cannot be created here.
    """
    mysql = dialect.name == "mysql"
    if column.name == schema.id_name:
        return "BIGINT" if mysql else "INTEGER"
    types = _MYSQL if mysql else _SQLITE
    family = "text" if column.type.startswith("list:") else column.type.split("(")[0].split()[0]
    if family not in types:
        raise PipelineError(f"{schema.name}.{column.name}: a column of type {column.type!r} cannot be created here")
    precision, scale = column.digits if family == "decimal" else (0, 0)
    return types[family].format(length=column.length or 512, p=precision, s=scale)


def index_name(table: str, kind: str, fields: tuple[str, ...]) -> str:
    """Return the name that an index gets.

    Args:
        table: the table's name in the model.
        kind: `uk` if the index is unique, `ix` if not.
        fields: the names of its columns in the model.
    """
    return f"{kind}_{table}_{'_'.join(fields)}"[:64]


def own_name(schema: TableSchema, field: str) -> str:
    """Return a field's name in the database.

    Args:
        schema: the table's schema.
        field: the field's name in the model.
    """
    return schema.columns[schema.index[field]].name_there


def _quoted(schema: TableSchema, field: str, dialect: Dialect) -> str:
    column = schema.columns[schema.index[field]]
    return dialect.quote(column.name_there)


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


def add_foreign_key_again(
    table: str, name: str, own: Iterable[str], parent: str, theirs: Iterable[str], rules: str
) -> str:
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
