"""Define the record of a deployment, and find what is wrong in it and what mends that.

Every screen shows a record: `status`, `top`, the pages and the metrics. Workers publish one a second through Redis.
None means unknown: a server did not answer. An unknown number is never shown as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from pipeline.admin.observe.moves import MoveRecord
from pipeline.model.wait_reason import OF_TABLE, WaitReason, utc_text
from pipeline.reads.health import NodeState
from pipeline.shard.records.stops import BREAKER, PAUSED

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
#: Raised with each change of the JSON that a program could stumble over.
RECORD_VERSION = 1
#: Who made a record: workers, or the command that shows it, where no worker publishes one.
BY_WORKERS, OWN_LOOK = "workers", "own look"
#: How many tables, buckets and hosts a record names at most: the hottest, the deepest, the fullest.
HOTTEST = DEEPEST = 20
FULLEST = 200
#: The age from which on an op, or the lag of a replica, is shown as late, ms.
LATE_MS = 5_000
#: What only passes, by the kind of its reason; all else stops ops until somebody mends it.
PASSING = frozenset(("early", "locked", "testing", "queued", "database", "moving"))
#: How many reasons to wait a shard's record has at most, the worst; and how many strange keys.
MOST_WAITS, MOST_STRANGE = 50, 100


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
        elif reason.kind in OF_TABLE and 0 < reason.since_ms < shard.at_ms - max_age_s * 1000:
            waits = f"has ops that wait: {reason.detail}"
            yield OpFault(shard.shard, reason.scope, waits, f"run: pipeline why {reason.scope}")
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


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node of a shard.

    Attributes:
        role: `primary` or `replica`.
        state: how readers treat the node, by the prober's report; see `NodeState`.
        lag_ops: ops that the primary has committed and the replica has not; None for a primary.
        lag_ms: how much older the replica's newest op is, or an upper bound of that; None for a primary.
        reading_ms: the upper bound of its lag in the prober's report.
        age_ms: the age of that report.
        reads_per_s: reads of all processes that the node served; None at the first record.
        reads_share: its share of the reads that the shard's nodes served lately, 0.0 to 1.0; None where there was none.
        unfit: why it is unfit, and what to do; empty where it is fit.
        why: why something is unknown.
        behind_since_ms: when a replica that readers avoid had last caught up, as upkeep noted it; None: not known.
    """

    node: str
    role: str = "replica"
    state: NodeState = NodeState.UNKNOWN
    lag_ops: int | None = None
    lag_ms: int | None = None
    reading_ms: int | None = None
    age_ms: int | None = None
    reads_per_s: float | None = None
    reads_share: float | None = None
    unfit: str = ""
    why: str = ""
    behind_since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """The transactions of a shard's workers of late.

    Attributes:
        per_s: how many there were a second.
        ops_mean: how many ops one had.
        ms_p50, ms_p95: how long one took, ms.
    """

    per_s: float
    ops_mean: float
    ms_p50: float | None = None
    ms_p95: float | None = None


@dataclass(frozen=True, slots=True)
class TableRecord:
    """One table on a shard: ops applied a second, ops refused in all, and why the table is halted or paused."""

    table: str
    rate: float | None = None
    rejected: int | None = None
    halted: str | None = None


@dataclass(frozen=True, slots=True)
class BucketRecord:
    """One bucket that has ops queued, or one shard key that has a shard of its own: `key` names that then."""

    bucket: int
    depth: int
    key: str = ""

    def __str__(self) -> str:
        return self.key or str(self.bucket)


@dataclass(frozen=True, slots=True)
class PoisonRecord:
    """A bucket whose next ops ended a worker, a server or their time, and are tried again in smaller parts."""

    bucket: int
    attempts: int
    since_ms: int | None = None
    key: str = ""

    def __str__(self) -> str:
        return self.key or f"bucket {self.bucket}"


