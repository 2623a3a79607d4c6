"""Every run of the model of a bucket that moves: clean with all rules, a disaster without any one of them."""

from __future__ import annotations

import pytest
from model.moves import model
from model.moves_values import RULES, Bounds, Op
from model.search import search
from support.examples import THOROUGH

REFUSABLE = (Op(refusable=True),)
#: What follows an op that is set aside is parked, if it is of the same row.
PARKING = (Op(refusable=True), Op())
PARKING_BESIDE = (Op(refusable=True), Op(), Op(row=1))
#: Rows of two chunks, of which a mover copies one and dies.
TWO_ROWS = (Op(), Op(row=1))
#: An op that waits for the reference bucket.
EARLY = (Op(needs=True),)

CLEAN = (
    Bounds(REFUSABLE, failovers=1),
    Bounds(PARKING_BESIDE, actions=1),
    Bounds(REFUSABLE, backs=1, forgets=1),
    Bounds(EARLY, failovers=1),
    Bounds(TWO_ROWS, movers=1, forgets=1),
)
THOROUGHLY_CLEAN = (
    Bounds(failovers=1),
    Bounds((Op(),), failovers=1, given_up=1),
    Bounds(REFUSABLE, again=1, failovers=1),
    Bounds(REFUSABLE, failovers=1, movers=1),
    Bounds(TWO_ROWS, failovers=1, movers=1),
    Bounds(TWO_ROWS, movers=2),
    Bounds(REFUSABLE, failovers=1, forgets=1),
    Bounds(REFUSABLE, movers=1, given_up=1, actions=1),
    Bounds(REFUSABLE, failovers=1, actions=1, backs=1),
)
#: What shows the need of each rule.
NEEDED = {
    "watermark replicated": Bounds(REFUSABLE, failovers=1),
    "source stays": Bounds(REFUSABLE, failovers=1),
    "target stays": Bounds(REFUSABLE, failovers=1, movers=1),
    "copying first": Bounds(),
    "touched anew": Bounds(movers=1),
    "log whole": Bounds(movers=1, forgets=1),
    "chunks fenced": Bounds(movers=1),
    "producers along": Bounds(again=1),
    "held along": Bounds(PARKING),
    "follow replicated": Bounds(REFUSABLE, failovers=1),
    "follow outcomes": Bounds(),
    "one epoch": Bounds(forgets=1),
    "parents first": Bounds(EARLY),
    "early waits": Bounds(EARLY),
    "target replicated": Bounds(REFUSABLE, failovers=1),
    "moved replicated": Bounds(REFUSABLE, failovers=1),
    "exactly level": Bounds(),
    "state locked": Bounds(open=True, backs=1),
    "trim both": Bounds(),
    "actions refused": Bounds(REFUSABLE, actions=1),
    "same move": Bounds(REFUSABLE, given_up=1),
    "source gives up": Bounds(REFUSABLE, given_up=1),
    "given up everywhere": Bounds((Op(),), failovers=1, given_up=1),
    "clean replicated": Bounds(REFUSABLE, failovers=1),
    "clean fenced": Bounds(REFUSABLE, backs=1),
    "back replicated": Bounds((Op(),), failovers=1, backs=1),
    "back unbroken": Bounds(REFUSABLE, failovers=1, actions=1, backs=1),
}


@pytest.mark.parametrize("bounds", CLEAN + (THOROUGHLY_CLEAN if THOROUGH else ()), ids=str)
def test_with_all_rules_a_bucket_has_one_owner_and_arrives_complete_once_and_in_order(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(NEEDED[rule], frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")
