"""Every run of the model of a host that goes to its spool and comes back: clean, and a disaster without any rule."""

from __future__ import annotations

import pytest
from model.handover import RULES, TWICE_HELD, Bounds, model
from model.search import search
from support.examples import THOROUGH

CLEAN = (
    Bounds(),
    Bounds(ops=4, away=2),
    Bounds(doubts=2, refusals=1),
    Bounds(deaths=2),
    Bounds(doubts=1, deaths=1, refusals=1),
)
THOROUGHLY_CLEAN = (Bounds(away=2, doubts=2, deaths=1, refusals=1), Bounds(ops=4, away=2, doubts=1, deaths=2))
#: What shows the need of each rule.
NEEDED = {
    "behind": Bounds(),
    "marked when taken in": Bounds(),
    "in order": Bounds(),
    "sent before deleted": Bounds(),
    "number kept": Bounds(doubts=1),
    "sender thrown away": Bounds(doubts=1),
    "again": Bounds(doubts=1, refusals=1),
    "removed in the turn": Bounds(),
    "file looked into": Bounds(deaths=1),
    "removed when sent": Bounds(),
}


@pytest.mark.parametrize("bounds", CLEAN + (THOROUGHLY_CLEAN if THOROUGH else ()), ids=str)
def test_with_all_rules_every_op_arrives_once_in_order_and_the_host_comes_back(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES.keys() - TWICE_HELD))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(NEEDED[rule], frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")


def test_a_number_that_neither_script_nor_shard_has_seen_is_done_twice() -> None:
    disaster = search(model(Bounds(doubts=1), TWICE_HELD)).disaster

    assert disaster is not None
    assert "doubled" in disaster.why
