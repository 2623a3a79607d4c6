"""Every run of the model of the map that says who owns a bucket: clean, and a disaster without any rule."""

from __future__ import annotations

import pytest
from model.maps import RULES, TWICE_HELD, Bounds, model
from model.search import search

#: What shows the need of a rule, where more than a move has to happen.
NEEDED = {"at once": Bounds(deaths=1), "anew ends": Bounds(wiped=1)}


@pytest.mark.parametrize("bounds", [Bounds(ops=3), Bounds(wiped=1)], ids=str)
def test_with_all_rules_every_entry_is_applied_by_whoever_owns_the_bucket(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES.keys() - TWICE_HELD))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(NEEDED.get(rule, Bounds()), frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")


@pytest.mark.parametrize("rule", sorted(TWICE_HELD))
def test_one_of_two_rules_keeps_the_log_in_order(rule: str) -> None:
    assert search(model(Bounds(), frozenset({rule}))).disaster is None


def test_a_log_that_is_ahead_of_an_epoch_which_does_not_end_takes_nothing_more() -> None:
    disaster = search(model(Bounds(), TWICE_HELD)).disaster

    assert disaster is not None
    assert "never ends well" in disaster.why
