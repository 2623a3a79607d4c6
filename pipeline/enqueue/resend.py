"""Send again what another has numbered: an outbox, the spool. To send an op twice is harmless.

Invariant: the log takes a producer's sequence only once, and passes a hole only after what is missing is accounted for.

The caller gives of each bucket all that it still holds: what is below has been sent before. The log drops what it has
seen, and so does the shard. What the log has lost of what is below is recorded by name, unless it was applied.

A producer that has sent nothing to a bucket for a day must not go on there: log and shard may have forgotten it. The
caller takes a new random 63-bit number then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.enqueue.epochs import Authority, EpochCache
from pipeline.errors import LogUnavailable
from pipeline.model.op import Position
from pipeline.oplog.appends import HOLE, Append, EpochStale, Line, Scope
from pipeline.shard.records.ledger import LostRange

#: Rounds of one call: the first, one behind an overlap, one behind a hole, and one in case others send too.
ROUNDS = 4
#: How often one call begins anew under another epoch.
EPOCHS = 3


class Run(NamedTuple):
    """Ops of one bucket in order, and their producer's sequence of the first of them; the others follow densely."""

    first: int
    payloads: Sequence[bytes]


def resend(
    line: Line,
    epochs: EpochCache,
    scope: Scope,
    producer: int,
    runs: Mapping[int, Run],
    only: int,
    authority: Authority,
) -> tuple[dict[int, Position], set[str]]:
    """Append what the log has not seen, under the epoch *only*, or under the current one where that is 0.

    Returns:
        Of each bucket, where its last op stands at the latest; and the shards to ring.

    Raises:
        EpochStale: the epoch is not *only* any more.
        the other errors of `Line.append` and `Authority.record_lost`.
    """
    for _ in range(EPOCHS):
        epoch = only or epochs.of(scope)
        try:
            return _under(epoch, line, scope, producer, runs, authority)
        except EpochStale:
            if only:
                raise
            epochs.after(scope, epoch)
    raise LogUnavailable("the server's lineage keeps changing")


def _under(
    epoch: int, line: Line, scope: Scope, producer: int, runs: Mapping[int, Run], authority: Authority
) -> tuple[dict[int, Position], set[str]]:
    left, reached, ring = dict(runs), dict[int, Position](), set[str]()
    for _ in range(ROUNDS):
        answer = line.append(scope, epoch, producer, [Append(bucket, *run) for bucket, run in left.items()], "", 0)
        ring.update(answer.ring)
        behind: dict[int, Run] = {}
        for (bucket, run), (code, position) in zip(left.items(), answer.placed, strict=True):
            if code != HOLE:
                reached[bucket] = Position(position.epoch, position.seq + len(run.payloads) - 1)
            elif position.seq >= run.first:
                behind[bucket] = Run(position.seq + 1, run.payloads[position.seq + 1 - run.first :])
            else:
                authority.record_lost(LostRange(bucket, 0, producer, position.seq + 1, run.first - 1))
                line.pass_hole(producer, bucket, position.seq, run.first - 1)
                behind[bucket] = run
        if not behind:
            return reached, ring
        left = behind
    raise LogUnavailable("others send under the same producer; try again")
