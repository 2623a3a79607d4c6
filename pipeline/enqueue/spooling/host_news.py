"""Publish what waits in this host's spool, so that every screen shows it."""

from __future__ import annotations

import logging
import socket

import msgspec

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.model.op import enqueued_ms
from pipeline.oplog.shared_state import SharedState
from pipeline.spool.null_spool import NullSpool
from pipeline.spool.store import Spool

#: The time between two publications by one process, s.
EVERY_S = 5.0
logger = logging.getLogger("pipeline.spool")


class HostNews:
    """What one process says of its host's spool.

    Args:
        spool: of this host; without one nothing is said.
        kind: of the host: `web` or `worker`.
    """

    def __init__(self, spool: Spool | NullSpool | None, kind: str):
        self._spool, self._kind = spool, kind
        self._next_s = 0.0

    def publish(self, log: SharedState) -> None:
        """Publish it, every few seconds at most; a Redis that does not answer is noted, not raised.

        Args:
            log: takes it.
        """
        if not isinstance(self._spool, Spool) or clock.mono_s() < self._next_s:
            return
        self._next_s = clock.mono_s() + EVERY_S
        try:
            log.note_host(f"{self._kind} {socket.gethostname()}", self._told(self._spool))
        except PipelineError as error:
            logger.info(Event("host_not_published", error=error))

    def _told(self, spool: Spool) -> str:
        """Return the spool's state as JSON: a `HostRecord` of `pipeline status`."""
        told = {"host": socket.gethostname(), "kind": self._kind, "path": str(spool.path)}
        try:
            waiting, _, size_bytes = spool.counts()
            first = spool.head(most=1) if waiting else []
        except PipelineError as error:
            return msgspec.json.encode(told | {"why": str(error)}).decode()
        sent_ms = enqueued_ms(first[0].payload) if first else None
        oldest_ms = max(0, clock.wall_ms() - int(sent_ms)) if sent_ms is not None else None
        numbers = {"spooled": waiting, "bytes": size_bytes, "oldest_ms": oldest_ms}
        return msgspec.json.encode(told | numbers).decode()
