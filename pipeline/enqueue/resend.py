"""Relay ops that somebody else has numbered: an outbox, the spool. Sending them twice is harmless.

Invariant: the log takes a producer's sequence only once, and passes a hole only after what is missing is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.enqueue.producers import Lost
from pipeline.errors import LogUnavailable
from pipeline.model.op import Position
from pipeline.oplog.appends import HOLE, Append, Line, Scope

#: Rounds of one call: the first, one behind an overlap, one behind a hole, and one in case others relay too.
ROUNDS = 4


class Run(NamedTuple):
    """Ops of one bucket in order, and their producer's sequence of the first of them; the others follow densely."""

    first: int
    payloads: Sequence[bytes]


def resend(
    line: Line,
    scope: Scope,
    epoch: int,
    producer: int,
    runs: Mapping[int, Run],
    record_lost: Callable[[Lost], None],
) -> tuple[dict[int, Position], set[str]]:
    """Append what the log has not seen; return where each bucket's last op stands at the latest, and whom to ring.

    Raises:
        EpochStale: raise the epoch, then call again; the other errors as `Line.append` and *record_lost*.
    """
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
                record_lost(Lost(bucket, producer, position.seq + 1, run.first - 1))
                line.pass_hole(producer, bucket, position.seq, run.first - 1)
                behind[bucket] = run
        if not behind:
            return reached, ring
        left = behind
    raise LogUnavailable("others send under the same producer; try again")
