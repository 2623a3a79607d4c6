"""A model of one host that goes to its spool while Redis is away, and of the way back to Redis.

A user's calls follow one another, each in the other of two processes. A drainer sends what waits and hands over: in one
turn of the file it sends the last entries and removes the marker, while newcomers wait for the turn to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from model.search import Model, Move

#: The sender of ops that are numbered by the spool.
SPOOL = 0

#: What can be switched off, and what each rule says.
RULES = {
    "behind": "while the marker is there, every op of the host goes behind what waits",
    "marked when taken in": "who is taken in makes the marker in its own turn of the file, before it is acknowledged",
    "in order": "what was taken in first is sent first",
    "sent before deleted": "an entry is deleted once the log has it",
    "number kept": "an op in doubt is spooled under the number that it was sent with",
    "sender thrown away": "a sender with an op in doubt sends nothing more",
    "again": "an op in doubt that the spool cannot take is retried under its number",
    "removed in the turn": "the marker is removed in a turn of the file that sees nothing wait",
    "file looked into": "a drainer finds what waits without a marker, and makes the marker",
    "removed when sent": "the marker is removed when the log has the last entry",
    "seen by the script": "the script takes a number once",
    "seen by the shard": "the shard applies a number once",
}
#: Either of them suffices here.
TWICE_HELD = frozenset({"seen by the script", "seen by the shard"})


@dataclass(frozen=True)
class Bounds:
    """How much may happen in one run."""

    ops: int = 3
    away: int = 1  # how often Redis goes away
    doubts: int = 0  # requests whose answer is lost, or which come late
    deaths: int = 0  # of the drainer
    refusals: int = 0  # by the spool: full, or damaged


class Number(NamedTuple):
    sender: int
    seq: int


class Entry(NamedTuple):
    number: Number
    op: int


class Call(NamedTuple):
    op: int
    way: str  # direct, spool, again
    number: Number | None = None
    marked: bool = False  # whether the marker was there when the call looked


class Sender(NamedTuple):
    name: int
    next: int = 1


class State(NamedTuple):
    bounds: Bounds
    up: bool = True
    log: tuple[Entry, ...] = ()
    entries: tuple[Entry, ...] = ()  # what waits in the spool
    marker: bool = False
    unmarked: bool = False  # an op was taken in, and its marker is yet to be made
    turn: bool = False  # the drainer holds the file's turn
    sent: int = 0  # entries that the drainer has sent, and not deleted
    unlinking: bool = False  # the drainer has seen nothing wait, and will remove the marker
    spool_next: int = 1
    senders: tuple[Sender, ...] = (Sender(1), Sender(2))
    named: int = 2
    acknowledged: int = 0
    call: Call | None = None
    late: Entry | None = None


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    host = _Host(bounds.ops, off)
    return Model(State(bounds), host.moves, host.wrong, host.done, host.describe)


class _Host:
    def __init__(self, ops: int, off: frozenset[str]):
        self.ops, self.off = ops, off

    def rows(self, s: State) -> tuple[int, ...]:
        """Return what the shard makes of the log."""
        rows, last = list[int](), dict[int, int]()
        for (sender, seq), op in s.log:
            if seq > last.get(sender, 0) or not self._on("seen by the shard"):
                last[sender] = max(seq, last.get(sender, 0))
                rows.append(op)
        return tuple(rows)

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        waiting = tuple(entry.op for entry in s.entries)
        return f"rows {self.rows(s)}, waiting {waiting}, the marker is {'there' if s.marker else 'not there'}"

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        rows = self.rows(s)
        if len(set(rows)) < len(rows):
            return f"doubled: {rows}"
        mine = [op for op in rows if op <= s.acknowledged]
        if mine != sorted(mine):
            return f"out of order: {rows}"
        waiting = {entry.op for entry in s.entries}
        gone = [op for op in range(1, s.acknowledged + 1) if op not in rows and op not in waiting]
        return f"op {gone[0]} was acknowledged, and is nowhere" if gone else ""

    def done(self, s: State) -> bool:
        """Whether all is in the log, and the host is on the direct way again."""
        idle = s.call is None and not s.turn and not s.unlinking and not s.sent
        return idle and s.acknowledged == self.ops and not s.marker and not s.entries

    def moves(self, s: State) -> Iterator[Move]:
        if s.call is None and s.acknowledged < self.ops:
            yield self._begun(s, s.acknowledged + 1, None)
        elif s.call is not None and s.call.way == "again":
            yield self._begun(s, s.call.op, s.call.number if self._on("again") else None)
        elif s.call is not None and s.call.way == "direct":
            yield from self._direct(s, s.call)
        elif s.call is not None and not s.turn:
            yield from self._taken_in(s, s.call)
        if s.unmarked:
            yield Move("the marker is made", s._replace(marker=True, unmarked=False))
        yield from self._drain(s)
        yield from self._world(s)

    # a call -------------------------------------------------------------------------------------------------

    def _begun(self, s: State, op: int, number: Number | None) -> Move:
        spool = s.marker and self._on("behind")
        way = "spool" if spool else "direct"
        return Move(f"op {op} goes {'to the spool' if spool else 'the direct way'}",
                    s._replace(call=Call(op, way, number, s.marker)))  # fmt: skip

    def _direct(self, s: State, call: Call) -> Iterator[Move]:
        which = call.op % len(s.senders)
        sender = s.senders[which]
        number = call.number or Number(sender.name, sender.next)
        if not s.up:
            yield Move(f"Redis does not take op {call.op}", s._replace(call=call._replace(way="spool")))
        else:
            used = s.senders if call.number else _put(s.senders, which, Sender(sender.name, sender.next + 1))
            taken = s._replace(log=self._append(s, Entry(number, call.op)), senders=used)
            yield Move(f"the log takes op {call.op}", _acknowledged(taken))
        if not s.bounds.doubts:
            return
        bounds = _less(s.bounds, "doubts")
        doubtful = s._replace(call=call._replace(way="spool", number=number), bounds=bounds)
        if self._on("sender thrown away") and not call.number:
            doubtful = doubtful._replace(senders=_put(s.senders, which, Sender(s.named + 1)), named=s.named + 1)
        if s.up:
            taken = doubtful._replace(log=self._append(s, Entry(number, call.op)))
            yield Move(f"the log takes op {call.op}, and the answer is lost", taken, work=False)
        if s.late is None:
            under_way = doubtful._replace(late=Entry(number, call.op))
            yield Move(f"op {call.op} gets no answer, and is under way", under_way, work=False)

    def _taken_in(self, s: State, call: Call) -> Iterator[Move]:
        number, following = call.number, s.spool_next
        if number is None or not self._on("number kept"):
            number, following = Number(SPOOL, s.spool_next), s.spool_next + 1
        taken = s._replace(entries=(*s.entries, Entry(number, call.op)), spool_next=following)
        if self._on("marked when taken in"):
            taken = taken._replace(marker=True)
        elif not call.marked:
            taken = taken._replace(unmarked=True)
        yield Move(f"op {call.op} is spooled and acknowledged", _acknowledged(taken))
        if s.bounds.refusals:
            refused = s._replace(call=call._replace(way="again"), bounds=_less(s.bounds, "refusals"))
            yield Move(f"the spool cannot take op {call.op}: an error that says so", refused, work=False)

    # the drainer --------------------------------------------------------------------------------------------

    def _drain(self, s: State) -> Iterator[Move]:
        if s.unlinking:
            yield Move("the drainer removes the marker", s._replace(marker=False, unlinking=False, turn=False))
        elif s.turn:
            yield from self._handing_over(s)
        elif s.entries and not s.marker and not s.unmarked and self._on("file looked into"):
            yield Move("a drainer finds entries without a marker", s._replace(marker=True))
        elif s.marker:
            if s.sent:
                left = s.entries[s.sent :]
                yield Move("the drainer deletes what was sent", s._replace(entries=left, sent=0))
            elif s.entries and s.up:
                yield from self._sends(s)
            if not s.sent:
                yield Move("the drainer begins to hand over", s._replace(turn=True))
        if (s.turn or s.sent or s.unlinking) and s.bounds.deaths:
            gone = s._replace(turn=False, sent=0, unlinking=False, bounds=_less(s.bounds, "deaths"))
            yield Move("the drainer dies", gone, work=False)

    def _handing_over(self, s: State) -> Iterator[Move]:
        """In one turn of the file: send the rest, delete it, remove the marker; or give the turn back."""
        if s.sent < len(s.entries):
            if s.up:
                yield from self._sends(s)
            yield Move("the drainer gives its turn back", s._replace(turn=False, sent=0))
            if not self._on("removed when sent") and s.marker:
                yield Move("the drainer removes the marker early", s._replace(marker=False))
            return
        emptied = s._replace(entries=(), sent=0)
        if self._on("removed in the turn"):
            yield Move("the drainer removes the marker in its turn", emptied._replace(marker=False, turn=False))
            if s.bounds.deaths:
                undone = s._replace(marker=False, turn=False, sent=0, bounds=_less(s.bounds, "deaths"))
                yield Move("the drainer removes the marker, and dies before it commits", undone, work=False)
        else:
            yield Move("the drainer ends its turn", emptied._replace(turn=False, unlinking=True))

    def _sends(self, s: State) -> Iterator[Move]:
        entry = s.entries[s.sent]
        if not self._on("in order") and not s.turn and len(s.entries) > 1:
            last = s.entries[-1]
            yield Move(
                f"the drainer sends op {last.op}",
                s._replace(log=self._append(s, last), entries=(last, *s.entries[:-1]), sent=1),
            )
        if not self._on("sent before deleted") and not s.turn:
            yield Move(f"the drainer deletes op {entry.op} to send it", s._replace(entries=s.entries[1:]))
        yield Move(f"the drainer sends op {entry.op}", s._replace(log=self._append(s, entry), sent=s.sent + 1))

    def _world(self, s: State) -> Iterator[Move]:
        if s.up and s.bounds.away:
            yield Move("REDIS GOES AWAY", s._replace(up=False, bounds=_less(s.bounds, "away")), work=False)
        if not s.up:
            yield Move("Redis comes back", s._replace(up=True))
        if s.late is not None and s.up:
            late = s._replace(log=self._append(s, s.late), late=None)
            yield Move(f"the late request of op {s.late.op} arrives", late, work=False)

    # parts --------------------------------------------------------------------------------------------------

    def _on(self, rule: str) -> bool:
        return rule not in self.off

    def _append(self, s: State, entry: Entry) -> tuple[Entry, ...]:
        """Do what the script does."""
        seen = any(one.number.sender == entry.number.sender and one.number.seq >= entry.number.seq for one in s.log)
        bounded = len(s.log) > self.ops + 1  # else the search would have no end
        return s.log if seen and (bounded or self._on("seen by the script")) else (*s.log, entry)


def _acknowledged(s: State) -> State:
    return s._replace(acknowledged=s.acknowledged + 1, call=None)


def _less(bounds: Bounds, which: str) -> Bounds:
    return Bounds(**{**bounds.__dict__, which: getattr(bounds, which) - 1})


def _put(values: tuple[Sender, ...], at: int, value: Sender) -> tuple[Sender, ...]:
    return (*values[:at], value, *values[at + 1 :])
