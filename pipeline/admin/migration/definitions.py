"""Know which published definitions are in use, withdraw one, and find what a shard has that none needs any more.

An op names its definition until it is applied: in a log, or where a shard has set it aside.

Find what a shard has and the newest definition no longer needs. Nothing is run here.
Only what an older definition asked for is dropped or narrowed: a column that no definition ever named belongs to
somebody else. The shard keeps every definition that was migrated, with the time when it first was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.admin.migration.steps import Fault, Step, has_rows, modify, table_name, table_sql
from pipeline.client import Client
from pipeline.errors import NewerOp, NotAnOp, PipelineError, did_you_mean
from pipeline.model import Position, decode
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession, ddl
from pipeline.shard.columns import DatabaseColumn, Widening, columns_of, indexes_of, plain_type, widening
from pipeline.shard.records import ledger_queries, text_literal
from pipeline.shard.records.set_aside import ASIDE
from pipeline.shard.table_facts import constraints_of

#: Entries of one bucket that are read at once: an op may have megabytes.
STEP = 100
_WAIT = "wait for the queue, replay or drop what was set aside (pipeline dead list), and run migrate --contract again"
_RETURNED = (
    "the definition that was published last is an older one: a process of the release before has published it. Restart "
    "that process with the newest model; if the old model is back for good, drop the column by hand"
)


class Published(NamedTuple):
    """One table's newest definition.

    Attributes:
        table: its name in the model.
        hash: of the definition.
        fields: how many fields it has.
        queued: how many ops that are not applied name the table.
        older: how many of them name an older definition.
    """

    table: str
    hash: str
    fields: int
    queued: int
    older: int


def definitions(pipeline: Client) -> list[Published]:
    """Return every published table by its name.

    Args:
        pipeline: the deployment.
    """
    named, found = queued_definitions(pipeline), []
    for table, text in sorted(pipeline.log.newest_schemas().items()):
        schema = TableSchema.from_json(text)
        queued, older = named.of(table), named.of(table, but=schema.hash)
        found.append(Published(table, schema.hash, len(schema.columns), queued, older))
    return found


def forget(pipeline: Client, table: str) -> None:
    """Withdraw a table's definition: `migrate` and `check` pass it over. Ops that name it are still understood.

    Args:
        pipeline: the deployment.
        table: its name in the model.

    Raises:
        PipelineError: no such table is published, or ops that are not applied name it.
    """
    published = pipeline.log.newest_schemas()
    if table not in published:
        raise PipelineError(f"no table {table!r} is published{did_you_mean(table, published)}")
    if waiting := queued_definitions(pipeline).of(table):
        raise PipelineError(
            f"{waiting} ops that are not applied name {table!r}: wait for the queue, replay or drop what was set aside "
            "(pipeline dead list), then forget the table"
        )
    pipeline.log.withdraw_schema(table)


class Named(Counter[tuple[str, str]]):
    """How many ops name a (table, hash of its definition)."""

    def of(self, table: str, *, but: str = "") -> int:
        """Return how many ops name a table.

        Args:
            table: its name in the model.
            but: the hash of a definition that does not count.
        """
        return sum(count for (name, hash), count in self.items() if name == table and hash != but)


def queued_definitions(pipeline: Client) -> Named:
    """Return which definitions ops name that may still be applied on any shard.

    Args:
        pipeline: its logs are read behind the watermarks of its primaries.

    Raises:
        ShardUnavailable: a primary did not answer.
    """
    named = Named()
    for shard in pipeline.topology.shards:
        session = pipeline.nodes.primary(shard)
        if columns_of(session, "pipeline_watermarks"):
            marks = ledger_queries.positions_of(session)
            for payload in (*_unapplied(pipeline, marks), *_set_aside(session)):
                named.update(_names(payload))
    return named


def _unapplied(pipeline: Client, marks: dict[int, Position]) -> Iterator[bytes]:
    """Yield the entries behind the watermarks, a few of each bucket at a time."""
    after = {bucket: marks[bucket] for bucket, count in pipeline.log.queued(marks).items() if count}
    while after:
        read = pipeline.log.read(after, dict.fromkeys(after, STEP))
        after = {bucket: entries[-1].position for bucket, entries in read.items() if entries}
        for entries in read.values():
            yield from (entry.payload for entry in entries)


def _set_aside(session: NodeSession) -> list[bytes]:
    """Return the ops that may be replayed: their payloads are kept with the reason."""
    states = ", ".join(map(text_literal, ASIDE))
    found = session.query(f"SELECT op FROM pipeline_rejects WHERE state IN ({states})")
    return [str(op).encode() for (op,) in found]


def _names(payload: bytes) -> set[tuple[str, str]]:
    try:
        return {(op.table, op.schema) for op in decode(payload).named}
    except (NotAnOp, NewerOp):
        return set()  # it is shown as a reject, and can name nothing here


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
        elif closes and has_rows(session, schema, f"WHERE {own} IS NULL"):
            yield Fault(shard, place, "rows without a value stand: fill them, and run migrate --contract again")
        elif narrows or closes:
            sql = modify(session, schema, found, wanted if narrows else found.type, null=False if closes else None)
            change = " and ".join([f"{kind} to {wanted}"] * narrows + ["NOT NULL"] * closes)
            yield Step(shard, f"{place}: {change}", sql, table_sql(session, schema), contracts=True)


def _cannot_narrow(session: NodeSession, schema: TableSchema, own: str, wanted: str) -> str:
    """Return which values do not fit. The server itself refuses them, but for blanks at the end of a text."""
    length = wanted.partition("(")[2].rstrip(")")
    if wanted.startswith("varchar") and has_rows(session, schema, f"WHERE CHAR_LENGTH({own}) > {length}"):
        return f"values are longer than {length}: shorten them, and run migrate --contract again"
    return ""


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
