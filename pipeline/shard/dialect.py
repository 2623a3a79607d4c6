"""Hold what differs between the databases beyond what pyDAL's own `expand` does: a dialect per engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar
from zlib import crc32

from pipeline.config.uris import UTC, zone_of
from pipeline.shard.mysql_connection import Endpoint

#: How long a statement of the pipeline waits for a lock, seconds.
LOCK_WAIT_S = 1
#: Of so many rows that `INSERT IGNORE` leaves out the server says why.
MOST_WARNINGS = 1_000
#: Runs a query inside the open transaction.
Rows = Callable[[str], list[tuple[Any, ...]]]


def _crc32(value: object) -> int | None:
    """Return MySQL's CRC32: of the bytes of a blob or of a text in UTF-8, and of the digits of a number."""
    if value is None:
        return None
    return crc32(value if isinstance(value, bytes) else str(value).encode())


class MySQL:
    """MySQL and MariaDB.

    Args:
        endpoint: what to connect to; None where only SQL is wanted.
        zone: the time zone of sessions.
    """

    name = "mysql"
    begin = "START TRANSACTION"
    #: Begin a transaction that sees the database as it is at this moment.
    snapshot = (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    )
    #: Behind a SELECT of watermark rows: lock what is free, skip what another worker holds.
    lock = " FOR UPDATE SKIP LOCKED"
    #: Behind a SELECT whose rows must not change before the transaction ends.
    hold = " FOR UPDATE"
    #: What an INSERT of a given number assigns ids to: it tells to which row the server came where the statement fails.
    #: Each row costs 0.4 µs in a statement of 100, and 5 µs in one of 1,000: the server looks for it among all others.
    mark = "@pipeline_id_{}"
    #: The server's clock in ms, in whatever time zone the session is.
    now_ms = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000"
    #: The driver's argument that ends a transaction with each statement.
    autocommit: ClassVar[dict[str, Any]] = {"autocommit": True}
    #: Whether the server refuses writes, as a replica does; None where the engine has no such setting.
    read_only: str | None = "@@global.read_only"
    #: The name that the server itself gives to the database, whatever address leads to it.
    own_name = "CONCAT('mysql ', @@hostname, ':', @@port, ' ', DATABASE())"
    #: The size of the largest statement that old and new connections may send.
    most_bytes = "LEAST(@@max_allowed_packet, @@global.max_allowed_packet)"
    #: The server has what the pipeline uses.
    functions: ClassVar[dict[str, Any]] = {}

    def __init__(self, endpoint: Endpoint | None = None, zone: str = UTC):
        self.endpoint, self.zone = endpoint, zone

    def uri(self, uri: str) -> str:
        """Return what pyDAL reads in place of *uri*: without a password, which pyDAL would show and not decode."""
        return self.endpoint.uri if self.endpoint else uri

    def driver_args(self, connect_s: float, statement_s: float, found_rows: int) -> dict[str, Any]:
        """Return the driver's arguments.

        Args:
            connect_s: the longest connect, seconds.
            statement_s: the longest wait for an answer, seconds.
            found_rows: the client flag by which an UPDATE counts the rows that it found.
        """
        return {
            "connect_timeout": connect_s,
            "read_timeout": statement_s,
            "write_timeout": statement_s,
            "client_flag": found_rows,
        }

    def connect(self, args: dict[str, Any]) -> Any:
        """Return a new connection.

        Args:
            args: the driver's arguments, pyDAL's and ours.
        """
        if self.endpoint is None:
            raise ValueError("no address to connect to")
        return self.endpoint.connect(args)

    def session(self, read_only: bool) -> Sequence[str]:
        """Return the statements to run after each connect, after pyDAL's own.

        The session is strict, so that the server refuses what does not fit. Double quotes are quotes of texts, which
        `statements.rows_of` counts on.

        Args:
            read_only: whether the server refuses writes in this session.
        """
        modes = "STRICT_TRANS_TABLES,NO_BACKSLASH_ESCAPES,ERROR_FOR_DIVISION_BY_ZERO,NO_ZERO_DATE,NO_ZERO_IN_DATE"
        statements = [
            f"SET SESSION sql_mode='{modes},NO_ENGINE_SUBSTITUTION', max_error_count={MOST_WARNINGS}",
            f"SET SESSION time_zone='{self.zone}'",
            self.limits(None),
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        ]
        return [*statements, "SET SESSION TRANSACTION READ ONLY"] if read_only else statements

    def limits(self, statement_s: float | None) -> str:
        """Return the statement that limits how long later statements may take, and how long they wait for locks.

        A lock of a row or of a table's definition is waited for briefly: what waits keeps others waiting. MySQL limits
        only SELECT, and takes the rest for a comment.

        Args:
            statement_s: the longest statement, seconds; None: only the driver's time-out ends a statement.
        """
        most = f"/*M! , max_statement_time={statement_s} */" if statement_s else "/*M! , max_statement_time=0 */"
        return f"SET SESSION innodb_lock_wait_timeout={LOCK_WAIT_S}, lock_wait_timeout={LOCK_WAIT_S} {most}"

    def quote(self, name: str) -> str:
        """Return the identifier *name* in quotes."""
        return f"`{name.replace('`', '``')}`"

    def statement_bytes(self, rows: Rows) -> int:
        """Return the size of the largest statement that the server takes.

        Args:
            rows: runs a query inside the open transaction.
        """
        return int(rows("SELECT @@max_allowed_packet")[0][0])

    def last_ids(self, rows: Rows, count: int) -> tuple[int, int]:
        """Return the first id of the last INSERT, and the step to the next id.

        LAST_INSERT_ID is the first; a simple INSERT's ids are consecutive in lock modes 1 and 2.

        Args:
            rows: runs a query inside the open transaction.
            count: how many rows the INSERT had.
        """
        first, step = rows("SELECT LAST_INSERT_ID(), @@auto_increment_increment")[0]
        return int(first), int(step)

    def bad_row(self, rows: Rows) -> int | None:
        """Return which row of the last statement was refused, from 1, or None: MariaDB 10.7 knows, but for a trigger.

        Args:
            rows: runs a query inside the open transaction.
        """
        ask = "GET DIAGNOSTICS CONDITION 1 @pipeline_row = ROW_NUMBER"
        return int(rows(f"BEGIN NOT ATOMIC {ask}; SELECT @pipeline_row; END")[0][0] or 0) or None

    def may_ignore(self, rows: Rows) -> bool:
        """Return whether the server says of each row why `INSERT IGNORE` left it out, and replicas get rows.

        MariaDB 10.7 does. A replica that gets statements would leave out what the replica refuses, and go on.

        Args:
            rows: runs a query inside the open transaction.
        """
        return bool(rows("SELECT 0 /*M!100700 + (NOT @@log_bin OR @@binlog_format = 'ROW') */")[0][0])

    def ignored(self, table: str) -> Sequence[str]:
        """Return what asks, behind an `INSERT IGNORE`, how many rows there are, of what the server has warned, and how
        many triggers have seen what was left out.

        Args:
            table: its name in the database, as a literal.
        """
        return (
            "SELECT ROW_COUNT(), @@warning_count",
            "BEGIN NOT ATOMIC"
            " DECLARE code, nth INT; DECLARE at, many INT DEFAULT 1; DECLARE found LONGTEXT DEFAULT '';"
            " GET DIAGNOSTICS many = NUMBER;"
            " WHILE at <= many DO"
            " GET DIAGNOSTICS CONDITION at code = MYSQL_ERRNO, nth = ROW_NUMBER;"
            " SET found = CONCAT(found, code, ' ', nth, ' '), at = at + 1;"
            " END WHILE;"
            " SET @pipeline_ignored = found; END",
            "SELECT @pipeline_ignored, COUNT(*) FROM information_schema.triggers WHERE"
            f" event_object_schema = DATABASE() AND event_object_table = {table}"
            " AND event_manipulation = 'INSERT'",
        )

    def on_conflict(self, key: Iterable[str], renew: Iterable[str]) -> str:
        """Return the tail that makes an INSERT an upsert.

        MySQL takes whichever unique key matches; the applier lets only one exist.

        Args:
            key: the columns of the unique key, quoted.
            renew: the columns that an existing row takes over, quoted.
        """
        sets = ", ".join(f"{name}=VALUES({name})" for name in renew) or "{0}={0}".format(next(iter(key)))
        return f" ON DUPLICATE KEY UPDATE {sets}"

    def in_order(self, name: str, ids: str) -> str:
        """Return the tail by which an UPDATE or a DELETE meets its rows in a given order.

        Args:
            name: the id column, quoted.
            ids: in this order, separated by commas.
        """
        return f" ORDER BY FIELD({name}, {ids})"

    def concat(self, left: str, right: str) -> str:
        """Return the SQL that joins the texts *left* and *right*."""
        return f"CONCAT({left}, {right})"

    def divide(self, left: str, right: str) -> str:
        """Return the SQL that divides *left* by *right*, and fails on zero."""
        return f"({left} / {right})"

    def same(self, name: str, literal: str, *, text: bool) -> str:
        """Return the SQL of whether a column holds exactly a value, NULL too. To a collation `a` may be `A`.

        Args:
            name: the column, quoted.
            literal: the value as SQL.
            text: whether to compare byte by byte.
        """
        return f"CAST({name} AS BINARY) <=> CAST({literal} AS BINARY)" if text else f"{name} <=> {literal}"

    def weight(self, text: str) -> tuple[str, str] | None:
        """Return SQL of the bytes by which *text* compares, and of the bytes that pad the shorter of two texts.

        The padding is NULL where the collation does not pad. An empty text of the column has the column's collation, so
        the server itself says whether that pads.
        """
        empty = f"LEFT({text}, 0)"
        space = f"CONCAT({empty}, ' ')"
        return f"WEIGHT_STRING({text})", f"IF({space} = {empty}, WEIGHT_STRING({space}), NULL)"


