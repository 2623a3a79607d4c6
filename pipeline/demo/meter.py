"""Count how many ops were enqueued, how many are applied, and how long a single enqueue takes.

Receipts say what is applied. About one in a thousand is a milestone, and the oldest queued milestone's status is read.
Buckets advance side by side, so the number is exact only at the end, after the barrier.
"""

from __future__ import annotations

from array import array
from collections import deque

from pipeline.api import reads
from pipeline.clock import mono_s
from pipeline.model.receipt import Receipt

#: Ops between two milestones: at 50,000 ops/s that makes at most 50 status calls a second.
MILESTONE_OPS = 1_000
#: Time between two looks, s: the eye needs no more, and each look costs a query or two.
LOOK_S = 0.25

_PENDING = frozenset({"queued", "spooled"})


class Meter:
    """Counts of a run.

    Attributes:
        enqueued, applied: ops so far.
        started_s: when the run began, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.enqueued = self.applied = 0
        self.started_s = mono_s()
        self._single_s = array("d")
        self._milestones: deque[tuple[int, Receipt]] = deque()
        self._last_milestone = 0
        self._looked_s = 0.0

    def sent(self, receipt: Receipt, ops: int = 1) -> None:
        """Count ops as enqueued.

        Args:
            receipt: the receipt of the last.
            ops: how many.
        """
        self.enqueued += ops
        if self.enqueued - self._last_milestone >= MILESTONE_OPS:
            self._last_milestone = self.enqueued
            self._milestones.append((self.enqueued, receipt))

    def settle(self) -> None:
        """Count everything as applied, once the barrier has returned."""
        self.applied = self.enqueued

    def took(self, seconds: float) -> None:
        """Record how long one single enqueue took, in *seconds*."""
        self._single_s.append(seconds)

    def look(self) -> bool:
        """Read the status of the oldest milestones; return False if the last look is less than `LOOK_S` ago."""
        now_s = mono_s()
        if now_s - self._looked_s < LOOK_S:
            return False
        while self._milestones and self._milestones[0][1].status() not in _PENDING:
            self.applied = self._milestones.popleft()[0]
        self._looked_s = now_s
        return True

    def read_anew(self) -> None:
        """Read receipts that are kept as another process would: by the configuration of now."""
        self._milestones = deque((ops, reads.Receipt.parse(str(receipt))) for ops, receipt in self._milestones)

    @property
    def caught_up(self) -> bool:
        """Whether every milestone has passed."""
        return not self._milestones

    def quantile_us(self, share: float) -> float | None:
        """Return a quantile of the single enqueues' durations in microseconds; None if there were none.

        Args:
            share: which, between 0 and 1.
        """
        ordered = sorted(self._single_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6 if ordered else None
