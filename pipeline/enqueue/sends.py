"""Count what this process enqueues, by table, kind and way, and how long that takes; the bell's thread publishes it.

An enqueue only notes what it did. The thread adds up a moment later, and sends counters to the log every two seconds.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Mapping

from pipeline.config.topology import Topology
from pipeline.enqueue.shipment import OpPlace
from pipeline.enqueue.spooling.host_news import HostNews
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.model.op import Op
from pipeline.oplog.contract import Log
from pipeline.oplog.counts import (
    DIRECT,
    ENQUEUE_BOUNDS_MS,
    ENQUEUE_MS,
    ENQUEUE_SUM_US,
    ENQUEUED,
    MOST_COUNTERS,
    SPOOLED,
)
from pipeline.oplog.doorbell import Bell, Later, SilentBell
from pipeline.spool.null_spool import NullSpool
from pipeline.spool.store import Spool

#: So many calls are noted at most until they are added up; a fifth of a second of a busy process has less.
MOST_TAKEN = 10_000
#: How many ops there are of each bucket, kind and table.
What = Mapping[tuple[int, str, str], int]
#: What one call enqueued, where, and how long that took, s. A tuple without names is made in a fifth of the time.
Sent = tuple[What, Mapping[int, OpPlace], float]
#: The bucket, kind and table of one op that was sent alone, whether it went to the spool, and how long that took, s. It
#: refers to no container, so Python's collector passes it over: kept dicts cost a caller 4 µs an op, this 0.3.
Single = tuple[int, str, str, bool, float]
#: The shards of an op, and whether it went to the spool.
Way = tuple[tuple[str, ...], bool]
_WAYS = {False: DIRECT, True: SPOOLED}
_BOUNDS_S = [ms / 1000 for ms in ENQUEUE_BOUNDS_MS]
_NAMES = [*(f"{ms:g}" for ms in ENQUEUE_BOUNDS_MS), "inf"]
logger = logging.getLogger("pipeline.enqueue")


class Sends(Later):
    """What one process has enqueued, until the log has counted it. Threads may share it; a fork makes its own.

    Args:
        log: counts.
        topology: which shards apply a bucket.
        spool: of this host, whose state is published, too.

    Attributes:
        pid: of the process.
        single, taken: notes of calls with one op, and of others.
        noted: other ops to count, with the first words of their counters' names; see `oplog/counts`.
        asked: whether the bell's thread is to add them up.
    """

    __slots__ = (
        "_calls",
        "_counts",
        "_log",
        "_news",
        "_ops",
        "_shards",
        "_took_s",
        "asked",
        "noted",
        "pid",
        "single",
        "taken",
    )

    def __init__(self, log: Log, topology: Topology, spool: Spool | NullSpool):
        self.pid, self.asked = os.getpid(), False
        self.single: deque[Single] = deque(maxlen=MOST_TAKEN)
        self.taken: deque[Sent] = deque(maxlen=MOST_TAKEN)
        self.noted: deque[tuple[str, What]] = deque(maxlen=MOST_TAKEN)
        self._log, self._news = log, HostNews(spool, "web")
        self._shards = topology.shards_of
        self._ops: dict[tuple[Way, str, str], int] = {}
        self._calls: dict[tuple[Way, int], int] = {}
        self._took_s: dict[Way, float] = {}
        self._counts: dict[str, Counter[str]] = {}

    def ask(self, bell: Bell | SilentBell) -> None:
        """Have the bell's thread add up and publish what calls note from here on.

        Args:
            bell: of this process.
        """
        self.asked = True
        bell.later(self)

    def gather(self) -> None:
        """Add up what calls have noted: at a tenth of the time that names of counters would take."""
        self._gather_single()
        ops, calls, took = self._ops, self._calls, self._took_s
        ways: dict[tuple[int, bool], Way] = {}  # asking the map for each op takes a third of the time
        while self.taken:
            what, places, took_s = self.taken.popleft()
            bound = bisect_left(_BOUNDS_S, took_s)
            seen: Way | None = None
            for (bucket, kind, table), n in what.items():
                place = places[bucket]
                if place.row_id is not None:
                    continue  # an earlier op with its key is there
                at = bucket, place.position is None
                way = ways.get(at) or ways.setdefault(at, (self._shards(bucket), at[1]))
                key = way, kind, table
                ops[key] = ops.get(key, 0) + n
                if way != seen:  # of a bulk call, once for each run of ops of one shard
                    seen = way
                    calls[way, bound] = calls.get((way, bound), 0) + 1
                    took[way] = took.get(way, 0.0) + took_s
        while self.noted:
            words, what = self.noted.popleft()
            for (bucket, kind, table), n in what.items():
                self._add(self._shards(bucket), f"{words} {kind} {table}", n)

    def _gather_single(self) -> None:
        """Sort the calls with one op by what they are first: 0.14 µs for each, where adding each up takes 0.5."""
        like: dict[tuple[int, str, str, bool], list[float]] = {}
        single, ops, calls, took = self.single, self._ops, self._calls, self._took_s
        while single:
            bucket, kind, table, spooled, took_s = single.popleft()
            try:
                like[bucket, kind, table, spooled].append(took_s)
            except KeyError:
                like[bucket, kind, table, spooled] = [took_s]
        times: dict[Way, list[float]] = {}
        for (bucket, kind, table, spooled), some in like.items():
            way = self._shards(bucket), spooled
            key = way, kind, table
            ops[key] = ops.get(key, 0) + len(some)
            times.setdefault(way, []).extend(some)
        for way, of_way in times.items():
            took[way] = took.get(way, 0.0) + sum(of_way)
            of_way.sort()
            begin = 0
            for bound, end in enumerate((*(bisect_right(of_way, most) for most in _BOUNDS_S), len(of_way))):
                if end > begin:
                    calls[way, bound] = calls.get((way, bound), 0) + end - begin
                begin = end

    def publish(self) -> None:
        """Send the counters; what a Redis that is away does not take is sent later."""
        self.asked = False  # first: whoever notes a call from here on asks anew
        self.gather()
        self._name()
        try:
            for shard in [*self._counts]:
                # no bucket is finished, and the delay keeps the bell silent
                self._log.finish(shard, {}, delay_ms=1, counts=self._counts[shard])
                del self._counts[shard]
        except PipelineError as error:
            logger.info(Event("enqueued_counted_later", error=error))
            return
        self._news.publish(self._log)

    def _name(self) -> None:
        """Give what was added up the names of counters, shard by shard."""
        for ((shards, spooled), kind, table), n in self._ops.items():
            self._add(shards, f"{ENQUEUED} {_WAYS[spooled]} {kind} {table}", n)
        for ((shards, spooled), bound), n in self._calls.items():
            self._add(shards, f"{ENQUEUE_MS} {_WAYS[spooled]} {_NAMES[bound]}", n)
        for (shards, spooled), took_s in self._took_s.items():
            self._add(shards, f"{ENQUEUE_SUM_US} {_WAYS[spooled]}", round(took_s * 1_000_000))
        for added in (self._ops, self._calls, self._took_s):
            added.clear()

    def _add(self, shards: tuple[str, ...], name: str, n: int) -> None:
        for shard in shards:
            counts = self._counts.setdefault(shard, Counter())
            if name in counts or len(counts) < MOST_COUNTERS:  # as the log does
                counts[name] += n


def what_of(bucket: int, op: Op) -> What:
    """Return what one op counts as; of a group, each member.

    Args:
        bucket: the op's.
        op: the op.
    """
    return Counter((bucket, member.kind, member.table) for member in op.members)
