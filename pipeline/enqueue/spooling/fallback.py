"""Publish through the spool where Redis does not take an op, or where the caller chooses it.

Invariant: once an op of this host waits in the spool, every later one goes behind it. An op whose outcome is unknown
goes there under the number that it was sent with, so it cannot be doubled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.schemas import SchemaPublisher
from pipeline.enqueue.shipment import OpPlace, Shipment, queued
from pipeline.enqueue.spooling.drain_thread import DrainThread
from pipeline.enqueue.spooling.redis_away import RedisAway
from pipeline.errors import PipelineFull, SpoolUnavailable, Unavailable, WrongDeployment
from pipeline.events import Event
from pipeline.oplog.appends import KeyClaimed
from pipeline.per_process import PerProcess
from pipeline.spool.store import Number

logger = logging.getLogger("pipeline.spool")


class Fallback:
    """A publisher that does not fail with Redis. A spooled op's place has no position.

    Args:
        publisher: sends what Redis takes.
        away: knows whether Redis answers, and has the spool.
        drain_thread: woken whenever something waits.
        schemas: kept in the spool before the ops that need them.
    """

    def __init__(
        self, publisher: Publisher, away: RedisAway, drain_thread: PerProcess[DrainThread], schemas: SchemaPublisher
    ):
        self._publisher, self._away, self._drain_thread, self._schemas = publisher, away, drain_thread, schemas
        self._noted = False  # whether this host knows that the configuration fits the deployment

    def ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        """Append ops, or spool those that Redis does not take; see `Publisher.ship`.

        With the durability `spooled` they are spooled first, and stay there until every node of their shard has them.

        Raises:
            KeyClaimed: the key has claimed another id; neither Redis nor the spool took the op.
            PipelineFull, SpoolUnavailable: Redis did not take them, and neither did the spool; `numbered` says which
                may be queued nevertheless.
        """
        if shipment.durability == "spooled":
            return self._spooled(shipment, shipment.numbered)
        if len(shipment.runs) == 1:
            return self._ship(shipment)
        places: dict[int, OpPlace] = {}
        for share in self._publisher.by_scope(shipment.runs).values():
            try:
                places |= self._ship(shipment.part(share))
            except Unavailable as error:
                error.numbered = queued(places, error)
                raise
        return places

    def ship_one(self, bucket: int, payload: bytes) -> OpPlace:
        """Append or spool one op that has neither key nor wish; see `ship`."""
        if self._away.open or not self._noted:
            return self._ship(Shipment({bucket: (payload,)}))[bucket]
        try:
            return self._publisher.ship_one(bucket, payload)
        except Unavailable as error:
            return self._instead(Shipment({bucket: (payload,)}), error)[bucket]

    def claim(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that an idempotency key has claimed; a Redis that is away costs an answer, never a wait."""
        return row_id if self._away.claims_fail else self._publisher.claim(bucket, key, row_id)

    def _ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        if self._away.open and (places := self._spooled(shipment, shipment.numbered, behind=True)):
            return places
        try:
            places = self._publisher.ship(shipment)
            if not self._noted:
                self._note()
            return places
        except Unavailable as error:
            return self._instead(shipment, error)

    def _instead(self, shipment: Shipment, error: Unavailable) -> dict[int, OpPlace]:
        """Spool what Redis did not take."""
        self._away.hear(error)
        try:
            return self._spooled(shipment, error.numbered)
        except (PipelineFull, SpoolUnavailable) as second:
            second.numbered = {**error.numbered, **second.numbered}
            raise second from error

    def _spooled(
        self, shipment: Shipment, numbered: Mapping[int, Number] | None = None, *, behind: bool = False
    ) -> dict[int, OpPlace]:
        """Spool ops; *behind*: nothing is done, and nothing returned, where no others wait any more."""
        if not (self._noted or self._away.tripped):
            self._compare(shipment)
        self._agree(shipment)
        self._schemas.keep()
        kept = shipment.durability == "spooled"
        numbers = self._away.spool.add(shipment.runs, kept=kept, numbered=numbered, behind=behind)
        self._drain_thread().wake()
        # what is to be on a second machine is in the spool of this one only
        durable = shipment.durability != "replica"
        return {bucket: OpPlace(None, *number, durable=durable) for bucket, number in numbers.items()}

    def _compare(self, shipment: Shipment) -> None:
        """Have the configuration compared with the deployment, unless Redis is away.

        Raises:
            WrongDeployment: it does not fit; nothing was sent or spooled.
        """
        try:
            for scope in self._publisher.by_scope(shipment.runs):
                self._publisher.epoch_of(scope)
        except Unavailable as error:
            self._away.hear(error)
        else:
            self._note()

    def _note(self) -> None:
        """Note for this host that the configuration fits, for processes that start while Redis is away."""
        self._noted = True
        try:
            self._away.spool.agree(self._publisher.deployment)
        except (Unavailable, WrongDeployment) as error:
            logger.warning(Event("configuration_not_noted", error=error))

    def _agree(self, shipment: Shipment) -> None:
        """See that an op for the spool has the id that its key has claimed: the drain sends no key."""
        key, row_id = shipment.key, shipment.row_id
        if key and row_id is not None:
            [bucket] = shipment.runs
            if (claimed := self.claim(bucket, key, row_id)) != row_id:
                raise KeyClaimed(claimed)
