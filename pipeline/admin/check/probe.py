"""Try the way of an op with this process's own rights: append one to each shard, and see it applied.

The op deletes the rows of a table whose id is 1 and 2. There are none: everything happens to it that happens to any op,
and nothing changes. A table whose ops wait is left alone: the op would wait too, and would have to be settled.
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
from pipeline.shard.records.stops import WHOLE, tables_that_wait

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
        own = [one for one in schemas if not client.topology.table(one.name).reference]
        for shard in shards:
            try:
                waiting = tables_that_wait(client.nodes.primary(shard))
                free = next((one for one in own if WHOLE not in waiting and one.name not in waiting), None)
                if free is not None:
                    bucket = client.topology.buckets_of(shard)[0]
                    sent[shard] = client.dispatch.take(Addressed(bucket, _changing_nothing(free)), "redis")
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


def _changing_nothing(schema: TableSchema) -> Op:
    never = ["and", ["=", schema.id_index, 1], ["=", schema.id_index, 2]]
    return Op(DELETE, schema.name, schema.hash, clock.wall_ms(), where=never)
