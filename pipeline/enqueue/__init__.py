"""Wire the write path of one process: from a call's op to the log, or to the spool while Redis is away.

Where traces are kept, ops are sent within the trace of their call: a span for each sending, which the ops name.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from pipeline import tracing
from pipeline.config import Topology
from pipeline.enqueue.dispatch import Dispatch
from pipeline.enqueue.epochs import Authority
from pipeline.enqueue.final_values import SchemaPublisher
from pipeline.enqueue.op_builder import OpBuilder
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.receipt_status import Follower
from pipeline.enqueue.row_ids import RowIds
from pipeline.enqueue.shipment import OpPlace, Shipment
from pipeline.enqueue.spool_drain import Drainer
from pipeline.enqueue.spool_fallback import DrainThread, Fallback, RedisAway
from pipeline.model import head_of, with_trace
from pipeline.model.receipt import Seal
from pipeline.oplog import Log
from pipeline.oplog.appends import KeyClaimed
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.per_process import PerProcess
from pipeline.shard.nodes import Nodes
from pipeline.spool import Spool


class Writes(NamedTuple):
    """What a client uses of the write path.

    Attributes:
        op_builder: makes ops of calls.
        dispatch: sends or holds them.
        publisher: sends ops to the log; also those that were sent before, under their own numbers.
        follower: says what became of an op.
        row_ids: makes the ids of new rows.
        drain_thread: sends what is in the spool, made when an op is first spooled; None without a spool.
    """

    op_builder: OpBuilder
    dispatch: Dispatch
    publisher: Publisher
    follower: Follower
    row_ids: RowIds
    drain_thread: PerProcess[DrainThread] | None


def wire_writes(
    log: Log, nodes: Nodes, topology: Topology, bell: Bell | SilentBell, away: RedisAway, seal: Seal
) -> Writes:
    """Return the write path of one process.

    Args:
        log: takes the ops.
        nodes: the databases: they know what was applied, and which row ids fit.
        topology: where rows belong.
        bell: rung for the workers.
        away: where ops go while Redis does not answer, and how long a call may wait for it.
        seal: signs receipts.
    """
    schemas = SchemaPublisher(log, nodes, topology, away)
    row_ids = RowIds(log, topology, nodes, away)
    authority = Authority(log, nodes, topology, schemas, seal)
    traced, spools = tracing.on(), isinstance(away.spool, Spool)
    made = TracedPublisher if traced and not spools else Publisher
    publisher = made(log, topology, bell, authority, away=away)
    follower = Follower(topology, nodes, log, away.spool, publisher, seal)
    op_builder = OpBuilder(topology, row_ids, schemas, publisher)
    if not isinstance(away.spool, Spool):
        dispatch = Dispatch(publisher, follower, away, log, bell, topology)
        return Writes(op_builder, dispatch, publisher, follower, row_ids, None)
    drain_thread = PerProcess(partial(_drain_thread, away.spool, publisher, log, nodes, topology, away))
    fallback = (TracedFallback if traced else Fallback)(publisher, away, drain_thread, schemas)
    dispatch = Dispatch(fallback, follower, away, log, bell, topology)
    return Writes(op_builder, dispatch, publisher, follower, row_ids, drain_thread)


def _drain_thread(
    spool: Spool, publisher: Publisher, log: Log, nodes: Nodes, topology: Topology, away: RedisAway
) -> DrainThread:
    return DrainThread(spool, Drainer(spool, publisher, log, nodes, topology), away, log)


class _Traced:
    """Wraps the span around what a subclass sends with. Of a bulk call, the first op of each bucket names the span."""

    def ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        """Append or spool ops; see `Publisher.ship`."""
        if not tracing.recording():
            return super().ship(shipment)  # type: ignore[misc, no-any-return]
        first = next(iter(shipment.runs.values()))[0]
        kind, table = head_of(first)
        about = {"pipeline.kind": kind, "pipeline.table": table, "pipeline.ops": shipment.size}
        claimed = None
        with tracing.open_span("pipeline.enqueue", "PRODUCER", about) as span:
            try:
                places: dict[int, OpPlace] = super().ship(_naming_the_span(shipment))  # type: ignore[misc]
                spooled = any(place.position is None for place in places.values())
                span.set_attribute("pipeline.way", "spool" if spooled else "direct")
                return places
            except KeyClaimed as error:  # no failure: the op is sent with the row's id
                claimed = error
        raise claimed

    def ship_one(self, bucket: int, payload: bytes) -> OpPlace:
        """Append or spool one op; see `Publisher.ship_one`."""
        return self.ship(Shipment({bucket: (payload,)}))[bucket]


class TracedPublisher(_Traced, Publisher):
    """A publisher whose `ship` joins the open trace."""


class TracedFallback(_Traced, Fallback):
    """A fallback whose `ship` joins the open trace."""


def _naming_the_span(shipment: Shipment) -> Shipment:
    parent = tracing.traceparent()
    if not parent:
        return shipment
    return shipment.part({b: (with_trace(ops[0], parent), *ops[1:]) for b, ops in shipment.runs.items()})
