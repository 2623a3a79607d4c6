"""Copy a bucket's rows from one shard to another: of tables of the application, and of the pipeline's own.

The caller holds the bucket's watermark on the source, so that no worker changes a row meanwhile. Values are read as the
driver gives them and written as literals: both shards have the same tables.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import copysign, isfinite
from typing import Any

from pipeline.shard.records.ledger import text_literal
from pipeline.shard.records.own_tables import own_columns, own_tables
from pipeline.shard.session import NodeSession

#: Rows that are read at once, and the size of one statement, characters.
ROWS, STATEMENT = 1_000, 500_000
#: What the pipeline keeps of a bucket. What its log has lost is told by the shard that found it.
OF_BUCKET = ("pipeline_watermarks", "pipeline_producers", "pipeline_idempotency", "pipeline_rejects", "pipeline_held")
#: What goes along with a bucket that moves. Its watermark is written by itself.
GOES_ALONG = (*OF_BUCKET[1:], "pipeline_ids", "pipeline_lost", "pipeline_forged", "pipeline_actions")


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
