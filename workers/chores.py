"""Do a shard's chores: reconcile, trim, release what a stop held back; raise the epoch of another server.

Each scope has a thread of its own. Chores are no tasks: in a crowded queue they would expire (7 of 9 trims did, while
the log grew). A shard that hangs delays its own chores only. Of all workers one does a chore: whoever takes its lease
first.
"""

from __future__ import annotations

import logging

from pipeline import clock
from pipeline.admin import upkeep
from pipeline.admin.strange_keys import strange_keys
from pipeline.client import Client
from pipeline.errors import PipelineError, Unavailable
from pipeline.events import Event
from pipeline.oplog.appends import EVERYWHERE, Scope
from pipeline.oplog.shared_state import SharedState

logger = logging.getLogger("pipeline.chores")

#: The time between two turns, s.
TURN_S = 1.0
#: The chores of a shard, and the time between two of a kind, s.
CHORES = {
    "reconcile": (upkeep.reconcile, 30),
    "losses": (upkeep.name_losses, 20),
    "trim": (upkeep.trim, 10),
    "release": (upkeep.release_waiting, 15),
}
#: The time between two searches for keys that nobody of ours has written, s.
MEND_S = 5.0
#: The time between two checks whether Redis is the server that gave out a scope's epoch, ms.
LINEAGE_MS = 900


class Chores:
    """The turns of one scope.

    Args:
        client: the deployment; threads share it.
        scope: a shard's, or that of the reference log, which has an epoch and no other chore.
    """

    def __init__(self, client: Client, scope: Scope):
        self._client, self._scope = client, scope
        self._mend_at_s = 0.0

    def turn(self) -> float:
        """Do what is due and whose lease is free; return the seconds to the next turn."""
        log, scope = self._client.log, self._scope
        try:
            self._mend()
            if log.take_lease(f"lineage:{scope.name}", LINEAGE_MS):
                # before a request needs the epoch: it may lack the time to raise it
                self._client.publisher.epoch_of(scope)
                if scope.name != EVERYWHERE:
                    self._client.row_ids.follow(scope.name)
        except PipelineError as error:
            logger.warning(Event("epoch_not_raised", scope=scope.name, error=error))
        for name in CHORES if scope.name != EVERYWHERE else ():
            self._do(name, scope.name)
        return TURN_S

    def _mend(self) -> None:
        """Delete what somebody else has put under names of ours: a lease may be among them, so all workers do it."""
        if clock.mono_s() < self._mend_at_s:
            return
        self._mend_at_s = clock.mono_s() + MEND_S
        names = strange_keys(self._client.log, self._client.topology, self._scope, CHORES, delete=True)
        if names:
            logger.warning(Event("strange_keys_deleted", keys=len(names), names=names))

    def close(self) -> None:
        """Close this thread's connections."""
        self._client.nodes.close()

    def _do(self, name: str, shard: str) -> None:
        work, every_s = CHORES[name]
        try:
            if not self._client.log.take_lease(f"{name}:{shard}", every_s * 1000):
                return
            try:
                found = work(self._client, shard)
            except Unavailable:  # a dead primary is noticed by one failure; the second try finds its successor
                found = work(self._client, shard)
            if found:
                logger.info(Event("chore_done", chore=name, shard=shard, found=found))
        except Exception as error:  # the outermost loop: one chore that fails stops no other
            logger.warning(Event("chore_failed", chore=name, shard=shard, error=error))
        # another worker may do the next; trimming asks every shard, and each thread has connections of its own
        self._client.nodes.close()


def hasten(log: SharedState, name: str, shard: str) -> None:
    """Let a chore be done at once, by whichever worker comes first.

    Args:
        log: has the leases.
        name: a key of `CHORES`.
        shard: the shard's name.
    """
    log.release_lease(f"{name}:{shard}", "1")
