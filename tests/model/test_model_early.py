"""Every run of the model of ops that need ops of other buckets: clean, and a disaster without any rule."""

from __future__ import annotations

import pytest
from model.early import model as model_of
from model.early_values import NEVER, RULES, STOPPED, Bounds, Call, Op, programs
from model.search import search
from support.examples import THOROUGH


def in_logs(*order: int | tuple[int, ...]) -> tuple[Call, ...]:
    """Return calls of these ops, in the order of the logs."""
    return tuple(Call((one,) if isinstance(one, int) else one) for one in order)


FAMILY = (Op(1, 1), Op(0, 3, needs=0), Op(1, 5, needs=1))
FOLLOWED = (Op(1, 1), Op(0, 3, needs=0), Op(0, 5))
CROSSED = (Op(0, 1), Op(1, 3), Op(0, 5, needs=1), Op(1, 7, needs=0))
#: What another host enqueues after it has seen the parent carries an earlier time.
SKEWED = (Op(1, 2), Op(0, 1, needs=0))
SKEWED_CHAIN = (Op(0, 2), Op(1, 3, needs=0), Op(2, 2, needs=1))
BOTH_BAD = (Op(0, 1, NEVER), Op(1, 1, NEVER), Op(0, 2), Op(1, 2))
BAD = (Op(0, 1, NEVER), Op(0, 2), Op(1, 3))
PARENT_AFTERWARDS = (Op(0, 1, needs=1), Op(1, 2), Op(0, 3))
BEHIND_A_STOP = (Op(0, 1, STOPPED), Op(0, 2), Op(1, 3, needs=1), Op(1, 4))
#: A child, and a delete of its parent that is enqueued afterwards; the same where the child is deleted first.
PARENT_DELETED = (Op(0, 1), Op(1, 3, needs=0), Op(0, 5, deletes=0))
BOTH_DELETED = (Op(0, 1), Op(1, 3, needs=0), Op(1, 5, deletes=1), Op(0, 7, deletes=0))
TWO_DELETED = (Op(0, 1), Op(1, 3), Op(0, 5, needs=1), Op(1, 7, deletes=1), Op(0, 9, deletes=0))
DELETES_BEHIND_A_STOP = (Op(0, 1, STOPPED), Op(1, 2), Op(1, 3, deletes=1))
DELETED_AT_ONCE = (Op(0, 1), Op(1, 1), Op(0, 3, deletes=0), Op(1, 3, deletes=1))
#: What a host has spooled stands behind younger ops: a parent behind the delete of another, which waits for its child.
SPOOLED_BEHIND_A_DELETE = (Op(1, 1), Op(1, 3), Op(0, 5, needs=1), Op(1, 9, deletes=0)), in_logs(0, 3, 1, 2)
#: The parent's host has a clock that is behind.
DELETED_SKEWED = (Op(0, 1), Op(1, 4, needs=0), Op(0, 3, deletes=0))
#: A value that is taken: an op that wants it, and the delete that frees it afterwards, which waits for older ops.
FREED_AFTERWARDS = (Op(1, 1), Op(0, 2, needs=2), Op(1, 4, deletes=0))
#: The same, and another op between them: a delete that waits, too.
TWO_FREED_AFTERWARDS = (
    Op(1, 1),
    Op(2, 1),
    Op(0, 2, needs=3),
    Op(1, 4, deletes=0),
    Op(2, 3, needs=5),
    Op(0, 5, deletes=1),
)
#: Three hosts, each with a clock behind that of the one before.
SKEWED_GRANDCHILD = (Op(0, 2), Op(1, 1.5, needs=0), Op(2, 1, needs=1))
#: Bucket 2 is the reference bucket: both shards apply it.
REFERENCE = Bounds((Op(2, 1), Op(0, 3, needs=0), Op(1, 3, needs=0)), shards=(frozenset({0, 2}), frozenset({1, 2})))

