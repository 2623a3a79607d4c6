"""The replicas of a shard as candidates for one read: what is known of each, and what of it this read may rely on.

What only news or a failover can change is worked out once and kept; a read adds what is its own: the time, the reads
that run, and its token.

The reads of this process that run now, by node: what "least busy" and the limits are measured by.

What this process knows of one node. A value: it holds until there is news, while the lag in it grows by itself.

What routing wants of its collaborators, and what it hands on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from pipeline import clock
from pipeline.config.sections import Load
from pipeline.model.op import Position
from pipeline.reads.connections import NodeReader
from pipeline.reads.node_dal import ReadInfo
from pipeline.reads.routing.policy import Candidate
from pipeline.reads.session import Need, least_marks

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
                    view.doubtful_at(now_s),
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


#: The prober tells of a node once a second; a word that is older says nothing of how the node is now, s.
SILENT_S = 3.0


class View(NamedTuple):
    """What is known of one node.

    Attributes:
        horizon_s: the moment, by this process's steady clock, until when it surely has everything; None where its lag
            was never measured, or nothing is told.
        out: whether it is out of rotation, or unfit.
        marks: watermarks that it has passed.
        primary: whether it takes writes; None where that is not known.
        why: why the prober has no news of it; empty where it has.
        doubtful: whether it serves only where no other may: the last look came to nothing, or showed it standing still.
        unfit: whether it was away for too long, and is not to serve, nor to be followed, until it was rebuilt.
        told_s: the moment, by the same clock, at which the prober said so; None where that does not matter.
    """

    horizon_s: float | None = None
    out: bool = False
    marks: Mapping[int, Position] = {}
    primary: bool | None = None
    why: str = ""
    unfit: bool = False
    doubtful: bool = False
    told_s: float | None = None

    @property
    def lag_s(self) -> float | None:
        """An upper bound of its lag now."""
        return self.lag_at(clock.mono_s())

    def doubtful_at(self, now_s: float) -> bool:
        """Return whether it is doubtful at a moment of this process's clock, be it for the prober's silence."""
        return self.doubtful or (self.told_s is not None and now_s - self.told_s > SILENT_S)

    def lag_at(self, now_s: float) -> float | None:
        """Return an upper bound of its lag at a moment of this process's clock."""
        return None if self.horizon_s is None else now_s - self.horizon_s


NOTHING = View()


#: What a read must see, by bucket.
Needs = Mapping[int, Need]


class Readings(Protocol):
    """Tells of nodes: see `readings.Readings`."""

    def views(self) -> Mapping[str, View]: ...  # noqa: D102


class Nodes(Protocol):
    """Knows who is who: see `shard.nodes.Nodes`."""

    def primary_name(self, shard: str) -> str: ...  # noqa: D102
    def replica_names(self, shard: str) -> tuple[str, ...]: ...  # noqa: D102
    def suspect(self, shard: str) -> None: ...  # noqa: D102


class Source(Protocol):
    """Gives the reader of a node: see `readers.Readers`."""

    def __getitem__(self, node: str) -> NodeReader: ...
    def close(self) -> None: ...  # noqa: D102


class Opened(NamedTuple):
    """A reader that may serve, and why; `limited` as in `policy.Choice`."""

    reader: NodeReader
    info: ReadInfo
    limited: bool = False
