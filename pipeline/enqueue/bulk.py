"""A bulk call's chunk: many ops, one round trip per shard, receipts made only when looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.model.op import Op, Position, encode
from pipeline.model.receipt import Receipt
from pipeline.oplog.earlier import Place

if TYPE_CHECKING:
    from pipeline.model.receipt import Source


class Chunk:
    """Ops in the caller's order, sorted by bucket for sending."""

    __slots__ = ("_at", "_ids", "_places", "payloads")

    def __init__(self) -> None:
        self.payloads: dict[int, list[bytes]] = {}
        self._at: list[tuple[int, int]] = []  # per row: bucket, and its how-manieth there
        self._ids: list[int | None] = []
        self._places: Mapping[int, Place] = {}

    def add(self, bucket: int, op: Op) -> None:
        """Add the next row's op."""
        run = self.payloads.setdefault(bucket, [])
        self._at.append((bucket, len(run)))
        self._ids.append(op.id)
        run.append(encode(op))

    def __len__(self) -> int:
        return len(self._at)

    def placed(self, places: Mapping[int, Place]) -> None:
        """Note where the ops stand, and let the payloads go."""
        self._places = places
        self.payloads = {}

    def receipt(self, row: int, source: Source) -> Receipt:
        """Return the receipt of a row."""
        bucket, nth = self._at[row]
        place = self._places[bucket]
        position = place.position
        if position is not None:
            position = Position(position.epoch, position.seq + nth)
        return Receipt(bucket, position, self._ids[row], place.producer, place.seq + nth, source)
