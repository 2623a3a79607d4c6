"""Every run of the model of a bucket that is ordered from shard to shard: one owner, and no move without an end."""

from __future__ import annotations

import pytest
from model.orders import RULES, model
from model.search import search

ORDERS = 3


def test_with_all_rules_a_bucket_has_one_owner_and_all_its_moves_end() -> None:
    found = search(model(ORDERS))

    assert found.disaster is None
    assert found.states > 50


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(ORDERS, frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")
