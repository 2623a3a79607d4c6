"""Read clocks, sleep and poll: the only place that does."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.per_process import chance


def wall_ms() -> int:
    """Return milliseconds since 1970 by this machine's clock. For display and for ids, never for order."""
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
    """Sleep.

    Args:
        seconds: how long.
    """
    time.sleep(seconds)


def polls(timeout_s: float, *, first_s: float = 0.001, most_s: float = 0.05) -> Iterator[Deadline]:
    """Yield at growing intervals until the deadline has passed; always at least once, and once at the end.

    Args:
        timeout_s: the time until the deadline, seconds.
        first_s: the first interval, seconds; each is half as long again as the one before.
        most_s: the longest interval, seconds.
    """
    deadline, pause = Deadline(timeout_s), first_s
    while True:
        last = deadline.passed
        yield deadline
        if last:
            return
        sleep_s(min(pause, deadline.left_s))
        pause = min(pause * 1.5, most_s)


def backoff_s(attempt: int, *, first_s: float = 0.1, most_s: float = 5.0) -> float:
    """Return the pause before a retry, seconds: exponential with full jitter's upper half.

    Args:
        attempt: 1 for the first retry.
        first_s: the pause before the first retry, without jitter.
        most_s: the longest pause.
    """
    return float(min(most_s, first_s * 2 ** (attempt - 1)) * chance.uniform(0.5, 1.0))
