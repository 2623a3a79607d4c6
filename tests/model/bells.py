"""A model of one shard's bell: producers append and ring, workers hold the bell while they stay, listen and leave.

A step is one script of Redis, one message or one commit. A wait that ends because its time is over is no work: an op
that needs it has been forgotten for a while, and so has one that needs the sweeper where nothing failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from model.search import Model, Move

#: What can be switched off, and what each rule says.
RULES = {
    "looks as it leaves": "who gives up the bell looks at what is due, and rings for it",
    "gives up first": "the bell is given up no later than that look, so that whoever appends after it rings",
    "wakes": "who appends while the holder listens wakes it",
    "listens in the look": "the holder is noted as listening in the look that finds nothing",
    "as it was": "who found all in another's hands leaves without a ring only if it is as it was in that look",
    "hands the wake on": "who leaves while another holds the bell and something is due wakes that one",
    "expires": "a bell whose holder or message is gone expires",
    "swept": "what is due and has no bell is rung for after a while",
}
SILENT, RUNG = "", "1"


@dataclass(frozen=True)
class Bounds:
    """How much may happen in one run."""

    ops: int = 3
    slow: int = 0  # how often a bell expires though its holder lives
    losses: int = 0  # messages
    deaths: int = 0  # of workers


class Worker(NamedTuple):
    """What a worker does: away, came, looks, empty, applies, waits, waited, leaves, left."""

    does: str = "away"
    upto: int = 0
    beside: bool = False  # what was due was in the hands of another
    as_it_was: bool = True  # since the look no bucket became due


class State(NamedTuple):
    bounds: Bounds
    appended: int = 0
    applied: int = 0
    bell: str = SILENT  # or rung; or "h" or "l", and the number of the holder
    wake: bool = False
    to_ring: int = 0
    messages: int = 0
    workers: tuple[Worker, ...] = (Worker(), Worker())


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    shard = _Shard(off, faulty=bool(bounds.losses or bounds.deaths))
    return Model(State(bounds), shard.moves, lambda s: "", lambda s: s.applied == bounds.ops, str)


class _Shard:
    def __init__(self, off: frozenset[str], *, faulty: bool):
        self.off, self.faulty = off, faulty

    def moves(self, s: State) -> Iterator[Move]:
        if s.appended < s.bounds.ops:
            yield Move("an op is appended", self._appended(s))
        if s.to_ring:
            rung = s._replace(to_ring=s.to_ring - 1)
            yield Move("a message is sent", rung._replace(messages=s.messages + 1))
            if s.bounds.losses:
                yield Move("a message is lost", _spent(rung, "losses"), work=False)
        for n, worker in enumerate(s.workers):
            yield from self._works(s, n, worker)
            if s.bounds.deaths and worker.does != "away":
                yield Move(f"worker {n} dies", _spent(_with(s, n, Worker()), "deaths"), work=False)
        yield from self._time(s)

    def _appended(self, s: State) -> State:
        s = (s if s.appended > s.applied else _due_anew(s))._replace(appended=s.appended + 1)
        if s.bell == SILENT:
            return s._replace(bell=RUNG, to_ring=s.to_ring + 1)
        if s.bell[0] == "l":
            return s._replace(bell="h" + s.bell[1:], wake=self._on("wakes"))
        return s

    def _works(self, s: State, n: int, worker: Worker) -> Iterator[Move]:
        mine = s.bell[1:] == str(n)
        if worker.does == "away" and s.messages:
            yield Move(f"worker {n} takes a message", _with(s._replace(messages=s.messages - 1), n, Worker("came")))
        elif worker.does in ("came", "looks", "waited"):
            yield self._looks(s, n, waited=worker.does == "waited")
            if worker.does != "came":  # what it was woken for, or has found, it may leave to others
                yield Move(f"worker {n} is to leave", _with(s, n, Worker("leaves")))
        elif worker.does == "empty":
            yield Move(f"worker {n} listens", _with(s._replace(bell=f"l{n}") if mine else s, n, Worker("waits")))
        elif worker.does == "applies":
            done = s._replace(applied=max(s.applied, worker.upto))
            done = _due_anew(done) if s.appended > done.applied else done
            yield Move(f"worker {n} commits", _with(done, n, Worker("looks")))
        elif worker.does == "waits":
            if s.wake:
                yield Move(f"worker {n} is woken", _with(s._replace(wake=False), n, Worker("waited")))
            yield Move(f"the wait of worker {n} ends", _with(s, n, Worker("waited")), work=self.faulty)
        elif worker.does == "leaves":
            yield self._leaves(s, n, worker)
        elif worker.does == "left":
            yield Move(f"worker {n} gives up the bell", _with(_given_up(s, n), n, Worker()))

    def _looks(self, s: State, n: int, *, waited: bool) -> Move:
        if s.bell in (SILENT, RUNG) or s.bell[1:] == str(n):
            s = s._replace(bell=f"h{n}", wake=False)
        if s.appended > s.applied:
            # one bucket: whoever comes second finds it locked, and leaves it to the first
            busy = any(other.does == "applies" for other in s.workers)
            after = Worker("leaves", beside=True) if busy else Worker("applies", s.appended)
            return Move(f"worker {n} finds {s.appended - s.applied} ops", _with(s, n, after))
        if not self._on("listens in the look"):
            return Move(f"worker {n} finds nothing", _with(s, n, Worker("empty")))
        if waited and s.bell != f"h{n}":
            return Move(f"worker {n} finds nothing, and the bell another's", _with(s, n, Worker("leaves")))
        listens = s._replace(bell=f"l{n}") if s.bell == f"h{n}" else s
        return Move(f"worker {n} finds nothing and listens", _with(listens, n, Worker("waits")))

    def _leaves(self, s: State, n: int, worker: Worker) -> Move:
        after = _given_up(s, n)
        beside = worker.beside and (worker.as_it_was or not self._on("as it was"))
        due = s.appended > s.applied and not beside and self._on("looks as it leaves")
        if due and after.bell == SILENT:
            rings = after._replace(bell=RUNG, to_ring=s.to_ring + 1)
            return Move(f"worker {n} leaves and rings", _with(rings, n, Worker()))
        if due and after.bell != RUNG and self._on("hands the wake on"):
            return Move(f"worker {n} leaves and wakes the holder", _with(after._replace(wake=True), n, Worker()))
        if not self._on("gives up first"):
            return Move(f"worker {n} finds nothing and is about to leave", _with(s, n, Worker("left")))
        return Move(f"worker {n} leaves", _with(after, n, Worker()))

    def _time(self, s: State) -> Iterator[Move]:
        if s.bell != SILENT and self._on("expires"):
            away = s.bell == RUNG or s.workers[int(s.bell[1:])].does == "away"
            if self.faulty and away and not s.to_ring and not s.messages:
                yield Move("the bell expires", s._replace(bell=SILENT))
            elif s.bounds.slow and not away and s.workers[int(s.bell[1:])].does != "waits":  # a short time
                yield Move("the bell of a slow worker expires", _spent(s._replace(bell=SILENT), "slow"), work=False)
        if self.faulty and s.bell == SILENT and s.appended > s.applied and not s.to_ring and self._on("swept"):
            yield Move("a sweeper rings", s._replace(bell=RUNG, to_ring=1))

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _with(s: State, n: int, worker: Worker) -> State:
    return s._replace(workers=(*s.workers[:n], worker, *s.workers[n + 1 :]))


def _due_anew(s: State) -> State:
    return s._replace(workers=tuple(one._replace(as_it_was=False) for one in s.workers))


def _given_up(s: State, n: int) -> State:
    return s._replace(bell=SILENT, wake=False) if s.bell[1:] == str(n) else s


def _spent(s: State, what: str) -> State:
    return s._replace(bounds=replace(s.bounds, **{what: getattr(s.bounds, what) - 1}))
