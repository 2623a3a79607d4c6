"""Count the reads of one process: those that run now, and which choices were made, for `status`, the demo and metrics.

A process counts for itself. Its newest counts of choices go to Redis in the round trip that fetches the reports.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple

#: Reads of this process that may wait at a time. More would take all threads of a web server for one slow replica.
MOST_WAITING = 32


class InFlight:
    """The reads of one process that run now. Threads may share it.

    Attributes:
        by_node: how many run on each node that ever had one.
        limited: how many of those each shard's primary limits.
        waiting: a place each for the reads that wait until a node catches up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_node: dict[str, int] = {}
        self.limited: dict[str, int] = {}
        self.waiting = threading.BoundedSemaphore(MOST_WAITING)

    def enter(self, counts: dict[str, int], name: str, limit: int | None) -> bool:
        """Count a read, unless that many run already: many threads choose at once. Return whether it is counted.

        Args:
            counts: `by_node` or `limited`.
            name: of the node, or of the shard.
            limit: how many may run; None: any number.
        """
        with self._lock:
            running = counts.get(name, 0)
            if limit is not None and running >= limit:
                return False
            counts[name] = running + 1
            return True

    def leave(self, counts: dict[str, int], name: str) -> None:
        """Count a read no longer.

        Args:
            counts: as for `enter`.
            name: as for `enter`.
        """
        with self._lock:
            counts[name] -= 1


class Chosen(NamedTuple):
    """One choice. Of a read that was refused, the node is the shard's name: its configured primary."""

    node: str
    kind: str
    reason: str

    @classmethod
    def parse(cls, text: str) -> Chosen:
        """Read a choice as `Counters.unsent` writes it.

        Args:
            text: such as `s0-r1 replica fresh`.
        """
        node, kind, reason = text.split(" ")
        return cls(node, kind, reason)


class Counters:
    """How often each choice was made in one process. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
        self._sent: dict[Chosen, int] = {}

    def count(self, node: str, kind: str, reason: str) -> None:
        """Count one choice.

        Args:
            node: as in `Chosen`.
            kind: of the choice, see `policy.Choice`.
            reason: one of those in `policy`.
        """
        key = (node, kind, reason)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def counts(self) -> dict[Chosen, int]:
        """Return how often each choice was made."""
        with self._lock:
            return {Chosen(*key): n for key, n in self._counts.items()}

    def unsent(self) -> dict[str, int]:
        """Return what was counted and not sent yet, each choice as text: `s0-r1 replica fresh`."""
        now = self.counts()
        with self._lock:
            return {" ".join(key): more for key, n in now.items() if (more := n - self._sent.get(key, 0))}

    def sent(self, arrived: Mapping[str, int]) -> None:
        """Note that counts have arrived.

        Args:
            arrived: as `unsent` returned them.
        """
        with self._lock:
            for text, more in arrived.items():
                key = Chosen.parse(text)
                self._sent[key] = self._sent.get(key, 0) + more
