"""Go on with moves of buckets whose mover has ended: a command that was killed, or another worker."""

from __future__ import annotations

import logging

from pipeline.admin.moving import orders
from pipeline.admin.moving.mover import MoveEnded, Mover
from pipeline.client import Client
from pipeline.errors import PipelineError
from pipeline.events import Event

logger = logging.getLogger("pipeline.moves")

#: The time between two looks for such moves, s.
LOOK_S = 3.0
#: The lease on a look: of all workers one looks.
LEASE = "moves"


class Moves:
    """The turns of one worker's mover. A thread of its own, since a copy takes minutes.

    Args:
        client: the deployment; threads share it.
    """

    def __init__(self, client: Client):
        self._client = client

    def turn(self) -> float:
        """Go on with each move that nobody is at; return the seconds to the next turn."""
        try:
            if self._client.log.take_lease(LEASE, round(LOOK_S * 1000)):
                for mover in orders.under_way(self._client):
                    self._go_on(mover)
        except PipelineError as error:
            logger.warning(Event("move_waits", error=error))
        finally:
            self._client.nodes.close()
        return LOOK_S

    def _go_on(self, mover: Mover) -> None:
        """Go on with one move; whatever stops it stops no other."""
        try:
            if not mover.hold():
                return
            leg = mover.leg
            about = {"move": leg.move, "buckets": len(mover.buckets), "source": leg.source, "target": leg.target}
            logger.info(Event("move_goes_on", **about))
            try:
                for _ in mover.steps():
                    pass
            finally:
                mover.release()
        except MoveEnded:
            pass  # it is logged, and noted where the buckets are
        except PipelineError as error:
            logger.warning(Event("move_waits", error=error))

    def close(self) -> None:
        """Close this thread's connections."""
        self._client.nodes.close()
