"""How long an op waits that came early: only time counts in which this process looks, and nothing older moves."""

from __future__ import annotations

from itertools import accumulate

import pytest

from pipeline.apply.earlier_ops import LOOK_S, Wait
from pipeline.model import Position

#: A time, s, the buckets with older ops, and how far each bucket is.
Look = tuple[float, set[int], dict[int, int]]


def waited_s(*looks: Look) -> list[float]:
    """Return how long an op has waited at each look."""
    taken = [(at_s, older, {b: Position(1, seq) for b, seq in marks.items()}) for at_s, older, marks in looks]
    waits = accumulate(taken, lambda wait, look: wait.looked(*look), initial=Wait(looks[0][0], 0, {}))
    return [wait.waited_s for wait in waits][1:]


@pytest.mark.parametrize(
    ("looks", "wanted"),
    [
        ([(0, {1}, {1: 5}), (0.5, {1}, {1: 5}), (1, {1}, {1: 5})], [0, 0.5, 1]),
        ([(0, {1, 2}, {1: 5, 2: 6}), (0.5, {1, 2}, {1: 5, 2: 7}), (1, {1, 2}, {1: 5, 2: 7})], [0, 0, 0.5]),
        ([(0, {1}, {1: 5}), (0.5, set(), {1: 6}), (1, set(), {1: 7})], [0, 0, 0.5]),
        ([(0, {1}, {1: 5, 2: 6}), (0.5, {1}, {1: 5, 2: 7})], [0, 0.5]),
        ([(0, {1}, {1: 5}), (60, {1}, {1: 5})], [0, LOOK_S]),
        ([(n / 2, {1} if n % 2 else set(), {1: 5}) for n in range(5)], [0, 0.5, 1, 1.5, 2]),
    ],
    ids=["stuck", "one moves", "drained", "what has nothing older moves", "a server was away", "it only seems to move"],
)
def test_what_counts(looks: list[Look], wanted: list[float]) -> None:
    assert waited_s(*looks) == wanted
