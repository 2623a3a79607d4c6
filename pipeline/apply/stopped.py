"""Know what is stopped on this process's shard, at most a second late; and when a table halts.

A table that is refused again and again halts: every op would be set aside, one after the other.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import repeat

from pipeline import clock
from pipeline.apply.grouping import Item
from pipeline.bounds import keep_newest
from pipeline.errors import NotMigrated, Unavailable
from pipeline.events import Event
from pipeline.model.op import Position
from pipeline.model.sheet import SheetEntry
from pipeline.model.wait_reason import WaitReason
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger import Reject
from pipeline.shard.records.set_aside import REJECTED
from pipeline.shard.records.stops import BREAKER, WHOLE, Stop, definition_of, give, stops_of
from pipeline.shard.session import NodeSession

#: The time between two readings, s: a batch in this time costs no query.
READ_EVERY_S = 1.0
#: How many of a table's last ops are judged.
WINDOW = 1000
#: A table halts where more than this share of them was refused, and at least so many; or so many in a row.
SHARE, LEAST, IN_A_ROW = 0.05, 20, 50
logger = logging.getLogger("pipeline.apply")


class Stopped:
    """What is stopped on one shard.

    Args:
        shard: its name.
        session: of its primary.
        most: how many ops may be set aside on the shard while their table is stopped.

    Attributes:
        room: how many more, as of the last reading.
        breaker: judges the tables that go on.
    """

    def __init__(self, shard: str, session: NodeSession, most: int):
        self._shard, self._session, self._most = shard, session, most
        self.room, self.breaker = most, Breaker()
        self._stops: list[Stop] = []
        self._read_at_s = -READ_EVERY_S
        self._warned = False

    def whole(self) -> WaitReason | None:
        """Return why nothing of the shard is applied, or None.

        Raises:
            ShardUnavailable: the primary did not answer, so that nothing can be applied anyway.
        """
        self._read()
        stop = next((stop for stop in self._stops if stop.scope == WHOLE), None)
        return None if stop is None else stop.reason_on(self._shard)

    def tables(self) -> dict[str, WaitReason]:
        """Return why the ops of a table wait, by the table's name, as of the last reading."""
        return {stop.scope: stop.reason_on(self._shard) for stop in self._stops if stop.scope != WHOLE}

    def halt(self, reject: Reject, database_name: str) -> None:
        """Halt a table until an operator resumes it, or its definition changes.

        Args:
            reject: its last op that was refused.
            database_name: the table's name in the database.
        """
        if any(stop.scope == reject.table for stop in self._stops):
            return
        try:
            definition = definition_of(self._session, database_name)
            give(self._session, Stop(reject.table, BREAKER, reject.reason, 0, socket.gethostname(), definition))
        except (Unavailable, NotMigrated) as error:  # the next refused op tries again
            logger.warning(Event("table_not_halted", shard=self._shard, table=reject.table, error=error))
        self._read_at_s = -READ_EVERY_S

    def _read(self) -> None:
        if clock.mono_s() - self._read_at_s < READ_EVERY_S:
            return
        before = self._stops
        try:
            self._stops = stops_of(self._session)
        except NotMigrated as error:  # workers are newer than the tables: nothing can be stopped yet
            self._stops = []
            if not self._warned:
                logger.warning(Event("stops_not_read", shard=self._shard, error=error))
            self._warned = True
        self._read_at_s = clock.mono_s()
        for scope in {stop.scope for stop in before} - {stop.scope for stop in self._stops}:
            self.breaker.forget(scope)
        if any(stop.scope != WHOLE for stop in self._stops):
            self.room = self._most - ledger_queries.counts(self._session)["parked"]
        for stop in self._stops:
            if stop not in before:
                logger.warning(
                    Event(
                        "stopped",
                        shard=self._shard,
                        scope=stop.scope,
                        kind=stop.kind,
                        text=stop.reason_on(self._shard).sentence(),
                    )
                )


class Breaker:
    """What became of the last ops of each table, in this process."""

    def __init__(self) -> None:
        self._refused: dict[str, deque[bool]] = {}

    def learn(self, items: Sequence[Item], aside: Iterable[Reject], sheets: Iterable[SheetEntry] = ()) -> list[Reject]:
        """Note what became of a batch; return the last refusal of each table that has to halt.

        Args:
            items: the ops that were tried, in order of each bucket.
            aside: those among them that were set aside.
            sheets: sheets of ops that took effect.
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
        every: list[Item | SheetEntry] = [*items]
        if entries := list(sheets):
            every = sorted([*items, *entries], key=_place_of)
        for item in every:
            if isinstance(item, SheetEntry):
                became.setdefault(item.sheet.table, []).extend(repeat(False, len(item.sheet)))
                continue
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


def _place_of(one: Item | SheetEntry) -> tuple[int, Position]:
    return one[:2] if isinstance(one, SheetEntry) else one.place
