"""Find what a shard has and the newest definition no longer needs. Nothing is run here.

Only what an older definition asked for is dropped or narrowed: a column that no definition ever named belongs to
somebody else. The shard keeps every definition that was migrated, with the time when it first was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.admin.migration.definitions import Named
from pipeline.admin.migration.steps import Fault, Step, modify, table_name, table_sql
from pipeline.errors import PipelineError
from pipeline.model.schema import TableSchema
from pipeline.shard import ddl
from pipeline.shard.columns import DatabaseColumn, columns_of, indexes_of
from pipeline.shard.records import ledger_queries
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import constraints_of
from pipeline.shard.widening import Widening, plain_type, widening


class Known(NamedTuple):
    """A definition that the shard keeps, and when it first did; 0 for before that was noted."""

    schema: TableSchema
    kept_ms: int


def known_definitions(session: NodeSession) -> dict[str, list[Known]]:
    """Return the definitions that a shard keeps, by the table's name in the model.

    Args:
        session: of the shard's primary.
    """
    found: dict[str, list[Known]] = {}
    for text, kept_ms in ledger_queries.kept_schemas(session):
        schema = TableSchema.from_json(text)
        found.setdefault(schema.name, []).append(Known(schema, kept_ms))
    return found


def contract(
    session: NodeSession, shard: str, schema: TableSchema, known: list[Known], queued: Named
) -> Iterator[Step | Fault]:
    """Yield what an older definition asked for and the newest does not: columns, lengths, room for NULL.

    Args:
        session: of the shard's primary.
        shard: its name.
        schema: the table's newest definition.
        known: all definitions of the table that the shard keeps.
        queued: what is not applied yet.
    """
    there = {column.name.lower(): column for column in columns_of(session, table_name(schema))}
    older = [one for one in known if one.schema.hash != schema.hash]
    found = [*_dropped(session, shard, schema, older, there), *_narrowed(session, shard, schema, older, there)]
    since_ms = next((one.kept_ms for one in known if one.schema.hash == schema.hash), None)
    if not found:
        return
    if waiting := queued.of(schema.name, but=schema.hash):
        yield Fault(shard, schema.name, f"{waiting} ops that are not applied yet name an older definition: {_WAIT}")
    elif since_ms is not None and any(one.kept_ms > since_ms for one in older):
        yield Fault(shard, schema.name, _RETURNED)
    else:
        yield from found


_WAIT = "wait for the queue, replay or drop what was set aside (pipeline dead list), and run migrate --contract again"
_RETURNED = (
    "the definition that was published last is an older one: a process of the release before has published it. Restart "
    "that process with the newest model; if the old model is back for good, drop the column by hand"
)


def _dropped(
    session: NodeSession, shard: str, schema: TableSchema, older: list[Known], there: dict[str, DatabaseColumn]
) -> Iterator[Step]:
    """Yield the columns of older definitions that the newest lacks. An index on one is dropped first, never cut."""
    named = {name for one in older for name in _own_names(one.schema)}
    gone = [there[name] for name in sorted(named - _own_names(schema)) if name in there]
    names, table = {column.name.lower() for column in gone}, table_sql(session, schema)
    with session.translated():
        keys = constraints_of(session, table_name(schema)).parents if gone else ()
    for key in keys if session.dialect.name == "mysql" else ():
        if names & {name.lower() for name in key.columns}:
            sql = f"ALTER TABLE {table} DROP FOREIGN KEY {session.dialect.quote(key.name)}"
            yield Step(shard, f"{schema.name}: drop foreign key {key.name}", sql, table, contracts=True)
    for index in indexes_of(session, table_name(schema)) if gone else ():
        if names & set(index.columns) and index.name != "PRIMARY":
            sql = ddl.drop_index(schema, index.name, session.dialect)
            yield Step(shard, f"{schema.name}: drop index {index.name}", sql, table, contracts=True)
    for column in gone:
        sql = f"ALTER TABLE {table} DROP COLUMN {session.dialect.quote(column.name)}"
        yield Step(shard, f"{schema.name}.{column.name}: drop column", sql, table, contracts=True)


def _narrowed(
    session: NodeSession, shard: str, schema: TableSchema, older: list[Known], there: dict[str, DatabaseColumn]
) -> Iterator[Step | Fault]:
    """Yield columns that are as wide as an older definition asked for. SQLite cuts nothing, and needs none of it."""
    for column in schema.columns if session.dialect.name == "mysql" else ():
        found = there.get(ddl.own_name(schema, column.name).lower())
        if found is None or column.name == schema.id_name:
            continue
        wanted, asked = _type(schema, column.name), {_type(one.schema, column.name) for one in older}
        kind = plain_type(found.type)
        # what the server would round or cut without a word stays as wide as it is: that holds everything
        exact = widening(wanted, kind) is Widening.EXACT and widening(kind, wanted) is Widening.NARROWS
        narrows = kind != wanted and kind in asked and exact
        closes = found.nullable and column.notnull
        place, own = f"{schema.name}.{column.name}", session.dialect.quote(found.name)
        if narrows and (why := _cannot_narrow(session, schema, own, wanted)):
            yield Fault(shard, place, why)
        elif closes and _any(session, schema, f"{own} IS NULL"):
            yield Fault(shard, place, "rows without a value stand: fill them, and run migrate --contract again")
        elif narrows or closes:
            sql = modify(session, schema, found, wanted if narrows else found.type, null=False if closes else None)
            change = " and ".join([f"{kind} to {wanted}"] * narrows + ["NOT NULL"] * closes)
            yield Step(shard, f"{place}: {change}", sql, table_sql(session, schema), contracts=True)


def _cannot_narrow(session: NodeSession, schema: TableSchema, own: str, wanted: str) -> str:
    """Return which values do not fit. The server itself refuses them, but for blanks at the end of a text."""
    length = wanted.partition("(")[2].rstrip(")")
    if wanted.startswith("varchar") and _any(session, schema, f"CHAR_LENGTH({own}) > {length}"):
        return f"values are longer than {length}: shorten them, and run migrate --contract again"
    return ""


def _any(session: NodeSession, schema: TableSchema, where: str) -> bool:
    return bool(session.query(f"SELECT 1 FROM {table_sql(session, schema)} WHERE {where} LIMIT 1"))


def _own_names(schema: TableSchema) -> set[str]:
    return {ddl.own_name(schema, column.name).lower() for column in schema.columns}


def _type(schema: TableSchema, field: str) -> str:
    """Return the type that a definition creates a column with; empty where it does not have it."""
    if field not in schema.index:
        return ""
    try:
        return ddl.column_type(schema, schema.columns[schema.index[field]], ddl.MYSQL).lower()
    except PipelineError:
        return ""
