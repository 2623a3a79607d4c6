"""Read, compare, copy, write and delete rows of one shard as they are stored, by ranges of their ids.

Copy a bucket's rows from one shard to another: of tables of the application, and of the pipeline's own.
The caller holds the bucket's watermark on the source, so that no worker changes a row meanwhile. Values are read as the
driver gives them and written as literals: both shards have the same tables.

A digest is over values as they are stored, whatever collations say. Floats count with all their digits, and NULL is no
empty text. Sessions are set so that a row is written as it was read. These settings concern zero dates, the id 0, rows
whose parents are not there yet, and moments in UTC.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from math import copysign, isfinite
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.model.schema import TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.columns import DatabaseColumn, columns_of, indexes_of, own_columns, own_tables
from pipeline.shard.records import text_literal
from pipeline.shard.table_facts import pragma, rows_about, sees_triggers

#: Rows that are read at once, and the size of one statement, characters.
ROWS, STATEMENT = 1_000, 500_000
#: What the pipeline keeps of a bucket. What its log has lost is told by the shard that found it.
OF_BUCKET = ("pipeline_watermarks", "pipeline_producers", "pipeline_idempotency", "pipeline_rejects", "pipeline_held")
#: What goes along with a bucket that moves. Its watermark is written by itself.
GOES_ALONG = (*OF_BUCKET[1:], "pipeline_ids", "pipeline_lost", "pipeline_forged", "pipeline_actions")
#: The longest statement, seconds, and how many rows one transaction writes or deletes at most.
LONGEST_S, WRITE_ROWS = 10, 500
#: What MySQL writes as one text without a comma, and always the same for the same value.
_PLAIN = ("tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "double", "date", "time", "year")
_AS_IT_IS = (
    # kept once per connection: a statement that was interrupted leaves these settings as they are
    "SET @pipeline_mode = COALESCE(@pipeline_mode, @@sql_mode), @pipeline_zone = COALESCE(@pipeline_zone, @@time_zone),"
    " SESSION time_zone = '+00:00', SESSION foreign_key_checks = 0, SESSION sql_mode = "
    "'STRICT_TRANS_TABLES,NO_BACKSLASH_ESCAPES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION'"
)
_AS_BEFORE = "SET SESSION time_zone = @pipeline_zone, SESSION sql_mode = @pipeline_mode, SESSION foreign_key_checks = 1"


def copy_table(source: NodeSession, target: NodeSession, table: str, columns: Sequence[str], id_name: str) -> int:
    """Copy all rows of a table by its id; return how many. Both sessions are inside a transaction.

    Args:
        source: of the shard that has them.
        target: of the shard that gets them.
        table: its name in the database.
        columns: their names in the database.
        id_name: the name of the id column among them.
    """
    quote = source.dialect.quote
    name = quote(table)
    listed, at = ", ".join(map(quote, columns)), [column.lower() for column in columns].index(id_name.lower())
    behind, copied = "", 0
    while rows := source.rows(f"SELECT {listed} FROM {name}{behind} ORDER BY {quote(id_name)} LIMIT {ROWS}"):
        insert(target, name, ", ".join(map(target.dialect.quote, columns)), rows)
        behind, copied = f" WHERE {quote(id_name)} > {int(rows[-1][at])}", copied + len(rows)
    return copied


def copy_records(source: NodeSession, target: NodeSession, bucket: int, tables: Sequence[str] = OF_BUCKET) -> None:
    """Copy what the pipeline keeps of a bucket. Both sessions are inside a transaction.

    Args:
        source: of the shard that has it.
        target: of the shard that gets it; what it has of the bucket goes.
        bucket: its number.
        tables: which of the pipeline's own tables.
    """
    for table in tables:
        target.execute(f"DELETE FROM {table} WHERE bucket = {bucket}")
        columns, rows = records_of(source, table, bucket)
        if rows:
            insert(target, table, columns, rows)


def records_of(session: NodeSession, table: str, bucket: int, which: str = "") -> tuple[str, list[tuple[Any, ...]]]:
    """Return what one of the pipeline's own tables keeps of a bucket: the columns, and the rows.

    Args:
        session: inside a transaction.
        table: its name.
        bucket: which.
        which: a further condition, beginning with AND.
    """
    creates = dict(own_tables(session.dialect.name))
    # a number that the database gives counts for one shard only
    columns = ", ".join(name for name in own_columns(creates[table]) if name != "id")
    return columns, session.rows(f"SELECT {columns} FROM {table} WHERE bucket = {bucket}{which}")


@contextmanager
def unordered(session: NodeSession) -> Iterator[None]:
    """Let rows be written before those that they refer to: tables may refer to themselves, or to each other.

    Args:
        session: inside a transaction.
    """
    mysql = session.dialect.name == "mysql"
    session.execute("SET SESSION foreign_key_checks = 0" if mysql else "PRAGMA defer_foreign_keys = ON")
    yield
    if mysql:  # after an error the connection goes
        session.execute("SET SESSION foreign_key_checks = 1")


def literal(value: object) -> str:
    """Return a value of the driver as SQL; a session with NO_BACKSLASH_ESCAPES reads it back as it was."""
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return repr(int(value))
        case float():  # 18 digits: see `literals`; SQLite alone has infinite ones
            return f"{value:.17e}" if isfinite(value) else f"{copysign(9, value)}e999"
        case Decimal():
            return f"{value:f}"
        case bytes() | bytearray() | memoryview():
            return f"X'{bytes(value).hex()}'"
        case datetime():
            return f"'{value.isoformat(' ')}'"
        case date() | time():
            return f"'{value.isoformat()}'"
        case timedelta():
            return f"'{_clock(value)}'"
    return text_literal(str(value))


def _mysql(value: object) -> str:
    """Return `literal`, but of bytes in fewer characters than two each: a value may fill most of a packet."""
    if not isinstance(value, bytes):
        return literal(value)
    try:
        return f"_binary{text_literal(value.decode())}"
    except UnicodeDecodeError:
        return f"FROM_BASE64('{b64encode(value).decode()}')"


def _clock(value: timedelta) -> str:
    """Return MySQL's TIME, which PyMySQL reads as a timedelta."""
    micros = abs(value) // timedelta(microseconds=1)
    minutes, seconds = divmod(micros // 1_000_000, 60)
    sign = "-" if value < timedelta() else ""
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}:{seconds:02}.{micros % 1_000_000:06}"


