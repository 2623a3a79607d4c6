"""Counters become rates; a counter that Redis has forgotten begins anew and never gives a rate below zero."""

from __future__ import annotations

import pytest

from pipeline.admin.observe.readings import SPAN_S, Window, batch_of, counters_of, tables_of, with_reads
from pipeline.admin.observe.record import BatchRecord, NodeRecord, ReadCount, TableRecord
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.shared_state import BOUNDS_MS, bound_of, quantile


def window(*readings: dict[str, int]) -> Window:
    made = Window()
    for n, counts in enumerate(readings):
        made.add(2.0 * n, counts)
    return made


def test_before_the_second_reading_no_rate_is_known():
    assert batch_of(window({"batches": 5})) is None
    assert with_reads([NodeRecord("s0")], window({"s0": 5})) == [NodeRecord("s0")]
    assert tables_of(window({}), {"applied insert event": 5}, ()) == (TableRecord("event", None, 0, None),)


def test_a_rate_is_what_came_in_the_last_seconds():
    each = {"batches": 10, "applied insert a": 40, "batch_ms 5": 10}

    made = window(*({name: n * by for name, by in each.items()} for n in range(50)))

    assert made.span_s == SPAN_S
    assert batch_of(made) == BatchRecord(5.0, 4.0, 5.0, 5.0)


def test_a_counter_that_was_forgotten_begins_anew():
    assert window({"batches": 900}, {"batches": 6}).grown() == {"batches": 6}


def test_the_hottest_tables_come_first_and_before_them_what_is_stopped():
    counts = {"applied insert cold": 2, "applied update hot": 80, "applied insert hot": 20, "rejected bad": 7}
    halted = WaitReason("breaker", "s0", "bad", "Duplicate entry")

    found = tables_of(window({}, counts), counts, [halted])

    assert found == (
        TableRecord("bad", 0.0, 7, halted.sentence()),
        TableRecord("hot", 50.0, 0, None),
        TableRecord("cold", 1.0, 0, None),
    )


def test_a_share_is_of_the_reads_of_the_shard_and_refused_ones_do_not_count():
    reads = [ReadCount("s0", "primary", "own", 10), ReadCount("s0-r0", "replica", "fresh", 30)]
    reads += [ReadCount("s0", "error", "x", 9)]

    found = with_reads([NodeRecord("s0"), NodeRecord("s0-r0")], window({}, counters_of(reads)))

    assert [(one.reads_per_s, one.reads_share) for one in found] == [(5.0, 0.25), (15.0, 0.75)]
    [unread] = with_reads([NodeRecord("s1")], window({}, counters_of(reads)))
    assert (unread.reads_per_s, unread.reads_share) == (0.0, None)


@pytest.mark.parametrize(("ms", "bound"), [(0, "1"), (1, "1"), (1.5, "2"), (5000, "5000"), (5001, "inf")])
def test_a_bound_is_not_passed(ms: float, bound: str):
    assert bound_of(ms, BOUNDS_MS) == bound


def test_a_quantile_is_the_bound_that_holds_for_so_many():
    counted = {"5": 50, "100": 45, "inf": 5}

    assert [quantile(counted, share) for share in (0.5, 0.51, 0.95, 0.96)] == [5, 100, 100, float("inf")]
    assert quantile({}, 0.5) is None
