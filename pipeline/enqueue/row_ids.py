"""Row ids for one process: its leases, from Redis or, while that is away, from the host's reserve."""

from __future__ import annotations

import logging
import os
import threading

from pipeline.enqueue.breaker import Breaker
from pipeline.errors import IdsUsedUp, LogUnavailable, NoProducerNumber, PipelineFull, Unavailable
from pipeline.model.ids import IdMaker, Lease
from pipeline.oplog.contract import SharedState
from pipeline.spool.store import Spool
from pipeline.wait_budget import WaitBudgets

logger = logging.getLogger("pipeline.ids")


class RowIds:
    """Makes ids. Thread-safe; a fork goes on with leases of its own.

    Args:
        patience: of the callers: the time for which one waits until another has a lease counts too.
    """

    def __init__(self, log: SharedState, spool: Spool | None, breaker: Breaker, wait_budgets: WaitBudgets):
        self._log, self._spool, self._breaker, self._wait_budgets = log, spool, breaker, wait_budgets
        self._start()

    def new(self, bucket: int, now_ms: int) -> int:
        """Return a new id of a bucket.

        Raises:
            NoProducerNumber, LogUnavailable, IdsUsedUp: there is none now.
        """
        if self._pid != os.getpid():  # a fork must not go on with its parent's number
            self._start()
        lock = self._lock
        self._wait_budgets.enter(lock)
        try:
            return self._ids.new(bucket, now_ms)
        finally:
            lock.release()

    def renewed(self) -> None:
        """Note that Redis may have forgotten whose the host's reserve is."""
        if self._spool is not None:
            self._spool.reserve.doubt()

    def _start(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._token = os.urandom(8).hex()
        self._ids = IdMaker(self._lease)

    def _lease(self, lease: Lease | None, until_ms: int) -> Lease:
        if self._spool is None:
            return self._log.lease_ids(self._token, lease, until_ms)
        reserve, breaker = self._spool.reserve, self._breaker
        if breaker.open:
            try:
                return reserve.lease(until_ms)
            except IdsUsedUp:
                if breaker.tripped:
                    raise
        try:
            leased = self._log.lease_ids(self._token, lease, until_ms)
        except (LogUnavailable, PipelineFull) as error:
            breaker.hear(error)
            return reserve.lease(until_ms)
        except NoProducerNumber as none_free:  # as when more processes start in a minute than there are numbers
            try:
                return reserve.lease(until_ms)
            except IdsUsedUp:
                raise none_free from None
        try:
            reserve.refill(self._log.lease_host_ids)
        except Unavailable as error:
            breaker.hear(error)
            logger.warning("no ids in reserve for when Redis is away: %s", error)
        return leased
