"""Every run of the model of a shard key that gets a bucket of its own: clean, and a disaster without any rule."""

from __future__ import annotations

import pytest
from model.keys import KEY, KEY_ID, OTHER_ID, RULES, Bounds, model
from model.search import search

MIXED = (KEY, KEY_ID, OTHER_ID, KEY)
#: What shows the need of a rule, where more than two ops by the key have to happen.
NEEDED = {
    "held along": Bounds(refusals=1),
    "asked first": Bounds(doubts=1),
    "by id to both": Bounds((KEY_ID,)),
    "own rows": Bounds((KEY_ID,)),
}
CLEAN = (
    Bounds((KEY,) * 4, refusals=1),
    Bounds((KEY,) * 3, doubts=2, refusals=1),
    Bounds(MIXED, refusals=1),
    Bounds((KEY_ID, OTHER_ID, KEY), doubts=2, refusals=1),
)


@pytest.mark.parametrize("bounds", CLEAN, ids=str)
def test_with_all_rules_a_keys_ops_are_applied_once_and_in_order(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(NEEDED.get(rule, Bounds()), frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")
