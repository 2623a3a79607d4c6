"""Try every run of a small model, breadth first: the shortest way to a fault, or the proof that there is none.

A model is a start state, its moves and two questions. States are frozen values. What the system does by itself is
`work`; the rest is a fault, which no state may need: from every state, work alone must be able to end well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
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
    came: dict[State, tuple[State, str] | None] = {model.start: None}
    before: dict[State, list[State]] = {}  # who leads here by work alone
    ends, queue = list[State](), deque([model.start])
    while queue:
        state = queue.popleft()
        if why := model.wrong(state):
            return Result(Disaster(why, _trace(came, state)), len(came))
        if model.done(state):
            ends.append(state)
        for name, after, work in model.moves(state):
            if work:
                before.setdefault(after, []).append(state)
            if after not in came:
                if len(came) >= most:
                    raise TooManyStates(f"more than {most:,}")
                came[after] = state, name
                queue.append(after)
    stuck = _first_stuck(came, before, ends)
    return Result(_hopeless(model, came, stuck) if stuck is not None else None, len(came))


def _first_stuck(came: dict[State, object], before: dict[State, list[State]], ends: list[State]) -> State | None:
    """Return the first state, in the order of the search, from which no work leads to a good end."""
    fine, queue = set(ends), deque(ends)
    while queue:
        for state in before.get(queue.popleft(), ()):
            if state not in fine:
                fine.add(state)
                queue.append(state)
    return next((state for state in came if state not in fine), None)


def _hopeless(model: Model[State], came: dict[State, tuple[State, str] | None], state: State) -> Disaster:
    """Go on from a stuck state for as long as work brings anything new, so that a reader sees where it ends."""
    steps, seen = list(_trace(came, state)), {state}
    while True:
        further = next((move for move in model.moves(state) if move.work and move.state not in seen), None)
        if further is None:
            return Disaster(f"it never ends well: {model.describe(state)}", tuple(steps))
        steps.append(further.name)
        state = further.state  # type: ignore[assignment]
        seen.add(state)


def _trace(came: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    names = []
    while (step := came[state]) is not None:
        state, name = step
        names.append(name)
    return tuple(reversed(names))
