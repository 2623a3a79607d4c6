"""Write the SQL that creates an application's tables; nothing is run here.

Tables have bigint ids, utf8mb4, InnoDB and exact types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pipeline.config.topology import Topology
from pipeline.errors import PipelineError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import columns
from pipeline.shard.dialect import Dialect, MySQL

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
