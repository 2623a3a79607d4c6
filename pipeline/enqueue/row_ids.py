"""Make row ids of this process's leases, from Redis or, while Redis is away, from the host's reserve.

The layout of an id, and why leases make ids unique, is in `pipeline.model.ids`.
"""

from __future__ import annotations

import logging
import os
import threading

from pipeline.enqueue.redis_away import RedisAway
from pipeline.errors import IdsUsedUp, LogUnavailable, NoProducerNumber, PipelineFull, Unavailable
from pipeline.model.ids import EPOCH_MS, OLDEST_MS, SPAN_MS, Lease
from pipeline.oplog.contract import SharedState

logger = logging.getLogger("pipeline.ids")


class RowIds:
    """Makes ids. Thread-safe; a fork goes on with leases of its own.

    Args:
        log: leases the numbers.
        away: has the host's reserve, and the wait budgets: the time for which one waits until another has a lease
            counts too.
    """

    _span: Lease | None

    def __init__(self, log: SharedState, away: RedisAway):
        self._log, self._away = log, away
        self._start()

    def new(self, bucket: int, now_ms: int) -> int:
        """Return a new id of a bucket.

        Args:
            now_ms: the wall clock, in ms since 1970.

        Raises:
            NoProducerNumber: all numbers are leased.
            LogUnavailable: a lease was due and Redis did not answer.
            IdsUsedUp: the same, and the host's reserve has none left.
        """
        if self._pid != os.getpid():  # a fork must not go on with its parent's number
            self._start()
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._away.wait_budgets.enter(lock)
        try:
            now = now_ms - EPOCH_MS
            if now < OLDEST_MS:
                now = OLDEST_MS
            tick = self._ticks.get(bucket, 0) + 1
            if tick < now << 5:
                tick = now << 5
            lease = self._span
            if lease is None or tick >> 5 > lease.until_ms:
                lease = self._span = self._lease(lease, max(now, tick >> 5) + SPAN_MS)
            if tick >> 5 <= lease.after_ms:
                tick = (lease.after_ms + 1) << 5
            self._ticks[bucket] = tick
            return (tick >> 5) << 22 | bucket << 12 | lease.number << 5 | (tick & 31)
        finally:
            lock.release()

    def renewed(self) -> None:
        """Note that Redis may have forgotten whose the host's reserve is."""
        self._away.spool.reserve.doubt()

    def _start(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._token = os.urandom(8).hex()
        self._span = None
        self._ticks: dict[int, int] = {}  # per bucket: ms * 32 + sequence of its last id

    def _lease(self, lease: Lease | None, until_ms: int) -> Lease:
        away, reserve = self._away, self._away.spool.reserve
        if away.open:
            try:
                return reserve.lease(until_ms)
            except IdsUsedUp:
                if away.tripped:
                    raise
        try:
            leased = self._log.lease_ids(self._token, lease, until_ms)
        except (LogUnavailable, PipelineFull) as error:
            away.hear(error)
            return reserve.lease(until_ms)
        except NoProducerNumber as none_free:  # as when more processes start in a minute than there are numbers
            try:
                return reserve.lease(until_ms)
            except IdsUsedUp:
                raise none_free from None
        try:
            reserve.refill(self._log.lease_host_ids)
        except Unavailable as error:
            away.hear(error)
            logger.warning("no ids in reserve for when Redis is away: %s", error)
        return leased
