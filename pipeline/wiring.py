"""All parts of one deployment, wired together: the only place where that is done."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.settings import Settings, load
from pipeline.config.topology import Topology
from pipeline.enqueue.dispatch import Dispatch
from pipeline.enqueue.drain import Drainer
from pipeline.enqueue.drain_thread import DrainThread
from pipeline.enqueue.epochs import raise_epoch
from pipeline.enqueue.fallback import Fallback
from pipeline.enqueue.op_builder import OpBuilder
from pipeline.enqueue.producer import record_lost
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.receipt_status import Follower
from pipeline.enqueue.redis_away import RedisAway
from pipeline.enqueue.row_ids import RowIds
from pipeline.enqueue.schemas import SchemaPublisher
from pipeline.oplog.contract import Log
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.connections import NodeReaders
from pipeline.reads.reads import Reads
from pipeline.reads.routing.accounting import Counters
from pipeline.reads.routing.health_cache import HealthCache
from pipeline.reads.routing.router import Router
from pipeline.reads.token_cookie import Seal, shared_secret
from pipeline.shard.nodes import Nodes
from pipeline.spool.store import Spool
from pipeline.wait_budget import WaitBudgets, require_threads

#: Of the time that a request may wait; the rest is for the spool, whose file is synced.
FOR_REDIS = 0.95


class Parts:
    """The parts, as attributes; the calls that use them are in `writes` and `answers`.

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
        require_threads()
        self.settings = source if isinstance(source, Settings) else load(source)
        self.topology = Topology(self.settings)
        redis = self.settings.redis
        self.spool = _spool_of(self.settings)
        # without a spool an op has nowhere else to go
        self.wait_budgets = WaitBudgets(redis.timeout_s * FOR_REDIS if self.spool else math.inf)
        self.log: Log = log or RedisLog(
            redis.url, prefix=redis.prefix, timeout_s=redis.timeout_s, wait_budgets=self.wait_budgets
        )
        self.bell = bell or Bell(redis.broker_url, redis.prefix, self.topology.shards)
        self.health = health = HealthCache(self.log)
        self.nodes = Nodes(self.settings, health)
        self.wait_budgets.ended = self.nodes.close
        self.away = RedisAway(self.spool, self.wait_budgets)
        schemas = SchemaPublisher(self.log, self.nodes, self.topology, self.away)
        self.row_ids = RowIds(self.log, self.away)

        def renewed() -> None:
            schemas.republish()
            self.row_ids.renewed()

        self.publisher = Publisher(
            self.log,
            self.topology,
            self.bell,
            partial(raise_epoch, self.log, self.nodes, renewed),
            partial(record_lost, self.nodes, self.topology),
            away=self.away,
            renewed=renewed,
        )
        self.follower = Follower(self.topology, self.nodes, self.log, self.away.spool)
        self._through_spool(schemas)
        self.op_builder = OpBuilder(self.topology, self.row_ids, schemas)
        self._through_replicas()
        self._dispatch = Dispatch(self._fallback or self.publisher, self.follower, self.wait_budgets)
        self._define_lock = threading.Lock()

    def close(self) -> None:
        """Ring what is to be rung, and close all connections."""
        if self._drain_thread is not None:
            self._drain_thread.close()
        self.bell.close()
        self.publisher.close()
        self._reads.close()
        self.health.close()
        self.readers.close()
        self.nodes.close()
        self.log.close()
        if self.spool is not None:
            self.spool.close()

    # parts --------------------------------------------------------------------------------------------------

    def _through_spool(self, schemas: SchemaPublisher) -> None:
        """Wire the spool, where there is one."""
        self.drainer: Drainer | None = None
        self._drain_thread: DrainThread | None = None
        self._fallback: Fallback | None = None
        if self.spool is None:
            return
        self.drainer = Drainer(self.spool, self.publisher, self.log, self.nodes, self.topology)
        self._drain_thread = DrainThread(self.spool, self.drainer, self.away)
        self._fallback = Fallback(self.publisher, self.away, self._drain_thread, schemas)

    def _through_replicas(self) -> None:
        """Wire the reads."""
        self.readers = NodeReaders(self.nodes)
        reads = self.settings.reads
        router = Router(self.nodes, self.readers, self.health, reads.primary_limit, self.settings.loads())
        seal = Seal(reads.secret or self._shared_secret)
        self._reads = Reads(self.settings, self.topology, self.log, router, self.op_builder.table, seal)

    @property
    def counters(self) -> Counters:
        """How often this process has made each choice of a node."""
        return self.health.counters()

    def _shared_secret(self) -> str:
        return shared_secret(self.log, self.spool, self.wait_budgets, lambda: self.away.open)


def _spool_of(settings: Settings) -> Spool | None:
    spool = settings.spool
    return Spool(Path(spool.path), spool.max_mb * 1_000_000) if spool.enabled else None
