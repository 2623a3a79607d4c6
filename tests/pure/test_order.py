"""Ops of several buckets are sorted by the time of their calls, and behind what they need."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from pipeline.apply.grouping import Item
from pipeline.apply.order import by_time, oldest
from pipeline.model import DELETE, INSERT, Entry, Op, Position
from pipeline.model.sheet import Read, Sheet, SheetEntry, cut_at, singly


def families(luck: random.Random, ops: int, buckets: int) -> list[tuple[int, Op]]:
    """Return what two hosts have spooled, as it arrives: parents, their children, and deletes of both; with buckets."""
    arrived, left, times = list[tuple[int, Op]](), [ops, ops], [luck.uniform(0, 99), luck.uniform(0, 99)]
    steps: list[list[tuple[int, str, int, int]]] = [[], []]
    while any(left):
        n = luck.choice([n for n in range(2) if left[n]])
        for _ in range(min(left[n], luck.randint(1, 40))):
            left[n], times[n] = left[n] - 1, times[n] + luck.uniform(0, 9)
            if not steps[n]:
                (own, other), row = luck.choices(range(buckets), k=2), 2**50 + 2 * (ops * n + left[n])
                steps[n] = [(own, INSERT, row, 0), (other, INSERT, row + 1, row), (own, DELETE, row, 0)]
            bucket, kind, row, up = steps[n].pop(0)
            arrived.append((bucket, Op(kind, "t", "h", times[n], row, (1,), (up,) if up else ())))
    return arrived


@pytest.mark.parametrize("seed", range(20))
def test_whatever_hosts_have_sent_children_come_after_parents_and_deletes_after_children(seed: int) -> None:
    arrived = families(random.Random(seed), 200, 4)
    items = [
        Item(Entry(bucket, Position(1, n), 1, n, b""), op)
        for bucket in range(4)
        for n, op in enumerate(op for own, op in arrived if own == bucket)
    ]

    order = by_time(items, lambda delete: (delete.id or 0,))

    there: set[int | None] = set()
    for item in order:
        parents = [value for value in item.op.values if isinstance(value, int)]
        if item.op.kind == INSERT:
            assert there.issuperset(parents)
            there.add(item.op.id)
        else:
            assert (item.op.id or 0) + 1 in there
    for bucket in range(4):
        own = [item.entry.position for item in order if item.entry.bucket == bucket]
        assert own == sorted(own)
    assert len(order) == len(items)


def test_where_ops_wait_for_each_other_in_a_circle_the_delete_comes_last() -> None:
    """As clocks that differ may make it: each bucket has first what needs the other's second."""
    ops = [
        (0, Op(DELETE, "t", "h", 4.0, 8)),
        (0, Op(INSERT, "t", "h", 1.0, 6)),
        (1, Op(INSERT, "t", "h", 6.0, 7, (1,), (6,))),
        (1, Op(INSERT, "t", "h", 3.0, 9, (1,), (8,))),
    ]
    items = [Item(Entry(bucket, Position(1, n), 1, n, b""), op) for n, (bucket, op) in enumerate(ops)]

    order = by_time(items, lambda delete: (delete.id or 0,))

    assert [item.op.id for item in order] == [7, 9, 8, 6]


def sheet(bucket: int, first: int, rows: int, at_ms: float) -> SheetEntry:
    """Return a sheet of some rows, whose ids are their positions."""
    ids = range(first, first + rows)
    return SheetEntry(bucket, Position(1, first), 2, 10 + first, Sheet("t", "h", at_ms, ids, (1,), [list(ids)]))


def places(entries: Iterable[Read]) -> list[tuple[int, int]]:
    """Return the bucket and the row of each op."""
    return [(entry.bucket, entry.position.seq) for entry in singly(entries)]


def test_a_sheet_is_cut_where_a_bucket_has_to_end_or_has_come_to() -> None:
    entries = [sheet(3, 0, 4, 1.0), sheet(3, 4, 4, 2.0)]

    for seq in range(8):
        before, behind = cut_at(Position(1, seq), entries)[0], cut_at(Position(1, seq + 1), entries)[1]
        assert places(before) == [(3, row) for row in range(seq)]
        assert places(behind) == [(3, row) for row in range(seq + 1, 8)]
        assert [entry.producer_seq - 10 for entry in singly(behind)] == [row for _, row in places(behind)]
    assert cut_at(Position(2, 0), entries) == (entries, [])
    assert cut_at(Position(0, 10), entries) == ([], entries)


@pytest.mark.parametrize(("most", "until"), [(1, 1.0), (9, 1.0), (10, 2.0), (18, 2.0), (19, 3.0), (99, 3.0)])
def test_the_oldest_ops_of_all_are_taken_with_all_of_their_call(most: int, until: float) -> None:
    calls = {
        1: [sheet(1, 0, 5, 1.0), sheet(1, 5, 5, 2.0), sheet(1, 10, 1, 3.0)],
        2: [sheet(2, 0, 4, 1.0), sheet(2, 4, 4, 2.0)],
    }

    found = oldest(calls, {1: 99, 2: 99}, most)

    assert found == {b: [one for one in own if one.sheet.at_ms <= until] for b, own in calls.items()}


def test_what_may_be_behind_what_was_read_is_younger() -> None:
    calls = {1: [sheet(1, 0, 5, 1.0)], 2: [sheet(2, 0, 4, 1.0), sheet(2, 4, 4, 2.0)]}

    assert oldest(calls, {1: 5, 2: 99}, 99) == {1: calls[1], 2: calls[2][:1]}
