"""Lay out 64-bit row ids that exist before their row does, and carry their bucket.

    41 bits ms since 2024 · 10 bits bucket · 7 bits producer number · 5 bits sequence

Ids are unique because a producer number is leased together with a span of milliseconds (`Lease`). The next lease of the
number starts behind that span, whatever the clocks of the two machines say.

The layout (time, logical shard, sequence) follows Instagram's and Pinterest's. The lease is ours: such schemes make the
same id twice where worker numbers are not leased.
"""

from __future__ import annotations

from dataclasses import dataclass

#: 2024-01-01T00:00:00Z in ms. 41 bits from here last until 2093.
EPOCH_MS = 1_704_067_200_000
#: Every id is at least this (2**35 ms after the epoch is February 2025), so size distinguishes an id from a legacy key.
SMALLEST = 1 << 57
#: Milliseconds that one lease grants. A busy producer runs at most so far ahead of its clock.
SPAN_MS = 60_000
#: Numbers for processes, and behind them those that hosts keep in reserve for when Redis is away: 7 bits in all.
PRODUCERS, HOSTS = 112, 16
#: The first millisecond of an id, counted from `EPOCH_MS`.
OLDEST_MS = SMALLEST >> 22


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to make ids with *number* in the milliseconds (after_ms, until_ms], counted from `EPOCH_MS`."""

    number: int
    after_ms: int
    until_ms: int


def carries_bucket(value: int) -> bool:
    """Return whether *value* is an id made here, not some other key."""
    return value >= SMALLEST


def bucket_of(id: int) -> int:
    """Return the bucket that an id made here carries."""
    return id >> 12 & 1023
