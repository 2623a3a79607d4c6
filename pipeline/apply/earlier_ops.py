"""Order the ops of several buckets by time, and tell whether an op that a constraint refuses is early.

A database enforces order across buckets: a child's row needs its parent's, a unique value has to be free. A log keeps
order within one bucket. So a constraint's word is final once what was enqueued before the op is applied or set aside.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from math import inf

from pipeline import clock
from pipeline.apply.grouping import Item
from pipeline.errors import PipelineError
from pipeline.model.op import Entry, Position, enqueued_ms
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.contract import Work
from pipeline.shard.records import ledger
from pipeline.shard.session import NodeSession

#: By how much the clocks of two hosts may differ, ms: an op that is younger by no more counts as enqueued before, for
#: so long, s. Two that are both refused for good must not wait for each other.
CLOCKS_MS, CLOCKS_S = 250.0, 1.0
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
        self._put_off: set[tuple[int, Position]] = set()
        self._after: Mapping[int, Position] = {}
        self._queued: dict[int, float] | None = None

    def begin(self, after: Mapping[int, Position]) -> None:
        """Begin a transaction.

        Args:
            after: the watermarks that it leaves: what is behind one is queued, what is before it is executed in order.
        """
        self._after, self._queued = after, None

    def awaited_by(self, item: Item) -> WaitReason | None:
        """Return why an op that a constraint refuses waits; None where it is final once the op is refused again.

        Args:
            item: the op.
        """
        place, now_s = (item.entry.bucket, item.entry.position), clock.mono_s()
        if len(self._since) > MOST_NOTED:
            self._since = {one: at for one, at in self._since.items() if now_s - at < 2 * self._wait_s}
        waited_s = now_s - self._since.setdefault(place, now_s)
        if waited_s >= self._wait_s:
            return None
        if self._queued is None:
            self._queued = self._oldest_queued()
        at_ms, bucket = item.op.at_ms, item.entry.bucket
        if waited_s < CLOCKS_S:
            before = any(sent_ms <= at_ms + CLOCKS_MS for other, sent_ms in self._queued.items() if other != bucket)
        else:
            before = any(sent_ms < at_ms for other, sent_ms in self._queued.items() if other != bucket)
        if not before:
            return None
        self._queued[bucket] = min(at_ms, self._queued.get(bucket, at_ms))  # this one is queued from now on
        return self._reason(item)

    def has_others(self, item: Item) -> bool:
        """Return whether ops of other buckets in the transaction may help a refused op that was not put off before.

        Args:
            item: the op.
        """
        return len(self._after) > 1 and (item.entry.bucket, item.entry.position) not in self._put_off

    def put_off(self, item: Item) -> WaitReason:
        """Return why an op waits that is taken after the rest of its batch: next time it is the first of its bucket.

        Args:
            item: the op.
        """
        if len(self._put_off) > MOST_NOTED:
            self._put_off.clear()
        self._put_off.add((item.entry.bucket, item.entry.position))
        return self._reason(item)

    def _reason(self, item: Item) -> WaitReason:
        detail = f"{item.entry.bucket}:{item.entry.position} for at most [apply] early_wait_s = {self._wait_s:g} s"
        return WaitReason("early", self._shard, self._shard, detail)

    def _oldest_queued(self) -> dict[int, float]:
        """Return when the oldest op was enqueued that is queued in each bucket of the shard.

        The logs say so: a bucket that a worker drained on a primary that died since is not marked dirty.
        """
        marks = ledger.marks(self._session)
        behind = {bucket: self._after.get(bucket, mark.position) for bucket, mark in marks.items() if mark.owned}
        heads = self._log.read(behind, dict.fromkeys(behind, 1))
        return {bucket: min(map(_sent_ms, found)) for bucket, found in heads.items() if found}


def oldest(entries: Mapping[int, Sequence[Entry]], counts: Mapping[int, int], most: int) -> dict[int, list[Entry]]:
    """Return the entries that were enqueued first of all, whatever their buckets.

    Args:
        entries: of each bucket the next ones, in order.
        counts: how many of each bucket were asked for: where that many were found, there may be more.
        most: how many to return; of one bucket's at least the first.
    """
    times = {bucket: list(accumulate(map(_sent_ms, found), max)) for bucket, found in entries.items()}
    end_ms = min((sent[-1] for bucket, sent in times.items() if len(sent) >= counts[bucket]), default=inf)
    every = sorted(sent_ms for sent in times.values() for sent_ms in sent if sent_ms <= end_ms)
    end_ms = every[min(most, len(every)) - 1] if every else end_ms
    return {bucket: list(found[: bisect_right(times[bucket], end_ms)]) for bucket, found in entries.items()}


def by_time(items: Sequence[Item]) -> list[Item]:
    """Order ops of several buckets by the time of their calls, and keep the order within each bucket.

    Args:
        items: bucket by bucket, of each in order.
    """
    sent_ms: list[float] = []
    for _, own in groupby(items, key=_bucket):
        sent_ms += accumulate((item.op.at_ms for item in own), max)  # a clock may have been set back
    return [items[n] for n in sorted(range(len(items)), key=sent_ms.__getitem__)]


def _bucket(item: Item) -> int:
    return item.entry.bucket


def _sent_ms(entry: Entry) -> float:
    """Return when an op was enqueued; of one that this release cannot read, that it was before all others."""
    return enqueued_ms(entry.payload) or 0.0
