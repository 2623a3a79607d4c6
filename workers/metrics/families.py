"""Name what is counted: each metric's help, labels and, of a histogram, bounds."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from workers.metrics.tally import Name, Page


class Family(NamedTuple):
    """A counter, or a histogram where it has bounds."""

    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


#: A batch aims at 100 ms, and ends at the hard time limit of a task.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
OPS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
_SHARD = ("shard",)
#: What a worker's processes count.
FAMILIES = {
    "ops_applied": Family("Ops whose effects were committed.", _SHARD),
    "ops_rejected": Family("Ops that the database refused for good.", _SHARD),
    "ops_parked": Family("Ops that were set aside behind a rejected op, or because their table is stopped.", _SHARD),
    "ops_seen": Family("Ops that the shard had already: sent again, and dropped.", _SHARD),
    "ops_lost": Family("Ops that Redis had acknowledged and then lost.", _SHARD),
    "batches": Family("Turns of apply by result: applied, waiting, or empty.", ("shard", "result")),
    "early_waits": Family("Batches given up because an op needed what another bucket had yet to apply.", _SHARD),
    "batch_seconds": Family("Time of one batch, from the dirty set to the finish in Redis.", _SHARD, SECONDS),
    "batch_ops": Family("Ops applied by one batch.", _SHARD, OPS),
    "commit_seconds": Family("Time of one COMMIT on the primary.", _SHARD, SECONDS),
}
#: What processes of the whole deployment count; what was lost is in the record.
OF_ALL = {name: family for name, family in FAMILIES.items() if name not in ("ops_lost", "batches")} | {
    "ops_enqueued": Family("Ops that calls have enqueued, by way: direct, or through the spool.", ("shard", "way")),
    "enqueue_seconds": Family("Time that a call took to enqueue.", ("way",), SECONDS),
}


def observe(page: Page, name: str, labels: Name, value: float) -> None:
    """Count a value in a histogram.

    Args:
        page: of this process.
        name: a key of `FAMILIES`, with bounds.
        labels: the values of the family's labels.
        value: in the unit that the name ends with.
    """
    page.add((name, *labels, str(bisect_left(FAMILIES[name].bounds, value))))
    page.add((f"{name}.sum", *labels), value)
