"""The meter: how many ops were enqueued, how many are applied, and how long a single enqueue takes.

What is applied is told by receipts: one in about a thousand is a milestone, and the oldest that is still queued is
asked for its status. Buckets advance side by side, so the number is exact only at the end, after the barrier.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Protocol

from pipeline.clock import mono_s

#: Ops between two milestones. At 50,000 ops/s that is 50 status calls a second at most.
MILESTONE_OPS = 1_000
#: Time between two looks, in seconds. The eye needs no more, and each look costs a query or two.
LOOK_S = 0.25

_PENDING = frozenset({"queued", "spooled"})


class MeteredReceipt(Protocol):
    """What the meter asks of a receipt."""

    def status(self) -> str: ...  # noqa: D102


class Meter:
    """Counts of a run."""

    def __init__(self) -> None:
        self.enqueued = self.applied = 0
        self.started_s = mono_s()
        self._single_s = array("d")
        self._milestones: deque[tuple[int, MeteredReceipt]] = deque()
        self._last_milestone = 0
        self._looked_s = 0.0

    def sent(self, receipt: MeteredReceipt, ops: int = 1) -> None:
        """Count *ops* as enqueued; *receipt* is that of the last."""
        self.enqueued += ops
        if self.enqueued - self._last_milestone >= MILESTONE_OPS:
            self._last_milestone = self.enqueued
            self._milestones.append((self.enqueued, receipt))

    def settle(self) -> None:
        """Take everything as applied: the barrier said so."""
        self.applied = self.enqueued

    def took(self, seconds: float) -> None:
        """Record how long one single enqueue took."""
        self._single_s.append(seconds)

    def look(self) -> bool:
        """Ask the oldest milestones, if it is time to; tell whether it was."""
        now_s = mono_s()
        if now_s - self._looked_s < LOOK_S:
            return False
        while self._milestones and self._milestones[0][1].status() not in _PENDING:
            self.applied = self._milestones.popleft()[0]
        self._looked_s = now_s
        return True

    @property
    def caught_up(self) -> bool:
        """Whether every milestone has passed."""
        return not self._milestones

    def quantile_us(self, share: float) -> float | None:
        """Return the quantile of the single enqueues' durations in microseconds, None if there were none."""
        ordered = sorted(self._single_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6 if ordered else None
