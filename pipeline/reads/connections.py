"""Connect to the nodes for reading: a pyDAL DAL per node, a connection per thread, with no transaction left open.

Invariant: what a thread knows of a node's watermarks belongs to its one connection. A node that lost its last commits
has been restarted, so that connection is dead. The thread forgets what it knew, and a read that relied on it fails.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.bounds import keep_newest
from pipeline.config.settings import TableSettings
from pipeline.errors import BadRead, ReadOnly, ShardUnavailable
from pipeline.model import Position
from pipeline.model.schema import schema_of
from pipeline.per_process import PerProcess
from pipeline.reads import Need
from pipeline.reads.node_tables import MOST_MET, NodeTables
from pipeline.reads.onward import Onward
from pipeline.shard import NodeSession
from pipeline.shard.co_location import key_sql
from pipeline.shard.dialect import Dialect
from pipeline.shard.driver_errors import connection_lost, refused_write, sentence_of
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import ASIDE_IN, ledger_queries, moves
from pipeline.shard.records.moves import Leg, Seat

#: A connection that was idle for longer is tried before it is relied on, s.
IDLE_S = 1.0
#: Every server takes a statement of so many characters: the smallest default of `max_allowed_packet` was 1 MB.
UNCHECKED_CHARACTERS = 250_000
#: How long a read may wait for a server to connect, and to answer, s.
CONNECT_S, STATEMENT_S = 1.0, 20.0
#: Producers of one bucket whose sequences a thread remembers: each process that ever wrote there has its own.
MOST_PRODUCERS = 1000
_NOWHERE = Position(-1, -1)


class _Known(threading.local):
    """What this thread knows of a node through its connection; `opened` counts the connections so far."""

    def __init__(self) -> None:
        self.opened = 0
        self.relied_on: int | None = None
        self.forget()

    def forget(self) -> None:
        self.connected = False
        self.opened_at_s = self.used_at_s = 0.0
        self.marks: dict[int, Position] = {}
        self.holding: set[int] = set()  # among these, the buckets in which ops are set aside
        self.sequences: dict[int, dict[int, int]] = {}


class _RowQuery(NamedTuple):
    """The select of one row of a table by its id, which goes between head and tail; for the caller's table.

    pyDAL takes as long to write the statement as the server to answer it, so it is written once per table of the node.
    """

    table: weakref.ref[Any]
    own: Any
    head: str
    tail: str
    names: list[str]


class NodeReader:
    """One node, for reading. Threads may share it.

    Args:
        node: its name.
        uri: its address.
    """

    def __init__(self, node: str, uri: str):
        self.node = node
        #: For the questions of `shard.records.ledger_queries`.
        self.session = NodeSession(
            node, uri, read_only=True, autocommit=True, connect_s=CONNECT_S, statement_s=STATEMENT_S
        )
        self.db: Any = self.session.db
        self.adapter: Any = self.session.adapter
        #: What this thread knows of it.
        self.here = _Known()
        self.tables = NodeTables(self.db)
        #: The node's own table for one of the caller's; a query, field or expression.
        self.table, self.own, self.come = self.tables.table, self.tables.own, self.tables.come
        self.callers, self.as_read = self.tables.callers, self.tables.as_read
        self._row_queries: dict[int, _RowQuery] = {}
        self._newest_queries: dict[str, _RowQuery] = {}
        self._watch()

    # the connection -----------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Make sure that this thread's connection works; one that has died is replaced.

        Raises:
            ShardUnavailable: the node does not answer.
        """
        known = self.here
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

    def rely(self, needed: bool) -> int | None:
        """Let this thread's statements fail from now on if the connection has been replaced.

        Args:
            needed: whether they are to fail at all.

        Returns:
            what `relied` takes to end it.
        """
        known = self.here
        before = known.relied_on
        known.relied_on = known.opened if needed else None
        return before

    def relied(self, before: int | None) -> None:
        """End what `rely` began.

        Args:
            before: what `rely` returned.
        """
        self.here.relied_on = before

    def discard(self) -> None:
        """Close this thread's connection."""
        self.here.forget()
        self.session.discard()

    # watermarks ---------------------------------------------------------------------------------------------

    def has(self, needs: Mapping[int, Need]) -> bool:
        """Return whether this thread knows that the node has it all; sends nothing.

        Args:
            needs: what the node must have, by bucket.
        """
        known = self.here
        return all(
            need.reached(known.marks.get(bucket, _NOWHERE), known.sequences.get(bucket, {}))
            for bucket, need in needs.items()
        )

    def probe(self, needs: Mapping[int, Need]) -> bool:
        """Ask the node for the watermarks; return whether it has it all.

        Args:
            needs: what the node must have, by bucket.
        """
        marks = self.marks(needs)
        asked = {b: need.asks_for(marks[b]) for b, need in needs.items() if b in marks and marks[b] >= need.position}
        pairs = [(bucket, producer) for bucket, sequences in asked.items() for producer in sequences]
        if pairs:
            found = ledger_queries.sequences(self.session, pairs)
            most = max(MOST_PRODUCERS, len(pairs))
            for (bucket, producer), seq in found.items():
                keep_newest(self.here.sequences.setdefault(bucket, {}), producer, seq, most)
        return self.has(needs)

    def marks(self, buckets: Iterable[int] | None = None) -> dict[int, Position]:
        """Ask the node for watermarks.

        Args:
            buckets: those that are wanted; None: all.
        """
        found = ledger_queries.marks_of(self.session, buckets)
        marks = {bucket: mark.position for bucket, mark in found.items()}
        self.here.marks.update(marks)
        self.here.holding.difference_update(marks)
        self.here.holding.update(bucket for bucket, mark in found.items() if mark.state in ASIDE_IN)
        return marks

    def waits_aside(self, needs: Mapping[int, Need]) -> bool:
        """Ask the node whether something of what a read must see is set aside, and still to be applied.

        Args:
            needs: what the node must have, by bucket.
        """
        return ledger_queries.waits_aside(self.session, {bucket: need.certain for bucket, need in needs.items()})

    def seats(self, buckets: Iterable[int] | None = None) -> dict[int, Seat]:
        """Ask the node whether it serves buckets and pieces.

        Args:
            buckets: their numbers; None: of all.

        Raises:
            ShardUnavailable: the node does not answer.
        """
        self.ready()
        return moves.seats(self.session, buckets)

    def last_moves(self, buckets: Iterable[int]) -> dict[int, Leg]:
        """Ask the node for the last moves of buckets and pieces, and of keys of these buckets.

        Args:
            buckets: their numbers.
        """
        return moves.last_moves(self.session, buckets)

    def keys_apart(self) -> dict[int, Leg]:
        """Ask the node for the last moves of keys that have shards of their own, or had them, by piece."""
        return moves.keys_apart(self.session)

    def is_of_key(self, table: Any, row_id: int, settings: TableSettings, key: str) -> bool:
        """Return whether the node has a row of a shard key.

        Args:
            table: of the caller's DAL.
            row_id: the row's id.
            settings: how the table is spread.
            key: the text by which the key is found.
        """
        schema, dialect = schema_of(table), self.dialect
        own, which = self.table(table), key_sql(dialect, settings, schema, key)
        return bool(self.rows(f"SELECT 1 FROM {own.sql_fullref} WHERE {own._id.sqlsafe} = {row_id} AND {which}"))

    def connected_for_s(self) -> float:
        """Return the age of this thread's connection, s; 0 where there is none."""
        known = self.here
        return clock.mono_s() - known.opened_at_s if known.connected else 0.0

    # rows ---------------------------------------------------------------------------------------------------

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query.

        Args:
            sql: the statement.
        """
        return self.session.rows(sql)

    def row(self, table: Any, row_id: int, onward: Onward) -> Any:
        """Return one row by its id, or None.

        Args:
            table: of the caller's DAL.
            row_id: the row's id.
            onward: where the row leads to.
        """
        self.callers.onward = onward
        if table._common_filter is not None or table._db._request_tenant in table.fields:
            own = self.table(table)
            return self.db(own._id == row_id).select().first()
        query, adapter = self._row_queries.get(id(table)), self.adapter
        if query is None or query.table() is not table:
            query = self._row_query(table)
        self.callers.tables[table._tablename] = table
        adapter.execute(f"{query.head}{row_id}{query.tail}")
        found = adapter.cursor.fetchall()
        if not found:
            return None
        own = vars(table)
        return self.tables.parse(found, [own[name] for name in table.fields], query.names).first()

    @property
    def dialect(self) -> Dialect:
        """The pipeline's dialect of the node."""
        return self.session.dialect

    # parts --------------------------------------------------------------------------------------------------

    def _row_query(self, table: Any) -> _RowQuery:
        own, met = self.table(table), weakref.ref(table)
        query = self._newest_queries.get(own._tablename)
        if query is None or query.own is not own:
            names, sql = self.adapter._select_wcols(own._id == 0, list(own))
            head, _, tail = sql.rpartition("0")
            query = keep_newest(self._newest_queries, own._tablename, _RowQuery(met, own, head, tail, names), MOST_MET)
        return keep_newest(self._row_queries, id(table), query._replace(table=met), MOST_MET)

    def _watch(self) -> None:
        """Note when a connection is made and used, and turn the driver's errors into ours, for every statement."""
        connecting, executing, known = self.adapter.after_connection, self.adapter.execute, self.here

        def after_connection() -> None:
            known.forget()
            known.opened += 1
            connecting()
            known.connected, known.opened_at_s = True, clock.mono_s()

        def execute(*args: Any, **kwargs: Any) -> Any:
            if args and len(args[0]) > UNCHECKED_CHARACTERS:
                self._check_size(str(args[0]))
            try:
                result = executing(*args, **kwargs)
            except Exception as error:
                raise self._translated(error) from error
            known.used_at_s = clock.mono_s()
            if known.relied_on is not None and known.relied_on != known.opened:
                raise ShardUnavailable(self.node, "the connection was replaced in the middle of a read")
            return result

        self.adapter.after_connection, self.adapter.execute = after_connection, execute

    def _check_size(self, sql: str) -> None:
        """Refuse a statement at which the server would end the connection, as if it were away.

        Raises:
            BadRead: naming the limit.
        """
        size, limit = len(sql.encode("utf-8", "surrogatepass")), self.session.statement_bytes()
        if size >= limit:
            raise BadRead(
                f"this read makes a statement of {size:,} bytes, and max_allowed_packet of node {self.node!r} is "
                f"{limit:,}: read in parts, or give belongs a query, db(query).nested_select(field)"
            )

    def _translated(self, error: Exception) -> Exception:
        if refused_write(error):
            return ReadOnly(self.node, sentence_of(error))
        if connection_lost(error):
            self.discard()
            return ShardUnavailable(self.node, f"{type(error).__name__}: {sentence_of(error)}")
        if isinstance(error, ValueError):  # half a character, or for SQLite a NUL
            return BadRead(f"the driver cannot send a text of this read: {error}")
        return error


class NodeReaders:
    """The readers of this process by node, made when first used, made anew after a fork.

    A fork neither uses nor closes its parent's sockets.

    Args:
        nodes: their addresses.
    """

    def __init__(self, nodes: Nodes):
        self._nodes = nodes
        self._here: PerProcess[dict[str, NodeReader]] = PerProcess(dict)

    def __getitem__(self, node: str) -> NodeReader:
        readers = self._here()
        try:
            return readers[node]
        except KeyError:
            # of two threads that come first at once, one's is dropped unused
            return readers.setdefault(node, NodeReader(node, self._nodes.uri(node)))

    def close(self) -> None:
        """Close this thread's connections."""
        for reader in list(self._here().values()):
            reader.discard()
