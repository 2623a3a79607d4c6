"""The ledger: every op that was acknowledged, with its place in the log and what it was to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby
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
    def op(self) -> Op:
        """What names the op for ever, whatever becomes of Redis."""
        return self.bucket, self.producer, self.seq


#: What names an op for ever.
Op = tuple[int, int, int]
#: A shard key that is away from its bucket, and whether the part of a group is meant that is the key's: else the rest.
Side = tuple[int, bool]


class Settled(NamedTuple):
    """What one transaction of a replay took, or of a drop.

    Attributes:
        bucket: whose log has the ops.
        upto: the watermark that the transaction held.
        ops: in order, also those that stayed set aside.
        dropped: those that were given up.
        side: whose part of groups it was about, where a key was away; None: the groups as they are.
        left: those that stayed set aside.
    """

    bucket: int
    upto: Position
    ops: tuple[Op, ...]
    dropped: frozenset[Op]
    side: Side | None
    left: frozenset[Op] = frozenset()


class Apart(NamedTuple):
    """That a shard key was away from its bucket.

    Attributes:
        bucket, key: which.
        left: where in the log the key left.
        back: where it came back; None: it is away.
    """

    bucket: int
    key: int
    left: Position
    back: Position | None = None

    def has(self, one: Acknowledged) -> bool:
        """Return whether an op is of the bucket and that time."""
        return (
            one.bucket == self.bucket and self.left < one.position and (self.back is None or one.position <= self.back)
        )


class Verdict(NamedTuple):
    """What a replay gives: the model, and what has become of ops that the database must refuse.

    Attributes:
        model: the rows.
        refused, parked: that are still set aside, refused or behind a refused one.
        replayed, dropped: that were, and have been settled.
        echoes: ops of a key away that its bucket's shard may have set aside too, since a group there holds their rows;
            such a row is not there, so that nothing is done.
        strange: that an operator has settled, though nothing sets them aside.
    """

    model: Model
    refused: set[Op]
    parked: set[Op]
    replayed: set[Op]
    dropped: set[Op]
    echoes: set[Op]
    strange: set[Op]


class _Work(NamedTuple):
    """An op, or the part of a group that one of two shards does.

    Attributes:
        one: the op.
        deed: what is done.
        side: the key whose group is done in parts, and whether this part is the key's; None: it is no part.
        told: whether the shard says that it has set this part aside: a row of the key that another such group holds
            lets the bucket's part wait as well, unless the bucket's shard knows the row to be the key's.
        refused: whether the database refuses it.
    """

    one: Acknowledged
    deed: Deed
    side: Side | None = None
    told: bool = False
    refused: bool = False

    @property
    def rows(self) -> set[int]:
        """The ids that it names."""
        return rows_of(self.deed)

    @property
    def of_bucket(self) -> bool:
        """Whether it is the part that the bucket's shard does."""
        return self.side is not None and not self.side[1]


class _Replay:
    """Does deeds in order, and keeps what is set aside."""

    def __init__(self) -> None:
        self.model, self.aside = Model(), list[_Work]()
        self.replayed, self.dropped = set[Op](), set[Op]()
        #: What a replay takes that is not set aside here; rows of keys away that groups hold at the buckets' shards.
        self.untold, self.foreign = set[Op](), set[int]()

    def do(self, work: _Work) -> bool:
        """Do a deed, or set it aside; return whether it was done."""
        held = any(not work.rows.isdisjoint(other.rows) for other in self.aside if other.one[:2] < work.one[:2])
        if held or work.told:
            self.aside.append(work._replace(told=False, refused=False))
            if work.of_bucket:
                self.foreign |= rows_of(work.one.deed) - work.rows
            return False
        try:
            self.model.do(work.deed)
        except Refused:
            self.aside.append(work._replace(refused=True))
            return False
        return True

    def settle(self, settled: Settled) -> None:
        """Do what was set aside once more, or give it up."""
        sides = (None, settled.side)
        taken = [
            work for work in self.aside if work.one.op in settled.ops and (settled.side is None or work.side in sides)
        ]
        self.untold |= {*settled.ops} - {work.one.op for work in taken}
        self.aside = [work for work in self.aside if work not in taken]
        for work in sorted(taken, key=lambda work: work.one.position):
            if work.one.op in settled.dropped:
                self.dropped.add(work.one.op)
            elif self.do(work._replace(told=work.of_bucket and work.one.op in settled.left)):
                self.replayed.add(work.one.op)


def replay(
    ledger: Iterable[Acknowledged],
    upto: dict[int, Position] | None = None,
    settled: Iterable[Settled] = (),
    apart: Iterable[Apart] = (),
    aside: Mapping[Op, bool] = {},
) -> Verdict:
    """Do all deeds bucket by bucket in the order of their log, or only those up to a watermark per bucket.

    Args:
        ledger: all ops.
        upto: the watermarks.
        settled: what an operator had replayed or dropped meanwhile.
        apart: when keys were away from their buckets.
        aside: whether a bucket's shard has a group set aside, of those that are done in parts.
    """
    done, events, waited = _Replay(), defaultdict[int, list[Settled]](list), {op for op, here in aside.items() if here}
    for one in sorted(settled, key=lambda one: one.upto):
        events[one.bucket].append(one)
        waited |= {*one.ops} if one.side is None or not one.side[1] else set()
    ordered, singles = sorted(set_of(ledger), key=lambda one: one[:2]), dict[Op, set[int]]()
    for bucket, ops in groupby(ordered, key=lambda one: one.bucket):
        for one in ops:
            if upto is not None and one.position > upto[bucket]:
                continue
            while events[bucket] and events[bucket][0].upto < one.position:
                done.settle(events[bucket].pop(0))
            away = next((time.key for time in apart if time.has(one)), None)
            owners = owners_in(one.deed)
            if owners == {away}:
                singles[one.op] = rows_of(one.deed)
            if away not in owners or len(owners) < 2:
                done.do(_Work(one, one.deed))
                continue
            for is_keys in (True, False):
                deed = ["group", *(member for member in one.deed[1:] if (owners_in(member) == {away}) is is_keys)]
                done.do(_Work(one, deed, (away, is_keys), told=not is_keys and one.op in waited))
        for one in events.pop(bucket, ()):
            done.settle(one)
    refused = {work.one.op for work in done.aside if work.refused}
    parked = {work.one.op for work in done.aside if not work.refused}
    echoes = {op for op, rows in singles.items() if not rows.isdisjoint(done.foreign)}
    return Verdict(done.model, refused, parked, done.replayed, done.dropped, echoes, done.untold - echoes)


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
