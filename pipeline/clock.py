"""The only place that reads a clock."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator


def wall_ms() -> int:
    """Return milliseconds since 1970 by this machine's clock. For people and for ids, never for order."""
    return time.time_ns() // 1_000_000


#: Nanoseconds since 1970, without a call of Python's.
wall_ns = time.time_ns
#: Seconds of a clock that never goes back. For durations.
mono_s = time.monotonic


class Deadline:
    """A moment after which waiting is over."""

    __slots__ = ("at", "started")

    def __init__(self, timeout_s: float):
        self.started = mono_s()
        self.at = self.started + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds that are left, never negative."""
        return max(0.0, self.at - mono_s())

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return mono_s() >= self.at

    @property
    def waited_s(self) -> float:
        """Seconds since the start."""
        return mono_s() - self.started


def sleep_s(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def polls(timeout_s: float, *, first_s: float = 0.001, most_s: float = 0.05) -> Iterator[Deadline]:
    """Yield at growing intervals until the deadline has passed; always yields at least once, and once at the end."""
    deadline, pause = Deadline(timeout_s), first_s
    while True:
        last = deadline.passed
        yield deadline
        if last:
            return
        sleep_s(min(pause, deadline.left_s))
        pause = min(pause * 1.5, most_s)


def backoff_s(attempt: int, *, first_s: float = 0.1, most_s: float = 5.0) -> float:
    """Return the pause before retry *attempt* (1, 2, …): exponential with full jitter's upper half."""
    return float(min(most_s, first_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
