"""Know what is stopped on this process's shard, at most a second late."""

from __future__ import annotations

import logging

from pipeline import clock
from pipeline.errors import NotMigrated
from pipeline.model.wait_reason import WaitReason
from pipeline.shard.session import NodeSession
from pipeline.shard.stops import WHOLE, Stop, stops_of

#: The time between two readings, s: a batch in this time costs no query.
READ_EVERY_S = 1.0
logger = logging.getLogger("pipeline.apply")


class Stopped:
    """What is stopped on one shard.

    Args:
        shard: its name.
        session: of its primary.
    """

    def __init__(self, shard: str, session: NodeSession):
        self._shard, self._session = shard, session
        self._stops: list[Stop] = []
        self._read_at_s = -READ_EVERY_S
        self._warned = False

    def whole(self) -> WaitReason | None:
        """Return why nothing of the shard is applied, or None.

        Raises:
            ShardUnavailable: the primary did not answer, so that nothing can be applied anyway.
        """
        self._read()
        stop = next((stop for stop in self._stops if stop.scope == WHOLE), None)
        return None if stop is None else stop.reason_on(self._shard)

    def tables(self) -> dict[str, WaitReason]:
        """Return why the ops of a table wait, by the table's name, as of the last reading."""
        return {stop.scope: stop.reason_on(self._shard) for stop in self._stops if stop.scope != WHOLE}

    def _read(self) -> None:
        if clock.mono_s() - self._read_at_s < READ_EVERY_S:
            return
        before = self._stops
        try:
            self._stops = stops_of(self._session)
        except NotMigrated as error:  # workers are newer than the tables: nothing can be stopped yet
            self._stops = []
            if not self._warned:
                logger.warning("shard %s: nothing can be paused: %s", self._shard, error)
            self._warned = True
        self._read_at_s = clock.mono_s()
        for stop in self._stops:
            if stop not in before:
                logger.warning("%s", stop.reason_on(self._shard).sentence())
