"""How long an op waits that came early: only time counts in which this process looks, and nothing older moves."""

from __future__ import annotations

from itertools import accumulate

import pytest

from pipeline.apply.earlier_ops import LOOK_S, Wait


def waited_s(*looks: tuple[float, dict[int, float]]) -> list[float]:
    """Return how long an op has waited at each look: at a time, s, with the oldest op of each bucket, ms."""
    (first_s, heads), *others = looks
    waits = accumulate(others, lambda wait, look: wait.looked(*look), initial=Wait(first_s, 0, heads))
    return [wait.waited_s for wait in waits]


@pytest.mark.parametrize(
    ("looks", "wanted"),
    [
        ([(0, {1: 5}), (0.5, {1: 5}), (1, {1: 5})], [0, 0.5, 1]),
        ([(0, {1: 5, 2: 6}), (0.5, {1: 5, 2: 6}), (1, {1: 5, 2: 7}), (1.5, {1: 5, 2: 7})], [0, 0.5, 0, 0.5]),
        ([(0, {1: 5}), (0.5, {}), (1, {})], [0, 0, 0.5]),
        ([(0, {1: 5}), (60, {1: 5})], [0, LOOK_S]),
    ],
    ids=["stuck", "another bucket moves", "drained", "a server was away"],
)
def test_what_counts(looks: list[tuple[float, dict[int, float]]], wanted: list[float]) -> None:
    assert waited_s(*looks) == wanted


def test_a_bucket_that_only_seems_to_move_ends_the_wait_all_the_same() -> None:
    """A transaction takes ops of it, and is rolled back each time."""
    looks = [(n * 0.5, {1: 5.0} if n % 2 else {}) for n in range(10)]

    assert waited_s((0, {1: 5.0}), *looks[1:])[-1] == 3.5
