"""The value that travels from a call to the log or to the spool, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from pipeline.errors import PipelineError
from pipeline.model.op import Position


class Shipment(msgspec.Struct, frozen=True):
    """Encoded ops, and what their caller asks for.

    Attributes:
        runs: of each bucket its ops, in order.
        key: an idempotency key, of a shipment of one op; the empty text: none.
        row_id: the id of the row that the op with the key makes: others with that key get to know the id.
        durability: how safe the ops must be before the caller goes on; see the package's `enqueue_insert`.
    """

    runs: Mapping[int, Sequence[bytes]]
    key: str = ""
    row_id: int | None = None
    durability: str = "redis"

    @property
    def size(self) -> int:
        """How many ops there are."""
        return sum(map(len, self.runs.values()))

    def part(self, runs: Mapping[int, Sequence[bytes]]) -> Shipment:
        """Return a shipment of some of the ops."""
        return Shipment(runs, self.key, self.row_id, self.durability)


class OpPlace(msgspec.Struct, frozen=True):
    """Where the first op of a bucket's run stands, and its producer's sequence; the others follow densely.

    Attributes:
        position: None: the op is in the spool.
        row_id: of an earlier op with the same idempotency key.
        durable: whether the run has reached what its durability asks of Redis.
    """

    position: Position | None
    producer: int
    seq: int
    row_id: int | None = None
    durable: bool = True


def parse_claim(text: str) -> OpPlace:
    """Read what Redis keeps under an idempotency key: the receipt of the first op."""
    try:
        epoch, seq, producer, producer_seq, row_id = map(int, text.split(" "))
    except ValueError as error:
        raise PipelineError("Redis keeps a receipt that this version cannot read") from error
    return OpPlace(Position(epoch, seq), producer, producer_seq, row_id or None)
