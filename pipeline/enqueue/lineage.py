"""Raise an epoch: whenever Redis is no longer the server that gave the last one out, before anything is appended.

A new epoch is above every watermark on every node that can be asked, above every epoch that the primary ever gave out,
and at least the unix time: so no position comes twice, whatever Redis has forgotten. A replica that does not answer
holds nothing that a primary did not give it, one that has no tables yet holds nothing; the clock covers one that was
promoted and has died.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline import clock
from pipeline.errors import LogUnavailable, NotMigrated, Unavailable
from pipeline.oplog.contract import Epochs, Scope
from pipeline.shard import ledger_queries as inquiry
from pipeline.shard.nodes import Nodes

#: How long one raise may take in all, s; databases have to be asked.
RAISE_S = 10.0
_log = logging.getLogger("pipeline.lineage")


class Lineage:
    """Knows how to raise epochs.

    Args:
        renewed: called after a new epoch was set: the server may have forgotten the table definitions too.
    """

    def __init__(self, log: Epochs, nodes: Nodes, renewed: Callable[[], object]):
        self._log, self._nodes, self._renewed = log, nodes, renewed

    def raise_epoch(self, scope: Scope) -> int:
        """Return the scope's epoch on the server as it is now.

        Raises:
            ShardUnavailable: the primary of a shard in the scope did not answer; nothing changed.
            NotMigrated: the pipeline's tables are missing on a primary.
        """
        for _ in clock.polls(RAISE_S, first_s=0.01):
            epoch, current, seen = self._log.epoch(scope.name)
            if epoch and current:
                return epoch
            new = self._new_epoch(scope, epoch)
            if self._log.raise_epoch(scope.name, seen, new):
                level = logging.WARNING if epoch else logging.INFO
                _log.log(level, "new lineage scope=%s epoch=%d (was %d)", scope.name, new, epoch)
                self._renewed()
                return new
        raise LogUnavailable(f"the epoch of {scope.name!r} could not be raised", sent=False)

    def _new_epoch(self, scope: Scope, known: int) -> int:
        for shard in scope.shards:
            for replica in self._nodes.replicas(shard):
                try:
                    known = max(known, inquiry.highest_epoch(replica))
                except NotMigrated:
                    continue  # a replica without our tables has no watermark
                except Unavailable as error:
                    _log.warning("raising the epoch without asking %s: %s", replica.node, error)
        for shard in scope.shards:
            primary = self._nodes.primary(shard)
            known = inquiry.give_epoch(primary, scope.name, known, clock.wall_ms() // 1000) - 1
        return known + 1
