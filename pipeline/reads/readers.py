"""Read-only connections to the nodes: a pyDAL DAL per node, a connection per thread, with no transaction left open.

Invariant: what a thread knows of a node's watermarks belongs to its one connection. A node that lost its last commits
has been restarted, so that connection is dead; the knowledge goes with it, and a read that relied on it fails.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.errors import ReadOnly, ShardUnavailable
from pipeline.op import Position
from pipeline.pydal_objects import real_name, rebuilt
from pipeline.reads.token import Need
from pipeline.schema import signature_of
from pipeline.shard import inquiry
from pipeline.shard.faults import connection_lost, refused_write, sentence_of
from pipeline.shard.session import Session

#: A connection that was idle for longer is tried before it is relied on, s.
IDLE_S = 1.0
#: Tables that are remembered: web2py makes its own anew at each request.
MOST_MET = 1000
#: pyDAL's own tenant filter would take the tenant of whoever defined the table here; see `Reader._filtered`.
NO_TENANT = "-"
#: How long a read may wait for a server to connect, and to answer, s.
CONNECT_S, STATEMENT_S = 1.0, 20.0


class _Known(threading.local):
    """What this thread knows of a node through its connection; `opened` counts the connections so far."""

    def __init__(self) -> None:
        self.opened = 0
        self.relied_on: int | None = None
        #: The tables that this thread's callers last came with, by name.
        self.callers: dict[str, Any] = {}
        self.forget()

    def forget(self) -> None:
        self.connected = False
        self.opened_at_s = self.used_at_s = 0.0
        self.marks: dict[int, Position] = {}
        self.sequences: dict[int, dict[int, int]] = {}


class Reader:
    """One node, for reading. Threads may share it."""

    def __init__(self, node: str, uri: str):
        self.node = node
        #: For the questions of `shard.inquiry`.
        self.session = Session(node, uri, read_only=True, autocommit=True, connect_s=CONNECT_S, statement_s=STATEMENT_S)
        self.db: Any = self.session.db
        self.adapter: Any = self.session.adapter
        self._known = _Known()
        self._lock = threading.Lock()
        self._defined: dict[str, tuple[Any, ...]] = {}
        self._met: dict[int, tuple[weakref.ref[Any], Any]] = {}
        self._statements: dict[str, _Statement] = {}
        self.db._request_tenant = NO_TENANT
        self._watch()

    # the connection -----------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Make sure that this thread's connection works; one that has died is replaced.

        Raises:
            ShardUnavailable: the node does not answer.
        """
        known = self._known
        if known.connected and clock.mono_s() - known.used_at_s < IDLE_S:
            return
        for again in (True, False):
            had = known.connected
            try:
                self.adapter.execute("SELECT 1")
                self.adapter.cursor.fetchall()
            except ShardUnavailable:
                if not (again and had):
                    raise
            else:
                return

    def rely(self, on: bool) -> None:
        """Let this thread's statements fail from now on if the connection has been replaced; or no longer."""
        self._known.relied_on = self._known.opened if on else None

    def discard(self) -> None:
        """Close this thread's connection."""
        self._known.forget()
        self.session.discard()

    # watermarks ---------------------------------------------------------------------------------------------

    def has(self, needs: Mapping[int, Need]) -> bool:
        """Whether this thread knows that the node has it all; asks nobody."""
        known, nothing = self._known, Position(-1, -1)
        return all(
            need.reached(known.marks.get(bucket, nothing), known.sequences.get(bucket, {}))
            for bucket, need in needs.items()
        )

    def look(self, needs: Mapping[int, Need]) -> bool:
        """Ask the node for the watermarks; return whether it has it all."""
        marks = self.marks(needs)
        asked = {b: need.asks_for(marks[b]) for b, need in needs.items() if b in marks and marks[b] >= need.position}
        pairs = [(bucket, producer) for bucket, sequences in asked.items() for producer in sequences]
        if pairs:
            found = inquiry.sequences(self.session, pairs)
            for (bucket, producer), seq in found.items():
                self._known.sequences.setdefault(bucket, {})[producer] = seq
        return self.has(needs)

    def marks(self, buckets: Iterable[int] | None = None) -> dict[int, Position]:
        """Ask the node for watermarks, some or all."""
        found = inquiry.marks_of(self.session, buckets)
        marks = {bucket: mark.position for bucket, mark in found.items()}
        self._known.marks.update(marks)
        return marks

    def connected_for_s(self) -> float:
        """Return the age of this thread's connection, s; 0 where there is none."""
        known = self._known
        return clock.mono_s() - known.opened_at_s if known.connected else 0.0

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query."""
        return self.session.rows(sql)

    @property
    def dialect(self) -> Any:
        """The pipeline's dialect of the node."""
        return self.session.dialect

    # tables -------------------------------------------------------------------------------------------------

    def table(self, table: Any) -> Any:
        """Return this node's own table for a table of the caller's DAL, defined when first asked for."""
        if table._db is self.db:
            return table
        self._known.callers[table._tablename] = table
        met = self._met.get(id(table))
        if met is not None and met[0]() is table:
            return met[1]
        own = self._define(table)
        if table._tablename != real_name(table):
            return own.with_alias(table._tablename)
        if len(self._met) >= MOST_MET:
            self._met.clear()
        self._met[id(table)] = (weakref.ref(table), own)
        return own

    def row(self, table: Any, row_id: int) -> Any:
        """Return one row by its id, or None.

        pyDAL takes as long to write the statement as the server to answer it, so it is written once per table.
        """
        own = self.table(table)
        if table._common_filter is not None or table._db._request_tenant in table.fields:
            return self.db(own._id == row_id).select().first()
        known = self._statements.get(own._tablename)
        if known is None or known.table is not own:
            known = self._statements[own._tablename] = _statement(self.adapter, own)
        found = self.rows(f"{known.head}{row_id}{known.tail}")
        return self.adapter.parse(found, known.fields, known.names).first() if found else None

    def own(self, part: Any) -> Any:
        """Return a query, field or expression of the caller's DAL as one of this node's."""
        return rebuilt(part, self.db, self.table)

    def _define(self, table: Any) -> Any:
        name, signature = real_name(table), signature_of(table)[1:]
        with self._lock:
            if self._defined.get(name) != signature:
                original = getattr(table._db, name, table) if table._tablename != name else table
                virtual = [_unbound(v) for v in (*original._virtual_fields, *original._virtual_methods)]
                options = {"rname": table._rname} if _given(table) else {}
                self.db.define_table(
                    name,
                    *[field.clone() for field in original],
                    *virtual,
                    migrate=False,
                    redefine=name in self._defined,
                    format=table._format,
                    **options,
                )
                self._defined[name] = signature
            return self.db[name]

    def _filtered(self, query: Any, tables: Iterable[Any]) -> Any:
        """Add the common filters of the caller's tables, as they are now: they may be this request's user's."""
        for table in tables:
            name = table if isinstance(table, str) else table._tablename
            caller = self._known.callers.get(name)
            if caller is None:
                continue
            extra = [caller._common_filter(query)] if caller._common_filter is not None else []
            tenant = caller._db._request_tenant
            if tenant in caller.fields and caller[tenant].default is not None:
                extra.append(caller[tenant] == caller[tenant].default)
            for part in extra:
                query = self.own(part) if query is None else query & self.own(part)
        return query

    # parts --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Note when a connection is made and used, and turn the driver's errors into ours, for every statement."""
        connecting, executing, known = self.adapter.after_connection, self.adapter.execute, self._known

        def after_connection() -> None:
            known.forget()
            known.opened += 1
            connecting()
            known.connected, known.opened_at_s = True, clock.mono_s()

        def execute(*args: Any, **kwargs: Any) -> Any:
            try:
                result = executing(*args, **kwargs)
            except Exception as error:
                raise self._translated(error) from error
            known.used_at_s = clock.mono_s()
            if known.relied_on is not None and known.relied_on != known.opened:
                raise ShardUnavailable(self.node, "the connection was replaced in the middle of a read")
            return result

        self.adapter.after_connection, self.adapter.execute = after_connection, execute
        self.adapter.common_filter = self._filtered

    def _translated(self, error: Exception) -> Exception:
        if refused_write(error):
            return ReadOnly(self.node, sentence_of(error))
        if connection_lost(error):
            self.discard()
            return ShardUnavailable(self.node, f"{type(error).__name__}: {sentence_of(error)}")
        return error


