"""Order ops of several buckets: which a transaction takes, and which has its turn first. Pure: no I/O.

Of each bucket the order stays; between buckets it is that of the calls, since a row needs rows of other buckets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate, groupby
from math import inf

from pipeline.apply.grouping import Item
from pipeline.model.op import DELETE, GROUP, INSERT, Entry, Op, enqueued_ms

#: When an op has its turn, ms; and its rank among those of one time.
_Turn = tuple[float, int]
#: Tells of a delete which ids those name that refer to rows that it reaches.
Reach = Callable[[Op], Collection[int] | None]
#: How often turns are made later at most: where two deletes stand before what should come before the other, never ends.
_ROUNDS = 8


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
    turns = _in_buckets(items, [(item.op.at_ms, 0) for item in items])  # a clock may have been set back
    if items and items[0].entry.bucket != items[-1].entry.bucket:
        some = [n for n, item in enumerate(items) if item.op.kind in (DELETE, GROUP)]
        deletes = {n: ids for n in some if (ids := _reached(items[n], reach)) != ()}
        after = _after(items, deletes) if deletes else {}
        last = [n for n, ids in deletes.items() if ids is None]
        for _ in range(_ROUNDS if deletes else 0):
            before, turns = turns, _in_buckets(items, _later(items, turns, after, last))
            if turns == before:
                break
    return [items[n] for n in sorted(range(len(items)), key=turns.__getitem__)]


def _in_buckets(items: Sequence[Item], turns: Sequence[_Turn]) -> list[_Turn]:
    """Return turns so that no op comes before the one before it in its bucket."""
    pairs = zip(items, turns, strict=True)
    return [turn for _, own in groupby(pairs, key=_bucket) for turn in accumulate((turn for _, turn in own), max)]


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


def _later(
    items: Sequence[Item], turns: Sequence[_Turn], after: Mapping[int, Sequence[int]], last: Collection[int]
) -> list[_Turn]:
    """Return turns so that no op comes before what it has to come after, and some after all enqueued before them."""
    found = list(turns)
    for n, others in after.items():
        latest = max(turns[one] for one in others)
        if latest >= found[n]:
            found[n] = latest[0], latest[1] + 1
    if last:
        latest, deletes = (-inf, 0), frozenset(last)
        for n in sorted(range(len(items)), key=lambda n: (items[n].op.at_ms, n in deletes)):
            if latest >= found[n] and n in deletes:
                found[n] = latest[0], latest[1] + 1
            latest = max(latest, found[n])
    return found


def _bucket(pair: tuple[Item, _Turn]) -> int:
    return pair[0].entry.bucket


def sent_ms_of(entry: Entry) -> float:
    """Return when an op was enqueued, ms; of one that this release cannot read, that it was before all others.

    Args:
        entry: of the op.
    """
    return enqueued_ms(entry.payload) or 0.0
