"""Every run of the model of a shard key that has a shard of its own: clean, and a disaster without any rule."""

from __future__ import annotations

import pytest
from model.keys import model
from model.keys_values import BOTH, KEY, KEY_ID, OTHER, OTHER_ID, RULES, Bounds, Op
from model.search import search
from support.examples import THOROUGH

K, K_ID, OTHERS, OTHERS_ID = Op(KEY), Op(KEY_ID), Op(OTHER), Op(OTHER_ID)
REFUSABLE, REFUSABLE_ID, GROUP = Op(KEY, refusable=True), Op(KEY_ID, refusable=True), Op(BOTH, refusable=True)

CLEAN = (
    Bounds((REFUSABLE, K_ID, OTHERS_ID), backs=1),
    Bounds((K, REFUSABLE_ID), failovers=1, backs=1),
    Bounds((K, OTHERS), late=1, given_up=1),
    Bounds((K, K_ID), late=1, backs=1),
    Bounds((K, K_ID), again=1, failovers=1),
    Bounds((K, K_ID, OTHERS), forgets=1),
    Bounds((K, K_ID), trims=1, backs=1),
    Bounds((REFUSABLE,), slow=1, failovers=1, backs=1),
    Bounds((GROUP, K), backs=1),
    Bounds((GROUP, K), given_up=1),
    Bounds((K,), failovers=1, reads=1),
    Bounds((), failovers=2, late=1, given_up=1, backs=1),
)
THOROUGHLY_CLEAN = (
    Bounds((K, K_ID), forgets=1, backs=1),
    Bounds((REFUSABLE, K_ID), failovers=1, late=1, backs=1),
    Bounds((K, GROUP), failovers=1, backs=1),
    Bounds((K_ID,), backs=1, reads=1),
)
#: What shows the need of each rule.
NEEDED = {
    "both read": Bounds((K_ID,)),
    "own rows": Bounds((K, K_ID), backs=1),
    "state locked": Bounds((REFUSABLE,), slow=1),
    "all count": Bounds((K, OTHERS)),
    "producers along": Bounds((K, K), again=1),
    "bucket waits": Bounds((K,), given_up=1),
    "stopped replicated": Bounds((), failovers=1),
    "begun replicated": Bounds((), failovers=1),
    "exactly level": Bounds((K,)),
    "both stop": Bounds((K,), backs=1),
    "level replicated": Bounds((K,), failovers=2, late=1, backs=1),
    "sequences level": Bounds((K, K_ID), forgets=1, backs=1),
    "merged replicated": Bounds((), failovers=1, backs=1),
    "parted replicated": Bounds((), failovers=1, backs=1),
    "aside parts": Bounds((REFUSABLE, K_ID)),
    "receipt both": Bounds((K_ID,)),
    "trim both": Bounds((K,), trims=1),
    "piece counts": Bounds((K, K_ID), again=1, forgets=1),
    "resend both": Bounds((K,), forgets=1),
    "groups refused": Bounds((GROUP,)),
    "groups held": Bounds((GROUP,)),
    "same move": Bounds((), late=1, given_up=1),
    "given up everywhere": Bounds((), failovers=1, late=1, given_up=1),
    "given up for good": Bounds((), failovers=2, late=1, given_up=1, backs=1),
    "one row": Bounds((), failovers=2, late=1, given_up=2, backs=1),
    "clean fenced": Bounds((K,), late=1, backs=1),
    "read both": Bounds((K_ID,), reads=1),
    "rows of owner": Bounds((K,), reads=1),
    "states behind": Bounds((K,), reads=1),
    "moves behind": Bounds((K,), backs=1, reads=1),
    "token of both": Bounds((K_ID,), reads=1),
}


@pytest.mark.parametrize("bounds", CLEAN + (THOROUGHLY_CLEAN if THOROUGH else ()), ids=str)
def test_with_all_rules_a_keys_ops_are_applied_once_and_in_order_and_read_once(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(NEEDED[rule], frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")
