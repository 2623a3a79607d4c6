"""Ops of several buckets are sorted by the time of their calls, and behind what they need."""

from __future__ import annotations

import random

import pytest

from pipeline.apply.grouping import Item
from pipeline.apply.order import by_time
from pipeline.model import DELETE, INSERT, Entry, Op, Position


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
