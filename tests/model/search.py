"""Try every run of a small model, breadth first: the shortest way to a fault, or the proof that there is none.

A model is a start state, its moves and two questions. States are frozen values. What the system does by itself is
`work`; the rest is a fault, which no state may need: from every state, work alone must be able to end well.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)


class Move(NamedTuple):
    """One step: its name, the state that it leads to, and whether the system takes it by itself."""

    name: str
    state: Hashable
    work: bool = True


@dataclass(frozen=True)
class Disaster:
    """What goes wrong, and the fewest steps to it."""

    why: str
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*(f"{n:3}. {step}" for n, step in enumerate(self.steps, 1)), f"  => {self.why}"])


@dataclass(frozen=True)
class Model(Generic[State]):
    """A model.

    Attributes:
        start: the first state.
        moves: what may happen next.
        wrong: what is wrong with a state whatever comes after it, or the empty string.
        done: whether a run may end here.
        describe: what a state shows to a reader.
    """

    start: State
    moves: Callable[[State], Iterable[Move]]
    wrong: Callable[[State], str]
    done: Callable[[State], bool]
    describe: Callable[[State], str]


class TooManyStates(Exception):
    """The bounds of a search are too wide."""


@dataclass(frozen=True)
class Result:
    """What a search found, and how many states it has seen."""

    disaster: Disaster | None
    states: int


def search(model: Model[State], most: int = 2_000_000) -> Result:
    """Visit every state that can be reached.

    Args:
        model: the model.
        most: how many states at most.

    Raises:
        TooManyStates: there are more; nothing is proved.
    """
    with _without_collections():
        return _searched(model, most)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Collect no garbage in the block: no state is part of a cycle, and each collection would look at all states."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _searched(model: Model[State], most: int) -> Result:
    graph = _Graph(model.start)
    ends = list[int]()
    for number, state in enumerate(graph.states):  # which grows meanwhile
        if why := model.wrong(state):
            return Result(Disaster(why, graph.trace(number)), len(graph.states))
        if model.done(state):
            ends.append(number)
        for name, after, work in model.moves(state):
            graph.add(number, name, after, work=work)
        if len(graph.states) > most:
            raise TooManyStates(f"more than {most:,}")
    stuck = graph.first_stuck(ends)
    return Result(_hopeless(model, graph, stuck) if stuck is not None else None, len(graph.states))


class _Graph(Generic[State]):
    """What has been seen. States have numbers: to hash one costs more than all else."""

    def __init__(self, start: State):
        self.states = [start]
        self._numbers = {start: 0}
        self._came: list[tuple[int, str] | None] = [None]
        self._before: list[list[int]] = [[]]  # who leads here by work alone

    def add(self, number: int, name: str, after: State, *, work: bool) -> None:
        """Note a step from a state."""
        found = self._numbers.setdefault(after, len(self.states))
        if found == len(self.states):
            self.states.append(after)
            self._came.append((number, name))
            self._before.append([])
        if work:
            self._before[found].append(number)

    def trace(self, number: int) -> tuple[str, ...]:
        """Return the steps to a state."""
        names = []
        while (step := self._came[number]) is not None:
            number, name = step
            names.append(name)
        return tuple(reversed(names))

    def first_stuck(self, ends: list[int]) -> int | None:
        """Return the first state, in the order of the search, from which no work leads to a good end."""
        fine, queue = set(ends), deque(ends)
        while queue:
            for number in self._before[queue.popleft()]:
                if number not in fine:
                    fine.add(number)
                    queue.append(number)
        return next((number for number in range(len(self.states)) if number not in fine), None)


def _hopeless(model: Model[State], graph: _Graph[State], number: int) -> Disaster:
    """Go on from a stuck state for as long as work brings anything new, so that a reader sees where it ends."""
    steps, state = list(graph.trace(number)), graph.states[number]
    seen = {state}
    while True:
        further = next((move for move in model.moves(state) if move.work and move.state not in seen), None)
        if further is None:
            return Disaster(f"it never ends well: {model.describe(state)}", tuple(steps))
        steps.append(further.name)
        state = further.state  # type: ignore[assignment]
        seen.add(state)
