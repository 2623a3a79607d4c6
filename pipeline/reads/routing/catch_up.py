"""Wait until one of several nodes has what a read must see: probe their watermarks, at growing intervals.

There is no server-side wait. MASTER_GTID_WAIT needs the GTID of a commit that another process made, and knows nothing
of buckets. On a server that was promoted it blocks until its time-out (docs/notes/04-reads.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import BoundedSemaphore

from pipeline import clock
from pipeline.errors import ShardUnavailable
from pipeline.reads.connections import NodeReader
from pipeline.reads.routing.replicas import Replicas
from pipeline.reads.session import Need

#: The pause before the second question, and the longest, s. A question costs 0.1 ms; a healthy replica follows within
#: 1 ms.
FIRST_S, MOST_S = 0.0002, 0.005


def first_with(
    readers: Sequence[NodeReader],
    needs: Mapping[int, Need],
    deadline: clock.Deadline,
    waiting: BoundedSemaphore,
    replicas: Replicas | None = None,
) -> NodeReader | None:
    """Return the first node that has it all; None when the time is over, after at least one question to each.

    Args:
        readers: of the nodes, asked in this order.
        needs: what the read must see, by bucket.
        deadline: when to give up.
        waiting: has a place for each read of this process that may wait; without a place the read does not wait.
        replicas: where a node that does not answer is skipped; None: its error goes through.
    """
    left = list(readers)
    for reader in readers:
        if _has(reader, needs, left, replicas):
            return reader
    if not left or deadline.passed or not waiting.acquire(blocking=False):
        return None
    try:
        return _poll(left, needs, deadline, replicas)
    finally:
        waiting.release()


def _poll(
    left: list[NodeReader], needs: Mapping[int, Need], deadline: clock.Deadline, replicas: Replicas | None
) -> NodeReader | None:
    pause, turn = FIRST_S, 0
    while left and not deadline.passed:
        clock.sleep_s(min(pause, deadline.left_s))
        pause = min(pause * 1.5, MOST_S)
        reader = left[turn % len(left)]
        turn += 1
        if _has(reader, needs, left, replicas):
            return reader
    return None


def _has(reader: NodeReader, needs: Mapping[int, Need], left: list[NodeReader], replicas: Replicas | None) -> bool:
    try:
        return reader.probe(needs)
    except ShardUnavailable:
        if replicas is None:
            raise
        replicas.skip(reader.node)
        left.remove(reader)
        return False
