"""Count what batches do in the process that applies them, where a worker shows metrics."""

from __future__ import annotations

from celery.utils.log import current_process_index

from pipeline.apply.transaction import Outcome
from pipeline.per_process import PerProcess
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
    if (own := page()) is not None:
        own.add(shard, outcome.counts)
