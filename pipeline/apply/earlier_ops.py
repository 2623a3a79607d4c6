"""Order the ops of several buckets by time, and tell whether an op that a constraint refuses is early.

A database enforces order across buckets: a child's row needs its parent's, a unique value has to be free. A log keeps
order within one bucket. So a constraint's word is final once what was enqueued before the op is applied or set aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from pipeline import clock
from pipeline.apply.grouping import Item
from pipeline.errors import NewerOp, NotAnOp, PipelineError
from pipeline.model.op import START, Entry, Position, decode
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.contract import Work
from pipeline.shard.records import ledger
from pipeline.shard.session import NodeSession

#: By how much the clocks of two hosts may differ, ms: an op that is younger by no more counts as enqueued before.
CLOCKS_MS = 250.0
#: How many refused ops a process keeps in mind before it forgets those that are decided.
MOST_NOTED = 1_000


class Early(PipelineError):
    """Constraints refuse ops that may be early: the transaction has to run again without these and what follows them.

    Attributes:
        ops: of each bucket, the position of its first early op, and why that waits.
    """

    retryable = True

    def __init__(self, ops: Mapping[int, tuple[Position, WaitReason]]):
        super().__init__(f"{len(ops)} buckets wait for what was enqueued before")
        self.ops = ops


class EarlierOps:
    """Tells what was enqueued before an op, and is neither applied on the shard nor in the open transaction.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: the logs.
        wait_s: how long an op waits at most, from when this process first saw it refused.
    """

    def __init__(self, shard: str, session: NodeSession, log: Work, wait_s: float):
        self._shard, self._session, self._log, self._wait_s = shard, session, log, wait_s
        self._since: dict[tuple[int, Position], float] = {}
        self._after: Mapping[int, Position] = {}
        #: When the oldest queued op of each bucket was enqueued; None: not known yet.
        self._oldest_ms: dict[int, float] | None = None

    def begin(self, after: Mapping[int, Position]) -> None:
        """Begin a transaction.

        Args:
            after: the watermarks that it leaves: what is behind one is queued, what is before it is executed in order.
        """
        self._after, self._oldest_ms = after, None

    def awaited_by(self, item: Item, left_ms: float) -> WaitReason | None:
        """Return why an op that a constraint refuses waits; None where the constraint's word is final.

        Args:
            item: the op.
            left_ms: when the oldest op was enqueued that the transaction has yet to execute, and that may count.
        """
        place, now_s = (item.entry.bucket, item.entry.position), clock.mono_s()
        if len(self._since) > MOST_NOTED:
            self._since = {one: at for one, at in self._since.items() if now_s - at < 2 * self._wait_s}
        if now_s - self._since.setdefault(place, now_s) >= self._wait_s:
            return None
        if self._oldest_ms is None:
            self._oldest_ms = self._oldest_queued()
        others = (at_ms for bucket, at_ms in self._oldest_ms.items() if bucket != item.entry.bucket)
        if min(others, default=inf) > item.op.at_ms + CLOCKS_MS < left_ms:
            return None
        self._oldest_ms[item.entry.bucket] = item.op.at_ms  # this one is queued from now on
        detail = f"{item.entry.bucket}:{item.entry.position} for at most [apply] early_wait_s = {self._wait_s:g} s"
        return WaitReason("early", self._shard, self._shard, detail)

    def _oldest_queued(self) -> dict[int, float]:
        """Return when the oldest op was enqueued that is queued, of each bucket of the shard that has one."""
        dirty = self._log.dirty(self._shard)
        if not dirty:
            return {}
        after = {**ledger.reached(self._session, dirty), **self._after}
        behind = {bucket: after.get(bucket, START) for bucket in dirty}
        heads = self._log.read(behind, dict.fromkeys(behind, 1))
        return {bucket: _sent_ms(found[0]) for bucket, found in heads.items() if found}


def by_time(items: Iterable[Item]) -> list[Item]:
    """Order ops of several buckets by the time of their calls, and keep the order within each bucket.

    Args:
        items: of each bucket in order.
    """
    latest: dict[int, float] = {}

    def not_before(item: Item) -> float:
        bucket = item.entry.bucket
        latest[bucket] = at_ms = max(item.op.at_ms, latest.get(bucket, 0.0))  # a clock may have been set back
        return at_ms

    return sorted(items, key=not_before)


def _sent_ms(entry: Entry) -> float:
    """Return when an op was enqueued; of one that this release cannot read, that it was before all others."""
    try:
        return decode(entry.payload).at_ms
    except (NewerOp, NotAnOp):
        return 0.0
