"""How often each choice was made, by node, kind and reason: for `status`, the demo and metrics.

A process counts for itself; what has come since its last look at Redis goes there together with the next one.

The budget of a primary: which share of a shard's reads may fall on it for want of a replica.

Every read earns its shard a share of one read; a read on the primary costs a whole one. So the primary's part follows
the load, and is at most the share, however many processes read. The count is shared through Redis; while Redis is
away each process keeps one of its own, and the sum over all processes keeps to the share all the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.errors import Unavailable
from pipeline.oplog.contract import Budgets


class Chosen(NamedTuple):
    """One choice. Of a read that was refused, the node is the shard's name: its configured primary."""

    node: str
    kind: str
    reason: str


class Counters:
    """Counts of this process. A fork begins at nought, or its parent's would be counted twice."""

    def __init__(self) -> None:
        self._reset()

    def count(self, node: str, kind: str, reason: str) -> None:
        """Count one choice."""
        if self._pid != os.getpid():
            self._reset()
        key = (node, kind, reason)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def counts(self) -> dict[Chosen, int]:
        """Return how often each choice was made."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            return {Chosen(*key): n for key, n in self._counts.items()}

    def unsent(self) -> dict[str, int]:
        """Return what was counted and not sent yet, each choice as text: `s0-r1 replica fresh`."""
        now = self.counts()
        with self._lock:
            return {" ".join(key): more for key, n in now.items() if (more := n - self._sent.get(key, 0))}

    def sent(self, told: Mapping[str, int]) -> None:
        """Note that these have arrived."""
        with self._lock:
            for text, more in told.items():
                key = chosen(text)
                self._sent[key] = self._sent.get(key, 0) + more

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
        self._sent: dict[Chosen, int] = {}


def chosen(text: str) -> Chosen:
    """Read a choice from its text."""
    node, kind, reason = text.split(" ")
    return Chosen(node, kind, reason)


#: What may be saved up, in reads: so that a short hiccup is not felt, and a long one starts with no stampede.
MOST = 10.0
#: While Redis is away it is tried again so often, s: a time-out is longer than a read.
RETRY_S = 1.0


class Budget:
    """The budgets of all shards, seen from this process; threads may share it.

    Args:
        share: of the reads, 0 to 1.
    """

    def __init__(self, log: Budgets, share: float):
        self._log, self._share = log, share
        self._away_until_s = 0.0
        self._reset()

    def note(self, shard: str) -> None:
        """Count a read that a replica served; costs no round trip."""
        self._own_process()
        with self._lock:
            self._noted[shard] = self._noted.get(shard, 0) + 1

    def take(self, shard: str) -> bool:
        """Count a read that no replica may serve, and return whether its primary may."""
        if self._share in (0.0, 1.0):
            return self._share == 1.0
        self._own_process()
        with self._lock:
            earned = self._share * (self._noted.pop(shard, 0) + 1)
            away = clock.mono_s() < self._away_until_s
        if not away:
            try:
                return self._log.earn(shard, earned, MOST, take=True)
            except Unavailable:
                self._away_until_s = clock.mono_s() + RETRY_S
        return self._take_here(shard, earned)

    def _take_here(self, shard: str, earned: float) -> bool:
        with self._lock:
            left = min(MOST, self._left.get(shard, 1.0) + earned)
            taken = left >= 0.999999
            self._left[shard] = left - 1 if taken else left
            return taken

    def _own_process(self) -> None:
        if self._pid != os.getpid():
            self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._noted: dict[str, int] = {}
        self._left: dict[str, float] = {}
