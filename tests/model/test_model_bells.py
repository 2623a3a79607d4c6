"""Every run of the model of a shard's bell: no op is forgotten, and without any rule one is."""

from __future__ import annotations

import pytest
from model.bells import RULES, Bounds, model
from model.search import search

CLEAN = (Bounds(4), Bounds(3, slow=2), Bounds(2, deaths=2), Bounds(2, losses=1, deaths=1), Bounds(2, 1, 1, 1))
#: What shows the need of a rule, where more than ops have to happen.
NEEDED = {"hands the wake on": Bounds(3, slow=2), "as it was": Bounds(3, slow=2)}
NEEDED |= {"expires": Bounds(deaths=1), "swept": Bounds(losses=1)}


@pytest.mark.parametrize("bounds", CLEAN, ids=str)
def test_with_all_rules_no_op_waits_for_a_time_to_be_over_unless_something_failed(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_a_rule_an_op_is_forgotten(rule: str) -> None:
    disaster = search(model(NEEDED.get(rule, Bounds()), frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")
