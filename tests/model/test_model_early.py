"""Every run of the model of ops that need ops of other buckets: clean, and a disaster without any rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice, product

import pytest
from model.early import model as model_of
from model.early_values import NEVER, RULES, STOPPED, Bounds, Call, Op, of_two_hosts, programs, sent_again
from model.search import search
from support.chance import SOAK, chance
from support.examples import THOROUGH

#: Ops, and the order in which they come into the logs.
Program = tuple[tuple[Op, ...], tuple[int, ...]]


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
#: The same, where what the delete reaches does not name its row.
SPOOLED_GRANDCHILD = (
    (Op(1, 1), Op(1, 3), Op(0, 5, needs=1), Op(2, 7, needs=2), Op(1, 9, deletes=0)),
    in_logs(0, 4, 1, 2, 3),
)
#: The same, where also a child of the row that is deleted stands behind that child: it names the row.
SPOOLED_BEHIND_A_DELETE_THAT_WAITS = (
    (Op(1, 1), Op(1, 3), Op(0, 5, needs=1), Op(0, 7, needs=0), Op(1, 9, deletes=0)),
    in_logs(0, 4, 1, 2, 3),
)
#: A parent behind another host's op, its child before the delete.
SPOOLED_PARENT = (Op(0, 1), Op(1, 3, needs=0), Op(0, 5)), in_logs(2, 0, 1)
#: The same, and another op behind the child.
PUT_OFF_FOR_EVER = (Op(2, 1), Op(0, 3, needs=0), Op(0, 5), Op(2, 9, needs=0)), in_logs(3, 0, 1, 2)
#: What another host knows of a row that is in a spool comes before that in its bucket.
BEFORE_ITS_PARENT = (Op(0, 1), Op(1, 3, needs=0), Op(0, 5, needs=0)), in_logs(2, 0, 1)
#: A child behind a younger op in its bucket; the delete of its parent was enqueued after it.
CHILD_BEHIND_ANOTHER = (Op(1, 1), Op(0, 3, needs=0), Op(1, 5, deletes=0), Op(0, 7)), in_logs(0, 3, 1, 2)
#: A family with its delete, behind another host's op.
FAMILY_BEHIND_ANOTHER = (Op(0, 1), Op(1, 3, needs=0), Op(0, 5, deletes=0), Op(0, 7)), in_logs(3, 0, 1, 2)
#: An op that a younger delete would help, before the parent of an op whose host has a clock that is behind.
HELPED_BEFORE_A_PARENT = (Op(1, 0), Op(0, 2, needs=4), Op(0, 2), Op(1, 1, needs=2), Op(1, 7, deletes=0))
#: An op that is bad stands before a family that comes from a spool; what was enqueued last needs the youngest of it.
BAD_BEFORE_A_FAMILY = (
    (Op(2, 1), Op(2, 3, needs=0), Op(1, 5, needs=1), Op(2, 7, NEVER), Op(2, 9, needs=2)),
    in_logs(3, 0, 1, 2, 4),
)
#: Two deletes, before each what was sent again of the other's bucket. Grandchildren name none of their rows.
SENT_AGAIN = (
    (Op(0, 1), Op(1, 2), Op(2, 3, needs=0), Op(2, 4, needs=2), Op(0, 5, deletes=0), Op(1, 6, deletes=1)),
    in_logs(0, 1, 2, 3, 4, 5, 0, 1),
)
#: A delete before the older row of another that it does not reach; and a value that is freed behind who wants it.
DELETES_BEFORE_OLDER = (Op(0, 1), Op(1, 3, needs=2), Op(0, 5, deletes=0)), in_logs(1, 2, 0)
FREED_LATE = (Op(0, 1), Op(0, 3, deletes=0), Op(0, 5, needs=1)), in_logs(0, 2, 1)
#: Two calls, each with a parent in one bucket and its child in another; the parents' logs lack what was sent before.
HOLES = (
    (Op(0, 1), Op(1, 2, needs=0), Op(1, 3), Op(0, 4, needs=2)),
    (Call((0, 1), hole=0), Call((2, 3), hole=1)),
)
#: What refers to a row that never comes, before a parent; its child is before a parent, whose child is before an older
#: op, which comes from another host's spool.
IN_A_CIRCLE = (
    (Op(2, 1), Op(0, 3, NEVER), Op(0, 5), Op(1, 7, needs=2), Op(1, 9), Op(2, 11, needs=4)),
    in_logs(1, 2, 3, 4, 5, 0),
)
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
#: What helps an op is enqueued after it: what follows it may come too late.
HELPED_BY_A_LATER_OP = (Op(0, 1, needs=3), Op(0, 3), Op(1, 5, needs=1), Op(0, 7)), in_logs(0, 3, 1, 2)
#: A row's child is deleted before it; the child's delete is still in a spool.
CHILDS_DELETE_SPOOLED = (Op(0, 1), Op(1, 3, needs=0), Op(1, 5, deletes=1), Op(0, 7, deletes=0)), in_logs(0, 3, 1, 2)
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
    Bounds(PARENT_DELETED, steps=2),
    Bounds(BOTH_DELETED, steps=1),
    Bounds(PARENT_DELETED, workers=1, whole=True),
    Bounds(BOTH_DELETED, cascade=False),
    Bounds(BOTH_DELETED, queued=True, workers=3, cascade=False),
    Bounds(TWO_DELETED, queued=True),
    Bounds(DELETES_BEHIND_A_STOP),
    Bounds(DELETED_AT_ONCE, deaths=1),
    Bounds(FREED_AFTERWARDS, deaths=1),
    Bounds(*SPOOLED_BEHIND_A_DELETE, deaths=1),
    Bounds(*SPOOLED_BEHIND_A_DELETE, queued=True, workers=3),
    Bounds(*SPOOLED_GRANDCHILD, workers=1, together=True),
    Bounds(*SPOOLED_BEHIND_A_DELETE_THAT_WAITS, workers=1, together=True),
    Bounds(*SPOOLED_BEHIND_A_DELETE_THAT_WAITS, queued=True),
    Bounds(*SPOOLED_PARENT, deaths=1, failovers=1),
    Bounds(*BEFORE_ITS_PARENT, workers=1, together=True, deaths=1),
    Bounds(*FREED_LATE, deaths=1),
    Bounds(*PUT_OFF_FOR_EVER, workers=1, together=True),
    Bounds(*CHILD_BEHIND_ANOTHER, workers=1, together=True, cascade=False),
    Bounds(*CHILD_BEHIND_ANOTHER, workers=1, together=True, room=1, prompt=True),
    Bounds(*FAMILY_BEHIND_ANOTHER, deaths=1),
    Bounds(*BAD_BEFORE_A_FAMILY, workers=1, together=True, queued=True),
    Bounds(*SENT_AGAIN, workers=1, together=True, room=1, prompt=True),
    Bounds(*HOLES, workers=1, together=True, deaths=1),
    Bounds(HELPED_BEFORE_A_PARENT, workers=1, together=True, queued=True, prompt=True),
    Bounds(*IN_A_CIRCLE, workers=1, together=True, room=1, related=True, prompt=True),
    Bounds(FAMILY, related=True, deaths=1, failovers=1),
    Bounds(CROSSED, related=True, queued=True),
    Bounds(SKEWED_CHAIN, related=True, queued=True, workers=3),
    Bounds(PARENT_DELETED, related=True, deaths=1),
    Bounds(*SPOOLED_BEHIND_A_DELETE_THAT_WAITS, related=True, queued=True),
    *(Bounds(ops, workers=1, together=True) for ops in TOGETHER),
    *(Bounds(ops, workers=1, together=True, related=True) for ops in TOGETHER),
    REFERENCE,
)
#: What `docs/notes/20-early-ops.md` names as given up.
GIVEN_UP = (
    Bounds(DELETED_SKEWED),
    Bounds(*HELPED_BY_A_LATER_OP, workers=1, together=True),
    Bounds(*CHILDS_DELETE_SPOOLED, workers=1, together=True, cascade=False),
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
    "deep": Bounds(*SPOOLED_PARENT, workers=1, together=True),
    "seen": Bounds(*SENT_AGAIN, workers=1, together=True, room=1, prompt=True),
    "spent": Bounds(*PUT_OFF_FOR_EVER, workers=1, together=True),
    "settled": Bounds(HELPED_BEFORE_A_PARENT, workers=1, together=True, queued=True, prompt=True),
    "behind too": Bounds(*PUT_OFF_FOR_EVER, workers=1, together=True),
    "deletes last": Bounds(*CHILD_BEHIND_ANOTHER, workers=1, together=True, cascade=False),
    "parents first": Bounds(*FAMILY_BEHIND_ANOTHER, workers=1, together=True),
    "names": Bounds(*DELETES_BEFORE_OLDER, workers=1, together=True, queued=True, prompt=True),
    "marked": Bounds(FAMILY, failovers=1),
    "rests end": Bounds(PARENT_DELETED, steps=1),
    "gone back": Bounds(*SPOOLED_PARENT, workers=1, together=True, failovers=1),
    "held whole": Bounds(*HOLES, workers=1, together=True),
    "clocks": Bounds(SKEWED),
    "a second": Bounds(BOTH_BAD, buckets=1),
    "at most": Bounds(BEHIND_A_STOP),
    "bucket ends": Bounds(FOLLOWED),
    "filled up": Bounds(*CHILD_BEHIND_ANOTHER, workers=1, together=True, room=1, prompt=True),
    "deletes wait": Bounds(PARENT_DELETED),
    "deletes first": Bounds(*SPOOLED_BEHIND_A_DELETE_THAT_WAITS, workers=1, together=True),
    "helpers": Bounds(*IN_A_CIRCLE, workers=1, together=True, room=1, related=True, prompt=True),
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
    """Whatever 3 ops need and delete, and some of what 4 ops of two hosts do; what is rejected is judged below."""
    of_four = some(((ops, order) for ops in programs(4) for order in of_two_hosts(4)), 200 if THOROUGH else 2_000)
    of_three = ((ops, (0, 1, 2)) for ops in programs(3))

    assert sum(judged(ops, order, queued=(True,), kept=False) for ops, order in chain(of_three, of_four)) > 200


def test_whatever_two_hosts_enqueue_and_spool_no_op_is_rejected_that_follows_what_it_needs() -> None:
    """All programs of 3 ops in all orders of two hosts; where it is thorough also with an op that is sent again."""
    tried = 0
    for ops in programs(3):
        for order in of_two_hosts(3):
            tried += judged(ops, order)
            tried += judged(ops, order, queued=(False,), related=True)
            for sent in sent_again(order) if THOROUGH else ():
                tried += judged(ops, sent, cascades=(True,), queued=(True,))

    assert tried > 2_000


def test_nor_is_one_of_four_that_needs_nothing_which_comes_later() -> None:
    """Some programs of 4 ops."""
    in_turn = ((ops, order) for ops in programs(4) for order in of_two_hosts(4) if is_in_turn(ops, order))
    tried = [*some(in_turn, 16 if THOROUGH else 80)]

    assert sum(judged(ops, order, related=related) for ops, order in tried for related in (False, True)) > 200


def some(every: Iterable[Program], part: int) -> Iterator[Program]:
    """Yield one of so many programs; all with `PIPELINE_SOAK=1000`."""
    part = max(1, part // SOAK)
    return islice(every, chance("of four").randrange(part), None, part)


def is_in_turn(ops: tuple[Op, ...], order: tuple[int, ...]) -> bool:
    """Return whether all that an op needs comes before it, and the deletes of a row's children before that of the row.

    What else a program may be is given up, see `GIVEN_UP`.
    """

    def needed(n: int, op: Op) -> list[int]:
        own = [] if op.needs is None else [op.needs]
        deletes = [m for m, other in enumerate(ops) if other.deletes is not None]
        return own + [m for m in deletes if op.deletes is not None and ops[ops[m].deletes or 0].needs == op.deletes]

    return all(m < n and order.index(m) < order.index(n) for n, op in enumerate(ops) for m in needed(n, op))


def judged(
    ops: tuple[Op, ...],
    order: tuple[int, ...],
    cascades: tuple[bool, ...] = (True, False),
    queued: tuple[bool, ...] = (True, False),
    *,
    kept: bool = True,
    related: bool = False,
) -> int:
    """Assert that a program ends, and that it is clean if all *kept* is to be asked for; return in how many ways."""
    ways = [*product(cascades if any(op.deletes is not None for op in ops) else (True,), queued)]
    for cascade, at_once in ways:
        how = {"cascade": cascade, "queued": at_once, "related": related}
        bounds = Bounds(ops, in_logs(*order), workers=1, together=True, **how)
        disaster = search(model_of(bounds)).disaster
        assert disaster is None or not (kept or "never ends" in disaster.why), f"{bounds}:\n{disaster}"
    return len(ways)


@pytest.mark.parametrize("bounds", GIVEN_UP, ids=str)
def test_what_is_given_up_may_be_rejected(bounds: Bounds) -> None:
    """What `docs/notes/20-early-ops.md` names as given up."""
    disaster = search(model_of(bounds)).disaster

    assert disaster is not None
    assert "is rejected" in disaster.why
