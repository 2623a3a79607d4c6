"""Find what is wrong in a record, and what mends it: faults of shards, moves that stand still, absent replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pipeline.model.wait_reason import utc_text
from pipeline.reads.health.report import NodeState
from pipeline.shard.records.stops import BREAKER

if TYPE_CHECKING:
    from pipeline.admin.observe.record import HostRecord, NodeRecord, Record, ShardRecord

#: The age from which on a waiting op is a fault, unless an operator says otherwise, s.
MAX_AGE_S = 60.0
#: Lists what is set aside.
DEAD_LIST = "pipeline dead list"
#: How many keys a fault names.
MOST_NAMED = 5
_STRANGE = "in Redis: not of the pipeline's making, by its type, size or expiry"
#: A replica that gets nothing new, does not answer or may not be used: reads go to others.
_AVOIDED = (NodeState.STALLED, NodeState.OUT, NodeState.UNFIT, NodeState.NO_READING)
_BRING_BACK = "start its server and its replication; then run: pipeline check"


class Away(NamedTuple):
    """A replica that readers avoid: its name, a sentence that says since when, why, and what mends it."""

    node: str
    what: str
    why: str
    fix: str


class OpFault(NamedTuple):
    """What is wrong on a shard, and what mends it.

    Attributes:
        shard: its name.
        subject: the ops or the table concerned.
        what: what happened to the subject; the sentence continues after it.
        fix: the command.
        example: one of several subjects, by its place.
    """

    shard: str
    subject: str
    what: str
    fix: str
    example: str = ""

    @property
    def mend(self) -> str:
        """The command, and what to look at."""
        return f"{self.fix} (the last is {self.example})" if self.example else self.fix

    def __str__(self) -> str:
        return f"{self.shard}: {self.subject} {self.what}"


def faults_in(record: Record, max_age_s: float) -> list[OpFault]:
    """Return what an operator has to mend; an op that merely waits is none before its time.

    Args:
        record: of the deployment.
        max_age_s: the age from which on an op is too old.
    """
    names = ", ".join(record.redis.strange[:MOST_NAMED]) + ", …" * (len(record.redis.strange) > MOST_NAMED)
    strange = OpFault("redis", names, _STRANGE, "start workers: they delete that; and find out who writes there")
    of_shards = (fault for shard in record.shards for fault in _faults(shard, max_age_s))
    late = (host for host in record.hosts if (host.oldest_ms or 0) > max_age_s * 1000)
    still = (OpFault(one.source, str(one), f"stands still: {one.still}", one.mend) for one in record.moves if one.still)
    return [*((strange,) if names else ()), *still, *of_shards, *map(_late, late)]


def _faults(shard: ShardRecord, max_age_s: float) -> Iterator[OpFault]:
    for reason in shard.waits:
        if reason.kind == BREAKER:
            yield OpFault(shard.shard, reason.scope, f"is halted: {reason.detail}", f"run: pipeline why {reason.scope}")
    if shard.rejected:
        yield OpFault(shard.shard, *_ops(shard.rejected, "refused for good"), f"run: {DEAD_LIST}", shard.refused)
    if shard.given_up:
        fix = "mend what refuses them; pipeline dead list --where state=dropped has them; raise [apply] rejects_mb"
        yield OpFault(shard.shard, *_ops(shard.given_up, "refused, and given up to make room"), fix)
    if shard.lost:
        yield OpFault(shard.shard, *_ops(shard.lost, "lost by Redis"), "enqueue again what pipeline_lost names")
    if shard.forged:
        entries = f"{shard.forged:,} entr{'y' if shard.forged == 1 else 'ies'} of the log"
        fix = "find who writes to Redis; pipeline_forged has the last; see docs/configuration.md on sign_key"
        yield OpFault(shard.shard, entries, "came without a right signature, and no op was made of them", fix)
    if shard.oldest_ms is not None and shard.oldest_ms > max_age_s * 1000:
        age = f"has waited {shard.oldest_ms / 1000:,.0f} s, more than {max_age_s:g} s"
        yield OpFault(shard.shard, "the oldest op", age, f"run: pipeline why {shard.shard}")


def away_on(shard: ShardRecord) -> list[Away]:
    """Return the replicas of a shard that readers avoid.

    Args:
        shard: the shard.
    """
    return [_away(node) for node in shard.replicas if node.state in _AVOIDED]


def _away(node: NodeRecord) -> Away:
    silent = node.why and not node.unfit
    what = "does not answer" if silent else f"is {node.state}"
    if node.behind_since_ms:
        what = f"{'has not answered' if silent else f'has been {node.state}'} since {utc_text(node.behind_since_ms)}"
    fix = "" if node.unfit else _BRING_BACK  # its words say what to do
    return Away(node.node, f"{node.node} {what}: reads go elsewhere", node.unfit or node.why, fix)


def _late(host: HostRecord) -> OpFault:
    what = f"in the spool for {(host.oldest_ms or 0) / 1000:,.0f} s"
    return OpFault(host.host, *_ops(host.spooled or 0, what), "run there: pipeline spool drain")


def _ops(count: int, what: str) -> tuple[str, str]:
    return f"{count:,} op{'s' * (count != 1)}", f"{'was' if count == 1 else 'were'} {what}"
