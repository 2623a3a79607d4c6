"""The secret that signs session tokens, for a process that may start while Redis is away."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from pipeline.errors import Unavailable
from pipeline.oplog.contract import Secrets
from pipeline.spool.store import Spool
from pipeline.wait_budget import Patience

_log = logging.getLogger("pipeline.web")


class Secret:
    """The first that anybody proposed to Redis; this host keeps it in the spool's file, which only its user may read.

    Args:
        patience: how long one call may wait for Redis.
        away: whether Redis is known not to answer.
    """

    def __init__(self, log: Secrets, spool: Spool | None, patience: Patience, away: Callable[[], bool]):
        self._log, self._spool, self._patience, self._away = log, spool, patience, away

    def __call__(self) -> str:
        """Return it.

        Raises:
            LogUnavailable: Redis does not tell it, and this host has never learnt it.
        """
        spool = self._spool
        if spool is None:
            return self._log.secret(secrets.token_hex(16))
        kept = self._kept(spool)
        if kept is not None and self._away():
            return kept
        patience = self._patience
        try:
            with patience.within(patience.here.budget or patience.budget()):
                found = self._log.secret(kept or secrets.token_hex(16))
        except Unavailable:
            if kept is None:
                raise
            return kept
        if found != kept:
            self._keep(spool, found)
        return found

    def _kept(self, spool: Spool) -> str | None:
        try:
            return spool.secret()
        except Unavailable as error:
            _log.warning("the secret that this host keeps cannot be read: %s", error)
            return None

    def _keep(self, spool: Spool, found: str) -> None:
        try:
            spool.keep_secret(found)
        except Unavailable as error:
            _log.warning("session tokens cannot be read here while Redis is away: %s", error)
