"""The replicas of a shard as candidates for one read: what is known of each, and what of it this read may rely on.

What only news or a failover can change is worked out once and kept; a read adds what is its own: the time, the reads
that run, and its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.config.replica import Load
from pipeline.model.op import Position
from pipeline.reads.routing.contract import Needs, Nodes, Readings, Source
from pipeline.reads.routing.policy import Candidate
from pipeline.reads.routing.running import Running
from pipeline.reads.routing.view import NOTHING, View
from pipeline.reads.session import least_marks

#: A node that no connection can be made to is left alone for so long: by then the prober knows. One whose connection
#: broke in the middle of a read is left alone just until that read has been tried elsewhere, s.
SHUN_S, SKIP_S = 2.0, 0.02
_ONE_SHARE, _NOWHERE = Load(), Position(-1, -1)


class _Replica(NamedTuple):
    """What holds of a replica until there is news."""

    node: str
    view: View
    load: Load
    #: It is out, but answered the last look.
    recovering: bool


class _Drawn(NamedTuple):
    """The replicas of a shard that may take reads, and from what they were drawn."""

    views: Mapping[str, View]
    names: tuple[str, ...]
    replicas: list[_Replica]


class Roster:
    """Draws up candidates. Threads may share it.

    Args:
        loads: what each replica is to carry; a node that is not named, such as a former primary, carries one share.
    """

    def __init__(self, nodes: Nodes, readers: Source, readings: Readings, running: Running, loads: Mapping[str, Load]):
        self._nodes, self._readers, self._readings = nodes, readers, readings
        self._running, self._loads = running, loads
        self._drawn: dict[str, _Drawn] = {}
        self._shunned_until_s: dict[str, float] = {}

    def candidates(self, shard: str, needs: Needs) -> list[Candidate]:
        """Return the replicas of a shard that may take reads at all, as they stand for this one."""
        now_s, running, shunned = clock.mono_s(), self._running.counts, self._shunned_until_s
        found = []
        for node, view, load, recovering in self._replicas(shard):
            out = view.out
            if node in shunned and shunned[node] > now_s:
                out, recovering = True, False
            reached = True if not needs or self.knows(node, needs, view) else None
            found.append(
                Candidate(
                    node,
                    view.lag_at(now_s),
                    out,
                    running.get(node, 0),
                    load.weight,
                    reached,
                    load.limit,
                    view.doubtful,
                    recovering,
                )
            )
        return found

    def limit(self, node: str) -> int | None:
        """Return how many reads of this process may run on a replica."""
        return self._loads.get(node, _ONE_SHARE).limit

    def lag_s(self, node: str) -> float | None:
        """Return an upper bound of a node's lag now."""
        return self._readings.views().get(node, NOTHING).lag_s

    def knows(self, node: str, needs: Needs, view: View | None = None) -> bool:
        """Whether a node is known to have it all, by this thread's own look or by the prober's.

        The prober's counts if this thread's connection is older than it (the lag includes the reading's age): so the
        server has not been restarted since, and a server that runs does not go back.
        """
        reader = self._readers[node]
        if reader.has(needs):
            return True
        view = view or self._readings.views().get(node, NOTHING)
        lag_s = view.lag_s
        if lag_s is None or reader.connected_for_s() <= lag_s:
            return False
        return all(need.reached(view.marks.get(bucket, _NOWHERE), {}) for bucket, need in needs.items())

    def passed(self, shard: str) -> dict[int, Position]:
        """Return the watermarks that every node of a shard is known to have passed."""
        views = self._readings.views()
        names = (self._nodes.primary_name(shard), *self._nodes.replica_names(shard))
        return least_marks(views.get(name, NOTHING).marks for name in names)

    def shun(self, node: str, for_s: float = SHUN_S) -> None:
        """Leave a node alone for so long."""
        until_s = clock.mono_s() + for_s
        self._shunned_until_s[node] = max(until_s, self._shunned_until_s.get(node, 0.0))

    def _replicas(self, shard: str) -> list[_Replica]:
        self._nodes.primary_name(shard)  # notices a failover
        views, names = self._readings.views(), self._nodes.replica_names(shard)
        drawn = self._drawn.get(shard)
        if drawn is None or drawn.views is not views or drawn.names is not names:
            drawn = self._drawn[shard] = _Drawn(views, names, [*self._draw(views, names)])
        return drawn.replicas

    def _draw(self, views: Mapping[str, View], names: tuple[str, ...]) -> list[_Replica]:
        found = []
        for node in names:
            view, load = views.get(node, NOTHING), self._loads.get(node, _ONE_SHARE)
            # one of weight 0 is there to be promoted: a shard that has no others reads from its primary
            if load.weight > 0:
                recovering = view.out and not (view.unfit or view.doubtful)
                found.append(_Replica(node, view, load, recovering))
        return found
