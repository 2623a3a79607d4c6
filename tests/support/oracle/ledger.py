"""The ledger: every op that was acknowledged, with its place in the log and what it was to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.model import Position
from pipeline.model.receipt import Receipt
from support.oracle.model import Deed, Model, Refused


class Acknowledged(NamedTuple):
    """One op: its bucket, position, producer and producer's sequence, as its receipt says, and its deed."""

    bucket: int
    position: Position
    producer: int
    seq: int
    deed: Deed

    @classmethod
    def of(cls, receipt: Receipt, deed: Deed) -> Acknowledged:
        """Note a receipt."""
        assert receipt.position is not None, "an acknowledged op has a position"
        return cls(receipt.bucket, receipt.position, receipt.producer, receipt.producer_seq, deed)

    @property
    def op(self) -> tuple[int, int, int]:
        """What names the op for ever, whatever becomes of Redis."""
        return self.bucket, self.producer, self.seq


class Verdict(NamedTuple):
    """What a replay gives: the model, the ops that the database must refuse, and those that wait behind these."""

    model: Model
    refused: set[tuple[int, int, int]]
    parked: set[tuple[int, int, int]]


def replay(ledger: Iterable[Acknowledged], upto: dict[int, Position] | None = None) -> Verdict:
    """Do all deeds bucket by bucket in the order of their log, or only those up to a watermark per bucket."""
    model, refused, parked = Model(), set(), set()
    held: set[int] = set()
    for one in sorted(set_of(ledger), key=lambda one: one[:2]):
        if upto is not None and one.position > upto[one.bucket]:
            continue
        rows = rows_of(one.deed)
        if not held.isdisjoint(rows):
            parked.add(one.op)
            held |= rows
            continue
        try:
            model.do(one.deed)
        except Refused:
            refused.add(one.op)
            held |= rows
    return Verdict(model, refused, parked)


def rows_of(deed: Deed) -> set[int]:
    """Return the ids that a deed names: later deeds of such a row wait where this one is refused."""
    kind, *rest = deed
    if kind == "group":
        return {id for member in rest for id in rows_of(member)}
    at = {"insert": (2,), "bump": (1,), "delete": (1,), "version": (1, 3)}.get(kind, ())
    return {rest[n] for n in at}


def owners_in(deed: Deed) -> set[int]:
    """Return the shard keys whose rows a deed writes."""
    kind, *rest = deed
    return {key for member in rest for key in owners_in(member)} if kind == "group" else {rest[0]}


def set_of(ledger: Iterable[Acknowledged]) -> list[Acknowledged]:
    """Return each op once: one that was sent again under an idempotency key was acknowledged twice."""
    return list({one.op: one for one in ledger}.values())


def in_order(ledger: Iterable[Acknowledged]) -> bool:
    """Whether every producer's ops stand in each log in the order in which they were acknowledged."""
    last: dict[tuple[int, int], tuple[Position, int]] = {}
    for one in set_of(ledger):
        before = last.get((one.bucket, one.producer), (Position(0, -1), 0))
        if before >= (one.position, one.seq) or before[1] >= one.seq:
            return False
        last[one.bucket, one.producer] = (one.position, one.seq)
    return True
