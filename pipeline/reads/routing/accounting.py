"""How often each choice was made, by node, kind and reason: for `status`, the demo and metrics.

A process counts for itself; what has come since its last look at Redis goes there together with the next one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import NamedTuple


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
