"""The id that an idempotency key stands for, on a host with a spool: of all who ask there, each gets the same.

The host promises it in the spool's file before Redis is asked, so Redis may go and come back between any two calls, or
hang and do late what it was asked in time. What Redis says holds on all hosts: where another was first, the promise is
corrected. While Redis is away, hosts cannot agree.

Where an earlier op stands that the same idempotency key was used for, and which id the key stands for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from pipeline import clock
from pipeline.enqueue.breaker import Breaker
from pipeline.errors import LogUnavailable, PipelineError, PipelineFull, SpoolUnavailable
from pipeline.model.op import Position
from pipeline.oplog.contract import IdReserved, Log
from pipeline.spool.key_promises import Promises

logger = logging.getLogger("pipeline.spool")

#: While ops wait in the spool, a Redis that did not answer is asked again so much later, s.
AWAY_S = 10.0
Result = TypeVar("Result")


class Promising:
    """Finds and makes promises; what is away costs a promise, never a call. Threads may share it."""

    def __init__(self, log: Log, promises: Promises, breaker: Breaker):
        self._log, self._promises, self._breaker = log, promises, breaker
        self._away_until_s = 0.0

    def reserve(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that a key stands for, *row_id* where it stood for none."""
        promised = self._promised(bucket, key, row_id)
        told = self._told(bucket, key, promised)
        if told is None:
            return promised
        if told != promised:
            self.correct(bucket, key, told)
        return told

    def agree(self, bucket: int, key: str, row_id: int, *, spooled: bool) -> None:
        """See that an op has the id that its key stands for.

        Args:
            spooled: it goes into the spool, so Redis is asked here and told by the drain; else Redis sees to it.

        Raises:
            IdReserved: it has another.
        """
        known = (self.reserve if spooled else self._promised)(bucket, key, row_id)
        if known != row_id:
            raise IdReserved(known)
        if spooled:
            self._kept(self._promises.tell, bucket, key)

    def correct(self, bucket: int, key: str, row_id: int) -> None:
        """Note that Redis says otherwise."""
        self._kept(self._promises.corrected, bucket, key, row_id)

    def _promised(self, bucket: int, key: str, row_id: int) -> int:
        promised: int | None = self._kept(self._promises.made, bucket, key, row_id)
        return promised if promised is not None else row_id

    def _told(self, bucket: int, key: str, row_id: int) -> int | None:
        """Ask Redis, also while ops wait in the spool, for they may do so by wish; None where it does not answer."""
        if self._breaker.tripped or (self._breaker.open and clock.mono_s() < self._away_until_s):
            return None
        try:
            return self._log.reserve(bucket, key, row_id)
        except LogUnavailable:
            self._breaker.trip()
            self._away_until_s = clock.mono_s() + AWAY_S
        except PipelineFull as error:
            logger.warning("an idempotency key is not reserved in Redis: %s", error)
        return None

    def _kept(self, step: Callable[..., Result], *arguments: Any) -> Result | None:
        try:
            return step(*arguments)
        except (PipelineFull, SpoolUnavailable) as error:
            logger.warning("two calls with one idempotency key may tell two ids: %s", error)
            return None


class OpPlace(msgspec.Struct, frozen=True):
    """Where the first op of a bucket's run stands, and its producer's sequence; the others follow densely."""

    position: Position | None  # None: in the spool
    producer: int
    seq: int
    row_id: int | None = None  # of an earlier op with the same idempotency key


def reserved(log: Log, bucket: int, key: str, row_id: int) -> int:
    """Return the id that a key stands for, *row_id* where it stood for none; also where Redis cannot tell."""
    try:
        return log.reserve(bucket, key, row_id)
    except (LogUnavailable, PipelineFull) as error:
        logger.warning("two calls with one idempotency key may tell two ids: %s", error)
        return row_id


def kept(text: str) -> OpPlace:
    """Read what is kept of an op."""
    try:
        epoch, seq, producer, producer_seq, row_id = map(int, text.split(" "))
    except ValueError as error:
        raise PipelineError("Redis keeps a receipt that this version cannot read") from error
    return OpPlace(Position(epoch, seq), producer, producer_seq, row_id or None)
