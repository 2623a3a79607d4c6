"""The reads of this process that run now, by node: what "least busy" and a replica's limit are measured by."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping


class Running:
    """Counts. Threads may share it; in a fork none runs yet."""

    def __init__(self) -> None:
        self._reset()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many run on each node that ever had one."""
        self._own_process()
        return self._counts

    def enter(self, node: str, limit: int | None) -> bool:
        """Count a read as running on a node, unless that is at its limit: many threads choose at once."""
        self._own_process()
        with self._lock:
            running = self._counts.get(node, 0)
            if limit is not None and running >= limit:
                return False
            self._counts[node] = running + 1
            return True

    def leave(self, node: str) -> None:
        """Count it no longer. What was begun before a fork does not count in the child."""
        self._own_process()
        with self._lock:
            running = self._counts.get(node, 0)
            self._counts[node] = running - 1 if running else 0

    def _own_process(self) -> None:
        if self._pid != os.getpid():  # uWSGI runs no hooks of `os.register_at_fork`
            self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._counts: dict[str, int] = {}