TOGETHER = (
    FAMILY,
    FOLLOWED,
    CROSSED,
    SKEWED,
    SKEWED_CHAIN,
    SKEWED_GRANDCHILD,
    BOTH_BAD,
    BAD,
    PARENT_AFTERWARDS,
    BEHIND_A_STOP,
    PARENT_DELETED,
    BOTH_DELETED,
    TWO_DELETED,
    DELETES_BEHIND_A_STOP,
    DELETED_AT_ONCE,
    FREED_AFTERWARDS,
    TWO_FREED_AFTERWARDS,
)
CLEAN = (
    Bounds(FAMILY),
    Bounds(FAMILY, deaths=2),
    Bounds(FAMILY, failovers=1),
    Bounds(FAMILY, workers=3, queued=True),
    Bounds(FAMILY, workers=1, whole=True),
    Bounds(FOLLOWED, deaths=1, failovers=1),
    Bounds(CROSSED, queued=True),
    Bounds(SKEWED, deaths=1, failovers=1),
    Bounds(SKEWED_CHAIN, queued=True, workers=3),
    Bounds(BOTH_BAD, deaths=1, queued=True),
    Bounds(BOTH_BAD, buckets=1),
    Bounds(BAD, deaths=1),
    Bounds(PARENT_AFTERWARDS),
    Bounds(BEHIND_A_STOP, deaths=1),
    Bounds(PARENT_DELETED, deaths=1),
    Bounds(PARENT_DELETED, failovers=1),
    Bounds(PARENT_DELETED, workers=1, whole=True),
    Bounds(BOTH_DELETED, cascade=False),
    Bounds(BOTH_DELETED, queued=True, workers=3, cascade=False),
    Bounds(TWO_DELETED, queued=True),
    Bounds(DELETES_BEHIND_A_STOP),
    Bounds(DELETED_AT_ONCE, deaths=1),
    Bounds(FREED_AFTERWARDS, deaths=1),
    Bounds(*SPOOLED_BEHIND_A_DELETE, deaths=1),
    Bounds(*SPOOLED_BEHIND_A_DELETE, queued=True, workers=3),
    *(Bounds(ops, workers=1, together=True) for ops in TOGETHER),
    REFERENCE,
)
THOROUGHLY_CLEAN = (
    Bounds(CROSSED, workers=3),
    Bounds(CROSSED, deaths=1, failovers=1),
    Bounds(SKEWED_CHAIN, workers=3, failovers=1),
    Bounds(BOTH_BAD, workers=3, deaths=1),
)
#: What shows the need of each rule.
NEEDED = {
    "by time": Bounds(FAMILY, workers=1, whole=True),
    "waits": Bounds(FAMILY),
    "every bucket": Bounds(FAMILY),
    "the log": Bounds(FAMILY, failovers=1),
    "own watermark": REFERENCE,
    "tried again": Bounds(FAMILY),
    "one chance": Bounds(FREED_AFTERWARDS, workers=1, together=True),
    "committed": Bounds(SKEWED, workers=1, together=True, deaths=1),
    "clocks": Bounds(SKEWED),
    "a second": Bounds(BOTH_BAD, buckets=1),
    "at most": Bounds(BEHIND_A_STOP),
    "bucket ends": Bounds(FOLLOWED),
    "deletes wait": Bounds(PARENT_DELETED),
    "deletes first": Bounds(*SPOOLED_BEHIND_A_DELETE),
    "moves": Bounds(FAMILY),
}


@pytest.mark.parametrize("bounds", CLEAN + (THOROUGHLY_CLEAN if THOROUGH else ()), ids=str)
def test_with_all_rules_no_op_is_rejected_that_follows_what_it_needs_and_every_run_ends(bounds: Bounds) -> None:
    assert search(model_of(bounds)).disaster is None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_a_rule_there_is_a_disaster(rule: str) -> None:
    disaster = search(model_of(NEEDED[rule], frozenset({rule}))).disaster

    assert disaster is not None, f"nothing goes wrong without: {RULES[rule]}"
    print(f"without “{RULES[rule]}”:\n{disaster}")


def test_no_ops_of_a_few_wait_for_each_other_for_ever() -> None:
    """Whatever 3 ops need and delete (4, where it is thorough); what is rejected is judged above."""
    ended = 0
    for ops in programs(4 if THOROUGH else 3):
        for cascade in (True, False):
            disaster = search(model_of(Bounds(ops, workers=1, together=True, queued=True, cascade=cascade))).disaster
            assert disaster is None or "never ends" not in disaster.why, f"{ops}:\n{disaster}"
            ended += 1

    assert ended > 500


def test_where_clocks_differ_a_child_may_be_rejected_behind_the_delete_of_its_parent() -> None:
    """What `docs/notes/20-early-ops.md` names as given up."""
    assert search(model_of(Bounds(DELETED_SKEWED))).disaster is not None
