"""Send ops as one producer: a dense sequence per bucket over a connection of its own.

Used by one thread at a time, so that its ops reach a log in the order of its sequence. After a failure whose outcome
is unknown a producer is thrown away, never used on: its next sequence number could hide the op in doubt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipeline import clock
from pipeline.enqueue.shipment import OpPlace, Shipment, parse_claim
from pipeline.errors import LogUnavailable
from pipeline.model.op import Position
from pipeline.oplog.appends import HOLE, Append, Appended, Line, Scope
from pipeline.shard.records.ledger import LostRange

#: A producer that idled longer starts anew under another number: Redis forgets its sequences after two days.
FRESH_S = 86_400
#: How long the durabilities beyond `redis` wait, s.
DURABLE_S = 5.0


class Producer:
    """Sends ops over one line.

    Args:
        line: the connection.
        patient: whether the line waits longer, for many ops at once.
        lineages: how many changes of the server's lineage its sequences were checked after.

    Attributes:
        producer: a random 63-bit number, never used twice.
        used_at_s: when it was used last.
    """

    __slots__ = ("_next", "line", "lineages", "patient", "producer", "used_at_s")

    def __init__(self, line: Line, patient: bool = False, lineages: int = 0):
        self.line, self.patient, self.lineages = line, patient, lineages
        self.producer = int.from_bytes(os.urandom(8), "big") >> 1
        self._next: dict[int, int] = {}
        self.used_at_s = clock.mono_s()

    def send(self, scope: Scope, epoch: int, shipment: Shipment) -> tuple[Appended, dict[int, int]]:
        """Append ops; return the log's answer and the first sequence of each bucket."""
        first = {bucket: self._next.get(bucket, 1) for bucket in shipment.runs}
        appends = [Append(bucket, first[bucket], ops) for bucket, ops in shipment.runs.items()]
        try:
            answer = self.line.append(scope, epoch, self.producer, appends, shipment.key, shipment.row_id or 0)
        except LogUnavailable as error:
            self._in_doubt(error, first)
            raise
        for append, placed in zip(appends, answer.placed, strict=False):
            if placed.code != HOLE:
                self._next[append.bucket] = append.first + len(append.payloads)
        return answer, first

    def send_one(self, scope: Scope, epoch: int, bucket: int, payload: bytes) -> tuple[Position, int, bool] | None:
        """Append one op of a scope with one shard; None where nothing was written: `send` says why.

        Returns:
            The op's position, its sequence, and whether to ring.
        """
        seq = self._next.get(bucket, 1)
        try:
            placed = self.line.append_one(scope, epoch, self.producer, bucket, seq, payload)
        except LogUnavailable as error:
            self._in_doubt(error, {bucket: seq})
            raise
        if placed is None:
            return None
        self._next[bucket] = seq + 1
        return placed[0], seq, placed[1]

    def reached(self, durability: str) -> bool:
        """Wait until what was sent is on Redis's replica or disk, if the durability asks for that; whether it is."""
        if durability not in ("replica", "fsync"):
            return True
        return self.line.replicated(fsync=durability == "fsync", timeout_s=DURABLE_S)

    def claimed(self, text: str, bucket: int) -> OpPlace:
        """Return the place of the op that was sent with an idempotency key before; go on behind it if it was ours."""
        place = parse_claim(text)
        if place.producer == self.producer:
            self._next[bucket] = max(self._next.get(bucket, 1), place.seq + 1)
        return place

    def losses(self) -> list[LostRange]:
        """Return what the log acknowledged and no longer knows, per bucket; asks the server.

        Raises:
            LogUnavailable: it did not answer.
        """
        known = self.line.sequences(self.producer) if self._next else {}
        return [
            LostRange(bucket, 0, self.producer, known.get(bucket, 0) + 1, seq - 1)
            for bucket, seq in self._next.items()
            if known.get(bucket, 0) < seq - 1
        ]

    def _in_doubt(self, error: LogUnavailable, first: Mapping[int, int]) -> None:
        """Note under which numbers ops may be in the log."""
        if error.sent:
            error.numbered = {bucket: (self.producer, seq) for bucket, seq in first.items()}
