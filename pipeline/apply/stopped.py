"""Know what is stopped on this process's shard, at most a second late."""

from __future__ import annotations

import logging
import socket

from pipeline import clock
from pipeline.apply.breaker import Breaker
from pipeline.errors import NotMigrated, Unavailable
from pipeline.events import Event
from pipeline.model.wait_reason import WaitReason
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import Reject
from pipeline.shard.records.stops import BREAKER, WHOLE, Stop, definition_of, give, stops_of
from pipeline.shard.session import NodeSession

#: The time between two readings, s: a batch in this time costs no query.
READ_EVERY_S = 1.0
logger = logging.getLogger("pipeline.apply")


class Stopped:
    """What is stopped on one shard.

    Args:
        shard: its name.
        session: of its primary.
        most: how many ops may be set aside on the shard while their table is stopped.

    Attributes:
        room: how many more, as of the last reading.
        breaker: judges the tables that go on.
    """

    def __init__(self, shard: str, session: NodeSession, most: int):
        self._shard, self._session, self._most = shard, session, most
        self.room, self.breaker = most, Breaker()
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

    def halt(self, reject: Reject, database_name: str) -> None:
        """Halt a table until an operator resumes it, or its definition changes.

        Args:
            reject: its last op that was refused.
            database_name: the table's name in the database.
        """
        if any(stop.scope == reject.table for stop in self._stops):
            return
        try:
            definition = definition_of(self._session, database_name)
            give(self._session, Stop(reject.table, BREAKER, reject.reason, 0, socket.gethostname(), definition))
        except (Unavailable, NotMigrated) as error:  # the next refused op tries again
            logger.warning(Event("table_not_halted", shard=self._shard, table=reject.table, error=error))
        self._read_at_s = -READ_EVERY_S

    def _read(self) -> None:
        if clock.mono_s() - self._read_at_s < READ_EVERY_S:
            return
        before = self._stops
        try:
            self._stops = stops_of(self._session)
        except NotMigrated as error:  # workers are newer than the tables: nothing can be stopped yet
            self._stops = []
            if not self._warned:
                logger.warning(Event("stops_not_read", shard=self._shard, error=error))
            self._warned = True
        self._read_at_s = clock.mono_s()
        for scope in {stop.scope for stop in before} - {stop.scope for stop in self._stops}:
            self.breaker.forget(scope)
        if any(stop.scope != WHOLE for stop in self._stops):
            self.room = self._most - ledger_queries.counts(self._session)["parked"]
        for stop in self._stops:
            if stop not in before:
                logger.warning(
                    Event(
                        "stopped",
                        shard=self._shard,
                        scope=stop.scope,
                        kind=stop.kind,
                        text=stop.reason_on(self._shard).sentence(),
                    )
                )
