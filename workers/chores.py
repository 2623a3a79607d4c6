"""Do a shard's chores: reconcile, trim, release what a stop held back, raise epochs; go on with moves of buckets.

Each scope has a thread of its own. Chores are no tasks: in a crowded queue they would expire (7 of 9 trims did, while
the log grew). A shard that hangs delays its own chores only. Of all workers one does a chore: whoever takes its lease
first. At a quiet shard a chore is done once a minute.

The threads sleep. One look a second at all leases and epochs of a Redis wakes those that have something to do.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from pipeline import clock
from pipeline.admin import upkeep
from pipeline.admin.moving import MoveEnded, Mover, orders
from pipeline.admin.moving.carrier import MoveStep
from pipeline.admin.upkeep import strange_keys
from pipeline.client import Client
from pipeline.clock import Deadline
from pipeline.errors import LogUnavailable, PipelineError, Unavailable
from pipeline.events import Event
from pipeline.oplog.appends import EVERYWHERE, Scope
from pipeline.oplog.doorbell import Quiet
from pipeline.oplog.shared_state import SharedState
from workers.process import Turns

moves_logger = logging.getLogger("pipeline.moves")

#: The time between two looks for such moves, s; and while the last one has found no move under way.
MOVES_S, SELDOM_MOVES_S = 3.0, 9.0
#: The same while nothing happens at any shard, s. An order stirs a shard, and is seen in `SELDOM_MOVES_S`.
QUIET_MOVES_S = 180.0
#: How long one move is gone on with while others wait for their turn, s; less than a third of a mover's lease.
SLICE_S = 3.0
#: The lease on a look: of all workers one looks.
LEASE = "moves"
logger = logging.getLogger("pipeline.chores")
#: The time between two turns, s.
TURN_S = 1.0
#: The chores of a shard, and the time between two of a kind, s.
CHORES = {
    "reconcile": (upkeep.reconcile, 30),
    "losses": (upkeep.name_losses, 20),
    "trim": (upkeep.trim, 10),
    "release": (upkeep.release_waiting, 5),
}
#: Those that are due at once where a shard is quiet no more.
AT_ONCE = ("mend", "losses", "trim", "release")
#: The time between two searches for keys that nobody of ours has written, s: of one worker, and of each. A lease may be
#: among them.
MEND_S, MEND_ANYWAY_S = 5, 30.0
#: The time between two of a kind at a quiet shard, s. A new server of a database, and a log that ends before its
#: watermark, have the shard reconciled at once all the same.
QUIET_S = 60
#: The same of what finds nothing to do there, where the shard has no replicas that come and go; of looks at ids; and of
#: searches that no lease keeps from.
SELDOM, SELDOM_S = ("losses", "trim"), 180
#: How long a look at all leases and epochs counts, s; and the time between two that wake threads; while all is quiet.
LOOK_S, WAKE_S, QUIET_WAKE_S = 0.5, 1.0, 3.0
#: The longest that a thread sleeps which a look is to wake, s.
SLEEP_S = 60.0
#: The time between two looks at whether the ids of a shard follow the clock, s: a span lasts nine minutes.
IDS_S = 30.0
#: The time between two checks whether Redis is the server that gave out a scope's epoch, ms.
LINEAGE_MS = 900


class Moves:
    """The turns of one worker's mover. A thread of its own, since a copy takes minutes.

    Several moves take turns: one that keeps the rows of its source for a day holds up no other.

    Args:
        client: the deployment; threads share it.
    """

    def __init__(self, client: Client):
        self._client, self._every_s = client, MOVES_S
        self._quiet, self._found_s = Quiet(client.log, client.topology.shards), -QUIET_MOVES_S
        self._held: dict[int, tuple[Mover, Iterator[MoveStep]]] = {}

    def turn(self) -> float:
        """Go on with each move that nobody else is at, for a while; return the seconds to the next turn."""
        try:
            if self._is_due():
                mine = self._client.log.take_lease(LEASE, round(self._every_s * 1000))
                # who looked meanwhile may have found a move, and end
                self._every_s = SELDOM_MOVES_S if mine and not self._find() else MOVES_S
            for mover, steps in [*self._held.values()]:
                self._go_on(mover, steps)
        except PipelineError as error:
            moves_logger.warning(Event("move_waits", error=error))
        if self._held:
            return 0.0
        self._client.nodes.close()
        return self._every_s

    def _is_due(self) -> bool:
        """Return whether there may be a move that was not there at the last look, or one that was."""
        self._quiet.look()
        still = self._every_s == SELDOM_MOVES_S and all(map(self._quiet.is_quiet, self._client.topology.shards))
        return not still or clock.mono_s() - self._found_s >= QUIET_MOVES_S

    def _find(self) -> bool:
        """Take the moves that nobody is at; return whether any move is under way."""
        self._found_s = clock.mono_s()
        movers = list(orders.under_way(self._client))
        for mover in movers:
            leg = mover.leg
            if leg.move not in self._held and mover.hold():
                about = {"move": leg.move, "buckets": len(mover.buckets), "source": leg.source, "target": leg.target}
                moves_logger.info(Event("move_goes_on", **about))
                self._held[leg.move] = mover, mover.steps()
        return bool(movers)

    def _go_on(self, mover: Mover, steps: Iterator[MoveStep]) -> None:
        """Go on with one move until it waits, or others have waited; whatever stops it stops no other."""
        shift = Deadline(SLICE_S / len(self._held))
        try:
            if mover.hold():
                for step in steps:
                    # while a source has stopped, ops of its buckets wait
                    if step.stage == "waiting" or (shift.passed and step.stage != "stopping"):
                        return
        except MoveEnded:
            pass  # it is logged, and noted where the buckets are
        except PipelineError as error:
            moves_logger.warning(Event("move_waits", error=error))
        self._let_go(mover)

    def _let_go(self, mover: Mover) -> None:
        del self._held[mover.leg.move]
        mover.release()

    def close(self) -> None:
        """Let others go on with the moves, and close this thread's connections."""
        for mover, _ in [*self._held.values()]:
            try:
                self._let_go(mover)
            except PipelineError as error:
                moves_logger.info(Event("lease_not_released", lease=LEASE, error=error))
        self._client.nodes.close()


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
        self._quiet = Quiet(log, [name for name in self._scopes if name != EVERYWHERE])

    def seen(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return which leases are held, and which scopes have an epoch of this server; nothing where it is unknown."""
        with self._looking:
            if clock.mono_s() - self._at_s >= LOOK_S:
                try:
                    self._seen = self._log.look(self._leases, self._scopes)
                except LogUnavailable:  # whoever needs it asks by itself
                    self._seen = frozenset(), frozenset()
                self._quiet.look()
                self._at_s = clock.mono_s()
            return self._seen

    def is_quiet(self, scope: str) -> bool:
        """Return whether nothing has happened at a shard for a while; no log of all shards is quiet.

        Args:
            scope: its name.
        """
        return self._quiet.is_quiet(scope)


class Alarm:
    """The turns that wake the threads of all scopes of one Redis.

    Args:
        overview: of the scopes.
        sleepers: the chores, and the thread of each.
    """

    def __init__(self, overview: Overview, sleepers: Mapping[Turns, Chores]):
        self._overview, self._sleepers = overview, sleepers

    def turn(self) -> float:
        """Wake who has something to do; return the seconds to the next turn.

        Ops may have waited for a stop whose end was just ordered, and a log may grow fast: where a shard is quiet no
        more, such chores are due at once.
        """
        held, settled = self._overview.seen()
        for thread, chores in self._sleepers.items():
            if chores.stirs() or chores.is_due(held, settled):
                thread.wake()
        return QUIET_WAKE_S if all(chores.quiet for chores in self._sleepers.values()) else WAKE_S

    def close(self) -> None:
        """Nothing is held."""


class Chores:
    """The turns of one scope.

    Args:
        client: the deployment; threads share it.
        scope: a shard's, or that of the reference log, which has an epoch and no other chore.
        overview: tells which leases need not be asked for.
        sleeps: whether an `Alarm` wakes this thread.
    """

    def __init__(self, client: Client, scope: Scope, overview: Overview | None = None, *, sleeps: bool = False):
        self._client, self._scope, self._overview, self._sleeps = client, scope, overview, sleeps
        self._was_quiet = False
        self._names = tuple(CHORES) if scope.name != EVERYWHERE else ()
        self._mend_at_s, self._ids_at_s = 0.0, 0.0
        #: When each lease is asked for whatever the overview says, s: one that outlasts its time is free.
        self._anyway_at_s: dict[str, float] = {}

    def turn(self) -> float:
        """Do what is due and whose lease is free; return the seconds to the next turn."""
        log, scope = self._client.log, self._scope
        held, settled = self._overview.seen() if self._overview is not None else (frozenset(), frozenset())
        try:
            self._mend(held)
            if self._epoch_is_due(settled) and log.take_lease(f"lineage:{scope.name}", LINEAGE_MS):
                # before a request needs the epoch: it may lack the time to raise it
                self._client.publisher.epoch_of(scope)
                if scope.name != EVERYWHERE:
                    self._client.row_ids.follow(scope.name)
                self._ids_at_s = clock.mono_s() + (IDS_S if not self.quiet else self._quiet_s(SELDOM_S))
        except PipelineError as error:
            logger.warning(Event("epoch_not_raised", scope=scope.name, error=error))
        for name in self._names:
            self._do(name, scope.name, held)
        # another worker may do the next; trimming asks every shard, and each thread has connections of its own
        self._client.nodes.close()
        return SLEEP_S if self._sleeps else TURN_S

    def is_due(self, held: frozenset[str], settled: frozenset[str]) -> bool:
        """Return whether a turn may have something to do.

        Args:
            held: the leases that are there.
            settled: the scopes with an epoch of this server.
        """
        now_s, name = clock.mono_s(), self._scope.name
        leases = (f"{one}:{name}" for one in ("mend", *self._names))
        lapsed = any(one not in held or now_s >= self._anyway_at_s.get(one, 0.0) for one in leases)
        return lapsed or now_s >= self._mend_at_s or self._epoch_is_due(settled)

    def stirs(self) -> bool:
        """Return whether the shard was quiet at the last look and is so no more; then let its chores be due."""
        before, self._was_quiet = self._was_quiet, self.quiet
        if not before or self._was_quiet:
            return False
        with suppress(LogUnavailable):  # else they are due within a minute
            for name in AT_ONCE:
                hasten(self._client.log, name, self._scope.name)
        return True

    def _quiet_s(self, every_s: int = QUIET_S) -> int:
        """Return the time until the next chore of a quiet shard: all are done one after the other, once a minute."""
        spread = zlib.crc32(self._scope.name.encode())
        left_s = every_s - (clock.wall_ms() // 1000 + spread) % every_s
        return int(left_s if left_s > QUIET_S / 3 else left_s + every_s)

    def _every_s(self, name: str, every_s: int) -> int:
        """Return the time until the next chore of a name."""
        if not self.quiet:
            return every_s
        seldom = name in SELDOM and len(self._client.nodes.names(self._scope.name)) == 1
        return self._quiet_s(SELDOM_S if seldom else QUIET_S)

    def _epoch_is_due(self, settled: frozenset[str]) -> bool:
        return self._scope.name not in settled or clock.mono_s() >= self._ids_at_s

    @property
    def quiet(self) -> bool:
        """Whether nothing has happened at the shard for a while; nothing ever does at the reference log's scope."""
        if self._overview is None:
            return False
        return self._scope.name == EVERYWHERE or self._overview.is_quiet(self._scope.name)

    def _mend(self, held: frozenset[str]) -> None:
        """Delete what somebody else has put under names of ours."""
        if clock.mono_s() < self._mend_at_s:
            try:
                every_s = self._quiet_s() if self.quiet else MEND_S
                if not self._is_free(f"mend:{self._scope.name}", every_s, held):
                    return
            except LogUnavailable:  # so it is, too, where this lease is such a key
                return
        self._mend_at_s = clock.mono_s() + (MEND_ANYWAY_S if not self.quiet else SELDOM_S)
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
            if not self._is_free(f"{name}:{shard}", self._every_s(name, every_s), held):
                return
            try:
                found = work(self._client, shard)
            except Unavailable:  # a dead primary is noticed by one failure; the second try finds its successor
                found = work(self._client, shard)
            if found:
                logger.info(Event("chore_done", chore=name, shard=shard, found=found))
        except Exception as error:  # the outermost loop: one chore that fails stops no other
            logger.warning(Event("chore_failed", chore=name, shard=shard, error=error))


def hasten(log: SharedState, name: str, shard: str) -> None:
    """Let a chore be done at once, by whichever worker comes first.

    Args:
        log: has the leases.
        name: a key of `CHORES`.
        shard: the shard's name.
    """
    log.release_lease(f"{name}:{shard}", "1")
