"""Which node serves a read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reads.health import IN_ROTATION, NodeState
from pipeline.reads.routing import Bounds, Candidate, Choice, choose, over_limit

candidates = st.lists(
    st.builds(
        Candidate,
        node=st.uuids().map(str),
        lag_s=st.none() | st.floats(0, 100),
        state=st.sampled_from(NodeState),
        in_flight=st.integers(0, 20),
        weight=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        reached=st.sampled_from([True, False, None]),
        limit=st.none() | st.integers(1, 20),
    ),
    max_size=5,
)
modes = st.sampled_from(["primary", "stale", "error"])


def chosen(
    found: list[Candidate],
    max_lag_s: float = 5.0,
    *,
    token: bool = False,
    on_stale: str = "primary",
    primary_allowed: Callable[[], bool] = lambda: True,
    jitter: Callable[[], float] = lambda: 0.5,
) -> Choice:
    """Choose as the router does, which takes a place on the primary for a limited read."""
    choice = choose(found, Bounds(max_lag_s, 0.0, on_stale), token=token, jitter=jitter)  # type: ignore[arg-type]
    return choice if not choice.limited or primary_allowed() else over_limit(found, token=token)


@given(candidates, st.floats(0, 100), st.booleans(), modes, st.booleans(), st.floats(0, 0.999))
def test_a_replica_serves_only_within_the_bound_in_health_and_with_the_token(
    found: list[Candidate], max_lag_s: float, token: bool, on_stale: str, allowed: bool, jitter: float
) -> None:
    choice = chosen(
        found,
        max_lag_s,
        token=token,
        on_stale=on_stale,
        primary_allowed=lambda: allowed,
        jitter=lambda: jitter,
    )

    node = next((one for one in found if one.node == choice.node), None)
    if choice.kind in ("replica", "ask"):
        assert node is not None
        assert node.state in IN_ROTATION
        assert node.lag_s is not None
        assert node.lag_s <= max_lag_s
    if choice.kind == "replica" and token:
        assert node is not None
        assert node.reached is True


@given(candidates, modes, st.booleans())
def test_a_read_with_a_token_is_never_sent_unasked_where_the_token_is_not_known_to_be(
    found: list[Candidate], on_stale: str, allowed: bool
) -> None:
    choice = chosen(found, token=True, on_stale=on_stale, primary_allowed=lambda: allowed)

    served = [one for one in found if one.node == choice.node and choice.kind in ("replica", "stale")]
    assert all(one.reached is True for one in served)


@given(candidates, modes, st.booleans())
def test_the_primary_asks_once_for_a_place_and_is_never_chosen_without_one_that_it_has_to_give(
    found: list[Candidate], on_stale: str, token: bool
) -> None:
    asked = count()

    choice = chosen(found, token=token, on_stale=on_stale, primary_allowed=lambda: next(asked) < 0)

    times = next(asked)
    assert times <= 1
    assert not (times and choice.kind == "primary")
    assert not choice.limited


@given(candidates, st.booleans(), modes)
def test_no_place_on_the_primary_is_taken_while_a_replica_serves(
    found: list[Candidate], token: bool, on_stale: str
) -> None:
    taken: list[int] = []

    choice = chosen(found, token=token, on_stale=on_stale, primary_allowed=lambda: bool(taken.append(1)) or True)

    assert len(taken) == choice.limited
    assert choice.kind == "primary" or not taken


behind = Candidate("r0", 60.0)
full = {"primary_allowed": lambda: False}


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("on_stale", ["primary", "stale"])
@pytest.mark.parametrize(
    ("replica", "why"),
    [
        (Candidate("r0", None, state=NodeState.OUT), "all-out"),
        (Candidate("r0", None, state=NodeState.UNFIT), "all-out"),
        (Candidate("r0", 60.0, state=NodeState.RECOVERING), "all-out"),
        (Candidate("r0", None), "no-reading"),
        (Candidate("r0", None, state=NodeState.STALLED), "no-reading"),
    ],
)
def test_a_dead_replica_never_keeps_a_read_from_the_primary(
    replica: Candidate, why: str, on_stale: str, token: bool
) -> None:
    found = [replica._replace(node=f"r{n}", reached=None if token else True) for n in range(2)]

    choice = chosen(found, token=token, on_stale=on_stale, **full)

    if replica.state is NodeState.RECOVERING and on_stale == "stale" and not token:
        assert choice == Choice("stale", "r0", why)  # as its caller wished
    else:
        assert choice == Choice("primary", None, why)


def test_a_replica_that_stands_still_never_keeps_a_read_from_the_primary() -> None:
    stopped = behind._replace(state=NodeState.STALLED)

    assert chosen([stopped], **full) == Choice("primary", None, "all-lagging")
    assert chosen([stopped._replace(reached=False)], token=True, **full) == Choice("primary", None, "all-lagging")


def test_one_replica_that_is_merely_behind_is_enough_for_the_limit() -> None:
    found = [Candidate("r1", None, state=NodeState.OUT), Candidate("r2", 90.0, state=NodeState.STALLED), behind]

    assert chosen(found) == Choice("primary", None, "all-lagging", limited=True)
    assert chosen(found, **full) == Choice("stale", "r0", "over-limit")


@given(candidates, st.floats(0, 100), modes, st.booleans())
def test_a_read_is_limited_only_where_a_replica_in_rotation_is_behind_and_goes_on(
    found: list[Candidate], max_lag_s: float, on_stale: str, token: bool
) -> None:
    choice = chosen(found, max_lag_s, token=token, on_stale=on_stale, **full)

    if choice.reason == "over-limit":
        assert any(
            one.state is NodeState.IN and one.lag_s is not None and (one.lag_s > max_lag_s or one.reached is False)
            for one in found
        )


def test_no_replica_at_all_is_not_taken_for_all_replicas_being_well() -> None:
    choice = chosen([], token=True, primary_allowed=lambda: False)

    assert choice == Choice("primary", None, "no-replica")


def test_no_reading_is_not_taken_for_no_lag() -> None:
    choice = chosen([Candidate("r0", None), Candidate("r1", None)])

    assert choice == Choice("primary", None, "no-reading")


def test_a_read_over_the_limit_is_stale_on_the_replica_that_is_least_behind() -> None:
    found = [Candidate("r0", 60.0), Candidate("r1", 20.0), Candidate("r2", 10.0, state=NodeState.OUT)]

    choice = chosen(found, primary_allowed=lambda: False)

    assert choice == Choice("stale", "r1", "over-limit")


def test_a_read_with_a_token_over_the_limit_is_refused_rather_than_answered_wrongly() -> None:
    found = [Candidate("r0", 60.0, reached=None), Candidate("r1", 20.0, reached=False)]

    for on_stale in ("primary", "stale"):
        assert chosen(found, token=True, on_stale=on_stale, primary_allowed=lambda: False).kind == "error"


def test_where_nobody_is_known_to_have_the_token_the_least_lagged_is_asked() -> None:
    found = [Candidate("r0", 2.0, reached=None), Candidate("r1", 1.0, reached=False), Candidate("r2", 9.0)]

    choice = chosen(found, token=True)

    assert choice == Choice("ask", "r1", "token-asked")


def test_each_on_stale_gets_what_it_asked_for() -> None:
    found = [Candidate("r0", 60.0)]

    assert chosen(found, on_stale="primary") == Choice("primary", None, "all-lagging", limited=True)
    assert chosen(found, on_stale="stale") == Choice("stale", "r0", "all-lagging")
    assert chosen(found, on_stale="error") == Choice("error", None, "all-lagging")


def test_idle_replicas_share_the_reads_by_their_weights() -> None:
    found = [Candidate("r0", 0.1, weight=1.0), Candidate("r1", 0.1, weight=3.0), Candidate("r2", 0.1, weight=0.0)]
    chance = random.Random(7)

    shares = Counter(chosen(found, jitter=chance.random).node for _ in range(4000))

    assert 800 < shares["r0"] < 1200
    assert shares["r0"] + shares["r1"] == 4000


def test_a_replica_with_reads_under_way_is_spared() -> None:
    found = [Candidate("r0", 0.1, in_flight=3), Candidate("r1", 0.2, in_flight=1)]
    chance = random.Random(7)

    assert {chosen(found, jitter=chance.random).node for _ in range(100)} == {"r1"}


@given(candidates, st.booleans(), modes)
def test_no_replica_is_given_more_reads_than_its_limit(found: list[Candidate], token: bool, on_stale: str) -> None:
    node = chosen(found, token=token, on_stale=on_stale).node

    [limits] = [(one.in_flight, one.limit) for one in found if one.node == node] or [(0, None)]
    assert limits[1] is None or limits[0] < limits[1]


def test_a_replica_at_its_limit_is_passed_over_for_a_busier_one() -> None:
    full = Candidate("r0", 0.1, in_flight=2, limit=2)
    busier = Candidate("r1", 0.1, in_flight=9)

    assert chosen([full, busier]) == Choice("replica", "r1", "fresh")


def test_with_all_replicas_at_their_limits_the_primary_serves_and_the_reason_tells() -> None:
    busy = [Candidate("r0", 0.1, in_flight=2, limit=2), Candidate("r1", 0.1, in_flight=1, limit=1)]

    assert chosen(busy) == chosen(busy, **full) == Choice("primary", None, "all-busy")
    assert chosen(busy, on_stale="error") == Choice("error", None, "all-busy")


def test_a_replica_that_is_behind_and_at_its_limit_leaves_nobody_to_serve_over_the_primarys() -> None:
    assert chosen([behind._replace(in_flight=1, limit=1)], **full) == Choice("error", None, "over-limit")


def test_a_replica_of_twice_the_weight_takes_twice_the_reads_under_way() -> None:
    running = {"r0": 0, "r1": 0}
    rng = random.Random(1)

    for _ in range(90):
        found = [Candidate("r0", 0.1, in_flight=running["r0"], weight=2.0)]
        found.append(Candidate("r1", 0.1, in_flight=running["r1"]))
        running[str(chosen(found, jitter=rng.random).node)] += 1

    assert running == {"r0": 60, "r1": 30}


def test_a_replica_that_missed_the_last_look_serves_only_where_no_other_may() -> None:
    doubtful, busy = Candidate("r0", 0.1, state=NodeState.STALLED), Candidate("r1", 0.1, in_flight=9)

    assert chosen([doubtful, busy]).node == "r1"
    assert chosen([doubtful, Candidate("r1", 9.0)]).node == "r0"


@given(st.lists(st.uuids().map(lambda name: Candidate(str(name), None)), min_size=1, max_size=3))
def test_an_application_can_be_read_while_no_prober_runs(found: list[Candidate]) -> None:
    assert chosen(found, **full) == Choice("primary", None, "no-reading")
    assert chosen(found, on_stale="stale", **full).kind == "primary"
    assert chosen(found, on_stale="error", **full).kind == "error"


def test_of_old_answers_the_one_that_is_known_to_be_less_old_is_given() -> None:
    unknown, old = Candidate("r0", None), Candidate("r1", 90.0)

    assert chosen([unknown, old], **full) == Choice("stale", "r1", "over-limit")


def test_an_answer_of_unknown_age_is_better_than_none() -> None:
    unknown, busy = Candidate("r1", None), behind._replace(in_flight=1, limit=1)

    assert chosen([unknown, busy], **full) == Choice("stale", "r1", "over-limit")
    assert chosen([unknown._replace(state=NodeState.OUT), busy], **full).kind == "error"
    assert chosen([unknown._replace(reached=None), busy], token=True, **full).kind == "error"


def test_a_replica_that_answers_again_is_better_than_no_answer_and_worse_than_one_in_rotation() -> None:
    back, busy = Candidate("r1", 0.1, state=NodeState.RECOVERING), behind._replace(in_flight=1, limit=1)

    assert chosen([back]) == Choice("primary", None, "all-out")
    assert chosen([back, busy], **full) == Choice("stale", "r1", "over-limit")
    assert chosen([back, behind], **full) == Choice("stale", "r0", "over-limit")
    assert chosen([back._replace(state=NodeState.OUT), busy], **full).kind == "error"
