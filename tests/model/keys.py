"""A model of a shard key that gets a bucket of its own: its ops are in one log before, and in another after.

The bucket of the key begins on the shard that has the old bucket. A move of it is a move as of any bucket. Ids of rows
that are there go on to name the old bucket: an op by id alone may be about the key's row, or about another's.
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
    "by id to both": "an op by id alone is appended to both logs, in one step",
    "own rows": "entries behind the end of the epoch touch rows of their own bucket's keys only",
    "asked first": "an op whose reply was lost is sent to the new bucket once its old number is known to be in no log",
}
OLD, NEW = 0, 1
#: What an op is about, and how it says so: the key's row by the key, by its id alone; another key's row by its id.
KEY, KEY_ID, OTHER_ID = "key", "key by id", "other by id"


class Bounds(NamedTuple):
    """How much may happen in one run."""

    ops: tuple[str, ...] = (KEY, KEY)
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
    others: tuple[int, ...] = ()  # what the other key's row has had
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
    def __init__(self, ops: tuple[str, ...], off: frozenset[str]):
        self.ops, self.off = ops, off

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return f"rows {s.rows}, aside {s.aside}, logs {s.logs}"

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        for row in (s.rows, s.others):
            if len(set(row)) < len(row):
                return f"doubled: {row}"
            if list(row) != sorted(row):
                return f"out of order: {row}"
        overtaken = [op for _, op in s.aside if any(one > op for one in s.rows)]
        return f"op {overtaken[0]} is set aside and overtaken" if overtaken else ""

    def done(self, s: State) -> bool:
        """Whether all is decided, and the key has its bucket."""
        decided = len(s.rows) + len(s.others) + len(s.aside) == len(self.ops)
        applied = all(mark == len(log) for mark, log in zip(s.marks, s.logs, strict=True))
        return decided and applied and s.split and s.begun and s.sent == len(self.ops) and not s.doubt[0]

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
        elif s.sent < len(self.ops):
            yield from self._appends(s, s.sent + 1)
        if s.late[0]:
            op, epoch = s.late
            gone = s._replace(late=(0, 0))
            seen = any(one >= op for _, one in s.logs[OLD])
            if epoch != s.epoch or seen:
                yield Move(f"the late request of op {op} is refused", gone)
            else:
                yield Move(f"the late request of op {op} arrives", _append(gone, (OLD,), op), work=False)

    def _appends(self, s: State, op: int) -> Iterator[Move]:
        split, epoch = s.known
        if epoch != s.epoch:
            yield Move("the producer is refused, and reads map and epoch", s._replace(known=(s.split, s.epoch)))
            return
        if split != s.split and not self._on("epoch ends"):
            yield Move("the producer reads the map", s._replace(known=(s.split, s.epoch)))
        logs = self._logs(op) if split else (OLD,)
        names = " and ".join(map(str, logs))
        yield Move(f"op {op} is appended to log {names}", _append(s, logs, op)._replace(sent=op))
        if s.doubts and not split:
            doubtful = s._replace(doubt=(op, s.epoch), doubts=s.doubts - 1, sent=op)
            yield Move(f"op {op} is appended, and the reply is lost", _append(doubtful, (OLD,), op), work=False)
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
            again = known if there else _append(known, (OLD,), op)
            yield Move(f"op {op} is sent again under its number", again)
        elif there and self._on("asked first"):
            yield Move(f"op {op} is in the old log", known)
        else:
            yield Move(f"op {op} is sent by the new map", _append(known, self._logs(op), op))

    def _logs(self, op: int) -> tuple[int, ...]:
        """Return the logs that take an op once the key has its bucket. Its id alone does not say whose row it is."""
        if self.ops[op - 1] == KEY:
            return (NEW,)
        return (OLD, NEW) if self._on("by id to both") else (OLD,)

    def _applies(self, s: State, bucket: int) -> Iterator[Move]:
        at = s.marks[bucket]
        if at == len(s.logs[bucket]):
            return
        epoch, op = s.logs[bucket][at]
        marks = (at + 1, s.marks[NEW]) if bucket == OLD else (s.marks[OLD], at + 1)
        after = s._replace(marks=marks)
        if self.ops[op - 1] == OTHER_ID:
            touched = bucket == OLD or not self._on("own rows")
            yield Move(f"op {op} of log {bucket} is applied", after._replace(others=s.others + (op,) * touched))
            return
        # the key's row is on this shard whichever log is applied, and its ops of before are in the old log
        if bucket == OLD and s.split and epoch == s.epoch and self._on("own rows"):
            yield Move(f"op {op} of log {bucket} finds no row of its bucket", after)
            return
        if any(where == bucket for where, _ in s.aside):
            yield Move(f"op {op} is parked", after._replace(aside=(*s.aside, (bucket, op))))
            return
        yield Move(f"op {op} of log {bucket} is applied", after._replace(rows=(*s.rows, op)))
        if s.refusals:
            refused = after._replace(aside=(*s.aside, (bucket, op)), refusals=s.refusals - 1)
            yield Move(f"op {op} of log {bucket} is set aside", refused)

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _append(s: State, buckets: tuple[int, ...], op: int) -> State:
    logs = list(s.logs)
    for bucket in buckets:
        logs[bucket] = (*logs[bucket], (s.epoch, op))
    return s._replace(logs=tuple(logs))
