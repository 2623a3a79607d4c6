"""Wire one deployment for this process, and send what its calls make. One client per process; threads may share it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.bounds import WaitBudgets, require_threads
from pipeline.calls import Calls
from pipeline.config import Topology
from pipeline.config.settings import Settings, load
from pipeline.enqueue import wire_writes
from pipeline.enqueue.held_ops import Chunk, Held, HeldOps
from pipeline.enqueue.spool_drain import Drainer
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import UnknownTable
from pipeline.model import Addressed
from pipeline.model.receipt import Receipts
from pipeline.oplog import Log
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.oplog.groups import log_of
from pipeline.per_process import PerProcess
from pipeline.reads import TokenSeal, shared_secret
from pipeline.reads.reads import Reads
from pipeline.reads.routing import Counters
from pipeline.reads.routing.replicas import HealthCache
from pipeline.shard.nodes import Nodes
from pipeline.spool import Spool

#: Of the time that a request may wait; the rest is for the spool, whose file is synced.
FOR_REDIS = 0.95
#: How long a bulk call waits for `durability="applied"`, s; as `wait_all` does.
BULK_WAIT_S = 30.0


class Client(Calls):
    """One deployment, seen from this process. Each call sends its op at once.

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
        self.client = self
        self.settings = source if isinstance(source, Settings) else load(source)
        self.topology = Topology(self.settings)
        redis = self.settings.redis
        self.spool = _spool_of(self.settings, self.topology)
        # without a spool an op has nowhere else to go
        self.wait_budgets = WaitBudgets(redis.timeout_s * FOR_REDIS if self.spool else math.inf, cold=True)
        self.log: Log = log or log_of(self.settings, timeout_s=redis.timeout_s, wait_budgets=self.wait_budgets)
        self.bell = bell or Bell(redis.broker_url, redis.prefix, self.topology.shards)
        self.health = health = HealthCache(self.log, self.topology)
        self.nodes = Nodes(self.settings, health)
        self.wait_budgets.ended = self.nodes.close
        self.away = RedisAway(self.spool, self.wait_budgets)
        deployment = f"{redis.prefix} {self.topology.buckets}"
        self.seal = TokenSeal(self.settings.reads.secret or self._shared_secret, deployment)
        wired = wire_writes(self.log, self.nodes, self.topology, self.bell, self.away, self.seal)
        self.op_builder, self.dispatch, self.publisher = wired.op_builder, wired.dispatch, wired.publisher
        self.follower, self.row_ids, self.drain_thread = wired.follower, wired.row_ids, wired.drain_thread
        self._take = self.dispatch.take
        self._lock = PerProcess(threading.Lock)

    @cached_property
    def reads(self) -> Reads:
        """What reads; made when first used, since many processes only write."""
        with self._lock():
            find_table = self.op_builder.table
            made: Reads = self.__dict__.get("reads") or Reads(
                self.settings, self.topology, self.log, self.nodes, self.health, find_table, self.seal
            )
            self.__dict__["reads"] = made  # before another thread, which waits for the lock, makes one too
            return made

    def close(self) -> None:
        """Ring what is to be rung, and close all connections."""
        if self.drain_thread is not None and (draining := self.drain_thread.made()) is not None:
            draining.close()
        self.bell.close()
        self.publisher.close()
        if "reads" in self.__dict__:
            self.reads.close()
        self.health.close()
        self.nodes.close()
        self.log.close()
        if self.spool is not None:
            self.spool.close()

    @property
    def drainer(self) -> Drainer | None:
        """What sends the ops in the spool; None without a spool."""
        return self.drain_thread().drainer if self.drain_thread is not None else None

    @property
    def counters(self) -> Counters:
        """How often this process has made each choice of a node."""
        return self.health.counters()

    # ops ----------------------------------------------------------------------------------------------------

    @property
    def _sends_at_once(self) -> bool:
        return not self.dispatch.gathering

    def _take_many(self, made: Iterator[Addressed | Chunk], durability: str) -> Receipts:
        sent_at_once = self._sends_at_once
        receipts = self.dispatch.take_many(made, durability)
        if durability == "applied" and sent_at_once:
            self.follower.wait_all(receipts, BULK_WAIT_S)
        return receipts

    def atomic(self) -> AbstractContextManager[None]:
        """Apply all ops of the block together or not at all; see `pipeline.atomic`.

        Raises:
            CrossBucket: at the call that would leave the bucket.
        """
        return self.dispatch.atomic()

    def unsent(self, table: str) -> bool:
        """Return whether this thread has ops for *table* that are not sent yet: in an atomic block, or held."""
        return self.dispatch.unsent(table)

    def held(self) -> Held:
        """Return an empty collection of ops, to be sent later or dropped: what a web request needs."""
        return self.dispatch.held()

    def holding(self, held: HeldOps) -> AbstractContextManager[HeldOps]:
        """Let this thread's ops go into *held* inside the block. Their receipts have ids, but no position yet."""
        return self.dispatch.holding(held)

    # databases ----------------------------------------------------------------------------------------------

    def table_name(self, table: Any) -> str:
        """Return the name of *table*, a pyDAL table or the name of one that this deployment knows.

        Raises:
            UnknownTable: nobody has defined, configured or published a table of that name.
        """
        if not isinstance(table, str):
            return str(table._tablename)
        known = {*self.topology.configured, *self.op_builder.names}
        if table not in known and table not in (published := self.log.newest_schemas()):
            raise UnknownTable(table, {*known, *published})
        return table

    def _shared_secret(self) -> str:
        return shared_secret(self.log, self.spool, self.wait_budgets, lambda: self.away.open)


def _spool_of(settings: Settings, topology: Topology) -> Spool | None:
    spool = settings.spool
    return Spool(Path(spool.path), spool.max_mb * 1_000_000, topology.fingerprint) if spool.enabled else None
