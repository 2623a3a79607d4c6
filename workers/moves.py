"""Go on with moves of buckets whose mover has ended: a command that was killed, or another worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pipeline import clock
from pipeline.admin.moving import orders
from pipeline.admin.moving.carrier import MoveStep
from pipeline.admin.moving.mover import MoveEnded, Mover
from pipeline.client import Client
from pipeline.clock import Deadline
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.oplog.quiet import Quiet

logger = logging.getLogger("pipeline.moves")

#: The time between two looks for such moves, s; and while the last one has found no move under way.
LOOK_S, SELDOM_S = 3.0, 9.0
#: The time between two looks while nothing happens at any shard, s. An order stirs a shard, and is seen in `SELDOM_S`.
QUIET_LOOK_S = 180.0
#: How long one move is gone on with while others wait for their turn, s; less than a third of a mover's lease.
SLICE_S = 3.0
#: The lease on a look: of all workers one looks.
LEASE = "moves"


class Moves:
    """The turns of one worker's mover. A thread of its own, since a copy takes minutes.

    Several moves take turns: one that keeps the rows of its source for a day holds up no other.

    Args:
        client: the deployment; threads share it.
    """

    def __init__(self, client: Client):
        self._client, self._every_s = client, LOOK_S
        self._quiet, self._found_s = Quiet(client.log, client.topology.shards), -QUIET_LOOK_S
        self._held: dict[int, tuple[Mover, Iterator[MoveStep]]] = {}

    def turn(self) -> float:
        """Go on with each move that nobody else is at, for a while; return the seconds to the next turn."""
        try:
            if self._is_due():
                mine = self._client.log.take_lease(LEASE, round(self._every_s * 1000))
                # who looked meanwhile may have found a move, and end
                self._every_s = SELDOM_S if mine and not self._find() else LOOK_S
            for mover, steps in [*self._held.values()]:
                self._go_on(mover, steps)
        except PipelineError as error:
            logger.warning(Event("move_waits", error=error))
        if self._held:
            return 0.0
        self._client.nodes.close()
        return self._every_s

    def _is_due(self) -> bool:
        """Return whether there may be a move that was not there at the last look, or one that was."""
        self._quiet.look()
        still = self._every_s == SELDOM_S and all(map(self._quiet.is_quiet, self._client.topology.shards))
        return not still or clock.mono_s() - self._found_s >= QUIET_LOOK_S

    def _find(self) -> bool:
        """Take the moves that nobody is at; return whether any move is under way."""
        self._found_s = clock.mono_s()
        movers = list(orders.under_way(self._client))
        for mover in movers:
            leg = mover.leg
            if leg.move not in self._held and mover.hold():
                about = {"move": leg.move, "buckets": len(mover.buckets), "source": leg.source, "target": leg.target}
                logger.info(Event("move_goes_on", **about))
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
            logger.warning(Event("move_waits", error=error))
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
                logger.info(Event("lease_not_released", lease=LEASE, error=error))
        self._client.nodes.close()
