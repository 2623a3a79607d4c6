"""The id that an idempotency key stands for, on a host with a spool: as Redis says, while Redis is there.

While Redis is away a caller keeps the id it came with. So a later call may be told another id; the shard takes the
first op with a key all the same, and makes one row.

Where an earlier op stands that the same idempotency key was used for, and which id the key stands for.
"""

from __future__ import annotations

import logging

import msgspec

from pipeline import clock
from pipeline.enqueue.breaker import Breaker
from pipeline.errors import LogUnavailable, PipelineError, PipelineFull
from pipeline.model.op import Position
from pipeline.oplog.appends import Appends

logger = logging.getLogger("pipeline.spool")

#: While ops wait in the spool, a Redis that did not answer is asked again so much later, s.
AWAY_S = 10.0


class Keys:
    """Reserves ids under keys in Redis; a Redis that is away costs an answer, never a call. Threads may share it."""

    def __init__(self, log: Appends, breaker: Breaker):
        self._log, self._breaker = log, breaker
        self._away_until_s = 0.0

    def reserve(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that a key stands for; *row_id* where it stood for none, or Redis cannot tell."""
        # ops may wait in the spool by wish, while Redis is there
        if self._breaker.tripped or (self._breaker.open and clock.mono_s() < self._away_until_s):
            return row_id
        try:
            return self._log.claim_key(bucket, key, row_id)
        except (LogUnavailable, PipelineFull) as error:
            logger.warning("two calls with one idempotency key may tell two ids: %s", error)
            self._breaker.hear(error)
            if isinstance(error, LogUnavailable):
                self._away_until_s = clock.mono_s() + AWAY_S
            return row_id


class OpPlace(msgspec.Struct, frozen=True):
    """Where the first op of a bucket's run stands, and its producer's sequence; the others follow densely."""

    position: Position | None  # None: in the spool
    producer: int
    seq: int
    row_id: int | None = None  # of an earlier op with the same idempotency key


def reserved(log: Appends, bucket: int, key: str, row_id: int) -> int:
    """Return the id that a key stands for, *row_id* where it stood for none; also where Redis cannot tell."""
    try:
        return log.claim_key(bucket, key, row_id)
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
