"""Read how far every node and Redis are, side by side; what does not answer in time is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipeline import clock
from pipeline.admin.questions import ask_all
from pipeline.admin.status import Queue, RedisStatus, ReplicaStatus, ShardStatus, Status, StatusNews, news_of, with_news
from pipeline.admin.strange_keys import every_strange_key
from pipeline.config.settings import Settings
from pipeline.config.topology import Topology
from pipeline.errors import PipelineError
from pipeline.model.op import START, Position, enqueued_ms
from pipeline.model.wait_reason import WaitReason, reasons_of
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.redis.server_info import ANSWER_S
from pipeline.oplog.waits import Noted
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.stops import stop_reasons
from pipeline.shard.session import brief

#: Redis's name among the nodes; no node can have it.
_REDIS = "redis "


@dataclass(frozen=True, slots=True)
class _Node:
    """One node's answer: watermarks of its active buckets; of a primary, what was rejected or lost, and is stopped."""

    at_s: float
    marks: Mapping[int, Position]
    newest_ms: int
    counts: Mapping[str, int]
    stops: Sequence[WaitReason]


#: Where Redis does not answer, no worker is said to be missing.
_NOTHING = Noted(True, {})


@dataclass(frozen=True, slots=True)
class _Queued:
    """A shard's queue, the watermark of each bucket that has ops behind it, and the workers' notes on them."""

    queue: Queue
    behind: Mapping[int, Position] = field(default_factory=dict)
    noted: Noted = _NOTHING


