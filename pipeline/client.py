"""The client: the only place where the parts are wired together. One per process; threads may share it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.callers_filters import CallersFilters
from pipeline.clock import Deadline
from pipeline.errors import BadOp
from pipeline.log.bell import Bell, SilentBell
from pipeline.log.contract import Log
from pipeline.log.patience import Patience, in_all
from pipeline.log.redis_log import RedisLog
from pipeline.log.secret import Secret
from pipeline.log.spool.store import Spool
from pipeline.pydal_objects import for_all_threads, renamed
from pipeline.reads.budget import Budget
from pipeline.reads.counters import Counters
from pipeline.reads.node_dal import NodeDAL
from pipeline.reads.readers import Readers
from pipeline.reads.readings import Readings
from pipeline.reads.reads import After, Reads
from pipeline.reads.router import Router
from pipeline.reads.session import Session
from pipeline.receipt import Receipt, Receipts
from pipeline.settings import Settings, load
from pipeline.shard import marks
from pipeline.shard.nodes import Nodes
from pipeline.topology import Topology
from pipeline.write.addressed import Addressed
from pipeline.write.breaker import Breaker
from pipeline.write.bulk import Chunk
from pipeline.write.courier import Courier
from pipeline.write.definitions import Definitions
from pipeline.write.door import Door
from pipeline.write.drain import Drainer
from pipeline.write.follow import Follower
from pipeline.write.held import Held, Holder
from pipeline.write.lineage import Lineage
from pipeline.write.outgoing import BULK_ROWS, Outgoing
from pipeline.write.promising import Promising
from pipeline.write.publish import Publisher
from pipeline.write.row_ids import RowIds
from pipeline.write.sender import Lost
from pipeline.write.spooling import Spooling
from pipeline.write.validated import Validated, validated

#: Of the time that a request may wait; the rest is for the spool, whose file is synced.
FOR_REDIS = 0.95


class Pipeline:
    """One deployment, seen from this process.

    Args:
        source: a path, a dict of the same shape, or None: see `settings.load`.
        log, bell: given by tests; by default Redis and Celery as configured.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] | Settings | None = None,
        *,
        log: Log | None = None,
        bell: Bell | SilentBell | None = None,
    ):
        self.settings = source if isinstance(source, Settings) else load(source)
        self.topology = Topology(self.settings)
        redis = self.settings.redis
        self.spool = _spool_of(self.settings)
        # without a spool an op has nowhere else to go
        self.patience = Patience(redis.timeout_s * FOR_REDIS if self.spool else math.inf)
        self.log: Log = log or RedisLog(
            redis.url, prefix=redis.prefix, timeout_s=redis.timeout_s, patience=self.patience if self.spool else None
        )
        self.bell = bell or Bell(redis.broker_url, redis.prefix, self.topology.shards)
        self.counters = Counters()
        self.readings = Readings(self.log, self.counters)
        readings = self.readings
        self.nodes = Nodes(self.settings, readings.takes_writes, readings.unfit, readings.views)
        self._breaker = Breaker(self.spool.waiting) if self.spool else Breaker()
        definitions = Definitions(self.log, self.nodes, self.topology, self.spool, self._breaker, self.patience)
        self.row_ids = RowIds(self.log, self.spool, self._breaker, self.patience)

        def renewed() -> None:
            definitions.republish()
            self.row_ids.renewed()

        lineage = Lineage(self.log, self.nodes, renewed)
        self.publisher = Publisher(
            self.log,
            self.topology,
            self.bell,
            lineage.raise_epoch,
            self._record_lost,
            patience=self.patience,
            renewed=renewed,
            ended=self.nodes.close,
        )
        self._through_spool(definitions)
        self.door = Door(self.topology, self.row_ids.new, definitions.publish, definitions.approve)
        self.readers = Readers(self.nodes.uri)
        budget = Budget(self.log, self.settings.reads.primary_budget)
        router = Router(
            self.nodes, self.readers, self.readings, budget, self.counters.count, loads=self.settings.loads()
        )
        secret = Secret(self.log, self.spool, self.patience, lambda: self._breaker.open)
        self._reads = Reads(self.settings, self.topology, self.log, router, self.door.table, secret)
        self._outgoing = Outgoing(self._spooling or self.publisher, self, self.patience)
        self._define_lock = threading.Lock()

    # writes -------------------------------------------------------------------------------------------------

    @in_all
    def define_tables(self, db: Any) -> None:
        """Make a DAL's tables known, so that ops may name them by text. Cheap enough for every request."""
        self.door.define(db)

    @in_all
    def enqueue_insert(self, table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any) -> Receipt:
        """Queue an insert; see the package's `enqueue_insert`."""
        if values is None and _OPTIONS.isdisjoint(fields):  # as most calls are
            return self._outgoing.take(self.door.insert(table, fields), "redis")
        options, given = _split(values, fields)
        addressed = self.door.insert(table, given, options.get("shard_key"), options.get("idempotency_key"))
        return self._outgoing.take(addressed, options.get("durability", "redis"))

    @in_all
    def enqueue_update(
        self, target: Any, second: Any = None, third: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> Receipt:
        """Queue an update; see the package's `enqueue_update`."""
        row_id, values = (None, second) if isinstance(second, Mapping) else (second, third)
        options, given = _split(values, fields)
        addressed = self.door.update(target, row_id, given, options.get("shard_key"), options.get("idempotency_key"))
        return self._outgoing.take(addressed, options.get("durability", "redis"))

    @in_all
    def enqueue_delete(self, target: Any, row_id: Any = None, /, **options: Any) -> Receipt:
        """Queue a delete; see the package's `enqueue_delete`."""
        _only_options(options)
        addressed = self.door.delete(target, row_id, options.get("shard_key"), options.get("idempotency_key"))
        return self._outgoing.take(addressed, options.get("durability", "redis"))

    @in_all
    def enqueue_upsert(
        self, table: Any, values: Mapping[str, Any] | None = None, /, *, key: Iterable[str], **fields: Any
    ) -> Receipt:
        """Queue an upsert; see the package's `enqueue_upsert`."""
        options, given = _split(values, fields)
        addressed = self.door.upsert(table, key, given, options.get("shard_key"), options.get("idempotency_key"))
        return self._outgoing.take(addressed, options.get("durability", "redis"))

    def enqueue_bulk_insert(self, table: Any, rows: Iterable[Mapping[str, Any]], **options: Any) -> Receipts:
        """Queue an insert of each row; see the package's `enqueue_bulk_insert`."""
        _only_options(options)
        durability = self._outgoing.known_durability(options.get("durability", "redis"))
        if options.get("idempotency_key") is not None:
            raise BadOp("a bulk insert takes no idempotency_key: each op needs its own, so enqueue them one by one")
        if self._outgoing.gathering:
            single = [self.enqueue_insert(table, row, **options) for row in rows]
            return Receipts(single.__getitem__, len(single))
        chunks: list[Chunk] = []
        chunk = Chunk()
        for addressed in self.door.inserts(table, rows, options.get("shard_key")):
            chunk.add(addressed.bucket, addressed.op)
            if len(chunk) == BULK_ROWS:
                chunks.append(self._outgoing.send_chunk(chunk, durability))
                chunk = Chunk()
        if len(chunk):
            chunks.append(self._outgoing.send_chunk(chunk, durability))
        receipts = Receipts(lambda i: chunks[i // BULK_ROWS].receipt(i % BULK_ROWS, self), sum(map(len, chunks)))
        if durability == "applied":
            self.wait_all(receipts)
        return receipts

    def enqueue_validated_insert(
        self, table: Any, values: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> Validated:
        """Validate and queue an insert; see the package's `enqueue_validated_insert`."""
        options, given = _split(values, fields)
        table = self.door.table(table)
        return validated(table, given, lambda final: self.enqueue_insert(table, final, **options))

    @in_all
    def take_together(self, made: Iterable[Addressed]) -> Receipt:
        """Queue ops that the door has made, all of one bucket, in one atomic group; return the last one's receipt."""
        with self.atomic():
            return [self._outgoing.take(one, "redis") for one in made][-1]

    def atomic(self) -> AbstractContextManager[None]:
        """Gather the ops of this thread; apply them together or not at all. They must belong to one bucket.

        Raises:
            CrossBucket: at the call that would leave the bucket.
        """
        return self._outgoing.atomic()

    def held(self) -> Held:
        """Return an empty collection of ops, to be sent later or dropped: what a request's face needs."""
        return self._outgoing.held()

    def holding(self, held: Holder) -> AbstractContextManager[Holder]:
        """Let this thread's ops go into *held* inside the block. Their receipts have ids, but no position yet."""
        return self._outgoing.holding(held)

    def unsent(self, table: str) -> bool:
        """Whether this thread has ops for a table that are not sent yet: in an atomic block, or held."""
        return self._outgoing.unsent(table)

    # receipts -----------------------------------------------------------------------------------------------

    def status(self, receipt: Receipt) -> str:
        """Return a receipt's status; see `Receipt.status`."""
        return self.follower.status(receipt)

    def wait(self, receipt: Receipt, timeout_s: float) -> str:
        """Wait for a receipt; see `Receipt.wait`."""
        return self.follower.wait(receipt, timeout_s)

    def row_id(self, receipt: Receipt) -> int | None:
        """Return the id that the database gave, once it has."""
        return self.follower.row_id(receipt)

    def wait_all(self, receipts: Iterable[Receipt], timeout_s: float = 30.0) -> None:
        """Wait until all are applied; see `follow.Follower.wait_all`."""
        self.follower.wait_all(receipts, timeout_s)

    def barrier(self, table: Any, timeout_s: float = 30.0) -> None:
        """Wait until all that was enqueued for a table before this call is applied, this host's spool included."""
        deadline = Deadline(timeout_s)
        if self._courier is not None:
            self._courier.wait_empty(timeout_s)
        self.follower.barrier(table if isinstance(table, str) else table._tablename, deadline.left_s)

    def parse(self, text: str) -> Receipt:
        """Read a printed receipt."""
        return Receipt.parse(text, self)

    # reads --------------------------------------------------------------------------------------------------

    def read(self, table: Any, shard_key: Any = None, **options: Any) -> AbstractContextManager[NodeDAL]:
        """Open a node for reading; see the package's `read`."""
        return self._reads.read(table, shard_key, **options)

    def get(self, table: Any, row_id: Any, **options: Any) -> Any:
        """Return one row or None; see the package's `get`."""
        return self._reads.get(table, row_id, **options)

    def select(self, query: Any, *fields: Any, **options: Any) -> Any:
        """Return rows of all shards; see the package's `select`."""
        return self._reads.select(query, *fields, **options)

    def count(self, query: Any, **options: Any) -> int:
        """Return how many rows of all shards match; see the package's `count`."""
        return self._reads.count(query, **options)

    def session_token(self, text: str | None = None) -> Session:
        """Return a reader's session, new or from its text; see the package's `session_token`."""
        return self._reads.session(text)

    def settle(self, session: Session, timeout_s: float) -> bool:
        """Wait until the primaries have what a session has written and seen; whether they have.

        Raises:
            ShardUnavailable, LogUnavailable: it cannot be told.
        """
        return self._reads.settle(session, timeout_s)

    def joined(self, session: Session, after: Any) -> After:
        """Return an `after=` that asks for what a session does and for more; the answer is noted in the session."""
        return self._reads.joined(session, after)

    # databases ----------------------------------------------------------------------------------------------

    def get_db(self, table: Any, shard_key: Any) -> Any:
        """Return a pyDAL DAL on the primary of a row's shard, with the table defined: for reads that must be fresh.

        All callers share it. Common filters are those of the table's own DAL, in this thread, until its next call.
        """
        table = self.door.table(table)
        bucket = self.topology.bucket_of(table._tablename, shard_key)
        db = self.define_on(self.nodes.primary(self.topology.shards_of(bucket)[0]).db, table)
        CallersFilters.on(db).of(table._db)
        return db

    def define_on(self, db: Any, table: Any) -> Any:
        """Define a table and its siblings on a node's DAL, and return the DAL."""
        with self._define_lock:
            for other in self.door.siblings(table):
                if other._tablename not in db.tables:
                    rname = {"rname": other._rname} if renamed(other) else {}
                    fields = [field.clone() for field in other]  # of the table itself pyDAL takes no id of another name
                    for field in db.define_table(other._tablename, *fields, migrate=False, **rname):
                        for_all_threads(field)
        return db

    def save_data(self, table: Any, shard_key: Any, values: Mapping[str, Any]) -> Receipt:
        """Queue an insert of a row whose shard key is given apart."""
        name = self.topology.table(self.door.table(table)._tablename).shard_key
        return self.enqueue_insert(table, {**values, name: shard_key} if name else dict(values))

    def close(self) -> None:
        """Ring what is to be rung, and close all connections."""
        if self._courier is not None:
            self._courier.close()
        self.bell.close()
        self.publisher.close()
        self._reads.close()
        self.readings.close()
        self.readers.close()
        self.nodes.close()
        self.log.close()
        if self.spool is not None:
            self.spool.close()

    # parts --------------------------------------------------------------------------------------------------

    def _through_spool(self, definitions: Definitions) -> None:
        """Wire the spool, where there is one."""
        self.drainer: Drainer | None = None
        self._courier: Courier | None = None
        self._spooling: Spooling | None = None
        if self.spool is None:
            self.follower = Follower(self.topology, self.nodes, self.log)
            return
        self.follower = Follower(self.topology, self.nodes, self.log, self.spool.holds)
        self.drainer = Drainer(self.spool, self.publisher, self.log, self.nodes, self.topology)
        self._courier = Courier(self.spool, self.drainer, self._breaker)
        promising = Promising(self.log, self.spool.promises, self._breaker)
        self._spooling = Spooling(self.publisher, self.spool, self._breaker, self._courier, definitions, promising)

    def _record_lost(self, lost: Lost) -> None:
        bucket, producer, first, last = lost
        for shard in self.topology.shards_of(bucket):
            session = self.nodes.primary(shard)
            with session.translated(), session.transaction():
                applied = marks.seen(session, [(bucket, producer)])[bucket, producer]
                if applied < last:
                    marks.lose(session, [marks.Loss(bucket, 0, producer, max(first, applied + 1), last)])


def _spool_of(settings: Settings) -> Spool | None:
    spool = settings.spool
    return Spool(Path(spool.path), spool.max_mb * 1_000_000) if spool.enabled else None


_OPTIONS = frozenset(("shard_key", "idempotency_key", "durability"))


def _split(values: Mapping[str, Any] | None, fields: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Tell the options from the fields. In the mapping form every key is a field."""
    options = {name: fields.pop(name) for name in _OPTIONS if name in fields}
    if values is None:
        return options, fields
    if not isinstance(values, Mapping):
        raise BadOp(f"expected the fields as a mapping or as keywords, got {type(values).__name__}")
    return options, {**values, **fields} if fields else values


def _only_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise BadOp(f"unknown option {name!r}; there are {', '.join(sorted(_OPTIONS))}")
