"""The workers: whether somebody listens for each shard."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.checks.evidence import Evidence
from pipeline.admin.checks.finding import WARNING, Finding
from pipeline.oplog.broker import queue_of


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield shards whose ops no worker would apply. A broker that does not answer is for another check to tell."""
    if evidence.listened is None:
        return
    silent = [shard for shard in evidence.topology.shards if shard not in evidence.listened]
    for shard in silent:
        command = "celery -A workers worker" + ("" if len(silent) > 1 else f" -Q {queue_of(shard)}")
        yield Finding(
            WARNING, "workers", "none answers that listens for this shard: ops stay queued", command, (shard,)
        )
