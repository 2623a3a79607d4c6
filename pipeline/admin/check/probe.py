"""Try the way of an op with this process's own rights: append one to each shard, and see it applied.

The op deletes the rows of a table whose id is 1 and 2. There are none: everything happens to it that happens to any op,
and nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace

from pipeline import clock
from pipeline.client import Client
from pipeline.config.settings import Settings
from pipeline.errors import PipelineError, WaitTimeout
from pipeline.model.op import DELETE, Addressed, Op
from pipeline.model.receipt import Receipt
from pipeline.model.schema import TableSchema

#: How long the workers that listen for a shard may take to apply the op, s.
APPLIED_S = 2.0


def failed_probes(settings: Settings, schemas: Iterable[TableSchema], shards: Iterable[str]) -> dict[str, str]:
    """Append an op to each shard, and wait until it is applied; return by shard what failed.

    Args:
        settings: the configuration.
        schemas: the published definitions; without one there is nothing to write to.
        shards: those for which some worker listens.
    """
    # what is not taken is to be seen, not to be kept
    with closing(Client(replace(settings, spool=replace(settings.spool, enabled=False)))) as client:
        failed, sent = dict[str, str](), dict[str, Receipt]()
        own = next((one for one in schemas if not client.topology.table(one.name).reference), None)
        if own is None:
            return {}
        for shard in shards:
            bucket = client.topology.buckets_of(shard)[0]
            never = ["and", ["=", own.id_index, 1], ["=", own.id_index, 2]]
            op = Op(DELETE, own.name, own.hash, clock.wall_ms(), where=never)
            try:
                sent[shard] = client.dispatch.take(Addressed(bucket, op), "redis")
            except PipelineError as error:
                failed[shard] = f"an op is not taken: {error}"
        deadline = clock.Deadline(APPLIED_S)
        for shard, receipt in sent.items():
            try:
                receipt.wait(max(deadline.left_s, 0.1))
            except WaitTimeout as error:
                failed[shard] = f"an op is taken, but not applied after {APPLIED_S:g} s: {error}"
            except PipelineError as error:
                failed[shard] = f"an op is taken, but not applied: {error}"
        return failed
