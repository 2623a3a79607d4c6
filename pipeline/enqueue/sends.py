"""Count what this process enqueues, by table, kind and way, and how long that takes; the bell's thread publishes it.

An enqueue only notes what it did. The thread adds up a moment later, and sends counters to the log every two seconds.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Mapping

from pipeline.config.topology import Topology
from pipeline.enqueue.shipment import OpPlace
from pipeline.enqueue.spooling.host_news import HostNews
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.model.op import Op
from pipeline.oplog.contract import Log
from pipeline.oplog.counts import DIRECT, ENQUEUE_BOUNDS_MS, ENQUEUE_MS, ENQUEUE_SUM_US, ENQUEUED, SPOOLED, bound_of
from pipeline.oplog.doorbell import Bell, Later, SilentBell
from pipeline.spool.null_spool import NullSpool
from pipeline.spool.store import Spool

#: So many calls are noted at most until they are added up; a fifth of a second of a busy process has less.
MOST_TAKEN = 10_000
#: How many ops there are of each bucket, kind and table.
What = Mapping[tuple[int, str, str], int]
#: What one call enqueued, where, and how long that took, s. A tuple without names is made in a fifth of the time.
Sent = tuple[What, Mapping[int, OpPlace], float]
logger = logging.getLogger("pipeline.enqueue")


class Sends(Later):
    """What one process has enqueued, until the log has counted it. Threads may share it; a fork makes its own.

    Args:
        log: counts.
        topology: which shards apply a bucket.
        spool: of this host, whose state is published, too.

    Attributes:
        pid: of the process.
        taken: notes of calls.
        asked: whether the bell's thread is to add them up.
    """

    __slots__ = ("_counts", "_log", "_news", "_topology", "asked", "pid", "taken")

    def __init__(self, log: Log, topology: Topology, spool: Spool | NullSpool):
        self.pid, self.asked = os.getpid(), False
        self.taken: deque[Sent] = deque(maxlen=MOST_TAKEN)
        self._log, self._topology, self._news = log, topology, HostNews(spool, "web")
        self._counts: dict[str, Counter[str]] = {}

    def ask(self, bell: Bell | SilentBell) -> None:
        """Have the bell's thread add up and publish what calls note from here on.

        Args:
            bell: of this process.
        """
        self.asked = True
        bell.later(self)

    def gather(self) -> None:
        """Add up what calls have noted."""
        while self.taken:
            what, places, took_s = self.taken.popleft()
            ways = set()
            for (bucket, kind, table), ops in what.items():
                place = places[bucket]
                if place.row_id is not None:
                    continue  # an earlier op with its key is there
                way = SPOOLED if place.position is None else DIRECT
                for shard in self._topology.shards_of(bucket):
                    ways.add((shard, way))
                    self._of(shard)[f"{ENQUEUED} {way} {kind} {table}"] += ops
            for shard, way in ways:
                counts = self._of(shard)
                counts[f"{ENQUEUE_MS} {way} {bound_of(took_s * 1000, ENQUEUE_BOUNDS_MS)}"] += 1
                counts[f"{ENQUEUE_SUM_US} {way}"] += round(took_s * 1_000_000)

    def publish(self) -> None:
        """Send the counters; what a Redis that is away does not take is sent later."""
        self.asked = False  # first: whoever notes a call from here on asks anew
        self.gather()
        try:
            for shard in [*self._counts]:
                # no bucket is finished, and the delay keeps the bell silent
                self._log.finish(shard, {}, delay_ms=1, counts=self._counts[shard])
                del self._counts[shard]
        except PipelineError as error:
            logger.info(Event("enqueued_counted_later", error=error))
            return
        self._news.publish(self._log)

    def _of(self, shard: str) -> Counter[str]:
        return self._counts.setdefault(shard, Counter())


def what_of(bucket: int, op: Op) -> What:
    """Return what one op counts as; of a group, each member.

    Args:
        bucket: the op's.
        op: the op.
    """
    return Counter((bucket, member.kind, member.table) for member in op.members)
