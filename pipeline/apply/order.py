"""Order ops of several buckets: which a transaction takes, and which has its turn first. Pure: no I/O.

Of each bucket the order stays; between buckets it is that of the calls, since a row needs rows of other buckets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from math import inf

from pipeline.apply.grouping import Item
from pipeline.model.op import DELETE, Entry, enqueued_ms

#: When an op has its turn, ms; and its rank among those of one time.
_Turn = tuple[float, int]
#: How often turns are made later at most: where two deletes stand before what should come before the other, never ends.
_ROUNDS = 4


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


def by_time(items: Sequence[Item]) -> list[Item]:
    """Order ops of several buckets by the time of their calls, and keep the order within each bucket.

    An op has its turn behind younger ones that stand before it in its bucket. What comes too early is refused, and
    tried again after all else; a delete that came before such an op would take the row away that the op refers to.
    So deletes have their turn after all that was enqueued before them.

    Args:
        items: bucket by bucket, of each in order.
    """
    turns = _in_buckets(items, [(item.op.at_ms, 0) for item in items])  # a clock may have been set back
    for _ in range(_ROUNDS if any(map(_deletes, items)) and items[0].entry.bucket != items[-1].entry.bucket else 0):
        before, turns = turns, _in_buckets(items, _deletes_last(items, turns))
        if turns == before:
            break
    return [items[n] for n in sorted(range(len(items)), key=turns.__getitem__)]


def _in_buckets(items: Sequence[Item], turns: Sequence[_Turn]) -> list[_Turn]:
    """Return turns so that no op comes before the one before it in its bucket."""
    pairs = zip(items, turns, strict=True)
    return [turn for _, own in groupby(pairs, key=_bucket) for turn in accumulate((turn for _, turn in own), max)]


def _deletes_last(items: Sequence[Item], turns: list[_Turn]) -> list[_Turn]:
    """Return turns so that no delete comes before an op that was enqueued before it."""
    found, latest = list(turns), (-inf, 0)
    for n in sorted(range(len(items)), key=lambda n: items[n].op.at_ms):
        if latest >= turns[n] and _deletes(items[n]):
            found[n] = latest[0], latest[1] + 1
        latest = max(latest, turns[n])
    return found


def _deletes(item: Item) -> bool:
    return any(op.kind == DELETE for op in item.op.members)


def _bucket(pair: tuple[Item, _Turn]) -> int:
    return pair[0].entry.bucket


def sent_ms_of(entry: Entry) -> float:
    """Return when an op was enqueued, ms; of one that this release cannot read, that it was before all others.

    Args:
        entry: of the op.
    """
    return enqueued_ms(entry.payload) or 0.0
