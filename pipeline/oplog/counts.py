"""Name the counters that the processes of a deployment add up in Redis, in a hash for each shard.

A counter only grows, until Redis forgets it. Its name is words with a blank between: what is counted, then the labels;
the last label may hold blanks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

#: `applied <kind> <table>`: ops.
APPLIED = "applied"
#: `rejected <table>`: ops; one that a replay tries again is not refused a second time.
REJECTED = "rejected"
#: Transactions, and `batch_ms <bound>`: those that took so long at most, by the least bound that holds.
BATCHES, BATCH_MS = "batches", "batch_ms"
#: What an operator has ordered on the shard: stops, and their ends.
ORDERS = "orders"
#: `commit_ms <bound>`: the same of their COMMITs alone; and the sums of both.
COMMIT_MS, BATCH_SUM_MS, COMMIT_SUM_US = "commit_ms", "batch_sum_ms", "commit_sum_us"
#: Ops that were set aside without being refused; ops that the shard had already.
PARKED, SEEN = "parked", "seen"
#: `held <kind>`: how often a batch left a bucket waiting, by the kind of the reason.
HELD = "held"
#: Upper bounds of the histogram of a batch, ms; a longer batch counts under `inf`.
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
#: `enqueued <way> <kind> <table>`: ops that processes have enqueued, by the way that they took first.
ENQUEUED, DIRECT, SPOOLED, OUTBOX = "enqueued", "direct", "spool", "outbox"
#: `refused <reason> <kind> <table>`: ops that a process could not enqueue, so that their caller got an error.
REFUSED = "refused"
#: `enqueue_ms <way> <bound>`: calls, by the time until the log or the spool had their ops; and the sums.
ENQUEUE_MS, ENQUEUE_SUM_US = "enqueue_ms", "enqueue_sum_us"
#: Upper bounds of that histogram, ms.
ENQUEUE_BOUNDS_MS = (0.1, 0.2, 0.5, *BOUNDS_MS)
#: The most counters of one shard: more tables than that are not told apart.
MOST_COUNTERS = 2000


def bound_of(value: float, bounds: Sequence[float]) -> str:
    """Return the least bound that a value does not pass, as text; `inf` where it passes all.

    Args:
        value: such as ms.
        bounds: in ascending order.
    """
    n = bisect_left(bounds, value)
    return f"{bounds[n]:g}" if n < len(bounds) else "inf"


def quantile(counted: Mapping[str, int], share: float) -> float | None:
    """Return the bound that holds for a share of what a histogram counted; None for nothing, inf behind the last bound.

    Args:
        counted: how many by bound, as `bound_of` gives it.
        share: 0.0 to 1.0.
    """
    ordered = sorted((float(bound), n) for bound, n in counted.items() if n > 0)
    left = share * sum(n for _, n in ordered)
    for bound, n in ordered:
        left -= n
        if left <= 0:
            return bound
    return None
