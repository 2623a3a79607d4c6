"""Read: find the place of a read and what it must see there, and try again on another node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE, log_number
from pipeline.config.settings import Settings
from pipeline.dal import kind_of, query_of, real_name
from pipeline.errors import BadOp, BadRead, ShardUnavailable
from pipeline.oplog import Entries
from pipeline.reads import NOTHING, After, ReadSession, Token, TokenSeal, after_of
from pipeline.reads.connections import NodeReaders
from pipeline.reads.gather import GATHER_S, Gather
from pipeline.reads.node_dal import NodeDAL, refuse_cache
from pipeline.reads.onward import Onward
from pipeline.reads.pending import CannotOverlay, Overlay, QueuedOps
from pipeline.reads.read_place import ReadPlace, counted_at, needs_at, place_of_id, place_of_key, whole_id
from pipeline.reads.routing import Bounds
from pipeline.reads.routing.moving import Elsewhere, MovingRead, check_served
from pipeline.reads.routing.replicas import HealthCache
from pipeline.reads.routing.router import Read, router_type
from pipeline.shard.nodes import Nodes

#: A read that failed twice is retried while no more time than that has passed, s. And how often at most: each of a
#: primary and two replicas may have closed an idle connection.
AT_ONCE_S, MOST_TRIES = 0.1, 4
#: How often a read is sent to another shard: there and back for each replica that has not heard of a move's end.
MOST_SENT = 10


class Reads:
    """The reads of one deployment. Threads may share it.

    Args:
        settings: the bounds of a read whose caller says nothing.
        topology: who has which bucket.
        log: the queued ops, for reads with `pending`.
        nodes: who is primary and who replica of each shard.
        health: what the prober has published of the nodes.
        find_table: returns the pyDAL table that a caller means by a name.
        seal: prints session tokens, and reads them.
    """

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        log: Entries,
        nodes: Nodes,
        health: HealthCache,
        find_table: Callable[[Any], Any],
        seal: TokenSeal,
    ):
        self._topology, self._log, self._find_table, self._seal = topology, log, find_table, seal
        reads = settings.reads
        self._router = router = router_type()(
            nodes, NodeReaders(nodes), health, topology, reads.primary_limit, settings.loads()
        )
        self._bounds = Bounds(reads.max_lag_s, reads.wait_s, reads.on_stale)  # type: ignore[arg-type]
        self._gather = Gather(router, topology, log)

    def read(
        self,
        table: Any,
        shard_key: Any = None,
        after: Any = None,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
    ) -> AbstractContextManager[NodeDAL]:
        """Open a node for reading; see `pipeline.read`.

        Args:
            table: whose rows are read, or its name.
            shard_key: of these rows.
            after: what must be seen.
            max_lag_s, wait_s, on_stale: see `Bounds`.
        """
        table = self._table(table)
        place = place_of_key(self._topology, table, shard_key)
        onward = self.onward(table._db, after, max_lag_s, wait_s, on_stale)
        return self._opened(table, shard_key, place, onward)

    def get(
        self,
        table: Any,
        row_id: Any,
        after: Any = None,
        pending: bool = False,
        shard_key: Any = None,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        **unknown: Any,
    ) -> Any:
        """Return one row or None; see `pipeline.get`.

        Args:
            table: whose row it is, or its name.
            row_id: the row's id.
            after: what must be seen.
            pending: whether queued ops are laid over the row.
            shard_key: of the row, where the id does not carry its bucket.
            max_lag_s, wait_s, on_stale: see `Bounds`.
            unknown: is refused.
        """
        if unknown:
            raise BadRead(f"unknown option {min(unknown)!r}; there are max_lag_s, wait_s and on_stale")
        table, bounds = self._table(table), self._bounds
        if not (max_lag_s is None and wait_s is None and on_stale is None):
            bounds = bounds.changed(max_lag_s, wait_s, on_stale)
        number = whole_id(table, row_id)
        place, asked = place_of_id(self._topology, table, number, shard_key), after_of(after, self._seal)
        onward = Onward(self, self._topology, table._db, asked, bounds, pending)
        if pending and (place is None or place.buckets is None or (len(place.buckets) != 1 and place.row is None)):
            raise BadRead(f"pending=True needs an id that tells its bucket: give shard_key= as well for {number}")
        if place is None:
            return self._row_anywhere(table, number, onward)
        if pending:
            try:
                return tried_on(partial(self._row_with_pending, table, number, shard_key, place, onward))
            except CannotOverlay:
                # what is queued cannot be computed here: wait for it instead
                onward = onward._replace(after=After(Token(rest=True), asked.session))
        return tried_on(partial(self._row, table, number, shard_key, place, onward))

    def select(
        self,
        query: Any,
        *fields: Any,
        after: Any = None,
        partial: bool = False,
        timeout_s: float = GATHER_S,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        **options: Any,
    ) -> Any:
        """Return rows of all shards; see `pipeline.select`.

        Args:
            query: a query, a table, or a table's name.
            fields: of the result.
            after: what must be seen.
            partial: whether shards that do not answer may be missing.
            timeout_s: of the whole.
            max_lag_s, wait_s, on_stale: see `Bounds`.
            options: pyDAL's.
        """
        refuse_cache(options.get("cache"))
        query = self._query(query)
        onward = self.onward(query._db, after, max_lag_s, wait_s, on_stale)
        return self._gather.select(query, fields, onward, options, partial=partial, timeout_s=timeout_s)

    def count(
        self,
        query: Any,
        distinct: Any = None,
        after: Any = None,
        timeout_s: float = GATHER_S,
        max_lag_s: float | None = None,
        wait_s: float | None = None,
        on_stale: str | None = None,
        cache: Any = None,
    ) -> int:
        """Return how many rows of all shards match; see `pipeline.count`.

        Args:
            query: as for `select`.
            distinct: a field or several, whose distinct values are counted.
            after: what must be seen.
            timeout_s: of the whole.
            max_lag_s, wait_s, on_stale: see `Bounds`.
            cache: is refused.
        """
        refuse_cache(cache)
        query = self._query(query)
        onward = self.onward(query._db, after, max_lag_s, wait_s, on_stale)
        return self._gather.count(query, distinct, onward, timeout_s=timeout_s)

    def onward(self, db: Any, after: Any, *bounds: Any) -> Onward:
        """Return where the rows of a read lead to.

        Args:
            db: the caller's DAL.
            after, bounds: what the read must see; max_lag_s, wait_s and on_stale, see `Bounds`.
        """
        return Onward(self, self._topology, db, after_of(after, self._seal), self._bounds.changed(*bounds))

    def session(self, text: str | None = None) -> ReadSession:
        """Return a session.

        Args:
            text: of the session, as `str` printed it; None: a new one.
        """
        return ReadSession(self._seal.read(text) if text else Token(), self._seal)

    def joined(self, session: ReadSession, value: Any) -> After:
        """Return what a session and an `after=` need together; the session takes up the answer.

        Args:
            session: of the reader.
            value: as for `after=`.
        """
        return After(session.token.merged(after_of(value, self._seal).token), session)

    def settle(self, session: ReadSession, timeout_s: float) -> bool:
        """Wait until the primaries have what a session has written and seen; return whether they have.

        The session then forgets what all nodes have.

        Args:
            session: of the reader.
            timeout_s: how long to wait in all.

        Raises:
            ShardUnavailable, LogUnavailable: it is unknown.
        """
        deadline = clock.Deadline(timeout_s)
        for shard in self._topology.shards:
            needs = needs_at(self._topology, self._log, session.token, ReadPlace(shard, None))
            if needs and not self._router.primary_has(shard, needs, deadline):
                return False
        for shard in self._topology.shards:
            session.saw({}, self._router.passed(shard), stale=False)
        return True

    def close(self) -> None:
        """End the threads, and close this thread's connections to nodes."""
        self._gather.close()
        self._router.readers.close()

    @cached_property
    def _overlay(self) -> Overlay:
        return Overlay(self._log)

    @contextmanager
    def _opened(self, table: Any, shard_key: Any, place: ReadPlace, onward: Onward) -> Iterator[NodeDAL]:
        def opened() -> Any:
            now = place if place.seen is self._topology.placement else place_of_key(self._topology, table, shard_key)
            return leaving.enter_context(self._open(now, onward))

        with ExitStack() as leaving:
            read = tried_on(opened, Elsewhere)
            read.reader.table(table)
            yield NodeDAL(read.reader, read.read_info, onward, self._find_table)
            if self._router.served.changed(read):  # a block may outlast all news of the map
                check_served(read)

    def _open(self, place: ReadPlace, onward: Onward) -> Read | MovingRead:
        """Return a read of the shard that serves the buckets of a place now."""
        served, after = self._router.served, onward.after
        if served.found or place.seen is not self._topology.placement:
            place = served.place(place)
        needs = needs_at(self._topology, self._log, after.token, place)
        return self._router.open(place, needs, onward.bounds, session=after.session)

    def _row_anywhere(self, table: Any, row_id: int, onward: Onward) -> Any:
        """Return the row with an id that does not carry its shard: all are read."""
        rows = self._gather.select(table._id == row_id, (), onward, {})
        if len(rows) > 1:
            name = table._tablename
            raise BadRead(f"{len(rows)} shards have a row of {name!r} with the id {row_id}: give shard_key=")
        return rows.first()

    def _row(self, table: Any, row_id: int, shard_key: Any, place: ReadPlace, onward: Onward) -> Any:
        if place.seen is not self._topology.placement:
            place = place_of_id(self._topology, table, row_id, shard_key) or place
        if place.row is not None:
            return self._row_anywhere(table, row_id, onward)
        with self._open(place, onward) as read:
            return read.reader.row(table, row_id, onward)

    def _row_with_pending(self, table: Any, row_id: int, shard_key: Any, place: ReadPlace, onward: Onward) -> Any:
        if place.seen is not self._topology.placement:
            place = place_of_id(self._topology, table, row_id, shard_key) or place
        topology = self._topology
        # of a row that is of a bucket or of its piece, queued ops say which
        for number in reversed(place.buckets or ()):
            one = ReadPlace(topology.serves(number), (number,), place.seen) if place.row is not None else place
            with self._open(one, onward._replace(after=NOTHING)) as read:
                row = self._overlay.row(read.reader, table, row_id, self._queue_of(table, number, read.shard), onward)
            if row is not None:
                return row
        return None

    def _queue_of(self, table: Any, number: int, shard: str) -> QueuedOps:
        """Return the ops that a shard has still to apply to the rows of a bucket, or of a piece."""
        topology = self._topology
        piece = topology.split.get(log_number(number)) if topology.split else None
        if piece is None or not topology.takes(piece, real_name(table)):
            return QueuedOps(number)
        [mark] = counted_at(topology, shard, (number,))
        rules = topology.table(real_name(table))
        return QueuedOps(mark, rules, rules.shard_key or table._id.name, piece.of.key, number >= FIRST_PIECE)

    def _table(self, table: Any) -> Any:
        if kind_of(table) == "Table":
            return table
        try:
            return self._find_table(table)
        except BadOp as error:
            if isinstance(table, str) or kind_of(table):
                raise
            raise BadRead(f"expected a pyDAL table or its name, got {type(table).__name__}") from error

    def _query(self, query: Any) -> Any:
        if isinstance(query, str):
            return self._table(query)
        query = query_of(query)
        if kind_of(query) not in ("Query", "Table"):
            raise BadRead(f"expected a pyDAL query or a table, got {type(query).__name__}")
        return query


def tried_on(call: Callable[[], Any], of: type[ShardUnavailable] = ShardUnavailable) -> Any:
    """Call, and once more if a node failed: the node is skipped then, so another one is chosen.

    While failures come at once the call is repeated: the connections to all nodes may have died since they were used.
    So it is while a bucket is found to be elsewhere: each time the next try goes there.

    Args:
        call: reads.
        of: the failures that count; others go through.
    """
    started_s, tried, sent = clock.mono_s(), 0, 0
    while True:
        try:
            return call()
        except of as error:
            if isinstance(error, Elsewhere):
                sent += 1
            else:
                tried += 1
            late = tried > 1 and clock.mono_s() - started_s >= AT_ONCE_S
            if late or tried >= MOST_TRIES or sent >= MOST_SENT:
                raise
