"""A model of a bucket that is ordered from shard to shard: movers go on with each move by what both its shards say.

What is to be done next says the product's own `stage_of`. Nothing fails here, and each step is one transaction: what a
failover adds is in `moves.py`. The copy and the log are left out: what counts is who owns the bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from model.search import Model, Move

from pipeline.model import START
from pipeline.shard.records import ACTIVE, CATCHING, COPYING, GONE, MOVED, moves
from pipeline.shard.records.moves import Leg, MoveNote

SHARDS = ("A", "B", "C")
#: What can be switched off, and what each rule says.
RULES = {
    "last move over": "an order is refused while the shard that a bucket came from keeps its rows, unless it goes back",
    "one move": "an order is refused while the bucket's owner is the source of a move that is under way",
}


class Side(NamedTuple):
    """One bucket on one shard: its state, and the row of its last move there."""

    state: str = GONE
    move: int = 0  # 0: there is no row
    source: str = ""
    target: str = ""
    cleaned: bool = False

    def leg(self) -> Leg:
        """Return the row as the product has it."""
        return Leg(0, self.move, self.source, self.target, 0, 0, "", MoveNote(cleaned=self.cleaned), self.state, START)


class State(NamedTuple):
    sides: tuple[Side, Side, Side]
    ordered: int = 0
    fault: str = ""


def model(orders: int, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model of some orders, with some rules switched off."""
    assert off <= RULES.keys(), off
    bucket = _Bucket(orders, off)
    return Model(State((Side(ACTIVE), Side(), Side())), bucket.moves, bucket.wrong, bucket.done, str)


class _Bucket:
    def __init__(self, orders: int, off: frozenset[str]):
        self.orders, self.off = orders, off

    def wrong(self, s: State) -> str:
        owners = [name for name in SHARDS if _at(s, name).state == ACTIVE]
        if len(owners) > 1:
            return f"two owners: {' and '.join(owners)}"
        return s.fault

    def done(self, s: State) -> bool:
        """Whether one shard owns the bucket, and no other has any of it, or anything to do."""
        over = all(not side.leg().under_way(name) for name, side in zip(SHARDS, s.sides, strict=True) if side.move)
        return s.ordered == self.orders and over and sum(side.state == ACTIVE for side in s.sides) == 1

    def moves(self, s: State) -> Iterator[Move]:
        for name in SHARDS:
            if _at(s, name).state == ACTIVE and s.ordered < self.orders:
                for target in SHARDS:
                    if target != name and not self._refused(s, name, target):
                        yield Move(f"a move from {name} to {target} is ordered", _ordered(s, name, target), work=False)
        if s.ordered < self.orders:
            yield Move("nobody orders anything more", s._replace(ordered=self.orders))
        for side in {(one.move, one.source, one.target) for one in s.sides if one.move}:
            yield from _gone_on(s, *side)

    def _refused(self, s: State, owner: str, target: str) -> bool:
        side = _at(s, owner)
        if "one move" not in self.off and side.move and side.source == owner and side.leg().under_way(owner):
            return True
        if "last move over" in self.off or not side.move or side.source == owner:
            return False
        before = _at(s, side.source)
        return before.move == side.move and before.state == MOVED and target != side.source


def _ordered(s: State, source: str, target: str) -> State:
    number = s.ordered + 1
    return _put(s._replace(ordered=number), source, Side(ACTIVE, number, source, target))


def _gone_on(s: State, move: int, source: str, target: str) -> Iterator[Move]:
    """Let a mover take the next step of a move; see `Mover`."""
    here, there = _at(s, source), _at(s, target)
    stage = moves.stage_of(_legs(here, move), _legs(there, move))
    what = f"move {move}, {stage}"
    if stage == "begin":
        if there.state != ACTIVE:  # else the order was refused, or the mover raises
            yield Move(what, _put(s, target, Side(COPYING, move, source, target)))
    elif stage == "copy":
        yield Move(what, _put(s, target, there._replace(state=CATCHING)))
    elif stage == "catch":
        if here.state == ACTIVE:
            yield Move(what, _put(s, source, here._replace(state=MOVED)))
    elif stage == "finish":
        yield Move(what, _put(s, target, there._replace(state=ACTIVE)))
    elif stage == "publish":
        yield Move(what, _put(s, source, here._replace(state=GONE)))
    elif stage == "clean":
        yield Move(what, _put(s, source, here._replace(cleaned=True)))
    elif stage in ("undo", "abandon"):
        yield Move(what, _put(s, target, there._replace(state=GONE, cleaned=stage == "undo")))


def _legs(side: Side, move: int) -> Mapping[int, Leg]:
    return {0: side.leg()} if side.move == move else {}


def _at(s: State, name: str) -> Side:
    return s.sides[SHARDS.index(name)]


def _put(s: State, name: str, side: Side) -> State:
    sides = [side if one == name else here for one, here in zip(SHARDS, s.sides, strict=True)]
    return s._replace(sides=tuple(sides))  # type: ignore[arg-type]
