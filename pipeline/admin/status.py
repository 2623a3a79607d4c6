"""Hold the status of a deployment as values: what is queued, how old, how fast it is applied, how far replicas are.

None means unknown: the server did not answer. An unknown number is never shown as zero. Also here: what the prober
published about each node, and how often reads went to each node for each reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.health.report import NodeState, Report, unfit_of
from pipeline.reads.routing.accounting import Chosen


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica.

    Attributes:
        lag_ops: ops that the primary has committed and the replica has not.
        lag_ms: the time between the newest commits of ops that each of the two holds, by the primary's clock.
        why: why something is unknown.
        state: how readers treat the replica, by the prober's report: `in`, `out` of rotation, `no reading`, `no
            prober`, `unfit` (absent for too long, or not like its primary), `unknown`.
        reading_ms: the upper bound of its lag in the prober's report.
        age_ms: the age of that report.
        unfit: why it is unfit, and what to do.
    """

    node: str
    lag_ops: int | None = None
    lag_ms: int | None = None
    why: str = ""
    state: NodeState = NodeState.UNKNOWN
    reading_ms: int | None = None
    age_ms: int | None = None
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class Queue:
    """A shard's part of the log.

    Attributes:
        ops: how many are behind the watermarks.
        at_most: whether *ops* is an upper bound: the primary did not answer, and the watermarks are Redis' copy.
        oldest_ms: the age of the oldest op; None where there is none.
        dirty: how many buckets are marked as having work.
        why: why it is unknown.
    """

    ops: int | None = None
    at_most: bool = False
    oldest_ms: int | None = None
    dirty: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard.

    Attributes:
        rate: ops applied a second between two readings; None at the first.
        rejected, lost: ops, since the tables were made.
        forged: entries of the log whose signature was missing or wrong, since then.
        why: why something of the primary is unknown.
        waits: what of the shard is stopped, and why.
    """

    shard: str
    queue: Queue = Queue()
    rate: float | None = None
    rejected: int | None = None
    lost: int | None = None
    replicas: tuple[ReplicaStatus, ...] = ()
    why: str = ""
    waits: tuple[WaitReason, ...] = ()
    forged: int | None = None


@dataclass(frozen=True, slots=True)
class RedisStatus:
    """The log's server.

    Attributes:
        memory: the used share of its limit, 0.0 without a limit.
        full: why no op is accepted; None while ops are accepted.
        why: why it is unknown.
        strange: keys under our names that nobody of ours has written.
    """

    memory: float | None = None
    full: str | None = None
    why: str = ""
    strange: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadCount:
    """How many reads of all processes went to a node for a reason; of refused ones, the node is their shard."""

    node: str
    kind: str
    reason: str
    reads: int


#: The age from which on a waiting op is a fault, unless an operator says otherwise, s.
MAX_AGE_S = 60.0
#: How many keys a fault names.
MOST_NAMED = 5
_STRANGE = "in Redis: not of the pipeline's making, by its type, size or expiry"


class OpFault(NamedTuple):
    """What is wrong on a shard, and what mends it.

    Attributes:
        shard: its name.
        subject: the ops or the table concerned.
        what: what happened to the subject; the sentence continues after it.
        fix: the command.
    """

    shard: str
    subject: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.subject} {self.what}"


@dataclass(frozen=True, slots=True)
class Status:
    """The whole deployment at one moment; `reads` is None where Redis does not answer."""

    at_ms: int
    redis: RedisStatus
    shards: tuple[ShardStatus, ...]
    reads: tuple[ReadCount, ...] | None = None

    @property
    def unknown(self) -> list[tuple[str, str]]:
        """The name of each server that did not answer, and why."""
        lines = [("redis", self.redis.why)]
        for shard in self.shards:
            lines.append((shard.shard, shard.why))
            if shard.queue.why != self.redis.why:
                lines.append((f"{shard.shard}'s queue", shard.queue.why))
            lines += [(replica.node, replica.why) for replica in shard.replicas]
        return [(name, why) for name, why in lines if why]

    def faults(self, max_age_s: float) -> list[OpFault]:
        """Return what an operator has to mend; an op that merely waits is none before its time.

        Args:
            max_age_s: the age from which on an op is too old.
        """
        names = ", ".join(self.redis.strange[:MOST_NAMED]) + ", …" * (len(self.redis.strange) > MOST_NAMED)
        strange = OpFault("redis", names, _STRANGE, "start workers: they delete that; and find out who writes there")
        of_shards = (fault for shard in self.shards for fault in _faults(shard, max_age_s))
        return [*((strange,) if names else ()), *of_shards]

    def as_json(self, max_age_s: float) -> dict[str, object]:
        """Return the status for programs: these fields by these names, null for what is unknown.

        Args:
            max_age_s: see `faults`.
        """
        faults = self.faults(max_age_s)
        found = {"faults": [fault._asdict() for fault in faults], **asdict(self)}
        return {"ok": not (faults or self.unknown), "known": not self.unknown, **found}


def _faults(shard: ShardStatus, max_age_s: float) -> Iterator[OpFault]:
    for reason in shard.waits:
        if reason.kind == "breaker":
            yield OpFault(shard.shard, reason.scope, f"is halted: {reason.detail}", f"run: pipeline why {reason.scope}")
    if shard.rejected:
        yield OpFault(shard.shard, *_ops(shard.rejected, "refused for good"), "run: pipeline dead list")
    if shard.lost:
        yield OpFault(shard.shard, *_ops(shard.lost, "lost by Redis"), "enqueue again what pipeline_lost names")
    if shard.forged:
        entries = f"{shard.forged:,} entr{'y' if shard.forged == 1 else 'ies'} of the log"
        fix = "find who writes to Redis; pipeline_forged has the last; see docs/configuration.md on sign_key"
        yield OpFault(shard.shard, entries, "came without a right signature, and no op was made of them", fix)
    if shard.queue.oldest_ms is not None and shard.queue.oldest_ms > max_age_s * 1000:
        age = f"has waited {shard.queue.oldest_ms / 1000:,.0f} s, more than {max_age_s:g} s"
        yield OpFault(shard.shard, "the oldest op", age, f"run: pipeline why {shard.shard}")


def _ops(count: int, what: str) -> tuple[str, str]:
    return f"{count:,} op{'s' * (count != 1)}", f"{'was' if count == 1 else 'were'} {what}"


@dataclass(frozen=True, slots=True)
class StatusNews:
    """What is published in Redis about reads.

    Attributes:
        now_ms: Redis's clock.
        nodes: by node: when the last report was published, and the report.
        unfit: each unfit node, and why.
        reads: counts of all processes.
    """

    now_ms: int
    nodes: Mapping[str, tuple[int, Report]]
    unfit: Mapping[str, str]
    reads: tuple[ReadCount, ...]


def news_of(log: RedisLog) -> StatusNews:
    """Read what is published about reads.

    Args:
        log: a log over Redis.

    Raises:
        LogUnavailable: Redis does not answer.
    """
    now_ms, published = log.health()
    nodes = {node: (at_ms, Report.from_json(text)) for node, (at_ms, text) in published.items()}
    unfit = {node: why for text in log.unfit().values() for node, why in unfit_of(text).items()}
    counted = {Chosen.parse(text): reads for text, reads in log.reads().items()}
    reads = tuple(ReadCount(*choice, reads) for choice, reads in sorted(counted.items()))
    return StatusNews(now_ms, nodes, unfit, reads)


def with_news(replica: ReplicaStatus, news: StatusNews | None) -> ReplicaStatus:
    """Return a replica's status with what is published about the replica.

    Args:
        replica: what the nodes themselves answered.
        news: what is published; None where Redis does not answer.
    """
    if news is None:
        return replica
    at_ms, report = news.nodes.get(replica.node, (0, None))
    if report is not None:
        age_ms = max(0, news.now_ms - at_ms)
        replica = replace(replica, state=report.state, reading_ms=report.lag_ms, age_ms=age_ms)
    else:
        replica = replace(replica, state=NodeState.NO_PROBER)
    if replica.node in news.unfit:
        return replace(replica, state=NodeState.UNFIT, unfit=news.unfit[replica.node])
    return replica
