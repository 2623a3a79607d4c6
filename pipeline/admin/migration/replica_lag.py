"""Wait until the replicas of a shard have caught up, before a statement makes them wait for as long as it ran.

Lag is measured as the prober does: a heartbeat on the primary, and what each replica has of it. It needs no worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from pipeline import clock
from pipeline.client import Client
from pipeline.errors import NotMigrated, PipelineError
from pipeline.reads.health.probe import LagMeter, beat, probe
from pipeline.shard.session import NodeSession, brief

#: Between two probes, s.
AGAIN_S = 0.5
#: A wait is shown after so long, and then so often, s. A healthy replica has the heartbeat before.
SHOW_AFTER_S, SHOW_S = 1.0, 5.0


class Behind(NamedTuple):
    """A replica that migrate waits for, or does not.

    Attributes:
        shard: the shard's name.
        node: the replica.
        lag_s: infinite where nothing shows how far behind it is; None where it does not answer.
    """

    shard: str
    node: str
    lag_s: float | None

    def __str__(self) -> str:
        if self.lag_s is None:
            return f"{self.shard}: {self.node} does not answer, and is not waited for"
        far = "not known to have caught up" if math.isinf(self.lag_s) else f"{self.lag_s:.1f} s behind"
        return f"{self.shard}: waits for {self.node}, which is {far}"


class ReplicaLag:
    """The lag of one shard's replicas.

    Args:
        shard: the shard.
        most_s: how far behind a replica may be, seconds.
        primary: a session of its primary, for writing.
        replicas: a session of each other node, for reading.
    """

    def __init__(self, shard: str, most_s: float, primary: NodeSession, replicas: dict[str, NodeSession]):
        self._shard, self._primary, self._replicas = shard, primary, replicas
        self._most_s, self._meter = most_s, LagMeter()
        self._away: set[str] = set()

    def waits(self) -> Iterator[Behind]:
        """Wait while a replica is further behind than `[reads] max_lag_s`; one that is away or unfit does not count.

        Yields the replica that is furthest behind, now and then, and once each that is away.
        """
        shown_s = -SHOW_S
        for waiting in clock.polls(math.inf, first_s=AGAIN_S / 10, most_s=AGAIN_S) if self._replicas else ():
            lags = self.lags()
            away = [one for one in lags if one.lag_s is None and one.node not in self._away]
            self._away |= {one.node for one in away}
            yield from away
            behind = max(lags, key=lambda one: one.lag_s or 0)
            if (behind.lag_s or 0) <= self._most_s:
                return
            if waiting.waited_s >= SHOW_AFTER_S and waiting.waited_s - shown_s >= SHOW_S:
                yield behind
                shown_s = waiting.waited_s

    def lags(self) -> list[Behind]:
        """Return how far behind each replica is, after a heartbeat on the primary."""
        asked_s = clock.mono_s()
        beat(self._primary)
        self._meter.add(self._shard, probe(self._primary), asked_s)
        return [Behind(self._shard, node, self._lag_s(session)) for node, session in self._replicas.items()]

    def _lag_s(self, session: NodeSession) -> float | None:
        try:
            horizon_ms = self._meter.horizon_ms(probe(session))
        except NotMigrated:
            return math.inf  # the tables themselves have not come yet
        except PipelineError:
            return None
        return math.inf if horizon_ms is None else (self._meter.now_ms(clock.mono_s()) - horizon_ms) / 1000


@contextmanager
def lag_of(pipeline: Client, shard: str, primary: NodeSession) -> Iterator[ReplicaLag]:
    """Yield the lag of a shard's replicas; their connections are closed at the end.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        primary: a session of its primary, for writing.
    """
    current = pipeline.nodes.primary_name(shard)
    others = [node for node in pipeline.nodes.names(shard) if node != current and not pipeline.nodes.unfit(node)]
    with ExitStack() as stack:
        sessions = {node: stack.enter_context(brief(node, pipeline.nodes.uri(node))) for node in others}
        yield ReplicaLag(shard, pipeline.settings.reads.max_lag_s, primary, sessions)
