"""Open one node's database session: pyDAL's connection, pinned to settings under which nothing is bent or cut.

pyDAL replaces MySQL's `sql_mode` after every connect (strict mode off). So a session sets its own mode after pyDAL's.
pyDAL also leaves an idle reader frozen in its snapshot, so every read or write ends its transaction.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydal import DAL

from pipeline.config.settings import redact
from pipeline.errors import NotMigrated, PipelineError, ShardUnavailable, Unavailable
from pipeline.events import Event
from pipeline.per_process import numbers, with_own_names
from pipeline.shard.dialect import Dialect, dialect_of
from pipeline.shard.driver_errors import LEFT_OUT, NOT_THE_PRIMARY, Fault, code_of, fault_of, row_in, sentence_of

#: Seconds until a server without an answer counts as away.
CONNECT_S, STATEMENT_S = 3, 20
#: The same where a person waits for the answer, s.
BRIEF_CONNECT_S, BRIEF_STATEMENT_S = 2, 3
#: MySQL's CLIENT.FOUND_ROWS: an UPDATE counts the rows that it found, not only the rows that it changed.
_FOUND_ROWS = 2
#: The most statements that are kept back to be sent together: where one waits for a lock, each of the others waits too.
MOST_KEPT = 12
logger = logging.getLogger("pipeline.shard")


class Unanswered(PipelineError):
    """What is kept back, to be sent together, needs an answer first; nothing of it was sent."""

    retryable = True


class _Here(threading.local):
    """What one thread keeps back; None: nothing is kept back."""

    kept: list[str] | None = None


class NodeSession:
    """A connection per thread and process to one node; it reconnects by itself after a failure.

    Args:
        node: its name, for messages: `s0`, `s0-r1`.
        uri: pyDAL's URI.
        read_only: refuse every write on the server.
        connect_s: the longest connect, seconds.
        statement_s: the longest wait for the answer to a statement, seconds.
        autocommit: leave no transaction open after a statement: for readers, which would otherwise freeze in a
            snapshot.
    """

    def __init__(
        self,
        node: str,
        uri: str,
        *,
        read_only: bool = False,
        autocommit: bool = False,
        connect_s: float = CONNECT_S,
        statement_s: float = STATEMENT_S,
    ):
        self.node, self.read_only, self.autocommit = node, read_only, autocommit
        #: Whether the node was away, or refused a write as a replica, since a caller last reset this flag.
        self.suspect = False
        self._statement_bytes = 0
        self._limit_s: float | None = None
        self._ignores: bool | None = None
        #: Numbers of errors of which the server names no row.
        self._silent_codes: set[int] = set()
        self._here = _Here()
        self.dialect: Dialect = dialect_of(uri)
        self.db = DAL(
            self.dialect.uri(uri),
            pool_size=0,
            migrate=False,
            migrate_enabled=False,
            attempts=1,
            bigint_id=True,
            check_reserved=None,
            driver_args=self.dialect.driver_args(connect_s, statement_s, _FOUND_ROWS)
            | (self.dialect.autocommit if autocommit else {}),
        )
        self.adapter: Any = self.db._adapter
        self._take_over()

    def _take_over(self) -> None:
        """Let pyDAL's adapter keep no statements, close nothing by itself, and prepare each connection of its own."""
        self.adapter._clean_tlocals()
        self.adapter.__class__ = with_own_names(self.adapter.__class__)
        self.adapter.number = next(numbers)
        self.adapter.set_connection(None)  # as pyDAL leaves a new one, for `DAL.close`
        # pyDAL's handler keeps the last 100 statements of each thread: a gigabyte where ops have 10 MB
        self.adapter.execution_handlers = []
        pydals_own = self.adapter.after_connection
        # a request's end closes every DAL that web2py first saw in its thread; this DAL outlives requests
        self._close, self.adapter.close = self.adapter.close, lambda *args, **options: None

        def after_connection() -> None:
            pydals_own()
            self._statement_bytes, self._limit_s, self._ignores = 0, None, None
            for name, function in self.dialect.functions.items():
                self.adapter.connection.create_function(name, 1, function, deterministic=True)
            for sql in self.dialect.session(self.read_only):
                self.adapter.execute(sql)

        self.adapter.after_connection = after_connection
        if (connect := self.dialect.connect) is not None:
            self.adapter.connector = lambda: connect(self.adapter.driver_args)

    def execute(self, sql: str) -> int:
        """Run a statement and return the rows that it found. The driver's errors pass through: the applier judges them.

        Args:
            sql: one statement.
        """
        if (kept := self._here.kept) is not None:
            if len(kept) == MOST_KEPT:
                raise Unanswered(sql)
            kept.append(sql)
            return 0
        self.adapter.execute(sql)
        return int(self.adapter.cursor.rowcount)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query inside the open transaction.

        Args:
            sql: one SELECT.

        Raises:
            Unanswered: statements before it are kept back.
        """
        if self._here.kept is not None:
            raise Unanswered(sql)
        self.adapter.execute(sql)
        return list(self.adapter.cursor.fetchall())

    def ask(self, *statements: str) -> list[list[tuple[Any, ...]]]:
        """Run statements inside the open transaction, in one round trip where the driver can; return the rows of each.

        Args:
            statements: a few, whose rows are whole numbers and texts. Where one fails, those behind it may be done.

        Raises:
            Unanswered: statements before them are kept back.
        """
        if self._here.kept is not None:
            raise Unanswered(statements[0])
        ask = getattr(self.adapter.connection, "ask", None)
        return [self.rows(sql) for sql in statements] if ask is None else ask(statements)

    def execute_each(self, statements: Sequence[str]) -> Sequence[Exception | None]:
        """Run statements inside the open transaction, in one round trip where the driver can; return why each failed.

        Args:
            statements: some, of which none needs what another does.

        Raises:
            Unanswered: statements before them are kept back.
            Exception: the driver's own; it is unknown which statements were done.
        """
        if self._here.kept is not None:
            raise Unanswered(statements[0])
        execute_each = getattr(self.adapter.connection, "execute_each", None)
        return [self._failure(sql) for sql in statements] if execute_each is None else execute_each(statements)

    def takes_several(self) -> bool:
        """Return whether the node answers statements that are sent together, or its driver never sends them so."""
        probe = getattr(self.adapter.connection, "takes_several", None)
        try:
            return probe is None or bool(probe())
        except Exception:  # the driver's connection has noted why, and is broken
            self.discard()
            return False

    def _failure(self, sql: str) -> Exception | None:
        try:
            self.execute(sql)
        except Exception as error:
            return error
        return None

    @property
    def answered(self) -> int:
        """How many statements of the last `ask` were answered before the first that failed; -1: that is not known."""
        return int(getattr(self.adapter.connection, "answered", -1))

    @contextmanager
    def kept_back(self) -> Iterator[list[str]]:
        """Keep back what this thread executes, and yield the list of it, to be sent with `ask` behind the block.

        Raises:
            Unanswered: something needs an answer, or there are more than `MOST_KEPT` statements.
        """
        kept = self._here.kept = list[str]()
        try:
            yield kept
        finally:
            self._here.kept = None

    def statement_bytes(self) -> int:
        """Return the size of the largest statement that the server takes; read once per connection."""
        if self._statement_bytes == 0:
            self._statement_bytes = self.dialect.statement_bytes(self.rows)
        return self._statement_bytes

    def limit_statements(self, longest_s: float) -> None:
        """Let the server interrupt statements of this connection, where the server can.

        Args:
            longest_s: the longest statement, seconds.
        """
        sql = self.dialect.limits(longest_s) if self._limit_s != longest_s else None
        if sql is not None:
            self.execute(sql)
            self._limit_s = longest_s

    def last_ids(self, rows: int) -> tuple[int, int]:
        """Return the first id that the last INSERT, of so many *rows*, was given, and the step to the next."""
        return self.dialect.last_ids(self.rows, rows)

    def bad_row(self, error: Exception) -> int | None:
        """Return which row of the last statement the server refused, from 1, as far as the server says so.

        Args:
            error: of the statement; nothing else has been sent since.
        """
        code = code_of(error)
        if code is None or fault_of(error) not in (Fault.PERMANENT, Fault.UNKNOWN):
            return None
        row = row_in(error)
        if row is None and code not in self._silent_codes:
            row = self._told_row()
            if row is None:
                self._silent_codes.add(code)
        return row

    def may_ignore(self) -> bool:
        """Return whether `insert_ignoring` is of use; asked once per connection."""
        if self._ignores is None:
            self._ignores = self.dialect.may_ignore(self.rows)
        return self._ignores

    def insert_ignoring(self, sql: str, table: str, rows: int) -> list[int] | None:
        """Run an `INSERT IGNORE`, and return the rows that the server has left out, from 1, in order.

        A statement that ignores errors also changes what does not fit. The answer counts where each warning is of a row
        that is not there, and says that the row was left out. Triggers may have seen that row.

        Args:
            sql: the statement.
            table: its name in the database, as a literal.
            rows: how many the statement has.

        Returns:
            None: something else has happened; roll back to the savepoint `pipeline_ignored`.

        Raises:
            Exception: the driver's own; roll back to that savepoint, if the transaction is still there.
        """
        _, _, [(made, warned)], _, [(text, triggers)] = self.ask(
            "SAVEPOINT pipeline_ignored", sql, *self.dialect.ignored(table)
        )
        numbers = [int(number) for number in text.split()]
        codes, ignored = {*numbers[::2]}, sorted({*numbers[1::2]})
        if triggers or len(numbers) != 2 * warned or not codes <= LEFT_OUT or made + len(ignored) != rows:
            return None
        return ignored

    def marked_ids(self, statements: Sequence[int]) -> list[int | None]:
        """Return of marked INSERTs the last marked id that the server came to, if any; see `Dialect.mark`.

        Args:
            statements: their numbers, as in their marks.
        """
        if not statements:
            return []
        marks = [self.dialect.mark.format(number) for number in statements]
        [[found]] = self.ask(f"SELECT {', '.join(marks)}")
        return list(found)

    def _told_row(self) -> int | None:
        try:
            return self.dialect.bad_row(self.rows)
        except Exception as error:
            if fault_of(error) is Fault.PERMANENT:  # MySQL knows no such word: 1064, a syntax error
                return None
            raise

    @contextmanager
    def transaction(self) -> Iterator[NodeSession]:
        """Commit at the end, or roll back and let the error through.

        Raises:
            ShardUnavailable: no connection, or the answer to COMMIT was lost; the watermark shows whether it happened.
        """
        self._open()
        try:
            yield self
        except BaseException as error:
            self.suspect |= code_of(error) in NOT_THE_PRIMARY
            if isinstance(error, PipelineError) and not isinstance(error, Unavailable):
                self._roll_back()  # it ends in an orderly way, and is perhaps run again at once
            else:
                self.discard()
            raise
        try:
            self.adapter.commit()
        except Exception as error:
            self.suspect = True
            self.discard()
            raise ShardUnavailable(self.node, f"the answer to COMMIT was lost ({sentence_of(error)})") from error

    @contextmanager
    def snapshot(self) -> Iterator[NodeSession]:
        """Show the database as it is now for as long as this lasts; the connection is closed at the end."""
        with self.translated():
            for sql in self.dialect.snapshot:
                self.adapter.execute(sql)
        try:
            yield self
        finally:
            self.discard()

    def _roll_back(self) -> None:
        try:
            self.adapter.rollback()
        except Exception:
            self.discard()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query in a transaction of its own.

        Args:
            sql: one SELECT.

        Raises:
            ShardUnavailable: the node did not answer in time.
            NotMigrated: a table of the pipeline is missing.
        """
        with self.translated():
            for again in (True, False):
                try:
                    found = self.rows(sql)
                    if not self.autocommit:
                        self.adapter.rollback()
                except Exception as error:
                    self.discard()
                    # an idle connection may have broken long ago: one retry on a new connection
                    if again and fault_of(error) is Fault.TRANSIENT:
                        continue
                    raise
                return found
        raise AssertionError

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except Exception as error:
            if type(error).__module__.startswith("pipeline."):
                raise
            if fault_of(error) is Fault.SCHEMA and "pipeline_" in str(error):
                raise NotMigrated(self.node, sentence_of(error)) from error
            self.suspect = True
            raise ShardUnavailable(self.node, f"{type(error).__name__}: {sentence_of(error)}") from error

    def discard(self) -> None:
        """Close this thread's connection, rolling back; the next use opens another."""
        try:
            self._close("rollback")
        except Exception as error:
            logger.debug(Event("connection_dropped", node=self.node, error=error))

    def _open(self) -> None:
        """Begin; a connection that broke while idle is replaced once."""
        if getattr(self.adapter.connection, "begins_itself", False):
            return
        with self.translated():
            try:
                self.adapter.execute(self.dialect.begin)
            except Exception as error:
                self.discard()
                if fault_of(error) in (Fault.SCHEMA, Fault.PERMANENT) or "locked" in str(error):
                    raise
                self.adapter.execute(self.dialect.begin)

    def __repr__(self) -> str:
        return f"<Session {self.node} {redact(str(self.db._uri))}>"


@contextmanager
def brief(
    node: str, uri: str, *, read_only: bool = True, statement_s: float = BRIEF_STATEMENT_S
) -> Iterator[NodeSession]:
    """Yield a session of a node for a person who waits; its connection is closed at the end.

    Args:
        node: its name, for messages.
        uri: pyDAL's URI.
        read_only: whether the server refuses every write.
        statement_s: the longest wait for the answer to a statement, seconds.
    """
    session = NodeSession(node, uri, read_only=read_only, connect_s=BRIEF_CONNECT_S, statement_s=statement_s)
    try:
        yield session
    finally:
        session.discard()
