"""Take the prober's turns; the worker that holds the lease probes the nodes."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.config.settings import Settings
from pipeline.oplog.groups import log_of
from pipeline.reads.health.prober import Duty, Prober
from pipeline.shard.nodes import Nodes
from workers.chores import hasten

#: How long Redis may take to answer the prober, s: less than the prober's lease.
READ_S = 0.5


class Watch:
    """The turns of one worker's prober. It has connections of its own.

    Args:
        settings: name the nodes, and Redis.
    """

    def __init__(self, settings: Settings):
        self._settings, self._nodes = settings, Nodes(settings)
        self._log = log_of(settings, read_s=READ_S)
        self._duty = Duty(self._log, self._engage)

    def turn(self) -> float:
        """Probe if the lease is ours or free; return the seconds to the next turn."""
        return self._duty.turn()

    def close(self) -> None:
        """Let another worker take the lease."""
        self._duty.end()
        self._log.close()

    def _engage(self, out: Collection[str]) -> Prober:
        return Prober(self._nodes, self._settings.shards, self._log, out, self._reconcile)

    def _reconcile(self, shard: str) -> None:
        """Have the new primary's watermarks compared with the logs at once: it may lack what the old one had."""
        hasten(self._log, "reconcile", shard)
