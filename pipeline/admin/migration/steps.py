"""Find what a shard lacks of the published definitions: tables, columns, room, indexes, foreign keys; run nothing.

Every step expands: whatever fitted before it fits after it. What cannot be done that way is a fault that says what to
do, and keeps no other step.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.config import Topology
from pipeline.errors import PipelineError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession, ddl
from pipeline.shard.co_location import in_database, refused
from pipeline.shard.columns import (
    EXACT,
    DatabaseColumn,
    Widening,
    columns_of,
    holds_64_bits,
    indexes_of,
    is_view,
    plain_type,
    refused_type,
    tells_apart,
    text_key,
    type_fault,
    widening,
)
from pipeline.shard.ddl import ignore_it
from pipeline.shard.table_facts import constraints_of

#: Where the definition does not say otherwise, a MODIFY keeps this of a column.
_NOT_NULL = " NOT NULL"
#: What SHOW CREATE TABLE says of a text, right behind its type.
_COLLATED = re.compile(r"^( CHARACTER SET \w+)?( COLLATE \w+)?")


class Step(NamedTuple):
    """One statement on one shard.

    Attributes:
        shard: the shard's name.
        what: the table, column, index or buckets that the statement makes.
        sql: the statement.
        table: the application's table that stands and is altered, as SQL; empty where nothing waits for the statement.
        contracts: whether the statement drops or narrows.
    """

    shard: str
    what: str
    sql: str
    table: str = ""
    contracts: bool = False


class Fault(NamedTuple):
    """What no step mends, on one shard: the sentence says why, and what to do."""

    shard: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.what}: {self.why}"


def expand(
    session: NodeSession,
    shard: str,
    schemas: Sequence[TableSchema],
    topology: Topology,
    held: Mapping[str, Mapping[str, TableSchema]],
) -> Iterator[Step | Fault]:
    """Yield what the published tables lack; a foreign key that needs a later table comes when all are there.

    Args:
        session: of the shard's primary.
        shard: its name.
        schemas: the newest definitions, parents first.
        topology: which columns are looked up by.
        held: by table, what its references may refer to with a foreign key, by the field's name.
    """
    later, created = {}, set[str]()
    for schema in schemas:
        there, parents = columns_of(session, table_name(schema)), held[schema.name]
        created |= set() if there else {schema.name}
        # SQLite takes a foreign key with its column only
        first = {
            field: parent
            for field, parent in parents.items()
            if session.dialect.name == "sqlite" or (not there and _ready(session, parent, created))
        }
        later[schema.name] = {field: parent for field, parent in parents.items() if field not in first}
        yield from _table(session, shard, schema, topology, first)
    for schema in schemas if session.dialect.name == "mysql" else ():
        yield from _missing_keys(session, shard, schema, later[schema.name])


def _ready(session: NodeSession, parent: TableSchema, created: Container[str]) -> bool:
    stands = bool(columns_of(session, table_name(parent)))
    return parent.name in created or (stands and _fits(session, parent))


def _table(
    session: NodeSession, shard: str, schema: TableSchema, topology: Topology, parents: Mapping[str, TableSchema]
) -> Iterator[Step | Fault]:
    """Yield what one table lacks: all of it, or columns, room and indexes; `parents` get a foreign key with it."""
    for column in schema.columns:
        if column.parent and (why := refused(column)):
            yield Fault(shard, f"{schema.name}.{column.name}", f"no foreign key is created: {why}")
    there = {column.name.lower(): column for column in columns_of(session, table_name(schema))}
    if there and is_view(session, table_name(schema)):
        yield Fault(shard, schema.name, f"is a view, and rows are written to its tables: {ignore_it(schema.name)}")
        return
    if not there:
        try:
            statements = list(ddl.create_table(schema, topology, session.dialect, parents))
        except PipelineError as error:
            yield Fault(shard, schema.name, f"{error}: give the field another type; or {ignore_it(schema.name)}")
            return
        yield from (Step(shard, schema.name, sql) for sql in statements)
        return
    for column in schema.columns:
        own = ddl.own_name(schema, column.name)
        yield from _column(session, shard, schema, column, there.get(own.lower()), topology, parents)
    yield from _indexes(session, shard, schema, topology)


def table_name(schema: TableSchema) -> str:
    """Return a table's name as its model writes it.

    Args:
        schema: the table's definition.
    """
    return schema.name_there


def table_sql(session: NodeSession, schema: TableSchema) -> str:
    """Return a table's name as SQL.

    Args:
        session: of the node.
        schema: the table's definition.
    """
    return session.dialect.quote(schema.name_there)


def modify(
    session: NodeSession,
    schema: TableSchema,
    column: DatabaseColumn,
    kind: str,
    *,
    null: bool | None,
    exact: bool = False,
) -> str:
    """Return the MODIFY that gives a column another type and keeps all else: default, collation, comment.

    Args:
        session: of the primary, MySQL or MariaDB.
        schema: the table's definition.
        column: the column as it is.
        kind: the new type.
        null: whether the column may be NULL; None to leave that.
        exact: whether the column gets the collation of a shard key.
    """
    rest = definition(session, schema, column)[len(column.type) :]
    if exact:
        rest = f" {EXACT}{_COLLATED.sub('', rest, count=1)}"
    if null is not None:
        rest = rest.replace(_NOT_NULL, "", 1).replace(" DEFAULT NULL", "", 1) + ("" if null else _NOT_NULL)
    return f"ALTER TABLE {table_sql(session, schema)} MODIFY {session.dialect.quote(column.name)} {kind.upper()}{rest}"


def definition(session: NodeSession, schema: TableSchema, column: DatabaseColumn) -> str:
    """Return a column as SHOW CREATE TABLE has it, behind its name.

    Args:
        session: of the primary, MySQL or MariaDB.
        schema: the table's definition.
        column: the column as it is.
    """
    shown = str(session.query(f"SHOW CREATE TABLE {table_sql(session, schema)}")[0][1])
    name = f"{session.dialect.quote(column.name)} "
    lines = (line.strip() for line in shown.splitlines())
    found = next((line for line in lines if line.startswith(name)), name + column.type)
    return found.removeprefix(name).rstrip(",")


def _column(
    session: NodeSession,
    shard: str,
    schema: TableSchema,
    column: Column,
    there: DatabaseColumn | None,
    topology: Topology,
    parents: Mapping[str, TableSchema],
) -> Iterator[Step | Fault]:
    place, table = f"{schema.name}.{column.name}", table_sql(session, schema)
    try:
        wanted = ddl.column_type(schema, column, session.dialect)
        sql = ddl.column_sql(schema, column, topology, session.dialect, parents.get(column.name))
    except PipelineError as error:
        if there is None:
            yield Fault(shard, place, f"{error}: give the field another type, or take it out of the model")
        return
    if there is None:
        if column.notnull or column.name == schema.id_name:
            yield Fault(shard, place, _NEW_NOT_NULL if column.notnull else _NEW_ID)
        else:
            yield Step(shard, f"{place}: new column", f"ALTER TABLE {table} ADD COLUMN {sql}", table)
    elif session.dialect.name == "mysql":
        yield from _room(session, shard, schema, column, there, wanted.lower(), topology)


_NEW_NOT_NULL = (
    "rows that stand would get a value that nobody gave, and queued inserts without the new column would wait. "
    "Release it with notnull=False, fill the rows, then set notnull=True and run pipeline migrate --contract"
)
_NEW_ID = "the table stands without its id column; see pipeline adopt"


def _room(
    session: NodeSession,
    shard: str,
    schema: TableSchema,
    column: Column,
    there: DatabaseColumn,
    wanted: str,
    topology: Topology,
) -> Iterator[Step | Fault]:
    """Yield what makes a column hold all that its definition promises."""
    place, is_id = f"{schema.name}.{column.name}", column.name == schema.id_name
    if is_id:
        narrow = topology.table(schema.name).ids == "pipeline" and not holds_64_bits(there.type)
    else:
        narrow = type_fault(column, there.type) is not None
    if narrow and widening(there.type, wanted) is not Widening.EXACT:
        yield Fault(shard, place, refused_type(there.type, wanted))
        return
    # NOT NULL with a default was made by hand; without one it is what migrate makes
    opens = not (there.nullable or column.notnull or is_id)
    opens = opens and " DEFAULT " not in definition(session, schema, there)
    loose = text_key(schema, topology) == column and not tells_apart(there.collation)
    if narrow or opens or loose:
        kind = wanted if narrow else there.type
        sql = modify(session, schema, there, kind, null=True if opens else None, exact=loose)
        change = f"{there.type} to {kind}" if narrow else "may be NULL" if opens else f"{there.collation} to {EXACT}"
        yield Step(shard, f"{place}: {change}", sql, table_sql(session, schema))


def _indexes(session: NodeSession, shard: str, schema: TableSchema, topology: Topology) -> Iterator[Step]:
    """Yield the indexes that a killed run or a new rule left out."""
    there = indexes_of(session, table_name(schema))
    for index in ddl.indexes(schema, topology):
        wanted = tuple(ddl.own_name(schema, field).lower() for field in index.fields)
        unique = any(found.unique and set(found.columns) == set(wanted) for found in there)
        leading = not index.unique and any(found.columns[: len(wanted)] == wanted for found in there)
        if not (unique or leading):
            kind = "unique index" if index.unique else "index"
            what = f"{schema.name}: {kind} on {', '.join(index.fields)}"
            yield Step(shard, what, ddl.create_index(schema, index, session.dialect), table_sql(session, schema))


def _missing_keys(
    session: NodeSession, shard: str, schema: TableSchema, parents: Mapping[str, TableSchema]
) -> Iterator[Step]:
    """Yield the foreign keys that a table lacks. Where rows refer already, none: some may refer to rows that are gone.

    pyDAL as well adds a foreign key with its column only. `check` names those that are not there.
    """
    name, quote = table_name(schema), session.dialect.quote
    there = {column.name.lower(): column for column in columns_of(session, name)}
    with session.translated():
        keyed = {key.columns for key in constraints_of(session, name).parents} if there else set()
    for field, parent in parents.items():
        own = in_database(schema, field)
        found = there.get(own.lower())
        alike = _fits(session, parent) and not (found and "unsigned" in found.type)
        if (own,) in keyed or not alike or (found and has_rows(session, schema, f"WHERE {quote(own)} IS NOT NULL")):
            continue
        table = table_sql(session, schema)
        sql = ddl.add_foreign_key(schema, schema.columns[schema.index[field]], parent)
        busy = bool(there) and has_rows(session, schema)
        yield Step(shard, f"{schema.name}.{field}: foreign key to {parent.name}", sql, table if busy else "")


def has_rows(session: NodeSession, schema: TableSchema, where: str = "") -> bool:
    """Return whether a table has any row, or one that a condition names.

    Args:
        session: of the shard's primary.
        schema: of the table.
        where: the condition, as SQL with its `WHERE`; empty: any row.
    """
    return bool(session.query(f"SELECT 1 FROM {table_sql(session, schema)} {where} LIMIT 1"))


def _fits(session: NodeSession, parent: TableSchema) -> bool:
    """Return whether a table's id, if the table is there, has the type of the columns that refer to it."""
    there = {column.name.lower(): column for column in columns_of(session, table_name(parent))}
    found = there.get(in_database(parent, parent.id_name).lower())
    return found is None or plain_type(found.type) == "bigint"
