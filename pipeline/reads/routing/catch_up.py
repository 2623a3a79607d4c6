"""Wait until one of several nodes has what a read must see. Looks at their watermarks, at growing intervals.

No server-side wait: MASTER_GTID_WAIT needs the GTID of a commit that another process made, knows nothing of buckets,
and blocks until its time-out on a server that was promoted (docs/notes/04-reads.md).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence

from pipeline import clock
from pipeline.errors import ShardUnavailable
from pipeline.reads.connections import NodeReader
from pipeline.reads.session import Need

#: The pause before the second look, and the longest, s. A look costs 0.1 ms; a healthy replica follows within 1 ms.
FIRST_S, MOST_S = 0.0002, 0.005
#: Reads of this process that may wait at a time. More would take all threads of a web server for one slow replica.
MOST_WAITING = 32


class CatchUp:
    """Counts who waits. In a fork nobody does yet."""

    def __init__(self) -> None:
        self._reset()

    def until(
        self,
        readers: Sequence[NodeReader],
        needs: Mapping[int, Need],
        deadline: clock.Deadline,
        failed: Callable[[str], None] | None = None,
    ) -> NodeReader | None:
        """Return the first that has it all; None when the time is over, after at least one look at each.

        Args:
            failed: told of a node that does not answer, which is then left alone; by default the error goes through.
        """
        if self._pid != os.getpid():
            self._reset()
        left, places = list(readers), self._places
        for reader in readers:
            if self._has(reader, needs, left, failed):
                return reader
        if not left or deadline.passed or not places.acquire(blocking=False):
            return None
        try:
            return self._poll(left, needs, deadline, failed)
        finally:
            places.release()

    def _reset(self) -> None:
        self._pid, self._places = os.getpid(), threading.BoundedSemaphore(MOST_WAITING)

    def _poll(
        self,
        left: list[NodeReader],
        needs: Mapping[int, Need],
        deadline: clock.Deadline,
        failed: Callable[[str], None] | None,
    ) -> NodeReader | None:
        pause, turn = FIRST_S, 0
        while left and not deadline.passed:
            clock.sleep_s(min(pause, deadline.left_s))
            pause = min(pause * 1.5, MOST_S)
            reader = left[turn % len(left)]
            turn += 1
            if self._has(reader, needs, left, failed):
                return reader
        return None

    def _has(
        self,
        reader: NodeReader,
        needs: Mapping[int, Need],
        left: list[NodeReader],
        failed: Callable[[str], None] | None,
    ) -> bool:
        try:
            return reader.look(needs)
        except ShardUnavailable:
            if failed is None:
                raise
            failed(reader.node)
            left.remove(reader)
            return False
