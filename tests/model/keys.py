"""A model of a shard key that gets a bucket of its own: its ops are in one log before, and in another after.

The bucket of the key begins on the shard that has the old bucket. A move of it is a move as of any bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from model.search import Model, Move

#: What can be switched off, and what each rule says.
RULES = {
    "old log first": "the new bucket is applied once the old one's watermark has passed the epoch that ended",
    "epoch ends": "with the map the epoch of the scope ends, so that nothing more of the key gets into the old log",
    "held along": "ops of the key that are set aside in the old bucket are those of the new one from then on",
    "asked first": "an op whose reply was lost is sent to the new bucket once its old number is known to be in no log",
}
OLD, NEW = 0, 1


class Bounds(NamedTuple):
    """How much may happen in one run."""

    ops: int = 2
    doubts: int = 0  # requests whose reply is lost, or which come late
    refusals: int = 0  # by the database


class State(NamedTuple):
    doubts: int
    refusals: int
    split: bool = False  # the map says that the key has a bucket of its own
    epoch: int = 1
    known: tuple[bool, int] = (False, 1)  # the producer's map and epoch
    logs: tuple[tuple[tuple[int, int], ...], ...] = ((), ())  # (epoch, op)
    marks: tuple[int, int] = (0, 0)
    rows: tuple[int, ...] = ()
    aside: tuple[tuple[int, int], ...] = ()  # (bucket, op)
    begun: bool = False  # the new bucket is applied
    sent: int = 0
    doubt: tuple[int, int] = (0, 0)  # (op, epoch) that was sent to the old bucket, and its reply was lost
    late: tuple[int, int] = (0, 0)  # (op, epoch) of a request that is under way


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    key = _Key(bounds.ops, off)
    return Model(State(bounds.doubts, bounds.refusals), key.moves, key.wrong, key.done, key.describe)


class _Key:
    def __init__(self, ops: int, off: frozenset[str]):
        self.ops, self.off = ops, off

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return f"rows {s.rows}, aside {s.aside}, logs {s.logs}"

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        if len(set(s.rows)) < len(s.rows):
            return f"doubled: {s.rows}"
        if list(s.rows) != sorted(s.rows):
            return f"out of order: {s.rows}"
        overtaken = [op for _, op in s.aside if any(one > op for one in s.rows)]
        return f"op {overtaken[0]} is set aside and overtaken" if overtaken else ""

    def done(self, s: State) -> bool:
        """Whether all is decided, and the key has its bucket."""
        decided = len(s.rows) + len(s.aside) == self.ops
        return decided and s.split and s.begun and s.sent == self.ops and not s.doubt[0]

    def moves(self, s: State) -> Iterator[Move]:
        if not s.split:
            ended = s.epoch + 1 if self._on("epoch ends") else s.epoch
            yield Move("the map gives the key a bucket", s._replace(split=True, epoch=ended))
        yield from self._sends(s)
        yield from self._applies(s, OLD)
        if s.begun:
            yield from self._applies(s, NEW)
        elif s.split and self._passed(s):
            aside = tuple((NEW, op) for _, op in s.aside) if self._on("held along") else s.aside
            yield Move("the new bucket begins", s._replace(begun=True, aside=aside))

    def _passed(self, s: State) -> bool:
        """Whether the old log has nothing of an epoch that ended behind the watermark."""
        return all(epoch >= s.epoch for epoch, _ in s.logs[OLD][s.marks[OLD] :]) or not self._on("old log first")

    def _sends(self, s: State) -> Iterator[Move]:
        if s.doubt[0]:
            yield from self._asks(s)
        elif s.sent < self.ops:
            yield from self._appends(s, s.sent + 1)
        if s.late[0]:
            op, epoch = s.late
            gone = s._replace(late=(0, 0))
            seen = any(one >= op for _, one in s.logs[OLD])
            if epoch != s.epoch or seen:
                yield Move(f"the late request of op {op} is refused", gone)
            else:
                yield Move(f"the late request of op {op} arrives", _append(gone, OLD, op), work=False)

    def _appends(self, s: State, op: int) -> Iterator[Move]:
        split, epoch = s.known
        if epoch != s.epoch:
            yield Move("the producer is refused, and reads map and epoch", s._replace(known=(s.split, s.epoch)))
            return
        if split != s.split and not self._on("epoch ends"):
            yield Move("the producer reads the map", s._replace(known=(s.split, s.epoch)))
        bucket = NEW if split else OLD
        yield Move(f"op {op} is appended to log {bucket}", _append(s, bucket, op)._replace(sent=op))
        if s.doubts and bucket == OLD:
            doubtful = s._replace(doubt=(op, s.epoch), doubts=s.doubts - 1, sent=op)
            yield Move(f"op {op} is appended, and the reply is lost", _append(doubtful, OLD, op), work=False)
            yield Move(f"op {op} gets no reply", doubtful._replace(late=(op, s.epoch)), work=False)

    def _asks(self, s: State) -> Iterator[Move]:
        """Find out whether an op in doubt is in the old log. A late request has the old epoch, and is refused."""
        op, _ = s.doubt
        if s.known != (s.split, s.epoch):
            yield Move("the producer reads map and epoch", s._replace(known=(s.split, s.epoch)))
            return
        there = any(one == op for _, one in s.logs[OLD])
        known = s._replace(doubt=(0, 0))
        if not s.split:
            again = known if there else _append(known, OLD, op)
            yield Move(f"op {op} is sent again under its number", again)
        elif there and self._on("asked first"):
            yield Move(f"op {op} is in the old log", known)
        else:
            yield Move(f"op {op} is sent to the new log", _append(known, NEW, op))

    def _applies(self, s: State, bucket: int) -> Iterator[Move]:
        at = s.marks[bucket]
        if at == len(s.logs[bucket]):
            return
        op = s.logs[bucket][at][1]
        marks = (at + 1, s.marks[NEW]) if bucket == OLD else (s.marks[OLD], at + 1)
        after = s._replace(marks=marks)
        if any(where == bucket for where, _ in s.aside):
            yield Move(f"op {op} is parked", after._replace(aside=(*s.aside, (bucket, op))))
            return
        yield Move(f"op {op} of log {bucket} is applied", after._replace(rows=(*s.rows, op)))
        if s.refusals:
            refused = after._replace(aside=(*s.aside, (bucket, op)), refusals=s.refusals - 1)
            yield Move(f"op {op} of log {bucket} is set aside", refused)

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _append(s: State, bucket: int, op: int) -> State:
    logs = list(s.logs)
    logs[bucket] = (*logs[bucket], (s.epoch, op))
    return s._replace(logs=tuple(logs))
