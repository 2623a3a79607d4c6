"""For how long a replica has been away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.admin.absence import GAP_MS, LastSeen, look
from pipeline.model import Position

OLD, NEW, NEWER = {0: Position(1, 5)}, {0: Position(1, 6)}, {0: Position(1, 7)}
LOOK_MS = 10_000


def test_a_replica_that_has_what_its_primary_had_at_the_last_look_is_not_away_however_busy_that_is() -> None:
    seen = look(look(None, 0, OLD, OLD), LOOK_MS, NEW, OLD)

    seen = look(seen, 2 * LOOK_MS, NEWER, NEW)

    assert seen == LastSeen(2 * LOOK_MS, 2 * LOOK_MS, NEWER)


def test_a_replica_that_does_not_answer_is_away_and_so_is_one_that_stands_still() -> None:
    begun = look(look(None, 0, OLD, OLD), LOOK_MS, NEW, OLD)

    silent = look(begun, 2 * LOOK_MS, NEWER, None)
    standing = look(begun, 2 * LOOK_MS, NEWER, OLD)

    assert silent.away_ms == standing.away_ms == LOOK_MS


def test_a_replica_of_which_nothing_is_noted_is_not_taken_for_one_that_is_long_away() -> None:
    assert look(None, 1_000_000, NEW, None).away_ms == 0


def test_time_in_which_nobody_looked_does_not_count_against_a_replica() -> None:
    begun = look(None, 0, NEW, None)

    seen = look(begun, 7 * 3_600_000, NEW, None)

    assert seen.away_ms == 0


@given(st.lists(st.tuples(st.integers(1, 2 * GAP_MS), st.sampled_from([None, OLD, NEW])), max_size=30))
def test_a_replica_is_never_away_for_longer_than_it_was_watched(
    looks: list[tuple[int, dict[int, Position] | None]],
) -> None:
    seen, watched_ms, now_ms = look(None, 0, NEW, None), 0, 0
    for later_ms, replica in looks:
        now_ms += later_ms
        watched_ms += later_ms if later_ms <= GAP_MS else 0
        seen = look(seen, now_ms, NEW, replica)

        assert 0 <= seen.away_ms <= watched_ms
        assert seen.away_ms == 0 or replica is not NEW


def test_a_clock_that_was_set_back_makes_a_replica_neither_nearer_nor_further() -> None:
    hour_ms = 3_600_000
    begun = look(look(None, hour_ms, NEW, None), hour_ms + LOOK_MS, NEW, None)

    then = look(begun, LOOK_MS, NEW, None)
    later = look(then, 2 * LOOK_MS, NEW, None)

    assert (begun.away_ms, then.away_ms, later.away_ms) == (LOOK_MS, LOOK_MS, 2 * LOOK_MS)
