"""Every run of the model of a log that forgets: clean with all rules, a disaster without any one of them."""

from __future__ import annotations

import pytest
from model.forgetting import model
from model.forgetting_values import RULES, TWICE_HELD, Bounds
from model.search import search
from support.examples import THOROUGH

SPOOLED = "spooled"
#: What may happen in one run, and how large the proof is where it takes long.
CLEAN = (
    Bounds(doubts=2),
    Bounds(failovers=1, databases=1),
    Bounds(failovers=1, deleted=1),
    Bounds(failovers=2),
    Bounds(deleted=1, databases=1),
    Bounds(deleted=1, crashes=1),
    Bounds(deleted=1, hashes=1, doubts=1),
    Bounds(cut=1, databases=1),
    Bounds(hashes=1, databases=1),
    Bounds(workers=2, databases=1, crashes=1),
    Bounds(SPOOLED, doubts=2),
    Bounds(SPOOLED, failovers=1),
    Bounds(SPOOLED, deleted=1, databases=1),
    Bounds(SPOOLED, cut=1, databases=1),
    Bounds(SPOOLED, deleted=1, hashes=1),
)
THOROUGHLY_CLEAN = (
    Bounds(failovers=1, hashes=1, doubts=1),
    Bounds(failovers=1, cut=1),
    Bounds(ops=3, deleted=1, databases=1),
    Bounds(workers=2, failovers=1, databases=1),
    Bounds(deleted=1, databases=1, crashes=1),
    Bounds(cut=1, databases=1, doubts=1),
    Bounds(hashes=1, databases=1, doubts=1),
    Bounds(SPOOLED, deleted=1, databases=1, doubts=1),
    Bounds(SPOOLED, failovers=1, deleted=1),
    Bounds(SPOOLED, failovers=1, hashes=1),
    Bounds(SPOOLED, ops=3, failovers=1),
)
#: What shows the need of each rule.
NEEDED = {
    "new epoch": Bounds(failovers=1),
    "epoch once": Bounds(failovers=2),
    "mark": Bounds(deleted=1),
    "mark has the position": Bounds(cut=1),
    "watermark ahead": Bounds(deleted=1),
    "seen": Bounds(SPOOLED, failovers=1),
    "row lock": Bounds(workers=2),
    "sent anew": Bounds(SPOOLED, deleted=1),
    "resend all": Bounds(SPOOLED, failovers=1),
    "keep": Bounds(SPOOLED, failovers=1, databases=1),
    "trim": Bounds(databases=1),
    "reconcile": Bounds(databases=1),
    "memory outlives its sender": Bounds(deleted=1, doubts=1),
    "remember until replicated": Bounds(deleted=1, databases=1),
    "look": Bounds(failovers=1),
    "judge under the lock": Bounds(failovers=1),
    "judge after the entries": Bounds(SPOOLED, hashes=1),
    "judge by the database": Bounds(deleted=1),
    "verdict moves the sequence": Bounds(failovers=1, deleted=1),
    "new sender": Bounds(deleted=1),
}


#: With all rules nothing may go wrong where the lack of one shows.
SEARCHED = dict.fromkeys((*CLEAN, *NEEDED.values(), *(THOROUGHLY_CLEAN if THOROUGH else ())))


@pytest.mark.parametrize("bounds", SEARCHED, ids=str)
def test_with_all_rules_every_run_ends_complete_once_in_order_and_with_true_verdicts(bounds: Bounds) -> None:
    assert search(model(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES.keys() - TWICE_HELD))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model(NEEDED[rule], frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")


def test_a_verdict_outlives_any_two_of_three_faults_but_not_all_three() -> None:
    """The limit that docs/reliability.md names: the verdict was not replicated, and the lost entry comes back."""
    two = Bounds(failovers=1, deleted=1), Bounds(failovers=1, databases=1), Bounds(deleted=1, databases=1)
    assert all(bounds in SEARCHED for bounds in two)

    disaster = search(model(Bounds(failovers=1, deleted=1, databases=1))).disaster

    assert disaster is not None
    assert "told lost, and is applied" in disaster.why