def insert(target: NodeSession, name: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
    """Insert at least one row, in statements of a bounded size.

    Args:
        target: inside a transaction.
        name: the table, quoted.
        columns: the columns, quoted.
        rows: their values, as the driver gave them.
    """
    write = _mysql if target.dialect.name == "mysql" else literal
    statement: list[str] = []
    size = 0
    for row in rows:
        text = f"({', '.join(map(write, row))})"
        if statement and size + len(text) > STATEMENT:
            target.execute(f"INSERT INTO {name} ({columns}) VALUES {', '.join(statement)}")
            statement, size = [], 0
        statement.append(text)
        size += len(text)
    target.execute(f"INSERT INTO {name} ({columns}) VALUES {', '.join(statement)}")


def copied_columns(source: NodeSession, target: NodeSession, schema: TableSchema) -> list[DatabaseColumn]:
    """Return the columns of a table that are copied from one shard to another: all but generated ones.

    Args:
        source: of the shard that has the rows; like *target* outside a transaction, which a query would end.
        target: of the shard that gets them.
        schema: the table's definition.

    Raises:
        PipelineError: the tables cannot be compared row by row, with what to change.
    """
    table, id_name = schema.name_there, id_column(schema)
    for session in (source, target):
        if _primary(session, table) != (id_name.lower(),):
            raise PipelineError(f"{table}.{id_name} on {session.node} is not the primary key: make it that, alone")
    here, there = _stored(source, table), _stored(target, table)
    if unlike := _unlike(here, there):
        raise PipelineError(
            f"table {table!r} differs on {source.node} and {target.node} in {unlike}: run pipeline migrate, or ALTER "
            "TABLE on one of them"
        )
    with target.translated():
        seen = sees_triggers(target)
    if not seen:
        raise PipelineError(
            f"the user of {target.node} may not see the triggers of table {table!r} on {target.node}, which would act "
            "again on rows that are copied: GRANT it TRIGGER on the database"
        )
    for name in _triggers(target, table):
        raise PipelineError(
            f"the trigger {name} of table {table!r} on {target.node} would act again on rows that are copied: drop it "
            "there until the move is over"
        )
    return here


class Row(NamedTuple):
    """What distinguishes a row from another: a digest of its values, and about how many bytes these have."""

    digest: str
    bytes: int


class RangeTotal(NamedTuple):
    """What distinguishes two ranges of rows: how many they are, and a checksum; and about how many bytes they have."""

    rows: int
    checksum: object
    bytes: int


class StoredIds:
    """The ids of a table's rows for which a condition holds, on one shard."""

    def __init__(self, session: NodeSession, table: str, id_name: str, condition_sql: str):
        self.session, self._condition = session, condition_sql
        self._name, self._table, self._id = table, session.dialect.quote(table), session.dialect.quote(id_name)

    def end(self, after: int | None, rows: int) -> int | None:
        """Return the id of the last of the next rows, of all that the table has; None where there are fewer."""
        self.session.limit_statements(LONGEST_S)
        where = "" if after is None else f" WHERE {self._id} > {after}"
        sql = f"SELECT {self._id} FROM {self._table}{where} ORDER BY {self._id} LIMIT 1 OFFSET {rows - 1}"
        found = self.session.rows(sql)
        return int(found[0][0]) if found else None

    def about(self) -> int:
        """Return about how many rows the table has in all."""
        sql = f"SELECT COUNT(*) FROM {self._table}"
        if self.session.dialect.name == "mysql":  # whose count reads the whole index
            sql = f"SELECT table_rows FROM information_schema.tables WHERE {rows_about([self._name])}"
        return int(self.session.rows(sql)[0][0] or 0)

    def ids(self, after: int | None, upto: int | None) -> list[int]:
        """Return the ids in a range."""
        sql = f"SELECT {self._id} FROM {self._table} WHERE {self._between(after, upto)}"
        return [int(id) for (id,) in self.session.rows(sql)]

    def having(self, ids: Iterable[int]) -> list[int]:
        """Return those of some ids for which there is a row."""
        found = (
            f"SELECT {self._id} FROM {self._table} WHERE {self._among(some)} AND ({self._condition})"
            for some in _batches(ids)
        )
        return [int(id) for sql in found for (id,) in self.session.rows(sql)]

    def delete(self, ids: Sequence[int]) -> None:
        """Delete rows by their ids, so that no other row is locked."""
        for some in _batches(ids):
            with written(self.session):
                self.session.execute(f"DELETE FROM {self._table} WHERE {self._among(some)}")

    def _between(self, after: int | None, upto: int | None) -> str:
        above = [] if after is None else [f"{self._id} > {after}"]
        below = [] if upto is None else [f"{self._id} <= {upto}"]
        return " AND ".join((*above, *below, f"({self._condition})"))

    def _among(self, ids: Sequence[int]) -> str:
        return f"{self._id} IN ({', '.join(map(str, ids))})"


class StoredRows(StoredIds):
    """The rows of a table for which a condition holds, on one shard."""

    def __init__(
        self, session: NodeSession, schema: TableSchema, columns: Sequence[DatabaseColumn], condition_sql: str
    ):
        super().__init__(session, schema.name_there, id_column(schema), condition_sql)
        quote, mysql = session.dialect.quote, session.dialect.name == "mysql"
        self._names = ", ".join(quote(column.name) for column in columns)
        self._values = ", ".join(_value(quote(column.name), column, mysql) for column in columns)
        if mysql:
            digest = f"MD5(CONCAT_WS(',', {', '.join(_digest(quote(column.name), column) for column in columns)}))"
            self._total = "BIT_XOR(CAST(CONV(LEFT(d, 16), 16, 10) AS UNSIGNED))"
        else:
            digest = " || ',' || ".join(f"QUOTE({quote(column.name)})" for column in columns)
            self._total = "GROUP_CONCAT(d, ';')"
        size = " + ".join(f"COALESCE(LENGTH({quote(column.name)}), 0)" for column in columns)
        self._each = f"SELECT {self._id} AS k, {digest} AS d, {size} AS s FROM {self._table}"

    def total(self, after: int | None, upto: int | None) -> RangeTotal:
        """Return the count, the bytes and the checksum of the rows in a range."""
        each = f"{self._each} WHERE {self._between(after, upto)} ORDER BY {self._id}"
        [(rows, size, checksum)] = self.session.rows(
            f"SELECT COUNT(*), SUM(s), {self._total} FROM ({each}) AS each_row"
        )
        return RangeTotal(int(rows), checksum, int(size or 0))

    def each(self, after: int | None, upto: int | None) -> dict[int, Row]:
        """Return the digest and the bytes of each row in a range, by its id."""
        rows = self.session.rows(f"{self._each} WHERE {self._between(after, upto)} ORDER BY {self._id}")
        return {int(id): Row(digest, int(size)) for id, digest, size in rows}

    def read(self, ids: Sequence[int]) -> list[tuple[object, ...]]:
        """Return rows by their ids."""
        with as_it_is(self.session):
            return self.session.rows(f"SELECT {self._values} FROM {self._table} WHERE {self._among(ids)}")

    def insert(self, rows: Sequence[Sequence[object]]) -> None:
        """Insert rows in a transaction of their own."""
        with written(self.session):
            insert(self.session, self._table, self._names, rows)


@contextmanager
def as_it_is(session: NodeSession) -> Iterator[None]:
    """Let values be read and written as they are stored. After an error the connection goes, and its settings."""
    mysql = session.dialect.name == "mysql"
    if mysql:
        session.execute(_AS_IT_IS)
    yield
    if mysql:
        session.execute(_AS_BEFORE)


@contextmanager
def written(session: NodeSession) -> Iterator[None]:
    """Run a transaction in which foreign keys neither refuse nor delete; SQLite takes that only before it begins."""
    sqlite = session.dialect.name == "sqlite"
    try:
        if sqlite:
            session.execute("PRAGMA foreign_keys = OFF")
        with session.transaction(), as_it_is(session):
            yield
    finally:
        if sqlite:
            session.execute("PRAGMA foreign_keys = ON")


def _value(name: str, column: DatabaseColumn, mysql: bool) -> str:
    """Return the SQL that reads a value: with all digits of a float, without what pyDAL makes of SQLite's dates."""
    if not mysql:
        return f"+{name}"
    return f"{name} + 0e0" if column.type.startswith("float") else name


def _digest(name: str, column: DatabaseColumn) -> str:
    """Return MySQL's SQL of a text without a comma for a value; a text in UTF-8 whatever its column's charset is."""
    if column.type.startswith("float"):
        return f"IFNULL({name} + 0e0, 'N')"
    if column.type.startswith(_PLAIN):
        return f"IFNULL({name}, 'N')"
    return f"IFNULL(MD5({f'CONVERT({name} USING utf8mb4)' if column.charset else name}), 'N')"


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(ids)
    while some := list(islice(rest, WRITE_ROWS)):
        yield some


def _stored(session: NodeSession, table: str) -> list[DatabaseColumn]:
    """Return a table's columns, without those that the database computes."""
    found = columns_of(session, table)
    if session.dialect.name == "sqlite":  # which does not list them
        return found
    computed = session.query(
        f"SELECT column_name FROM information_schema.columns WHERE {rows_about([table])} AND extra LIKE '% GENERATED%'"
    )
    return [column for column in found if (column.name,) not in computed]


def _unlike(here: Sequence[DatabaseColumn], there: Sequence[DatabaseColumn]) -> str:
    """Return which columns two tables do not share, as a list; their order may differ."""
    mine, theirs = ({(column.name.lower(), column.type) for column in columns} for columns in (here, there))
    return ", ".join(sorted({name for name, _ in mine ^ theirs}))


def _primary(session: NodeSession, table: str) -> tuple[str, ...]:
    """Return the columns of a table's primary key, in lower case."""
    if session.dialect.name == "sqlite":
        rows = session.query(pragma(session.dialect, table, "table_info"))
        return tuple(str(row[1]).lower() for row in rows if row[5])
    return next((index.columns for index in indexes_of(session, table) if index.name == "PRIMARY"), ())


def _triggers(session: NodeSession, table: str) -> list[str]:
    """Return the triggers of a table, of those that the user may see."""
    if session.dialect.name == "sqlite":
        found = session.query("SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger'")
        return [name for owner, name in found if owner.lower() == table.lower()]
    of_table = f"event_object_schema = DATABASE() AND event_object_table = {text_literal(table)}"
    found = session.query(f"SELECT trigger_name FROM information_schema.triggers WHERE {of_table}")
    return [str(name) for (name,) in found]


def id_column(schema: TableSchema) -> str:
    """Return the name of a table's id in the database."""
    return schema.columns[schema.id_index].name_there
