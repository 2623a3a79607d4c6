"""What is attempted after an attempt that failed: ever less, down to one op."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.apply.judge import MOST_DEATHS, Attempt
from pipeline.model import START, Position

numbers = st.integers(1, 10_000)
attempts = st.builds(Attempt, st.just(Position(7, 3)), numbers, numbers, st.integers(0, 9), numbers, st.booleans())


@given(attempts)
def test_a_note_is_the_attempt(attempt: Attempt):
    assert Attempt.parse(str(attempt)) == attempt
    assert str(attempt).split()[0] == "7-3"


def test_the_first_attempt_of_a_bucket_has_a_note_too():
    assert Attempt.parse(str(Attempt(START, 5))) == Attempt(START, 5)


def test_a_note_that_cannot_be_read_says_nothing():
    assert Attempt.parse("7-3 4 1") is None
    assert Attempt.suspected("of another version") is None


@given(numbers)
def test_what_failed_beside_others_is_tried_alone_then_by_ever_fewer_entries(left: int):
    attempt = Attempt(START, left).failed()
    assert (attempt.entries, attempt.deaths) == (left, 0)

    steps = 0
    while attempt.deaths < MOST_DEATHS:
        narrower = attempt.failed()
        assert narrower.entries < attempt.entries or narrower.deaths == attempt.deaths + 1
        assert narrower.left <= attempt.left
        attempt, steps = narrower, steps + 1

    assert attempt.entries == 1
    assert steps <= MOST_DEATHS + 5


def test_an_attempt_that_ended_in_an_orderly_way_is_made_again_as_it_was():
    waited = Attempt(START, 3, entries=1).waited()
    assert (waited.waits, waited.deaths) == (1, 0)

    assert Attempt.suspected(str(waited._replace(ended=True))) == waited
    assert Attempt.suspected(str(waited)) == waited.failed()


def test_what_is_left_after_a_success_is_under_suspicion_without_what_was_applied():
    attempt = Attempt(START, 5, entries=2)

    further = attempt.succeeded(Position(1, 1), 2)

    assert further == Attempt(Position(1, 1), 3, entries=2)
    assert further is not None
    assert further.succeeded(Position(1, 4), 3) is None
