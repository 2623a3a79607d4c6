"""Count what batches do in the process that applies them, where a worker shows metrics."""

from __future__ import annotations

from collections.abc import Callable

from celery.utils.log import current_process_index

from pipeline import clock
from pipeline.apply.transaction import Outcome
from pipeline.per_process import PerProcess
from workers.metrics.families import observe
from workers.metrics.tally import Page, Tally

#: Of this worker. Its main process makes it before it forks; None where no metrics are asked for.
tally: Tally | None = None


def _own_page() -> Page | None:
    return None if tally is None else tally.page(current_process_index(0) or 0)


#: This process's page.
page = PerProcess(_own_page)


def count_batch(shard: str, outcome: Outcome) -> None:
    """Count one batch.

    Args:
        shard: the shard's name.
        outcome: what the batch did.
    """
    if (own := page()) is None:
        return
    for name in ("applied", "rejected", "parked", "seen", "lost"):
        if number := getattr(outcome, name):
            own.add((f"ops_{name}", shard), number)
    own.add(("batches", shard, "applied" if outcome.buckets else "waiting" if outcome.left else "empty"))
    if outcome.crossed:
        own.add(("early_waits", shard))
    if outcome.buckets:
        observe(own, "batch_seconds", (shard,), outcome.ms / 1000)
        observe(own, "batch_ops", (shard,), outcome.applied)


def stopwatch(shard: str) -> Callable[[str], None] | None:
    """Return what counts how long commits take, told the name of each step before it; None without metrics.

    Args:
        shard: the shard's name.
    """
    own, began_s = page(), 0.0
    if own is None:
        return None

    def watch(name: str) -> None:
        nonlocal began_s
        if name == "commit":
            began_s = clock.mono_s()
        elif name == "committed":
            observe(own, "commit_seconds", (shard,), clock.mono_s() - began_s)

    return watch