class Readers:
    """The readers of this process by node, made when first used, made anew after a fork.

    Args:
        uri: returns the address of a node.
    """

    def __init__(self, uri: Callable[[str], str]):
        self._uri = uri
        self._reset()

    def __getitem__(self, node: str) -> Reader:
        if self._pid != os.getpid():
            # the parent's sockets are not ours to use, nor to close
            self._reset()
        reader = self._readers.get(node)
        if reader is None:
            with self._lock:
                reader = self._readers.get(node)
                if reader is None:
                    reader = self._readers[node] = Reader(node, self._uri(node))
        return reader

    def close(self) -> None:
        """Close this thread's connections."""
        if self._pid == os.getpid():
            for reader in list(self._readers.values()):
                reader.discard()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._readers: dict[str, Reader] = {}


class _Statement(NamedTuple):
    """The select of one row of a table: its id goes between head and tail."""

    table: Any
    head: str
    tail: str
    fields: list[Any]
    names: list[str]


def _statement(adapter: Any, table: Any) -> _Statement:
    fields = list(table)
    names, sql = adapter._select_wcols(table._id == 0, fields)
    head, _, tail = sql.rpartition("0")
    return _Statement(table, head, tail, fields, names)


def _given(table: Any) -> bool:
    return bool(table._rname) and table._rname.strip("\"'`[]") != real_name(table)


def _unbound(virtual: Any) -> Any:
    """Return a virtual field or method that another table may take."""
    free = copy.copy(virtual)
    if hasattr(free, "tablename"):
        free.tablename = None
    return free
