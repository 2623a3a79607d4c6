"""How far each shard is: what is queued, how old, how fast it is applied, how far its replicas are.

What could not be asked is None, "unknown": it is never shown as nought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from pipeline import clock
from pipeline.admin.ask import ask_all
from pipeline.errors import PipelineError
from pipeline.log.contract import Log
from pipeline.log.health import ANSWER_S
from pipeline.log.redis_log import RedisLog
from pipeline.op import Position, decode
from pipeline.settings import Settings
from pipeline.shard import inquiry
from pipeline.shard.brief import brief
from pipeline.topology import Topology


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica. `why` tells why something is unknown.

    Attributes:
        lag_ops: ops that the primary has committed and the replica has not.
        lag_ms: between the newest commits of ops that each of them holds, by the primary's clock.
    """

    node: str
    lag_ops: int | None = None
    lag_ms: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard. `why` tells why something is unknown.

    Attributes:
        queued: ops in the log behind the watermarks.
        queued_at_most: whether `queued` comes from Redis' copy of the watermarks, since the primary does not answer.
        oldest_ms: the age of the oldest queued op; None also where none is queued.
        rate: ops applied per second between two looks; None at the first look.
        dirty: buckets that are marked as having work.
    """

    shard: str
    queued: int | None = None
    queued_at_most: bool = False
    oldest_ms: int | None = None
    rate: float | None = None
    dirty: int | None = None
    rejected: int | None = None
    parked: int | None = None
    lost: int | None = None
    replicas: tuple[ReplicaStatus, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The whole deployment at one moment. `full` says why nothing is let in; empty while everything is."""

    at_ms: int
    shards: tuple[ShardStatus, ...]
    redis_memory: float | None = None
    full: str | None = None
    redis_why: str = ""

    @property
    def known(self) -> bool:
        """Whether everything answered."""
        lines = [line.why for shard in self.shards for line in (shard, *shard.replicas)]
        return not (self.redis_why or any(lines))

    def as_json(self) -> dict[str, object]:
        """Return the status for programs: these fields by these names, null for what is unknown."""
        return {"known": self.known, **asdict(self)}


class Observer:
    """Looks again and again; the second look knows a rate."""

    def __init__(self, settings: Settings):
        self._settings, self._topology = settings, Topology(settings)
        redis = settings.redis
        self._log: Log = RedisLog(redis.url, prefix=redis.prefix, read_s=ANSWER_S)
        self._before: dict[str, tuple[float, Mapping[int, Position]]] = {}

    def look(self) -> Status:
        """Ask everybody, side by side; what does not answer in time is unknown."""
        standings = ask_all(self._questions())
        redis = ask_all({"redis": lambda: (self._log.memory_share(), self._log.full() or "")})["redis"]
        shards = ask_all({s: partial(self._shard, s, standings) for s in self._topology.shards})
        rows = [
            ShardStatus(name, why=str(found)) if isinstance(found, PipelineError) else found
            for name, found in shards.items()
        ]
        if isinstance(redis, PipelineError):
            return Status(clock.wall_ms(), tuple(rows), redis_why=str(redis))
        return Status(clock.wall_ms(), tuple(rows), *redis)

    def close(self) -> None:
        """Close the connection to Redis."""
        self._log.close()

    def _questions(self) -> dict[str, Callable[[], _Node]]:
        questions: dict[str, Callable[[], _Node]] = {}
        for shard in self._settings.shards.values():
            questions[shard.name] = partial(_node, shard.name, shard.primary, primary=True)
            for i, uri in enumerate(shard.replicas):
                questions[f"{shard.name}-r{i}"] = partial(_node, f"{shard.name}-r{i}", uri, primary=False)
        return questions

    def _shard(self, shard: str, standings: Mapping[str, _Node | PipelineError]) -> ShardStatus:
        primary = standings[shard]
        names = [f"{shard}-r{i}" for i in range(len(self._settings.shards[shard].replicas))]
        replicas = tuple(self._replica(name, standings[name], primary) for name in names)
        if isinstance(primary, PipelineError):
            queue = self._queue(shard, _at_least(self._log, shard, self._topology), at_most=True)
            return ShardStatus(shard, replicas=replicas, why=_short(primary, shard), **queue)
        marks = {bucket: mark.position for bucket, mark in primary.active.items()}
        rate = self._rate(shard, marks, primary.at_s)
        return ShardStatus(
            shard, rate=rate, replicas=replicas, **self._queue(shard, marks, at_most=False), **primary.counts
        )

    def _queue(self, shard: str, marks: Mapping[int, Position], *, at_most: bool) -> dict[str, object]:
        try:
            queued = self._log.queued(marks)
            behind = {bucket: marks[bucket] for bucket, count in queued.items() if count}
            heads = self._log.read(behind, dict.fromkeys(behind, 1)) if behind else {}
            sent = [decode(entry.payload).at_ms for entries in heads.values() for entry in entries]
            dirty = self._log.dirty(shard)
        except PipelineError as error:
            return {"why": str(error)}
        oldest_ms = max(0, clock.wall_ms() - min(sent)) if sent else None
        return {"queued": sum(queued.values()), "queued_at_most": at_most, "oldest_ms": oldest_ms, "dirty": dirty}
