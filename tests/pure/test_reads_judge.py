"""When a node is out of rotation."""

from __future__ import annotations

import random

import pytest

from pipeline.reads.health.prober import GOOD_PROBES, LONG_PROBES, MINUTE_PROBES, QUIET_AFTER_PROBES, FlapJudge

HOUR = 3600


def test_one_missing_look_is_forgiven_and_two_in_a_row_are_not() -> None:
    judge = FlapJudge()

    assert not judge.see(False)
    assert not judge.see(True)
    assert not judge.see(False)
    assert judge.see(False)
    assert judge.out


def test_a_node_comes_back_after_good_looks_in_a_row_only() -> None:
    judge = FlapJudge(out=True)

    for _ in range(GOOD_PROBES["long"] - 1):
        judge.see(True)
    judge.see(False)
    for _ in range(GOOD_PROBES["short"] - 1):
        judge.see(True)

    assert judge.out
    assert judge.see(True)
    assert not judge.out


def test_each_relapse_doubles_what_it_takes_to_come_back_and_quiet_halves_it_again() -> None:
    judge, took = FlapJudge(), []
    judge.see(True)

    for _ in range(5):
        for _ in range(LONG_PROBES):
            judge.see(False)
        looks = 0
        while judge.out:
            judge.see(True)
            looks += 1
        took.append(looks)
        for _ in range(MINUTE_PROBES):
            judge.see(True)
    for _ in range(QUIET_AFTER_PROBES):
        judge.see(True)

    assert took == [5, 10, 20, 40, GOOD_PROBES["unsteady"]]
    assert judge.needed == GOOD_PROBES["unsteady"] // 2


def soon_again(judge: FlapJudge, chance: random.Random, looks: int) -> int:
    """Return how many changes came within a minute of the one before, with three looks in ten lost."""
    found, last = 0, -MINUTE_PROBES
    for at in range(looks):
        if judge.see(chance.random() >= 0.3):
            found += at - last < MINUTE_PROBES
            last = at
    return found


def test_with_three_looks_in_ten_lost_no_two_changes_are_less_than_a_minute_apart() -> None:
    """300 nodes, an hour each: 18,000 minutes, and any 60 looks of them, wherever they begin."""
    chance, found = random.Random(1), 0

    for _ in range(300):
        judge = FlapJudge()
        judge.see(True)
        found += soon_again(judge, chance, HOUR)

    assert found == 0


def test_of_nodes_that_begin_to_lose_looks_less_than_one_in_a_thousand_changes_twice_within_a_minute() -> None:
    """Its first minutes are the worst: later it is known to be unsteady. Of these 10,000, two or so are expected."""
    chance, twice = random.Random(7), 0

    for _ in range(10_000):
        judge = FlapJudge()
        judge.see(True)
        twice += soon_again(judge, chance, 2 * MINUTE_PROBES) > 0

    assert twice < 10


def test_a_node_that_was_told_to_be_down_is_back_soon_and_one_that_was_silent_as_long_is_not() -> None:
    restarted, silent = FlapJudge(), FlapJudge()
    for judge, refused in ((restarted, True), (silent, False)):
        judge.see(True)
        for _ in range(LONG_PROBES - 1):
            judge.see(False, refused=refused)

    took = [sum(1 for _ in range(100) if judge.out and not judge.see(True)) for judge in (restarted, silent)]

    assert took == [GOOD_PROBES["long"] - 1, GOOD_PROBES["short"] - 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_misses_three_looks_in_ten_does_not_flap_and_no_missing_look_brings_it_back(seed: int) -> None:
    chance, judge, changes = random.Random(seed), FlapJudge(), 0

    for _ in range(4 * HOUR):
        good = chance.random() >= 0.3
        before = judge.out
        changed = judge.see(good)
        changes += changed
        assert good or judge.out or not before

    assert 1 <= changes <= 8


def test_a_node_that_fails_and_answers_by_turns_takes_many_good_looks_at_once_and_a_restarted_one_few() -> None:
    restarted, unsteady, hiccup = FlapJudge(), FlapJudge(), FlapJudge()
    restarted.see(True)
    for good in (True, False, False):
        hiccup.see(good)
    for _ in range(20):
        restarted.see(False)
    for good in (True, False, True, False, True, False, False):
        unsteady.see(good)

    took = [sum(1 for _ in range(100) if judge.out and not judge.see(True)) for judge in (restarted, hiccup, unsteady)]

    assert took == [GOOD_PROBES["long"] - 1, GOOD_PROBES["short"] - 1, GOOD_PROBES["unsteady"] - 1]


def test_a_node_that_has_never_answered_is_in_with_its_first_answer() -> None:
    judge = FlapJudge()
    for _ in range(10):
        judge.see(False)
    assert judge.out

    judge.see(True)

    assert not judge.out
