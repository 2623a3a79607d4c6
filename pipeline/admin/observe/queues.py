"""Read a shard's queue from the log: how long it is, how old, what waits in it, and what its workers have counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import nlargest

from pipeline import clock
from pipeline.admin.observe.rates import Window
from pipeline.admin.observe.record import DEEPEST, BucketRecord, PoisonRecord
from pipeline.apply.attempt import Attempt
from pipeline.model.op import Position, enqueued_ms
from pipeline.oplog.contract import Work
from pipeline.oplog.waits import Noted

#: A quiet shard's queue is looked at anew after so long, s.
LOOK_S = 180.0
#: Where Redis does not answer, no worker is said to be missing.
_NOTHING = Noted(True, {})


@dataclass(frozen=True, slots=True)
class Queue:
    """A shard's queue, the watermark of each bucket that has ops behind it, and the workers' notes on them."""

    depth: int | None = None
    oldest_ms: int | None = None
    dirty: int | None = None
    deepest: tuple[BucketRecord, ...] = ()
    behind: Mapping[int, Position] = field(default_factory=dict)
    noted: Noted = _NOTHING
    counters: Mapping[str, int] = field(default_factory=dict)
    poison: tuple[PoisonRecord, ...] = ()
    why: str = ""


#: Of a shard that was not looked at yet.
_UNKNOWN = Queue()


class Queues:
    """The queues of all shards, read again and again.

    Args:
        log: has them.
    """

    def __init__(self, log: Work):
        self._log = log
        self._windows: dict[str, Window] = {}
        #: The last look at each shard: when, the watermarks, and its queue.
        self._looks: dict[str, tuple[float, Mapping[int, Position], Queue]] = {}
        #: By shard and bucket: the watermark, and when the op behind it was enqueued.
        self._heads: dict[tuple[str, int], tuple[Position, float | None]] = {}

    def window(self, shard: str) -> Window:
        """Return the counters of a shard's last seconds.

        Args:
            shard: the shard's name.
        """
        return self._windows.setdefault(shard, Window())

    def queue(self, shard: str, marks: Mapping[int, Position], *, quiet: bool = False) -> Queue:
        """Return a shard's queue.

        Args:
            shard: the shard's name.
            marks: the watermark of each of its buckets.
            quiet: whether nothing has happened at it of late: if it was empty, it is so still.

        Raises:
            LogUnavailable: Redis does not answer.
        """
        now_s = clock.mono_s()
        at_s, before, empty = self._looks.get(shard, (0.0, {}, _UNKNOWN))
        if quiet and empty.depth == 0 and not empty.dirty and before == marks and now_s - at_s < LOOK_S:
            self.window(shard).add(now_s, empty.counters)
            return empty
        found = self._look(shard, marks)
        self._looks[shard] = now_s, marks, found
        return found

    def _look(self, shard: str, marks: Mapping[int, Position]) -> Queue:
        queued = self._log.queued(marks)
        behind = {bucket: marks[bucket] for bucket, ops in queued.items() if ops}
        oldest_ms = self._oldest_ms(shard, behind)
        deepest = nlargest(DEEPEST, ((ops, -bucket) for bucket, ops in queued.items() if ops))
        buckets = tuple(BucketRecord(-bucket, ops) for ops, bucket in deepest)
        dirty, noted = self._log.dirty(shard), self._log.waits(shard)
        counters = self._log.counts(shard)
        self.window(shard).add(clock.mono_s(), counters)
        poison = _poison_of(self._log.attempts(shard), behind)
        return Queue(sum(queued.values()), oldest_ms, dirty, buckets, behind, noted, counters, poison)

    def _oldest_ms(self, shard: str, behind: Mapping[int, Position]) -> int | None:
        """Return the age of the oldest op behind some watermarks. An op is read again only once its watermark moved."""
        known = {bucket: self._heads.get((shard, bucket)) for bucket in behind}
        new = {bucket: mark for bucket, mark in behind.items() if (known[bucket] or (None,))[0] != mark}
        heads = self._log.heads(new) if new else {}
        for bucket in new:
            sent_ms = enqueued_ms(heads[bucket].payload) if bucket in heads else None
            known[bucket] = self._heads[shard, bucket] = behind[bucket], sent_ms
        sent = [one[1] for one in known.values() if one is not None and one[1] is not None]
        return max(0, clock.wall_ms() - int(min(sent))) if sent else None


def _poison_of(notes: Mapping[int, str], behind: Mapping[int, Position]) -> tuple[PoisonRecord, ...]:
    """Return the buckets of which a part is tried alone: at the watermark of now, an attempt with them has failed."""
    tried = {bucket: Attempt.parse(note) for bucket, note in notes.items() if bucket in behind}
    narrowed = {b: one for b, one in tried.items() if one is not None and one.entries and one.after == behind[b]}
    return tuple(PoisonRecord(bucket, one.deaths) for bucket, one in sorted(narrowed.items())[:DEEPEST])
