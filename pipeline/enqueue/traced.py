"""Send ops within the trace of their call: a span for each sending, which the ops name."""

from __future__ import annotations

from pipeline import tracing
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.shipment import OpPlace, Shipment
from pipeline.enqueue.spooling.fallback import Fallback
from pipeline.model.op import head_of, with_trace
from pipeline.oplog.appends import KeyClaimed


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


class TracedPublisher(_Traced, Publisher):
    """A publisher whose `ship` joins the open trace."""


class TracedFallback(_Traced, Fallback):
    """A fallback whose `ship` joins the open trace."""


def _naming_the_span(shipment: Shipment) -> Shipment:
    parent = tracing.traceparent()
    if not parent:
        return shipment
    return shipment.part({b: (with_trace(ops[0], parent), *ops[1:]) for b, ops in shipment.runs.items()})
