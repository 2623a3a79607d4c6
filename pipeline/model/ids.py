"""Lay out the 53-bit ids of rows: there before their row is, exact in JavaScript's numbers, with the row's bucket.

    43 bits counter of the bucket · 10 bits bucket

A counter is given once. Counters come in *spans* of 2**22. The database of a shard gives each span once, to the log's
server, which gives the counters of the span's buckets in blocks. A server that has forgotten what it gave needs another
span. So ids are unique whatever the server forgets and whatever clocks say.
"""

from __future__ import annotations

from typing import NamedTuple

#: 2024-01-01T00:00:00Z in ms; a bucket's counter follows the clock from here, eight to the millisecond, until 2058.
EPOCH_MS, PER_MS = 1_704_067_200_000, 8
#: Every id is at least the first number and less than the second, so size distinguishes an id from a legacy key.
SMALLEST, END = 1 << 49, 1 << 53
#: Counters of a bucket in a span: what the clock passes in nine minutes.
SPAN = 1 << 22
#: The first span whose ids are large enough, and the end of all spans.
FIRST_SPAN, SPANS = (SMALLEST >> 10) // SPAN, (END >> 10) // SPAN


class Given(NamedTuple):
    """What the log gave of a shard's ids.

    Attributes:
        span: the span in use; 0: none.
        due: the span that the clock is in.
        starts: of each bucket the first of its counters; None: nothing was given, since the shard needs a new span.
    """

    span: int
    due: int
    starts: dict[int, int] | None


def counter_at(ms: int) -> int:
    """Return the counter that the clock is at.

    Args:
        ms: since 1970.
    """
    return max((ms - EPOCH_MS) * PER_MS, FIRST_SPAN * SPAN)


def ids_of(bucket: int, counters: range) -> range:
    """Return the ids of some counters of a bucket, in order.

    Args:
        bucket: from 0 to 1023.
        counters: the counters, without a gap.
    """
    return range(counters.start << 10 | bucket, counters.stop << 10 | bucket, 1 << 10)


def carries_bucket(value: int) -> bool:
    """Return whether *value* is an id made here, not some other key."""
    return SMALLEST <= value < END


def bucket_of(id: int) -> int:
    """Return the bucket that an id made here carries."""
    return id & 1023