class Observer:
    """Reads the status of a deployment again and again; rates are known from the second time on."""

    def __init__(self, settings: Settings):
        self._topology, redis = Topology(settings), settings.redis
        self._log = RedisLog.of(redis, read_s=ANSWER_S)
        self._before: dict[str, _Node] = {}
        self._replicas: dict[str, list[str]] = {}
        self._nodes: dict[str, Callable[[], _Node | RedisStatus]] = {}
        for shard in settings.shards.values():
            self._nodes[shard.name] = partial(_ask, shard.name, shard.primary, primary=True)
            replicas = {f"{shard.name}-r{i}": uri for i, uri in enumerate(shard.replicas)}
            self._replicas[shard.name] = list(replicas)
            for node, uri in replicas.items():
                self._nodes[node] = partial(_ask, node, uri, primary=False)

    def look(self) -> Status:
        """Ask every node and Redis at once, and return the status."""
        answers = ask_all({**self._nodes, _REDIS: self._redis})
        redis = answers.pop(_REDIS)
        nodes = {name: found for name, found in answers.items() if not isinstance(found, RedisStatus)}
        if not isinstance(redis, RedisStatus):
            redis = RedisStatus(why=str(redis))
        news = self._news() if not redis.why else None
        shards = self._topology.shards
        queues: dict[str, _Queued | PipelineError] = dict.fromkeys(shards, _Queued(Queue(why=redis.why)))
        if not redis.why:
            # after the watermarks: an op applied in between counts as queued, and no count is below zero
            queues = ask_all({shard: partial(self._queue, shard, nodes[shard]) for shard in shards})
        rows = tuple(self._shard(shard, nodes, queues[shard], news) for shard in shards)
        return Status(clock.wall_ms(), redis, rows, news.reads if news is not None else None)

    def _redis(self) -> RedisStatus:
        strange = every_strange_key(self._log, self._topology)
        return RedisStatus(self._log.memory_share(), self._log.full(), strange=strange)

    def close(self) -> None:
        """Close the connection to Redis."""
        self._log.close()

    def _shard(
        self,
        shard: str,
        nodes: Mapping[str, _Node | PipelineError],
        queued: _Queued | PipelineError,
        news: StatusNews | None,
    ) -> ShardStatus:
        if isinstance(queued, PipelineError):
            queued = _Queued(Queue(why=str(queued)))
        primary = nodes[shard]
        found = (self._replica(node, nodes[node], primary) for node in self._replicas[shard])
        replicas = tuple(with_news(replica, news) for replica in found)
        if isinstance(primary, PipelineError):
            self._before.pop(shard, None)
            return ShardStatus(shard, queued.queue, replicas=replicas, why=_why(shard, primary))
        rate = self._rate(shard, primary)
        counts = primary.counts
        noted = queued.noted
        waits = reasons_of(shard, queued.behind, primary.stops, noted.notes, noted.alive)
        rejected, lost, forged = counts["rejected"], counts["lost"], counts["forged"]
        return ShardStatus(shard, queued.queue, rate, rejected, lost, replicas, waits=waits, forged=forged)

    def _news(self) -> StatusNews | None:
        try:
            return news_of(self._log)
        except PipelineError:
            return None

    def _queue(self, shard: str, primary: _Node | PipelineError) -> _Queued:
        unseen = isinstance(primary, PipelineError)
        marks = self._published(shard) if isinstance(primary, PipelineError) else primary.marks
        queued = self._log.queued(marks)
        behind = {bucket: marks[bucket] for bucket, ops in queued.items() if ops}
        heads = self._log.read(behind, dict.fromkeys(behind, 1)) if behind else {}
        sent = [at_ms for found in heads.values() for one in found if (at_ms := enqueued_ms(one.payload)) is not None]
        oldest_ms = max(0, clock.wall_ms() - int(min(sent))) if sent else None
        queue = Queue(sum(queued.values()), unseen, oldest_ms, self._log.dirty(shard))
        return _Queued(queue, behind, self._log.waits(shard))

    def _published(self, shard: str) -> dict[int, Position]:
        """Return the watermarks that workers published in Redis: never ahead of what was committed."""
        mine = (*self._topology.buckets_of(shard), self._topology.reference_bucket)
        return dict.fromkeys(mine, START) | self._log.marks(shard)

    def _replica(self, node: str, replica: _Node | PipelineError, primary: _Node | PipelineError) -> ReplicaStatus:
        if isinstance(replica, PipelineError):
            return ReplicaStatus(node, why=_why(node, replica))
        if isinstance(primary, PipelineError):
            return ReplicaStatus(node, why="its primary does not answer, so its lag is unknown")
        try:
            ops = self._between(replica.marks, primary.marks)
        except PipelineError as error:
            return ReplicaStatus(node, why=f"its lag spans a failover of Redis, which does not answer ({error})")
        return ReplicaStatus(node, ops, max(0, primary.newest_ms - replica.newest_ms))

    def _rate(self, shard: str, now: _Node) -> float | None:
        before = self._before.get(shard)
        self._before[shard] = now
        if before is None or now.at_s <= before.at_s:
            return None
        try:
            return self._between(before.marks, now.marks) / (now.at_s - before.at_s)
        except PipelineError:
            return None

    def _between(self, low: Mapping[int, Position], high: Mapping[int, Position]) -> int:
        """Return how many ops lie between two sets of watermarks."""
        apart = {b: (low.get(b, START), top) for b, top in high.items() if top > low.get(b, START)}
        ops = sum(top.seq - bottom.seq for bottom, top in apart.values() if top.epoch == bottom.epoch)
        across = {b: pair for b, pair in apart.items() if pair[0].epoch != pair[1].epoch}
        if across:
            behind_low = self._log.queued({b: bottom for b, (bottom, _) in across.items()})
            behind_high = self._log.queued({b: top for b, (_, top) in across.items()})
            ops += sum(max(behind_low[b] - behind_high[b], 0) for b in across)
        return ops


def _ask(node: str, uri: str, *, primary: bool) -> _Node:
    with brief(node, uri) as session:
        standing = ledger_queries.standing(session)
        at_s = clock.mono_s()
        counts = ledger_queries.counts(session) if primary else {}
        stops = stop_reasons(session, node) if primary else ()
    marks = {bucket: mark.position for bucket, mark in standing.marks.items() if mark.owned}
    return _Node(at_s, marks, standing.newest_ms, counts, stops)


def _why(node: str, error: PipelineError) -> str:
    return str(error).removeprefix(f"node {node!r}: ")
