"""Define the tasks: names that Flower shows, bodies of a few lines."""

from __future__ import annotations

from typing import Any

from pipeline.admin import upkeep
from pipeline.errors import Unavailable, WrongDeployment
from pipeline.oplog.doorbell import APPLY_TASK, queue_of
from workers import app
from workers.process import process_client
from workers.stay import Stay, leave_to_others


@app.task(name=APPLY_TASK)
def apply(shard: str, ops: int = 1) -> dict[str, Any]:
    """Apply a shard's ops in batches, for as long as ops come and nobody else waits; ring for what is left.

    Args:
        shard: the shard's name.
        ops: how many were waiting when the doorbell was rung; Flower shows the number.

    Returns:
        What the batches did, for Flower.
    """
    heard = app.amqp.queues.consume_from
    others = [other for other in process_client().topology.shards if other != shard and queue_of(other) in heard]
    bell = process_client().bell
    try:
        return Stay(shard, bell, others).run()
    except WrongDeployment as error:
        leave_to_others(app.control, str(apply.request.hostname), shard, error)
        bell.ring_now(shard, ops)
        raise


# a dead primary is noticed by one failure; the next try finds the primary of that moment
@app.task(name="pipeline.reconcile", autoretry_for=(Unavailable,), max_retries=3, default_retry_delay=1)
def reconcile_task(shard: str) -> dict[str, int]:
    """Compare each watermark with its log's tail, and mark dirty what the dirty set has lost.

    Args:
        shard: the shard's name.
    """
    return {"found": upkeep.reconcile(process_client(), shard)}


@app.task(name="pipeline.trim")
def trim_task(shard: str) -> dict[str, int]:
    """Delete from the logs what every node of the shard has, and forget old producers.

    Args:
        shard: the shard's name.
    """
    return {"trimmed": upkeep.trim(process_client(), shard)}


@app.task(name="pipeline.raise_epoch", autoretry_for=(Unavailable,), max_retries=3, default_retry_delay=1)
def raise_epoch_task(scope: str) -> dict[str, int]:
    """Raise the epoch of a scope whose server has changed, so that no request has to wait for it.

    Args:
        scope: the scope's name.
    """
    publisher = process_client().publisher
    return {"epoch": publisher.epoch_of(publisher.scopes[scope])}
