"""Do a shard's chores: reconcile, trim, release what a stop held back; raise the epoch of another server.

Each scope has a thread of its own. Chores are no tasks: in a crowded queue they would expire (7 of 9 trims did, while
the log grew). A shard that hangs delays its own chores only. Of all workers one does a chore: whoever takes its lease
first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from pipeline import clock
from pipeline.admin import upkeep
from pipeline.admin.strange_keys import strange_keys
from pipeline.client import Client
from pipeline.errors import LogUnavailable, PipelineError, Unavailable
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
#: The time between two searches for keys that nobody of ours has written, s: of one worker, and of each. A lease may be
#: among them.
MEND_S, MEND_ANYWAY_S = 5, 30.0
#: How long a look at all leases and epochs counts, s.
LOOK_S = 0.5
#: The time between two looks at whether the ids of a shard follow the clock, s: a span lasts nine minutes.
IDS_S = 10.0
#: The time between two checks whether Redis is the server that gave out a scope's epoch, ms.
LINEAGE_MS = 900


class Overview:
    """One look at the leases and epochs of all scopes of one Redis: else each scope would ask five times a second.

    Args:
        log: has them.
        scopes: the names of the scopes.
    """

    def __init__(self, log: SharedState, scopes: Iterable[str]):
        self._log, self._scopes = log, tuple(scopes)
        self._leases = tuple(f"{name}:{scope}" for scope in self._scopes for name in (*CHORES, "mend"))
        self._looking, self._at_s = threading.Lock(), float("-inf")
        self._seen = frozenset[str](), frozenset[str]()

    def seen(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return which leases are held, and which scopes have an epoch of this server; nothing where it is unknown."""
        with self._looking:
            if clock.mono_s() - self._at_s >= LOOK_S:
                try:
                    self._seen = self._log.look(self._leases, self._scopes)
                except LogUnavailable:  # whoever needs it asks by itself
                    self._seen = frozenset(), frozenset()
                self._at_s = clock.mono_s()
            return self._seen


class Chores:
    """The turns of one scope.

    Args:
        client: the deployment; threads share it.
        scope: a shard's, or that of the reference log, which has an epoch and no other chore.
        overview: tells which leases need not be asked for.
    """

    def __init__(self, client: Client, scope: Scope, overview: Overview | None = None):
        self._client, self._scope, self._overview = client, scope, overview
        self._mend_at_s, self._ids_at_s = 0.0, 0.0
        #: When each lease is asked for whatever the overview says, s: one that outlasts its time is free.
        self._anyway_at_s: dict[str, float] = {}

    def turn(self) -> float:
        """Do what is due and whose lease is free; return the seconds to the next turn."""
        log, scope = self._client.log, self._scope
        held, settled = self._overview.seen() if self._overview is not None else (frozenset(), frozenset())
        try:
            self._mend(held)
            due = scope.name not in settled or clock.mono_s() >= self._ids_at_s
            if due and log.take_lease(f"lineage:{scope.name}", LINEAGE_MS):
                # before a request needs the epoch: it may lack the time to raise it
                self._client.publisher.epoch_of(scope)
                if scope.name != EVERYWHERE:
                    self._client.row_ids.follow(scope.name)
                self._ids_at_s = clock.mono_s() + IDS_S
        except PipelineError as error:
            logger.warning(Event("epoch_not_raised", scope=scope.name, error=error))
        for name in CHORES if scope.name != EVERYWHERE else ():
            self._do(name, scope.name, held)
        return TURN_S

    def _mend(self, held: frozenset[str]) -> None:
        """Delete what somebody else has put under names of ours."""
        if clock.mono_s() < self._mend_at_s:
            try:
                if not self._is_free(f"mend:{self._scope.name}", MEND_S, held):
                    return
            except LogUnavailable:  # so it is, too, where this lease is such a key
                return
        self._mend_at_s = clock.mono_s() + MEND_ANYWAY_S
        names = strange_keys(self._client.log, self._client.topology, self._scope, CHORES, delete=True)
        if names:
            logger.warning(Event("strange_keys_deleted", keys=len(names), names=names))

    def _is_free(self, lease: str, every_s: int, held: frozenset[str]) -> bool:
        """Take a lease if it is free; return whether it was. Redis is asked only where it may be."""
        if lease in held and clock.mono_s() < self._anyway_at_s.get(lease, 0.0):
            return False
        self._anyway_at_s[lease] = clock.mono_s() + every_s
        return self._client.log.take_lease(lease, every_s * 1000)

    def close(self) -> None:
        """Close this thread's connections."""
        self._client.nodes.close()

    def _do(self, name: str, shard: str, held: frozenset[str]) -> None:
        work, every_s = CHORES[name]
        try:
            if not self._is_free(f"{name}:{shard}", every_s, held):
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
