"""The reads of a pipeline: which place a read has, what it must see there, and a second try on another node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline import clock
from pipeline.config.settings import Settings
from pipeline.config.topology import Topology
from pipeline.dal.objects import kind_of, real_name
from pipeline.errors import BadOp, BadRead, ShardUnavailable
from pipeline.model.receipt import Receipt
from pipeline.oplog.contract import Entries
from pipeline.reads.gather.gather import Gather
from pipeline.reads.node_dal import NodeDAL
from pipeline.reads.pending.pending_rows import CannotOverlay, Overlay
from pipeline.reads.read_place import Places, ReadPlace
from pipeline.reads.routing.policy import Bounds, Defaults
from pipeline.reads.routing.router import Opening, Router
from pipeline.reads.session import ReadSession, Token, looks_like_receipt, token_of
from pipeline.reads.token_cookie import VERSION, Seal

#: A read that failed twice is tried on while no more time than that has gone, s; and how often at most: each of a
#: primary and two replicas may have closed an idle connection.
AT_ONCE_S, MOST_TRIES = 0.1, 4


class After(NamedTuple):
    """What a read must see, and who will remember what it saw."""

    token: Token
    session: ReadSession | None = None


_NOTHING = After(Token())


class Reads:
    """Reads of one deployment. Threads may share it.

    Args:
        find_table: returns the pyDAL table that a caller means by a table or a name.
        secret: returns what signs session tokens, where the settings have nothing.
    """

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        log: Entries,
        router: Router,
        find_table: Callable[[Any], Any],
        secret: Callable[[], str],
    ):
        self._router, self._topology, self._find_table = router, topology, find_table
        self._defaults = Defaults(settings.reads)
        self._places = Places(topology, log)
        self._seal = Seal(lambda: settings.reads.secret or secret())
        self._overlay = Overlay(log)
        self._gather = Gather(router, self._places, len(topology.shards))

    # the calls ----------------------------------------------------------------------------------------------

    def read(self, table: Any, shard_key: Any = None, after: Any = None, **options: Any) -> Opening:
        """Open a node for reading; see the package's `read`."""
        table = self._table(table)
        bounds = self._defaults.changed(**_known(options)) if options else self._defaults.bounds
        place, asked = self._places.of_key(real_name(table), shard_key), self.after(after)
        needs = self._places.needs(asked.token, place)

        def ready(db: NodeDAL) -> None:
            db.define(table)
            db.finding(self._find_table)

        return self._router.open(place.shard, needs, bounds, session=asked.session, buckets=place.buckets, ready=ready)

    def get(
        self,
        table: Any,
        row_id: Any,
        after: Any = None,
        pending: bool = False,
        shard_key: Any = None,
        **options: Any,
    ) -> Any:
        """Return one row or None; see the package's `get`."""
        table, bounds = self._table(table), self._defaults.changed(**_known(options))
        number = _row_id(table, row_id)
        key_is_id = self._places.key_of(table) == table._id.name
        place, asked = self._places.of_id(real_name(table), key_is_id, number, shard_key), self.after(after)
        if place is None:
            return self._looked_for(table, number, after, pending, options)
        if pending:
            try:
                return tried_on(lambda: self._laid_over(table, number, place, bounds))
            except CannotOverlay:
                # what is queued cannot be computed here: wait for it instead
                asked = After(Token(rest=True), asked.session)
        return tried_on(lambda: self._row(table, number, place, asked, bounds))

    def select(self, query: Any, *fields: Any, after: Any = None, **options: Any) -> Any:
        """Return rows of all shards; see the package's `select`."""
        bounds = self._defaults.changed(**_taken(options))
        asked = self.after(after)
        return self._gather.select(self._query(query), fields, asked.token, asked.session, bounds, **options)

    def count(self, query: Any, distinct: Any = None, after: Any = None, **options: Any) -> int:
        """Return how many rows of all shards match; see the package's `count`."""
        bounds = self._defaults.changed(**_taken(options))
        asked = self.after(after)
        return self._gather.count(self._query(query), distinct, asked.token, asked.session, bounds, **options)

    def session(self, text: str | None = None) -> ReadSession:
        """Return a session, new or from its printed token."""
        return ReadSession(self._seal.read(text) if text else Token(), self._seal)

    def after(self, value: Any) -> After:
        """Return what an `after=` asks for.

        Raises:
            BadRead: it is nothing of the kind. BadToken: a text that was changed, or is another deployment's.
        """
        if value is None:
            return _NOTHING
        if isinstance(value, After):
            return value
        if isinstance(value, ReadSession):
            return After(value.token, value)
        if isinstance(value, Token):
            return After(value)
        if isinstance(value, str):
            is_token = value[:1] == VERSION
            return After(self._seal.read(value) if is_token else token_of([Receipt.parse(value)]))
        if looks_like_receipt(value):
            return After(token_of([value]))
        try:
            return After(token_of(value))
        except (TypeError, AttributeError):
            raise BadRead(
                f"after= takes a receipt, several of them, a session or its text, not {type(value).__name__}"
            ) from None

    def joined(self, session: ReadSession, value: Any) -> After:
        """Return what a session and an `after=` ask for together; the session takes up the answer."""
        return After(session.token.merged(self.after(value).token), session)

    def settle(self, session: ReadSession, timeout_s: float) -> bool:
        """Wait until the primaries have what a session has written and seen; whether they have.

        What all nodes have is forgotten then.

        Raises:
            ShardUnavailable, LogUnavailable: it cannot be told.
        """
        deadline = clock.Deadline(timeout_s)
        for shard in self._topology.shards:
            needs = self._places.needs(session.token, ReadPlace(shard, None))
            if needs and not self._router.primary_has(shard, needs, deadline):
                return False
        for shard in self._topology.shards:
            session.saw({}, self._router.passed(shard), stale=False)
        return True

    def close(self) -> None:
        """End the threads."""
        self._gather.close()

    # parts --------------------------------------------------------------------------------------------------

    def _looked_for(self, table: Any, row_id: int, after: Any, pending: bool, options: dict[str, Any]) -> Any:
        """Return the row with an id that does not tell its shard: all are asked."""
        if pending:
            raise BadRead(f"pending=True needs an id that tells its bucket: give shard_key= as well for {row_id}")
        rows = self.select(table._id == row_id, after=after, **options)
        if len(rows) > 1:
            raise BadRead(
                f"{len(rows)} shards have a row of {table._tablename!r} with the id {row_id}: give shard_key="
            )
        return rows.first()

    def _row(self, table: Any, row_id: int, place: ReadPlace, asked: After, bounds: Bounds) -> Any:
        needs = self._places.needs(asked.token, place)
        with self._router.open(place.shard, needs, bounds, session=asked.session, buckets=place.buckets) as db:
            return db.reader.row(table, row_id)

    def _laid_over(self, table: Any, row_id: int, place: ReadPlace, bounds: Bounds) -> Any:
        if place.buckets is None or len(place.buckets) != 1:
            raise BadRead(f"pending=True needs an id that tells its bucket: give shard_key= as well for {row_id}")
        with self._router.open(place.shard, {}, bounds) as db:
            return self._overlay.row(db.reader, db.define(table), row_id, place.buckets[0])

    def _table(self, table: Any) -> Any:
        try:
            return self._find_table(table)
        except BadOp as error:
            if isinstance(table, str) or kind_of(table):
                raise
            raise BadRead(f"expected a pyDAL table or its name, got {type(table).__name__}") from error

    def _query(self, query: Any) -> Any:
        if isinstance(query, str):
            return self._table(query)
        if kind_of(query) not in ("Query", "Table"):
            raise BadRead(f"expected a pyDAL query or a table, got {type(query).__name__}")
        return query


def tried_on(call: Callable[[], Any]) -> Any:
    """Call, and once more if a node failed: it is left alone then, so another one is chosen.

    While failures come at once it is tried on: the connections to all nodes may have died since they were used.
    """
    quick = clock.Deadline(AT_ONCE_S)
    for tried in range(MOST_TRIES - 1):
        try:
            return call()
        except ShardUnavailable:
            if tried and quick.passed:
                raise
    return call()


def _known(options: dict[str, Any]) -> dict[str, Any]:
    unknown = options.keys() - {"max_lag_s", "wait_s", "on_stale"}
    if unknown:
        raise BadRead(f"unknown option {min(unknown)!r}; there are max_lag_s, wait_s and on_stale")
    return options


def _taken(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options.pop(name) for name in ("max_lag_s", "wait_s", "on_stale") if name in options}


def _row_id(table: Any, row_id: Any) -> int:
    try:
        if isinstance(row_id, bool | float):
            raise ValueError
        return int(row_id)
    except (TypeError, ValueError):
        raise BadRead(f"the id of a row of {table._tablename!r} is a whole number, not {row_id!r}") from None
