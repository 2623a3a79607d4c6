"""A sender: one producer as the log sees it, with a dense sequence per bucket and a connection of its own.

Used by one thread at a time, so that its ops reach a log in the order of its sequence. After a failure whose outcome
is unknown a sender is thrown away, never used on: its next sequence number could hide the op in doubt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline import clock
from pipeline.errors import LogUnavailable
from pipeline.model.op import Position
from pipeline.oplog.contract import HOLE, Append, Appended, Line, Scope

#: A sender that idled longer starts anew under another number: Redis forgets its sequences after two days.
FRESH_S = 86_400


OnePlace = tuple[Position, int, bool]


class Lost(NamedTuple):
    """Ops of one producer that the log had acknowledged and no longer has."""

    bucket: int
    producer: int
    first: int
    last: int


class Sender:
    """Sends ops over one line.

    Attributes:
        producer: a random 63-bit number, never used twice.
        patient: whether its line waits longer, for many ops at once.
        lineages: how many changes of the server's lineage its sequences were checked after.
    """

    __slots__ = ("_next", "line", "lineages", "patient", "producer", "used_at")

    def __init__(self, line: Line, patient: bool = False, lineages: int = 0):
        self.line, self.patient, self.lineages = line, patient, lineages
        self.producer = int.from_bytes(os.urandom(8), "big") >> 1
        self._next: dict[int, int] = {}
        self.used_at = clock.mono_s()

    def send(
        self, scope: Scope, epoch: int, payloads: Mapping[int, Sequence[bytes]], key: str = "", row_id: int = 0
    ) -> tuple[Appended, dict[int, int]]:
        """Append ops per bucket; return the log's answer and the first sequence of each bucket."""
        first = {bucket: self._next.get(bucket, 1) for bucket in payloads}
        appends = [Append(bucket, first[bucket], ops) for bucket, ops in payloads.items()]
        try:
            answer = self.line.append(scope, epoch, self.producer, appends, key, row_id)
        except LogUnavailable as error:
            self._in_doubt(error, first)
            raise
        for append, placed in zip(appends, answer.placed, strict=False):
            if placed.code != HOLE:
                self._next[append.bucket] = append.first + len(append.payloads)
        return answer, first

    def send_one(self, scope: Scope, epoch: int, bucket: int, payload: bytes) -> OnePlace | None:
        """Append one op of a scope with one shard; None where nothing was written: `send` tells why.

        Returns:
            Its position, its sequence, and whether to ring.
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

    def skip(self, bucket: int, seq: int) -> None:
        """Go on behind a sequence that turned out to be used."""
        self._next[bucket] = max(self._next.get(bucket, 1), seq + 1)

    def losses(self) -> list[Lost]:
        """Return what the log acknowledged to this sender and no longer knows; then the sender must not be used on."""
        known = self.line.sequences(self.producer) if self._next else {}
        return [
            Lost(bucket, self.producer, known.get(bucket, 0) + 1, seq - 1)
            for bucket, seq in self._next.items()
            if known.get(bucket, 0) < seq - 1
        ]

    def _in_doubt(self, error: LogUnavailable, first: Mapping[int, int]) -> None:
        """Note under which numbers ops may be in the log."""
        if error.sent:
            error.numbered = {bucket: (self.producer, seq) for bucket, seq in first.items()}

    def awake(self) -> bool:
        """Note that it is used now; whether it has not idled so long that the log may have forgotten it."""
        idle_since, self.used_at = self.used_at, clock.mono_s()
        return self.used_at - idle_since <= FRESH_S
