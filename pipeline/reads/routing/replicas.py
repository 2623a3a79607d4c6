"""Make the replicas of a shard candidates for one read, and wait until one of them has what the read must see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import BoundedSemaphore

from pipeline import clock
from pipeline.config.sections import Load
from pipeline.errors import ShardUnavailable
from pipeline.model.op import Position
from pipeline.reads.connections import NodeReader, NodeReaders
from pipeline.reads.health.report import NO_REPORT, NodeState, Report
from pipeline.reads.routing.accounting import InFlight
from pipeline.reads.routing.health_cache import HealthCache
from pipeline.reads.routing.policy import Candidate
from pipeline.reads.session import Need
from pipeline.shard.nodes import Nodes

#: A node that no connection can be made to is skipped for so long: by then the prober knows. One whose connection broke
#: in the middle of a read is skipped just until that read has been tried elsewhere, s.
AWAY_S, BROKEN_S = 2.0, 0.02
_ONE_SHARE, _NOWHERE = Load(), Position(-1, -1)


class Replicas:
    """The replicas of all shards, as this process knows them. Threads may share it.

    Args:
        nodes: who is a replica, and of what.
        readers: what this process has seen of each node.
        health: what the prober has published of each.
        loads: what each replica is to carry; a node that is not named, such as a former primary, carries one share.
    """

    def __init__(self, nodes: Nodes, readers: NodeReaders, health: HealthCache, loads: Mapping[str, Load]):
        self._nodes, self._readers, self._health, self._loads = nodes, readers, health, loads
        self._skipped_until_s: dict[str, float] = {}

    def candidates(self, shard: str, needs: Mapping[int, Need], in_flight: InFlight) -> list[Candidate]:
        """Return the replicas of a shard that may take reads at all, as they are for this one.

        Args:
            shard: its name.
            needs: what the read must see, by bucket.
            in_flight: the reads of this process that run now.
        """
        now_s, reports, found = clock.mono_s(), self._health.reports(), []
        for node in self._nodes.replica_names(shard):
            load = self._loads.get(node, _ONE_SHARE)
            # one of weight 0 is there to be promoted: a shard that has no others reads from its primary
            if load.weight <= 0:
                continue
            report = reports.get(node, NO_REPORT)
            skipped = self._skipped_until_s.get(node, 0.0) > now_s
            found.append(
                Candidate(
                    node,
                    report.lag_at(now_s),
                    NodeState.OUT if skipped else report.state_at(now_s),
                    in_flight.by_node.get(node, 0),
                    load.weight,
                    True if not needs or self.has(node, needs, report) else None,
                    load.limit,
                )
            )
        return found

    def limit(self, node: str) -> int | None:
        """Return how many reads of this process may run on a replica; None: any number.

        Args:
            node: its name.
        """
        return self._loads.get(node, _ONE_SHARE).limit

    def has(self, node: str, needs: Mapping[int, Need], report: Report) -> bool:
        """Return whether a node is known to have it all, by this thread's own question or by the prober's.

        The report counts if this thread's connection is older than the report, whose age is part of the lag. Then the
        server has not been restarted since, and a server that runs does not go back.

        Args:
            node: its name.
            needs: what the read must see, by bucket.
            report: the node's newest.
        """
        reader = self._readers[node]
        if reader.has(needs):
            return True
        lag_s = report.lag_s
        if lag_s is None or reader.connected_for_s() <= lag_s:
            return False
        return all(need.reached(report.marks.get(bucket, _NOWHERE), {}) for bucket, need in needs.items())

    def passed(self, shard: str) -> dict[int, Position]:
        """Return the watermarks that every node of a shard is known to have passed, with nothing set aside before.

        Args:
            shard: its name.
        """
        reports = self._health.reports()
        names = (self._nodes.primary_name(shard), *self._nodes.replica_names(shard))
        return least_marks(_all_applied(reports.get(name, NO_REPORT)) for name in names)

    def skip(self, node: str, for_s: float = AWAY_S) -> None:
        """Skip a node for a while.

        Args:
            node: its name.
            for_s: how long, s.
        """
        until_s = clock.mono_s() + for_s
        self._skipped_until_s[node] = max(until_s, self._skipped_until_s.get(node, 0.0))


def _all_applied(report: Report) -> Mapping[int, Position]:
    """Return the watermarks before which a node has nothing that is set aside."""
    if not report.holding:
        return report.marks if report.holding is not None else {}
    return {bucket: mark for bucket, mark in report.marks.items() if bucket not in report.holding}


def least_marks(marks: Iterable[Mapping[int, Position]]) -> dict[int, Position]:
    """Return the watermarks that every node has passed; none where there is a node of which nothing is known.

    Args:
        marks: of each node, by bucket.
    """
    least: dict[int, Position] | None = None
    for known in marks:
        if least is None:
            least = dict(known)
        else:
            least = {bucket: min(position, known[bucket]) for bucket, position in least.items() if bucket in known}
    return least or {}


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

    Probes their watermarks at growing intervals. There is no server-side wait: MASTER_GTID_WAIT needs the GTID of a
    commit that another process made, and on a promoted server it blocks until its time-out (docs/notes/04-reads.md).

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
