"""Know whether Redis answers, and where ops go while it does not: the breaker, the spool, how long a caller waits."""

from __future__ import annotations

import math

from pipeline import clock
from pipeline.errors import LogUnavailable, Unavailable
from pipeline.spool.null_spool import NullSpool
from pipeline.spool.store import Spool
from pipeline.wait_budget import WaitBudgets

#: While Redis is silent the next try is made so much later, s.
OPEN_S = 0.25
#: While ops wait in the spool, a Redis that did not answer is asked for an idempotency key so much later, s.
AWAY_S = 10.0


class RedisAway:
    """Knows whether Redis failed a caller a moment ago; then no caller of this process waits for Redis.

    Shared by the threads of a process. Without a spool an op has nowhere else to go, so every call tries Redis.

    Args:
        spool: takes what Redis does not take.
        wait_budgets: how long a caller waits for Redis.
    """

    __slots__ = ("_claims_until_s", "_until_s", "spool", "wait_budgets")

    def __init__(self, spool: Spool | None = None, wait_budgets: WaitBudgets | None = None):
        self.spool: Spool | NullSpool = spool or NullSpool()
        self.wait_budgets = wait_budgets or WaitBudgets(math.inf)
        self._until_s = self._claims_until_s = 0.0

    @property
    def open(self) -> bool:
        """Whether a caller should go to the spool and not to Redis: also while ops of this host wait there."""
        return self.spool.waiting() or (self._until_s > 0 and self.tripped)

    @property
    def tripped(self) -> bool:
        """Whether Redis failed a moment ago."""
        return clock.mono_s() < self._until_s

    def hear(self, error: Unavailable) -> None:
        """Note why an op was not taken. Only Redis's own silence opens the breaker, never a step that took its time.

        Raises:
            Unavailable: *error* itself, where there is no spool to go to.
        """
        self.wait_budgets.cold = False
        if isinstance(self.spool, NullSpool):
            raise error
        if isinstance(error, LogUnavailable) and error.silent:
            self._until_s = clock.mono_s() + OPEN_S

    def close(self) -> None:
        """Note that Redis answers."""
        self._until_s = 0.0

    @property
    def claims_fail(self) -> bool:
        """Whether Redis is not to be asked for an idempotency key now. Ops may wait by wish, while Redis is there."""
        return self.tripped or (clock.mono_s() < self._claims_until_s and self.open)

    def claim_failed(self, error: LogUnavailable) -> None:
        """Note that Redis did not answer when it was asked for an idempotency key."""
        if not isinstance(self.spool, NullSpool):
            self.hear(error)
            self._claims_until_s = clock.mono_s() + AWAY_S
