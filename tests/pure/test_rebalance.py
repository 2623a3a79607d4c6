"""The plan that evens out shards: never worse, and no longer than it has to be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.admin.shards import Transfer, Weights, applied_since, plan
from pipeline.model import Position

SHARDS = ["s0", "s1", "s2", "s3"]
owned = st.dictionaries(st.integers(0, 63), st.sampled_from(SHARDS), min_size=1)
weighed = st.lists(st.integers(0, 1_000), min_size=64, max_size=64).map(lambda own: dict(enumerate(own)))
shares = st.fixed_dictionaries({name: st.integers(1, 5) for name in SHARDS})


def off(weights: dict[int, int], owners: dict[int, str], shards: dict[str, int]) -> float:
    """Return how far all shards are off their shares, as a sum of squares."""
    total, whole = sum(weights[bucket] for bucket in owners), sum(shards.values())
    held = Counter[str]()
    for bucket, name in owners.items():
        held[name] += weights[bucket]
    return sum((held[name] - total * own / whole) ** 2 for name, own in shards.items())


@given(weighed, owned, shares)
def test_each_move_makes_it_more_even_and_no_bucket_moves_twice(
    weights: dict[int, int], owners: dict[int, str], shards: dict[str, int]
) -> None:
    now = dict(owners)

    for bucket, source, target in (steps := plan(weights, owners, shards)):
        assert now[bucket] == source
        before, now[bucket] = off(weights, now, shards), target
        assert off(weights, now, shards) < before

    assert len({step.bucket for step in steps}) == len(steps)


@given(owned)
def test_buckets_that_are_alike_end_even_by_the_fewest_moves(owners: dict[int, str]) -> None:
    weights, held = dict.fromkeys(owners, 1), Counter(dict.fromkeys(SHARDS, 0) | Counter(owners.values()))
    least, more = divmod(len(owners), len(SHARDS))
    aims = [least + (at < more) for at in range(len(SHARDS))]
    fewest = sum(max(0, own - aim) for own, aim in zip(sorted(held.values(), reverse=True), aims, strict=True))

    steps = plan(weights, owners, dict.fromkeys(SHARDS, 1), tolerance=0)

    for _, source, target in steps:
        held[source], held[target] = held[source] - 1, held[target] + 1
    assert max(held.values()) - min(held.values()) <= 1
    assert len(steps) == fewest


def test_an_empty_shard_gets_its_share_and_a_larger_one_more() -> None:
    owners = {bucket: "s0" if bucket < 32 else "s1" for bucket in range(64)}
    weights = dict.fromkeys(owners, 10)

    assert Counter(step.target for step in plan(weights, owners, {"s0": 1, "s1": 1, "s2": 2})) == {"s2": 32}
    assert plan(weights, owners, {"s0": 1, "s1": 1}) == []


def test_one_bucket_that_has_nearly_everything_moves_once_and_nothing_moves_for_nothing() -> None:
    owners, weights = dict.fromkeys(range(4), "s0"), {0: 1_000, 1: 10, 2: 10, 3: 10}

    assert plan(weights, owners, {"s0": 1, "s1": 1}) == [Transfer(0, "s0", "s1")]
    assert plan({}, owners, {"s0": 1, "s1": 1}) == []


def test_a_bucket_weighs_the_mean_of_its_parts_and_what_is_not_known_counts_for_nothing() -> None:
    weights = Weights(Counter({0: 30, 1: 10}), Counter({0: 100, 1: 300}), Counter({0: 0, 1: 20}))

    assert weights.together() == pytest.approx({0: (0.75 + 0.25 + 0) / 3, 1: (0.25 + 0.75 + 1) / 3})
    assert weights.together(["rows"]) == pytest.approx({0: 0.75, 1: 0.25})
    assert weights._replace(bytes=Counter(), load=Counter()).together() == pytest.approx({0: 0.75, 1: 0.25})
    assert weights._replace(load=Counter({0: 0, 1: 19})).together() == pytest.approx({0: 0.5, 1: 0.5})
    assert Weights(Counter(), Counter(), Counter()).together() == {}


def test_ops_are_counted_over_the_begin_of_an_epoch() -> None:
    assert applied_since(Position(3, 4), Position(3, 9)) == 5
    assert applied_since(Position(3, 4), Position(4, 1)) == 2
    assert applied_since(Position(3, 4), Position(3, 4)) == 0
