"""The breaker: while Redis is known not to answer, nobody of this process waits for it."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import clock
from pipeline.errors import LogUnavailable, Unavailable

#: After a failure the next try is made so much later, s.
OPEN_S = 1.0


class Breaker:
    """Knows whether Redis failed somebody a moment ago. Shared by the threads of a process.

    Args:
        waiting: whether ops wait in the spool: then Redis failed somebody of this host.
    """

    __slots__ = ("_until", "_waiting")

    def __init__(self, waiting: Callable[[], bool] = lambda: False):
        self._waiting, self._until = waiting, 0.0

    @property
    def open(self) -> bool:
        """Whether a caller should go to the spool and not to Redis."""
        return self._waiting() or (self._until > 0 and self.tripped)

    @property
    def tripped(self) -> bool:
        """Whether it failed a moment ago."""
        return clock.mono_s() < self._until

    def trip(self) -> None:
        """Note a failure."""
        self._until = clock.mono_s() + OPEN_S

    def hear(self, error: Unavailable) -> None:
        """Note why an op was not taken: a failure if Redis did not answer."""
        if isinstance(error, LogUnavailable):
            self.trip()

    def close(self) -> None:
        """Note that it answers."""
        self._until = 0.0
