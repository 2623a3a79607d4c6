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
from pipeline.errors import PipelineError
from pipeline.reads.health.probe import LagMeter, beat, probe
from pipeline.shard.session import NodeSession, brief

#: Between two probes, s.
AGAIN_S = 0.5
#: A wait is shown after so long, and then so often, s. A healthy replica has the heartbeat before.
SHOW_AFTER_S, SHOW_S = 1.0, 5.0


class Behind(NamedTuple):
    """A replica that migrate waits for; `lag_s` is None where nothing shows how far behind it is."""

    shard: str
    node: str
    lag_s: float | None

    def __str__(self) -> str:
        far = "not known to have caught up" if self.lag_s is None else f"{self.lag_s:.1f} s behind"
        return f"{self.shard}: waits for {self.node}, which is {far}"


class ReplicaLag:
    """The lag of one shard's replicas.

    Args:
        pipeline: names the nodes, and how far behind a replica may be.
        shard: the shard.
        primary: a session of its primary, for writing.
        replicas: a session of each other node, for reading.
    """

    def __init__(self, pipeline: Client, shard: str, primary: NodeSession, replicas: dict[str, NodeSession]):
        self._pipeline, self._shard, self._primary, self._replicas = pipeline, shard, primary, replicas
        self._most_s, self._meter = pipeline.settings.reads.max_lag_s, LagMeter()

    def waits(self) -> Iterator[Behind]:
        """Wait while a replica is further behind than `[reads] max_lag_s`; one that is away or unfit does not count.

        Yields the replica that is furthest behind, now and then.
        """
        shown_s = -SHOW_S
        for waiting in clock.polls(math.inf, first_s=AGAIN_S / 10, most_s=AGAIN_S) if self._replicas else ():
            if (behind := self._furthest()) is None:
                return
            if waiting.waited_s >= SHOW_AFTER_S and waiting.waited_s - shown_s >= SHOW_S:
                yield behind
                shown_s = waiting.waited_s

    def _furthest(self) -> Behind | None:
        asked_s = clock.mono_s()
        beat(self._primary)
        self._meter.add(self._shard, probe(self._primary), asked_s)
        lags = [Behind(self._shard, node, self._lag_s(session)) for node, session in self._followed().items()]
        late = [one for one in lags if one.lag_s is None or one.lag_s > self._most_s]
        return max(late, key=lambda one: float("inf") if one.lag_s is None else one.lag_s, default=None)

    def _followed(self) -> dict[str, NodeSession]:
        """Return the replicas that answer and are fit: others have nothing to lose."""
        return {
            node: session
            for node, session in self._replicas.items()
            if not self._pipeline.nodes.unfit(node) and _answers(session)
        }

    def _lag_s(self, session: NodeSession) -> float | None:
        horizon_ms = self._meter.horizon_ms(probe(session))
        return None if horizon_ms is None else (self._meter.now_ms(clock.mono_s()) - horizon_ms) / 1000


@contextmanager
def lag_of(pipeline: Client, shard: str, primary: NodeSession) -> Iterator[ReplicaLag]:
    """Yield the lag of a shard's replicas; their connections are closed at the end.

    Args:
        pipeline: the deployment.
        shard: the shard's name.
        primary: a session of its primary, for writing.
    """
    with ExitStack() as stack:
        others = [node for node in pipeline.nodes.names(shard) if node != pipeline.nodes.primary_name(shard)]
        sessions = {node: stack.enter_context(brief(node, pipeline.nodes.uri(node))) for node in others}
        yield ReplicaLag(pipeline, shard, primary, sessions)


def _answers(session: NodeSession) -> bool:
    try:
        probe(session)
    except PipelineError:
        return False
    return True
