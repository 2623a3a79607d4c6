"""The budget of a primary: which share of a shard's reads may fall on it for want of a replica.

Every read earns its shard a share of one read; a read on the primary costs a whole one. So the primary's part follows
the load, and is at most the share, however many processes read. The count is shared through Redis; while Redis is
away each process keeps one of its own, and the sum over all processes keeps to the share all the same.
"""

from __future__ import annotations

import os
import threading

from pipeline import clock
from pipeline.errors import Unavailable
from pipeline.oplog.contract import Budgets

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
