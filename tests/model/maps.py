"""A model of the map that says who owns a bucket: producers that know an old one, and its change after a move.

The bucket has one log, which stays where it is. A producer appends under the epoch of the owner's scope, and marks the
owner's dirty set. The shards say who owns the bucket; the map follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from model.search import Model, Move

#: What can be switched off, and what each rule says.
RULES = {
    "source ends": "with the map the epoch of the old owner's scope ends",
    "at once": "the map, the ends of epochs and the dirty mark are one step",
    "epochs first": "a producer reads the epochs first and the map after them",
    "anew ends": "a map that is made anew from the shards ends epochs as a changed one does",
    "marked": "with the map the bucket is marked dirty at its new owner",
    "old entries": "the new owner applies entries of older epochs",
    "above both": "the epoch of the new owner's scope ends too, and the next of each is above the log's",
    "ahead": "an epoch that the log refuses, since it has later entries, ends",
}
#: Either of them suffices. The first saves refused appends.
TWICE_HELD = frozenset({"above both", "ahead"})


class Bounds(NamedTuple):
    """How much may happen in one run."""

    ops: int = 2
    deaths: int = 0  # of movers, between two steps
    wiped: int = 0  # how often Redis loses the map


class Producer(NamedTuple):
    """What a process knows: the map, and the epochs of both scopes; -1 and nothing are to be read."""

    map: int = 0
    epochs: tuple[int, ...] = (3, 1)


class State(NamedTuple):
    deaths: int
    wiped: int
    owner: int = 0  # by the shards
    map: int | None = 0  # by Redis
    epochs: tuple[int, int] = (3, 1)  # of the scopes of A and B; 0: it has ended
    log: tuple[int, ...] = ()  # the epochs of the entries
    marks: frozenset[int] = frozenset()  # shards where the bucket is dirty
    applied: int = 0
    changing: tuple[str, ...] = ()  # what a mover is about to do
    producers: tuple[Producer, ...] = (Producer(), Producer(-1, ()))
    fault: str = ""


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    maps = _Maps(bounds, off)
    start = State(bounds.deaths, bounds.wiped)
    return Model(start, maps.moves, lambda s: s.fault, maps.done, maps.describe)


class _Maps:
    def __init__(self, bounds: Bounds, off: frozenset[str]):
        self.bounds, self.off = bounds, off

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return f"{s.applied} of {s.log} applied, dirty at {sorted(s.marks)}, map {s.map}, owner {s.owner}"

    def done(self, s: State) -> bool:
        """Whether the bucket has moved, and all is applied."""
        return s.owner == s.map == 1 and s.applied == len(s.log) == self.bounds.ops and not s.marks

    def moves(self, s: State) -> Iterator[Move]:
        for n, producer in enumerate(s.producers):
            if producer.map < 0 or not producer.epochs:
                yield from self._learns(s, n, producer)
            elif len(s.log) < self.bounds.ops:
                yield self._appends(s, n, producer)
        yield from self._applies(s)
        yield from self._changes(s)
        for scope, epoch in enumerate(s.epochs):
            if epoch <= 0:
                above = max(s.log, default=0) if self._on("above both") else 0
                raised = 1 + max(above, -epoch)
                yield Move(f"the epoch of {'AB'[scope]} is {raised}", s._replace(epochs=_put(s.epochs, scope, raised)))

    def _learns(self, s: State, n: int, producer: Producer) -> Iterator[Move]:
        map_first = not self._on("epochs first")
        if producer.map < 0 and (producer.epochs or map_first):
            if s.map is not None:
                yield Move(f"producer {n} reads the map", _known(s, n, producer._replace(map=s.map)))
        elif min(s.epochs) > 0:
            yield Move(f"producer {n} reads the epochs", _known(s, n, producer._replace(epochs=s.epochs)))

    def _appends(self, s: State, n: int, producer: Producer) -> Move:
        """Do what the script does: it knows epochs, and no map."""
        scope = producer.map
        epoch = producer.epochs[scope]
        forgotten = _known(s, n, Producer(-1, ()))
        if epoch != s.epochs[scope]:
            return Move(f"producer {n} is refused: epoch {epoch} has ended", forgotten)
        if epoch < max(s.log, default=0):
            if self._on("ahead"):
                forgotten = forgotten._replace(epochs=_put(s.epochs, scope, -epoch))
            return Move(f"producer {n} is refused: the log is ahead of epoch {epoch}", forgotten)
        taken = s._replace(log=(*s.log, epoch), marks=s.marks | {scope})
        return Move(f"producer {n} appends under epoch {epoch} of {'AB'[scope]}", taken)

    def _applies(self, s: State) -> Iterator[Move]:
        for shard in s.marks:
            clean = s._replace(marks=s.marks - {shard})
            if shard != s.owner:
                yield Move(f"{'AB'[shard]} does not own the bucket, and unmarks it", clean)
            elif s.applied == len(s.log):
                yield Move(f"{'AB'[shard]} has applied all, and unmarks the bucket", clean)
            elif not self._on("old entries") and shard == 1 and s.log[s.applied] < s.epochs[1]:
                yield Move("B skips an entry of an older epoch", s._replace(fault="an entry is never applied"))
            else:
                yield Move(f"{'AB'[shard]} applies entry {s.applied + 1}", s._replace(applied=s.applied + 1))

    def _changes(self, s: State) -> Iterator[Move]:
        """Change the owner in the shards, and the map after it; each step may be a mover's last."""
        if s.owner == 0:
            yield Move("A has stopped, and B is active", s._replace(owner=1))
        if s.wiped and s.map is not None:
            yield Move("REDIS LOSES THE MAP", s._replace(map=None, wiped=s.wiped - 1, changing=()), work=False)
        if s.map is None:
            made = s._replace(map=s.owner)
            yield Move(f"the map is made anew: {'AB'[s.owner]}", self._ended(made) if self._on("anew ends") else made)
        elif s.changing:
            done = {"map": s._replace(map=1), "ends": self._ended(s)}[s.changing[0]]
            yield Move(f"a mover changes the {s.changing[0]}", done._replace(changing=s.changing[1:]))
            if s.deaths:
                yield Move("the mover dies", s._replace(changing=(), deaths=s.deaths - 1), work=False)
        elif s.owner == 1 and s.map == 0:
            if self._on("at once"):
                yield Move("the map says B, and epochs end", self._ended(s._replace(map=1)))
            else:
                yield Move("a mover begins to change the map", s._replace(changing=("map", "ends")))

    def _ended(self, s: State) -> State:
        """End epochs, and mark the bucket where the map says that it is."""
        a = -abs(s.epochs[0]) if self._on("source ends") else s.epochs[0]
        b = -abs(s.epochs[1]) if self._on("above both") else s.epochs[1]
        return s._replace(epochs=(a, b), marks=s.marks | {s.map or 0} if self._on("marked") else s.marks)

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _put(epochs: tuple[int, int], scope: int, epoch: int) -> tuple[int, int]:
    return (epoch, epochs[1]) if scope == 0 else (epochs[0], epoch)


def _known(s: State, n: int, producer: Producer) -> State:
    return s._replace(producers=(producer, s.producers[1]) if n == 0 else (s.producers[0], producer))
