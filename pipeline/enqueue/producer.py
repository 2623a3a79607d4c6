"""Send ops as one producer: a dense sequence per bucket over a connection of its own.

Used by one thread at a time, so that its ops reach a log in the order of its sequence. After a failure whose outcome
is unknown a producer is thrown away, never used on: its next sequence number could hide the op in doubt.

`resend` sends again what another has numbered: an outbox, the spool. To send an op twice is harmless. The caller gives
of each bucket all that it still holds: what is below has been sent before. The log drops what it has seen, and so does
the shard. What the log has lost of what is below leaves a hole in the producer's sequence: the worker that applies the
op behind the hole knows what is missing, and records it by name.

A producer that has sent nothing to a bucket for a day must not go on there: log and shard may have forgotten it. The
caller takes a new number then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline import clock
from pipeline.enqueue.shipment import Acked, OpPlace, Shipment, parse_claim
from pipeline.errors import LogUnavailable
from pipeline.model.op import Position, new_producer
from pipeline.oplog.appends import HELD, HOLE, Append, Appended, Line, Scope

#: A producer that is older ends, and another begins: Redis forgets its sequences after two days, a shard after seven.
FRESH_S = 86_400
#: How long the durabilities beyond `redis` wait, s.
DURABLE_S = 5.0
_NONE: Acked = (0, 0)
#: Rounds of one call: the first, one behind an overlap, one behind a hole, and one in case others send too.
ROUNDS = 4
#: How often one call begins anew under another epoch.
EPOCHS = 3


class Producer:
    """Sends ops over one line.

    Args:
        line: the connection.
        patient: whether the line waits longer, for many ops at once.
        lineages: how many changes of the server's lineage this process knew of when it began.

    Attributes:
        producer: a random 63-bit number, never used twice; even: nobody sends its ops again once they are acknowledged.
        acked: of each bucket, what was acknowledged last.
        made_at_s: when it began.
    """

    __slots__ = ("acked", "line", "lineages", "made_at_s", "patient", "producer")

    def __init__(self, line: Line, patient: bool = False, lineages: int = 0):
        self.line, self.patient, self.lineages = line, patient, lineages
        self.producer = new_producer()
        self.acked: dict[int, Acked] = {}
        self.made_at_s = clock.mono_s()

    def send(self, scope: Scope, epoch: int, shipment: Shipment) -> tuple[Appended, dict[int, int]]:
        """Append ops; return the log's answer and the first sequence of each bucket."""
        first = {bucket: self.acked.get(bucket, _NONE)[0] + 1 for bucket in shipment.runs}
        appends = [Append(bucket, first[bucket], ops) for bucket, ops in shipment.runs.items()]
        try:
            answer = self.line.append(scope, epoch, self.producer, appends, shipment.key, shipment.row_id or 0)
        except LogUnavailable as error:
            self._in_doubt(error, first)
            raise
        for append, placed in zip(appends, answer.placed, strict=False):
            if placed.code not in (HOLE, HELD):
                self.acked[append.bucket] = append.first + len(append.payloads) - 1, placed.position.epoch
        return answer, first

    def numbers(self, buckets: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Return under which numbers the next ops of these buckets go."""
        return {bucket: (self.producer, self.acked.get(bucket, _NONE)[0] + 1) for bucket in buckets}

    def pass_holes(self, last: Mapping[int, int]) -> None:
        """Let the log go on where it knows less than it acknowledged: what it lost shows in the shard as a gap.

        Args:
            last: of each bucket, the last sequence that the log knows.

        Raises:
            LogUnavailable: the log did not answer.
        """
        for bucket, seq in last.items():
            self.line.pass_hole(self.producer, bucket, seq, self.acked.get(bucket, _NONE)[0])

    def send_one(self, scope: Scope, epoch: int, bucket: int, payload: bytes) -> tuple[Position, int, bool] | None:
        """Append one op of a scope with one shard; None where nothing was written: `send` says why.

        Returns:
            The op's position, its sequence, and whether to ring.
        """
        seq = self.acked.get(bucket, _NONE)[0] + 1
        try:
            placed = self.line.append_one(scope, epoch, self.producer, bucket, seq, payload)
        except LogUnavailable as error:
            self._in_doubt(error, {bucket: seq})
            raise
        if placed is None:
            return None
        self.acked[bucket] = seq, placed[0].epoch
        return placed[0], seq, placed[1]

    def reached(self, durability: str) -> bool:
        """Wait until what was sent is on Redis's replica or disk, if the durability asks for that; whether it is."""
        if durability not in ("replica", "fsync"):
            return True
        return self.line.replicated(fsync=durability == "fsync", timeout_s=DURABLE_S)

    def claimed(self, text: str, bucket: int) -> OpPlace:
        """Return the place of the op that was sent with an idempotency key before; go on behind it if it was ours."""
        place = parse_claim(text)
        if place.producer == self.producer and place.position is not None:
            self.acked[bucket] = max(self.acked.get(bucket, _NONE), (place.seq, place.position.epoch))
        return place

    def _in_doubt(self, error: LogUnavailable, first: Mapping[int, int]) -> None:
        """Note under which numbers ops may be in the log."""
        if error.sent:
            error.numbered = {bucket: (self.producer, seq) for bucket, seq in first.items()}


class Run(NamedTuple):
    """Ops of one bucket in order, and their producer's sequence of the first of them; the others follow densely."""

    first: int
    payloads: Sequence[bytes]

    @property
    def last(self) -> int:
        """The sequence of the last."""
        return self.first + len(self.payloads) - 1


def resend(
    line: Line, epoch: int, scope: Scope, producer: int, runs: Mapping[int, Run]
) -> tuple[dict[int, Position], set[str]]:
    """Append what the log has not seen, under an epoch.

    Returns:
        Of each bucket, where its last op stands at the latest; and the shards to ring.

    Raises:
        EpochStale: the epoch is not that any more.
        the other errors of `Line.append`.
    """
    left, reached, ring = dict(runs), dict[int, Position](), set[str]()
    for _ in range(ROUNDS):
        answer = line.append(scope, epoch, producer, [Append(bucket, *run) for bucket, run in left.items()], "", 0)
        ring.update(answer.ring)
        behind: dict[int, Run] = {}
        for (bucket, run), (code, position) in zip(left.items(), answer.placed, strict=True):
            if code == HELD:
                behind[bucket] = run
            elif code != HOLE:
                reached[bucket] = Position(position.epoch, position.seq + len(run.payloads) - 1)
            elif position.seq >= run.first:
                behind[bucket] = Run(position.seq + 1, run.payloads[position.seq + 1 - run.first :])
            else:
                line.pass_hole(producer, bucket, position.seq, run.first - 1)
                behind[bucket] = run
        if not behind:
            return reached, ring
        left = behind
    raise LogUnavailable("others send under the same producer; try again")
