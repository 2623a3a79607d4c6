"""The tasks: names that Flower shows, bodies of a few lines."""

from __future__ import annotations

from typing import Any

from pipeline.admin import upkeep
from pipeline.errors import Unavailable
from pipeline.oplog.doorbell import APPLY_TASK
from workers import app
from workers.process import applier, process_client


@app.task(name=APPLY_TASK)
def apply(shard: str, ops: int = 1) -> dict[str, Any]:
    """Apply one batch of a shard's ops; ring for what is left. *ops* were known to wait when the bell was rung."""
    bell = process_client().bell
    outcome = applier(shard).apply(crowded=lambda waiting: bell.ring_now(shard, waiting))
    if outcome.ring:
        bell.ring_now(shard, outcome.left)
    return outcome.summary()


# a dead primary is found out by failing on it once; the next try asks who is the primary now
@app.task(name="pipeline.reconcile", autoretry_for=(Unavailable,), max_retries=3, default_retry_delay=1)
def reconcile_task(shard: str) -> dict[str, int]:
    """Compare each watermark with its log's tail, and mark dirty what the dirty set has lost."""
    return {"found": upkeep.reconcile(process_client(), shard)}


@app.task(name="pipeline.trim")
def trim_task(shard: str) -> dict[str, int]:
    """Delete from the logs what every node of the shard has, and what nobody asks for any more."""
    return {"trimmed": upkeep.trim(process_client(), shard)}


@app.task(name="pipeline.raise_epoch", autoretry_for=(Unavailable,), max_retries=3, default_retry_delay=1)
def raise_epoch(scope: str) -> dict[str, int]:
    """Raise the epoch of a scope whose server has changed, so that no request has to wait for it."""
    publisher = process_client().publisher
    return {"epoch": publisher.epoch_of(publisher.scopes[scope])}