class SQLite:
    """SQLite, for development, tests and the demo; each method as in `MySQL`. SQLite has one writer at a time."""

    name = "sqlite"
    begin = "BEGIN IMMEDIATE"
    snapshot = ("BEGIN", "SELECT 1 FROM sqlite_master LIMIT 1")
    lock = hold = mark = ""
    now_ms = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
    autocommit: ClassVar[dict[str, Any]] = {"isolation_level": None}
    read_only: str | None = None
    own_name = "''"
    most_bytes = "1000000"
    #: What connections get beside SQLite's own functions, by name: of one value, NULL gives NULL.
    functions: ClassVar[dict[str, Any]] = {"CRC32": _crc32}
    #: pyDAL's own way to connect serves.
    connect: None = None

    def uri(self, uri: str) -> str:
        """Return *uri* as it is."""
        return uri

    def driver_args(self, connect_s: float, statement_s: float, found_rows: int) -> dict[str, Any]:
        """Return *connect_s* as the time-out for the write lock; *statement_s* and *found_rows* do nothing."""
        return {"timeout": connect_s}

    def session(self, read_only: bool) -> Sequence[str]:
        """Return the statements to run after each connect; *read_only* makes SQLite refuse writes."""
        statements = ["PRAGMA journal_mode=wal", "PRAGMA synchronous=FULL"]
        return ["PRAGMA query_only=1"] if read_only else statements

    def limits(self, statement_s: float | None) -> None:
        """Do nothing."""

    def quote(self, name: str) -> str:
        """Return the identifier *name* in quotes."""
        return '"' + name.replace('"', '""') + '"'

    def statement_bytes(self, rows: Rows) -> int:
        """Return SQLite's own default limit; *rows* is not used."""
        return 1_000_000

    def last_ids(self, rows: Rows, count: int) -> tuple[int, int]:
        """Return the first of *count* ids, and 1, from *rows* of last_insert_rowid, the last one. One writer makes them
        consecutive.
        """
        return int(rows("SELECT last_insert_rowid()")[0][0]) - count + 1, 1

    def bad_row(self, rows: Rows) -> int | None:
        """Return None: SQLite names no row, so *rows* is not used."""
        return None

    def may_ignore(self, rows: Rows) -> bool:
        """Return False: SQLite gives no warnings, so *rows* is not used."""
        return False

    def ignored(self, table: str) -> Sequence[str]:
        """Return nothing to ask; *table* is not used."""
        return ()

    def on_conflict(self, key: Iterable[str], renew: Iterable[str]) -> str:
        """Return the tail by which an INSERT that meets *key* sets *renew*, all quoted."""
        sets = ", ".join(f"{name}=excluded.{name}" for name in renew)
        return f" ON CONFLICT ({', '.join(key)}) DO {f'UPDATE SET {sets}' if sets else 'NOTHING'}"

    #: SQLite is usually built without the clause: it meets rows as it likes.
    in_order: None = None

    def concat(self, left: str, right: str) -> str:
        """Return the SQL that joins the texts *left* and *right*."""
        return f"({left} || {right})"

    def divide(self, left: str, right: str) -> str:
        """Return the SQL that divides *left* by *right*. SQLite divides integers without their rest; MySQL does not."""
        return f"(CAST({left} AS REAL) / {right})"

    def same(self, name: str, literal: str, *, text: bool) -> str:
        """Return the SQL of whether *name* holds exactly *literal*. A *text* names its collation: a column may have
        NOCASE.
        """
        return f"{name} IS {literal} COLLATE BINARY" if text else f"{name} IS {literal}"

    def weight(self, text: str) -> tuple[str, str] | None:
        """Return None: each *text* compares by code point."""
        return None


#: SQL of one engine.
Dialect = MySQL | SQLite


def dialect_of(uri: str) -> Dialect:
    """Return the dialect that a pyDAL URI names.

    Args:
        uri: the database's address, or its scheme with a colon.

    Raises:
        ValueError: an engine that this package does not speak yet.
    """
    scheme = uri.split(":", 1)[0]
    if scheme == "mysql":
        return MySQL(Endpoint(uri) if "://" in uri else None, zone_of(uri)[1])
    if scheme == "sqlite":
        return SQLite()
    raise ValueError(f"databases of type {scheme!r} are not supported: use mysql:pymysql:// or sqlite://")