class ShardState(NamedTuple):
    """A shard's state: its word on every screen, and how bad it is, as `good`, `warn` or `bad`."""

    word: str
    badness: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard.

    Attributes:
        shard: its name.
        at_ms: when this was found, ms since 1970.
        owned: buckets that it owns by now, without the reference bucket; None: not known.
        depth: ops behind the watermarks.
        at_most: whether *depth* is an upper bound: the primary did not answer, and the watermarks are Redis' copy.
        oldest_ms: the age of the oldest of them, ms; None where there is none.
        dirty: buckets that are marked as having work.
        rate: ops applied a second; None at the first record.
        enqueue_rate: ops appended a second; None at the first record.
        rejected, parked, lost: ops, since the tables were made; *parked* ones wait behind a refused one.
        forged: entries of the log whose signature was missing or wrong, since then.
        batch: the workers' transactions of late.
        tables: the hottest tables.
        buckets: the deepest buckets.
        nodes: the primary first.
        waits: what is paused, halted or waits, and why; what stops the most first.
        poison: what is tried again in smaller parts.
        queue_why: why the queue is unknown.
        why: why something of the primary is unknown.
        given_up: refused ops that went within the last week since more was set aside than `[apply] rejects_mb`.
        refused: the op that was refused last: its place, its table and the error's number; empty where there is none.
        singly: whether its primary, or a proxy before it, gets one statement at a time; None: not known.
    """

    shard: str
    at_ms: int = 0
    depth: int | None = None
    at_most: bool = False
    oldest_ms: int | None = None
    dirty: int | None = None
    rate: float | None = None
    enqueue_rate: float | None = None
    rejected: int | None = None
    parked: int | None = None
    lost: int | None = None
    forged: int | None = None
    batch: BatchRecord | None = None
    tables: tuple[TableRecord, ...] = ()
    buckets: tuple[BucketRecord, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()
    waits: tuple[WaitReason, ...] = ()
    poison: tuple[PoisonRecord, ...] = ()
    queue_why: str = ""
    why: str = ""
    owned: int | None = None
    given_up: int | None = None
    refused: str = ""
    singly: bool | None = None

    @property
    def state(self) -> ShardState:
        """What stops the shard the most, in a word: what only passes stops nothing, a paused table the least."""
        if self.why or self.queue_why:
            return ShardState("unknown", "bad")
        stops = [reason for reason in self.waits if reason.kind not in PASSING]
        if stops:
            reason = min(stops, key=lambda one: one.kind == PAUSED and one.scope != self.shard)
            table = reason.kind in (PAUSED, BREAKER) and reason.scope != self.shard
            return ShardState(f"{'table ' * table}{stop_word(reason)}", "bad")
        if self.oldest_ms is not None and self.oldest_ms > LATE_MS:
            return ShardState("late", "warn")
        if self.lost:
            return ShardState("lost ops", "warn")
        if away_on(self):
            return ShardState("replica away", "warn")
        return ShardState("rejected ops", "warn") if self.rejected else ShardState("fine", "good")

    @property
    def stopped(self) -> dict[str, WaitReason]:
        """What is paused or halted there, by its name: the shard's, or a table's."""
        return stopped_in(self.waits)

    @property
    def replicas(self) -> tuple[NodeRecord, ...]:
        """The nodes that are not the primary."""
        return tuple(node for node in self.nodes if node.role == "replica")


def stop_word(reason: WaitReason) -> str:
    """Return what stops ops, in a word.

    Args:
        reason: why they wait.
    """
    return "halted" if reason.kind == BREAKER else reason.kind.replace("-", " ")


def stopped_in(waits: Iterable[WaitReason]) -> dict[str, WaitReason]:
    """Return what somebody has paused or a breaker has halted, by the name of the shard or the table.

    Args:
        waits: of one shard.
    """
    return {reason.scope: reason for reason in waits if reason.kind in (PAUSED, BREAKER)}


@dataclass(frozen=True, slots=True)
class RedisRecord:
    """The log's server.

    Attributes:
        memory_share: the used share of its limit, 0.0 without a limit.
        memory_bytes: what it uses.
        full: why no op is accepted; None while ops are accepted.
        strange: keys under our names that nobody of ours has written.
        why: why it is unknown.
    """

    memory_share: float | None = None
    memory_bytes: int | None = None
    full: str | None = None
    strange: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host's spool: ops that wait there for Redis, their bytes, the age of the oldest; or why that is unknown."""

    host: str
    kind: str
    at_ms: int = 0
    spooled: int | None = None
    bytes: int | None = None
    oldest_ms: int | None = None
    why: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class ReadCount:
    """How many reads of all processes went to a node for a reason; of refused ones, the node is their shard."""

    node: str
    kind: str
    reason: str
    reads: int


@dataclass(frozen=True, slots=True)
class Record:
    """The whole deployment at one moment.

    Attributes:
        at_ms: ms since 1970, by the clock of whoever made it.
        source: `BY_WORKERS` or `OWN_LOOK`.
        redis: the log's server.
        fingerprint: of the deployment, as the configuration of whoever made this says.
        buckets: how many the deployment has.
        shards: all of them, in the order of the configuration.
        hosts: those of late whose spools are known.
        reads: of all processes; None where Redis does not answer.
        moves: of buckets, as far as shards have answered; those that stand still first.
    """

    at_ms: int
    redis: RedisRecord
    shards: tuple[ShardRecord, ...]
    reads: tuple[ReadCount, ...] | None = None
    source: str = OWN_LOOK
    fingerprint: str = ""
    buckets: int = 0
    hosts: tuple[HostRecord, ...] = ()
    moves: tuple[MoveRecord, ...] = ()
    version: int = RECORD_VERSION

    @property
    def away(self) -> list[Away]:
        """The replicas that readers avoid."""
        return [one for shard in self.shards for one in away_on(shard)]

    @property
    def unknown(self) -> list[tuple[str, str]]:
        """The name of each server that did not answer, and why."""
        lines = [("redis", self.redis.why)]
        for shard in self.shards:
            lines.append((shard.shard, shard.why))
            if shard.queue_why != self.redis.why:
                lines.append((f"{shard.shard}'s queue", shard.queue_why))
            lines += [(replica.node, replica.why) for replica in shard.replicas]
        return [(name, why) for name, why in lines if why]

    def faults(self, max_age_s: float = MAX_AGE_S) -> list[OpFault]:
        """Return what an operator has to mend; an op that merely waits is none before its time.

        Args:
            max_age_s: the age from which on an op is too old.
        """
        return faults_in(self, max_age_s)

    def as_json(self, max_age_s: float = MAX_AGE_S) -> dict[str, Any]:
        """Return the record for programs: these fields by these names, null for what is unknown.

        Args:
            max_age_s: see `faults`.
        """
        faults = self.faults(max_age_s)
        found: dict[str, Any] = msgspec.to_builtins(self)
        for shard, known in zip(found["shards"], self.shards, strict=True):
            shard["state"] = known.state.word
            for told, reason in zip(shard["waits"], known.waits, strict=True):
                told |= {"sentence": reason.sentence(), "command": reason.command}
        told_faults = [fault._asdict() for fault in faults]
        return {"ok": not (faults or self.unknown), "known": not self.unknown, "faults": told_faults, **found}
