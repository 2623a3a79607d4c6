"""Decide when a table that is refused again and again halts: every op would be set aside, one after the other."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import repeat

from pipeline.apply.grouping import Item
from pipeline.caches import keep_newest
from pipeline.model.sheet import SheetEntry
from pipeline.shard.records.ledger import Reject
from pipeline.shard.records.set_aside import REJECTED

#: How many of a table's last ops are judged.
WINDOW = 1000
#: A table halts where more than this share of them was refused, and at least so many; or so many in a row.
SHARE, LEAST, IN_A_ROW = 0.05, 20, 50


class Breaker:
    """What became of the last ops of each table, in this process."""

    def __init__(self) -> None:
        self._refused: dict[str, deque[bool]] = {}

    def learn(self, items: Sequence[Item], aside: Iterable[Reject], sheets: Iterable[SheetEntry] = ()) -> list[Reject]:
        """Note what became of a batch; return the last refusal of each table that has to halt.

        Args:
            items: the ops that were tried, in order of each bucket.
            aside: those among them that were set aside.
            sheets: sheets of ops that took effect, where nothing was set aside.
        """
        refused = {(one.entry.bucket, one.entry.position): one for one in aside if one.state == REJECTED}
        if not refused:
            taken = Counter(item.op.table for item in items)
            for entry in sheets:
                taken[entry.sheet.table] += len(entry.sheet)
            for table, count in taken.items():
                self._of(table).extend(repeat(False, min(count, WINDOW)))
            return []
        last: dict[str, Reject] = {}
        became: dict[str, list[bool]] = {}
        buckets = {bucket for bucket, _ in refused}
        for item in items:
            bucket = item.entry.bucket
            reject = refused.get((bucket, item.entry.position)) if bucket in buckets else None
            table = item.op.table if reject is None else reject.table
            became.setdefault(table, []).append(reject is not None)
            if reject is not None:
                last[table] = reject
        for table, outcomes in became.items():
            self._of(table).extend(outcomes)
        return [reject for table, reject in last.items() if self._halts(self._refused[table])]

    def forget(self, table: str) -> None:
        """Judge a table anew, since it is let go on.

        Args:
            table: its name.
        """
        self._refused.pop(table, None)

    def _of(self, table: str) -> deque[bool]:
        found = self._refused.get(table)
        return keep_newest(self._refused, table, deque(maxlen=WINDOW)) if found is None else found

    def _halts(self, refused: deque[bool]) -> bool:
        count = sum(refused)
        row = next((n for n, was in enumerate(reversed(refused)) if not was), len(refused))
        return (count >= LEAST and count > SHARE * len(refused)) or row >= IN_A_ROW
