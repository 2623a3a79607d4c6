"""How often each choice was made in this process, by shard, kind and reason: for `status`, the demo and metrics."""

from __future__ import annotations

import os
import threading


class Counters:
    """Counts of this process. A fork begins at nought, or its parent's would be counted twice."""

    def __init__(self) -> None:
        self._reset()

    def count(self, shard: str, kind: str, reason: str) -> None:
        """Count one choice."""
        if self._pid != os.getpid():
            self._reset()
        key = (shard, kind, reason)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Return how often each (shard, kind, reason) was counted."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            return dict(self._counts)

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
