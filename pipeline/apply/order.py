"""Order ops of several buckets: which a transaction takes, and which has its turn first. Pure: no I/O.

Of each bucket the order stays; between buckets it is that of the calls, since a row needs rows of other buckets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heappop, heappush
from itertools import accumulate, groupby
from math import inf

from pipeline.apply.grouping import Item
from pipeline.model.op import DELETE, GROUP, INSERT, Entry, Op, enqueued_ms

#: Tells of a delete which ids those name that refer to rows that it reaches.
Reach = Callable[[Op], Collection[int] | None]


def oldest(entries: Mapping[int, Sequence[Entry]], counts: Mapping[int, int], most: int) -> dict[int, list[Entry]]:
    """Return the entries that were enqueued first of all, whatever their buckets.

    Args:
        entries: of each bucket the next ones, in order.
        counts: how many of each bucket were asked for: where that many were found, there may be more.
        most: how many to return; of one bucket's at least the first.
    """
    times = {bucket: list(accumulate(map(sent_ms_of, found), max)) for bucket, found in entries.items()}
    end_ms = min((sent[-1] for bucket, sent in times.items() if len(sent) >= counts[bucket]), default=inf)
    every = sorted(sent_ms for sent in times.values() for sent_ms in sent if sent_ms <= end_ms)
    end_ms = every[min(most, len(every)) - 1] if every else end_ms
    return {bucket: list(found[: bisect_right(times[bucket], end_ms)]) for bucket, found in entries.items()}


def by_time(items: Sequence[Item], reach: Reach = lambda delete: None) -> list[Item]:
    """Order ops of several buckets by the time of their calls, and keep the order within each bucket.

    An op has its turn behind younger ones that stand before it in its bucket. What comes too early is refused, and
    tried again after all else; a delete that came before such an op would take the row away that the op refers to.
    So a delete has its turn after what was enqueued before it and may refer to rows that it reaches, and that after
    its own parents.

    Args:
        items: bucket by bucket, of each in order.
        reach: tells of a delete which ids those name that refer to rows that it reaches; None: there may be others.
    """
    turns = _in_buckets(items)
    order: Sequence[int] = sorted(range(len(items)), key=turns.__getitem__)
    if items and items[0].entry.bucket != items[-1].entry.bucket:
        some = [n for n, item in enumerate(items) if item.op.kind in (DELETE, GROUP)]
        deletes = {n: ids for n in some if (ids := _reached(items[n], reach)) != ()}
        order = _sorted(items, turns, deletes) if deletes else order
    return [items[n] for n in order]


def _in_buckets(items: Sequence[Item]) -> list[float]:
    """Return when each op has its turn, ms: none before the one before it in its bucket, as clocks may be set back."""
    return [ms for _, own in groupby(items, key=_bucket) for ms in accumulate((item.op.at_ms for item in own), max)]


def _reached(item: Item, reach: Reach) -> Collection[int] | None:
    """Return the ids by which others refer to what an op deletes, or reaches with that; None where they may not."""
    found: set[int] = set()
    for op in item.op.members:
        if op.kind == DELETE:
            if (ids := reach(op)) is None:
                return None
            found.update(ids)
    return found or ()


def _after(items: Sequence[Item], deletes: Mapping[int, Collection[int] | None]) -> dict[int, list[int]]:
    """Return what has to come after which ops of other buckets: children after parents, a delete after children."""
    made = {op.id: n for n, item in enumerate(items) for op in item.op.members if op.kind == INSERT and op.id}
    by_id: dict[int, list[int]] = {}
    for n, ids in deletes.items():
        for id in ids or ():
            by_id.setdefault(id, []).append(n)
    found: dict[int, list[int]] = {}
    for n, item in enumerate(items):
        for id in {value for op in item.op.members for value in op.values if type(value) is int}:
            pairs = [(n, made[id])] if id in made else []
            for later, sooner in (*pairs, *((delete, n) for delete in by_id.get(id, ()))):
                first, second = items[sooner], items[later]
                if first.entry.bucket != second.entry.bucket and first.op.at_ms <= second.op.at_ms:
                    found.setdefault(later, []).append(sooner)
    return found


def _sorted(items: Sequence[Item], turns: Sequence[float], deletes: Mapping[int, Collection[int] | None]) -> list[int]:
    """Sort ops by their turns, each behind what it has to come after: Kahn's algorithm, the earliest turn first.

    A delete that may reach any row waits until nothing older is left that could come before it. In a circle, which
    clocks that differ may make, an op goes that is refused and tried again, rather than a delete.
    """
    sooner, open_items = _after(items, deletes), set(range(len(items)))
    for n in range(1, len(items)):
        if items[n - 1].entry.bucket == items[n].entry.bucket:
            sooner.setdefault(n, []).append(n - 1)
    later: dict[int, list[int]] = {}
    for n, others in sooner.items():
        for one in others:
            later.setdefault(one, []).append(n)
    left = {n: len(others) for n, others in sooner.items()}
    by_age = deque(sorted(open_items, key=lambda n: (items[n].op.at_ms, deletes.get(n, ()) is None)))
    free, last = list[tuple[float, int]](), list[tuple[float, int]]()
    found = list[int]()

    def ready(n: int) -> None:
        if deletes.get(n, ()) is None:
            heappush(last, (items[n].op.at_ms, n))
        else:
            heappush(free, (turns[n], n))

    for n in open_items - left.keys():
        ready(n)
    while open_items:
        while by_age[0] not in open_items:
            by_age.popleft()
        if last and (not free or last[0][1] == by_age[0]):
            n = heappop(last)[1]
        elif free:
            n = heappop(free)[1]
        else:
            heads = (n for n in open_items if n - 1 not in open_items or _bucket(items[n - 1]) != _bucket(items[n]))
            n = min(heads, key=lambda n: (n in deletes, turns[n], n))
            left[n] = 0
        open_items.remove(n)
        found.append(n)
        for one in later.get(n, ()):
            left[one] -= 1
            if not left[one]:
                ready(one)
    return found


def _bucket(item: Item) -> int:
    return item.entry.bucket


def sent_ms_of(entry: Entry) -> float:
    """Return when an op was enqueued, ms; of one that this release cannot read, that it was before all others.

    Args:
        entry: of the op.
    """
    return enqueued_ms(entry.payload) or 0.0
