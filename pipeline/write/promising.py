"""The id that an idempotency key stands for, where Redis may be away: of all who ask on one host, each gets the same.

What Redis says holds on all hosts, so it is asked wherever it may be there, also while ops wait in the spool: they may
do so by wish. The id of what goes into the spool is promised in the spool's file too: Redis may not be there for the
next who asks. The drain tells Redis all promises, and so does the next who asks for that key.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

from pipeline import clock
from pipeline.errors import LogUnavailable, PipelineFull, SpoolUnavailable
from pipeline.log.contract import IdReserved, Log
from pipeline.log.spool.promises import KEPT_MS, MOST, Promises
from pipeline.write.breaker import Breaker

#: While ops wait in the spool, a Redis that did not answer is asked again so much later, s.
AWAY_S = 10.0
_log = logging.getLogger("pipeline.spool")


class Promising:
    """Finds and makes promises; what is away costs a promise, never a call. Threads may share it."""

    def __init__(self, log: Log, promises: Promises, breaker: Breaker):
        self._log, self._promises, self._breaker = log, promises, breaker
        self._away_until_s = 0.0
        #: What Redis has told this process, and when: it may go away before the next asks for the same key.
        self._heard: OrderedDict[tuple[int, str], tuple[int, float]] = OrderedDict()

    def reserve(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that a key stands for, *row_id* where it stood for none."""
        known = self._found(bucket, key) or self._remembered(bucket, key) or row_id
        told = self._asked(bucket, key, known)
        return told if told is not None else self._made(bucket, key, known)

    def agree(self, bucket: int, key: str, row_id: int, *, spooled: bool) -> None:
        """See that an op has the id that is known under its key.

        Args:
            spooled: it goes into the spool; else Redis itself will see to it.

        Raises:
            IdReserved: it has another.
        """
        if spooled:
            known = self.reserve(bucket, key, row_id)
            self._made(bucket, key, known)
        else:
            known = self._found(bucket, key) or row_id
        if known != row_id:
            raise IdReserved(known)

    def hear(self, bucket: int, key: str, row_id: int) -> None:
        """Note what Redis says."""
        self._heard[bucket, key] = row_id, clock.mono_s()
        while len(self._heard) > MOST:
            self._heard.popitem(last=False)

    def _asked(self, bucket: int, key: str, row_id: int) -> int | None:
        """Ask Redis; None where it is not there, or has no room."""
        if self._breaker.tripped or (self._breaker.open and clock.mono_s() < self._away_until_s):
            return None
        try:
            reserved = self._log.reserve(bucket, key, row_id)
        except LogUnavailable:
            self._breaker.trip()
            self._away_until_s = clock.mono_s() + AWAY_S
            return None
        except PipelineFull as error:
            _log.warning("an idempotency key is not reserved in Redis: %s", error)
            return None
        self.hear(bucket, key, reserved)
        return reserved

    def _remembered(self, bucket: int, key: str) -> int | None:
        row_id, at_s = self._heard.get((bucket, key), (None, 0.0))
        return row_id if clock.mono_s() - at_s < KEPT_MS / 1000 else None

    def _found(self, bucket: int, key: str) -> int | None:
        try:
            return self._promises.found(bucket, key)
        except SpoolUnavailable as error:
            _log.warning("what this host promised under an idempotency key cannot be told: %s", error)
            return None

    def _made(self, bucket: int, key: str, row_id: int) -> int:
        try:
            return self._promises.made(bucket, key, row_id)
        except (PipelineFull, SpoolUnavailable) as error:
            _log.warning("two calls with one idempotency key may tell two ids: %s", error)
            return row_id
