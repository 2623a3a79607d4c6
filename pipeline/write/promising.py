"""The id that an idempotency key stands for, where Redis may be away: of all who ask on one host, each gets the same.

Redis is asked first, and what it says holds on all hosts. What it cannot be asked is promised in the spool's file, and
told to Redis by the drain, or by the next who asks for that key.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

from pipeline import clock
from pipeline.errors import LogUnavailable, PipelineFull, SpoolUnavailable
from pipeline.log.contract import IdReserved, Log
from pipeline.log.spool.promises import KEPT_MS, MOST, Promises
from pipeline.write.breaker import Breaker

_log = logging.getLogger("pipeline.spool")


class Promising:
    """Finds and makes promises. Threads may share it."""

    def __init__(self, log: Log, promises: Promises, breaker: Breaker):
        self._log, self._promises, self._breaker = log, promises, breaker
        #: What Redis has told this process, and when: it may go away before the next asks for the same key.
        self._heard: OrderedDict[tuple[int, str], tuple[int, float]] = OrderedDict()

    def reserve(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that a key stands for, *row_id* where it stood for none; never raises for what is away."""
        if not self._breaker.open:
            proposed = self._found(bucket, key) or row_id
            try:
                reserved = self._log.reserve(bucket, key, proposed)
            except LogUnavailable:
                self._breaker.trip()
            except PipelineFull as error:
                _log.warning("an idempotency key is not reserved in Redis: %s", error)
            else:
                self.hear(bucket, key, reserved)
                return reserved
        return self.promise(bucket, key, row_id)

    def promise(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that a key stands for on this host, *row_id* where it stood for none."""
        heard, at_s = self._heard.get((bucket, key), (row_id, clock.mono_s()))
        if clock.mono_s() - at_s > KEPT_MS / 1000:
            heard = row_id
        try:
            return self._promises.made(bucket, key, heard)
        except (PipelineFull, SpoolUnavailable) as error:
            _log.warning("two calls with one idempotency key may tell two ids: %s", error)
            return heard

    def agree(self, bucket: int, key: str, row_id: int) -> None:
        """See that an op's id is the one that this host knows under its key.

        Raises:
            IdReserved: it is not.
        """
        known = self.promise(bucket, key, row_id) if self._breaker.open else self._found(bucket, key)
        if known not in (None, row_id):
            raise IdReserved(known)

    def hear(self, bucket: int, key: str, row_id: int) -> None:
        """Note what Redis says."""
        self._heard[bucket, key] = row_id, clock.mono_s()
        while len(self._heard) > MOST:
            self._heard.popitem(last=False)

    def _found(self, bucket: int, key: str) -> int | None:
        try:
            return self._promises.found(bucket, key)
        except SpoolUnavailable as error:
            _log.warning("what this host promised under an idempotency key cannot be told: %s", error)
            return None
