"""The value that travels from a call to the log or the spool, how large its ops may be, and what comes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from pipeline.errors import BadOp, PipelineError, Unavailable
from pipeline.events import Event
from pipeline.model.op import Op, Position, encode, id_of_new
from pipeline.oplog.shared_state import SharedState
from pipeline.shard.statements import MOST_STATEMENT_BYTES
from pipeline.wait_budget import WaitBudgets, WaitBudgetSpent

#: Every server takes ops of this size: the smallest default of `max_allowed_packet` was 1 MB.
UNCHECKED_BYTES = 250_000
#: The least `proto-max-bulk-len` that Redis can be given.
_EVERY_REDIS_BYTES = 1_048_576
#: What a statement has beside the values of its op: names of columns, most of them twice.
_NAMES_BYTES = 32_768
#: A bucket, and a producer that sent ops to it.
Sender = tuple[int, int]
#: The last sequence that was acknowledged to a sender, and the epoch under which it stands.
Acked = tuple[int, int]
logger = logging.getLogger("pipeline.door")


class Shipment(msgspec.Struct, frozen=True):
    """Encoded ops, and what their caller wants.

    Attributes:
        runs: of each bucket its ops, in order.
        key: an idempotency key, of a shipment of one op; the empty text: none.
        row_id: the id of the row that the op with the key makes: others with that key get to know the id.
        durability: how safe the ops must be before the caller goes on; see the package's `enqueue_insert`.
        numbered: the producer and the first sequence of each bucket's ops, where they may have been sent before.
    """

    runs: Mapping[int, Sequence[bytes]]
    key: str = ""
    row_id: int | None = None
    durability: str = "redis"
    numbered: Mapping[int, tuple[int, int]] = {}

    @property
    def size(self) -> int:
        """How many ops there are."""
        return sum(map(len, self.runs.values()))

    def part(self, runs: Mapping[int, Sequence[bytes]]) -> Shipment:
        """Return a shipment of some of the ops."""
        return Shipment(runs, self.key, self.row_id, self.durability, self.numbered)


def shipment_of(bucket: int, op: Op, durability: str) -> Shipment:
    """Return a shipment of one op, with its idempotency key.

    Args:
        bucket: the op's.
        op: the op.
        durability: see `Shipment`.
    """
    return Shipment({bucket: (encode(op),)}, op.scoped_key, id_of_new(op), durability)


class OpPlace(msgspec.Struct, frozen=True):
    """The position of the first op of a bucket's run, and its producer's sequence; the others follow densely.

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


def queued(places: Mapping[int, OpPlace], error: Unavailable) -> dict[int, tuple[int, int]]:
    """Return under which numbers ops are queued, or may be, where some of a call's were not taken.

    Args:
        places: of those that were taken.
        error: why the others were not.
    """
    return {**{bucket: (place.producer, place.seq) for bucket, place in places.items()}, **error.numbered}


def parse_claim(text: str) -> OpPlace:
    """Read what Redis keeps under an idempotency key: the receipt of the first op."""
    try:
        epoch, seq, producer, producer_seq, row_id = map(int, text.split(" "))
    except ValueError as error:
        raise PipelineError("Redis keeps a receipt that this version cannot read") from error
    return OpPlace(Position(epoch, seq), producer, producer_seq, row_id or None)


class _Takes(msgspec.Struct):
    """The field of a node's report that says how large a statement it takes; 0: not known."""

    statement_bytes: int = 0


def check_size(payload: bytes, table: str, log: SharedState, wait_budgets: WaitBudgets) -> None:
    """Refuse a large op that no worker could apply. Reads from Redis, so only for ops above `UNCHECKED_BYTES`.

    Args:
        payload: the encoded op.
        table: the op's table, for the message.
        log: has the reports.
        wait_budgets: how long the caller waits for them.

    Raises:
        BadOp: the op is too large.
    """
    needs = len(payload) + payload.count(b"'") + _NAMES_BYTES  # a quote is doubled in SQL
    worker = (MOST_STATEMENT_BYTES, "the largest statement of a worker")
    limit, why = min([worker, *_nodes(log, wait_budgets), *_redis(needs, log, wait_budgets)])
    if needs > limit:
        raise BadOp(
            f"this op on {table!r} makes a statement of up to {needs:,} bytes, and {why} is {limit:,}: split the op, "
            "or keep the file elsewhere and store its name"
        )


def _nodes(log: SharedState, wait_budgets: WaitBudgets) -> Iterator[tuple[int, str]]:
    """Yield what each node takes, with the setting that says so."""
    try:
        reports = wait_budgets.aside(log.health, share=0.5)[1]
    except (Unavailable, WaitBudgetSpent) as error:
        logger.warning(Event("statement_limit_unknown", error=error))
        return
    for node, (_, text) in reports.items():
        if takes := msgspec.json.decode(text, type=_Takes).statement_bytes:
            yield takes, f"max_allowed_packet of node {node!r}"


def _redis(needs: int, log: SharedState, wait_budgets: WaitBudgets) -> Iterator[tuple[int, str]]:
    """Yield what Redis takes; an op that every Redis takes costs no question."""
    if needs <= _EVERY_REDIS_BYTES:
        return
    try:
        if takes := wait_budgets.aside(log.largest_bytes, share=0.5):
            yield takes, "proto-max-bulk-len of Redis"
    except (Unavailable, WaitBudgetSpent) as error:
        logger.warning(Event("op_limit_unknown", error=error))
