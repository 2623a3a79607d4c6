"""Wire the write path of one process: from a call's op to the log, or to the spool while Redis is away."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.config.topology import Topology
from pipeline.enqueue.breaker import Breaker
from pipeline.enqueue.dispatch import Dispatch
from pipeline.enqueue.drain import Drainer
from pipeline.enqueue.drain_thread import DrainThread
from pipeline.enqueue.epochs import Lineage
from pipeline.enqueue.fallback import Fallback
from pipeline.enqueue.idempotency import Keys
from pipeline.enqueue.op_builder import OpBuilder
from pipeline.enqueue.producers import Lost
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.receipt_status import Follower
from pipeline.enqueue.row_ids import RowIds
from pipeline.enqueue.schemas import SchemaPublisher
from pipeline.oplog.contract import Log
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.shard import ledger
from pipeline.shard.nodes import Nodes
from pipeline.spool.store import Spool
from pipeline.wait_budget import WaitBudgets


class Writes(NamedTuple):
    """What a client uses of the write path.

    Attributes:
        op_builder: makes ops of calls.
        dispatch: sends or holds them.
        publisher: sends ops to the log; beside it what was sent before, under its own number.
        follower: says what became of an op.
        row_ids: makes the ids of new rows.
        breaker: open while Redis is away.
        drainer: sends what is in the spool; None without a spool.
        drain_thread: does so in the background; None without a spool.
    """

    op_builder: OpBuilder
    dispatch: Dispatch
    publisher: Publisher
    follower: Follower
    row_ids: RowIds
    breaker: Breaker
    drainer: Drainer | None
    drain_thread: DrainThread | None


def wire_writes(
    log: Log, nodes: Nodes, topology: Topology, bell: Bell | SilentBell, spool: Spool | None, wait_budgets: WaitBudgets
) -> Writes:
    """Return the write path of one process.

    Args:
        log: takes the ops.
        nodes: the databases: they know what was applied, and which row ids fit.
        topology: where rows belong.
        bell: rung for the workers.
        spool: takes the ops while Redis is away; None: nothing does.
        wait_budgets: how long a call may wait for Redis.
    """
    breaker = Breaker(spool.waiting) if spool else Breaker()
    schemas = SchemaPublisher(log, nodes, topology, spool, breaker, wait_budgets)
    row_ids = RowIds(log, spool, breaker, wait_budgets)

    def renewed() -> None:
        schemas.republish()
        row_ids.renewed()

    publisher = Publisher(
        log,
        topology,
        bell,
        Lineage(log, nodes, renewed).raise_epoch,
        lambda lost: _record_lost(nodes, topology, lost),
        wait_budgets=wait_budgets,
        renewed=renewed,
        ended=nodes.close,
    )
    op_builder = OpBuilder(topology, row_ids.new, schemas.publish, schemas.approve)
    if spool is None:
        follower = Follower(topology, nodes, log)
        dispatch = Dispatch(publisher, follower, wait_budgets)
        return Writes(op_builder, dispatch, publisher, follower, row_ids, breaker, None, None)
    follower = Follower(topology, nodes, log, spool.holds)
    drainer = Drainer(spool, publisher, log, nodes, topology)
    drain_thread = DrainThread(spool, drainer, breaker)
    fallback = Fallback(publisher, spool, breaker, drain_thread, schemas, Keys(log, breaker))
    dispatch = Dispatch(fallback, follower, wait_budgets)
    return Writes(op_builder, dispatch, publisher, follower, row_ids, breaker, drainer, drain_thread)


def _record_lost(nodes: Nodes, topology: Topology, lost: Lost) -> None:
    bucket, producer, first, last = lost
    for shard in topology.shards_of(bucket):
        session = nodes.primary(shard)
        with session.translated(), session.transaction():
            applied = ledger.seen(session, [(bucket, producer)])[bucket, producer]
            if applied < last:
                ledger.lose(session, [ledger.Loss(bucket, 0, producer, max(first, applied + 1), last)])
