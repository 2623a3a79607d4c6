"""Choose how much one transaction and one statement take, and how one that failed is split; know what is stopped.

Know what is stopped on this process's shard, at most a second late; and when a table halts.
A table that is refused again and again halts: every op would be set aside, one after the other.

Invariants: a worker reads `max_bytes` at most, and one op more. What is larger waits in the log. The parts of a
statement are its ops in their order, so splitting never changes the result.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from pipeline import clock
from pipeline.apply.grouping import Item
from pipeline.bounds import keep_newest
from pipeline.config.settings import ApplySettings
from pipeline.errors import NotMigrated, Unavailable
from pipeline.events import Event
from pipeline.model import INSERT, UPSERT, Position
from pipeline.model.sheet import SheetEntry
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.oplog.appends import BIG_BYTES
from pipeline.shard import NodeSession
from pipeline.shard.records import Reject, ledger_queries
from pipeline.shard.records.set_aside import REJECTED, WAITING
from pipeline.shard.records.stops import BREAKER, WHOLE, Stop, definition_of, give, stops_of, waiting_on
from pipeline.shard.statements import MAX_ROWS, most
from pipeline.shard.table_facts import Facts

#: The time between two readings, s: a batch in this time costs no query.
READ_EVERY_S = 1.0
#: How many of a table's last ops are judged.
WINDOW = 1000
#: A table halts where more than this share of them was refused, and at least so many; or so many in a row.
SHARE, LEAST, IN_A_ROW = 0.05, 20, 50
logger = logging.getLogger("pipeline.apply")
#: Rows of the first batch of a process, before any commit was timed.
FIRST_ROWS = 1000
LEAST_ROWS = 50
#: The fewest buckets of a batch where each has more than the batch takes of it. A bucket costs a batch 10 µs in the
#: worker, the log and the database; the fewer there are, the longer the others wait.
LEAST_BUCKETS = 16
#: An op is large from this part of a batch's bytes on.
LARGE = 8
#: A statement is aimed at this size; larger gains nothing.
AIM_BYTES = 500_000
#: The fewest rows of a statement after others with bad ops, and how many more the next has after one without. At one
#: bad op in 1,000 statements have some 220 rows: what is executed again costs as much as what more statements cost.
FEW_ROWS, MORE_ROWS = 25, 25
#: Rows of a short statement, which of them are marked, and for how many rows of sheets a refused one is expected to be
#: followed by others. A statement more costs the server and the worker 35 µs, a row that is undone and sent again 9 µs.
SHORT_ROWS, MARKED_EACH, SHORT_FOR_ROWS = 75, 4, 20_000
#: After so many wrong guesses one after the other, no more are left out than before: 62.
MOST_WRONG = 6


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
        self._waiting: dict[str, WaitReason] = {}
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

    def waiting(self) -> Mapping[str, WaitReason]:
        """Return why ops of a table are set aside and wait, by the table's name, so far as is known."""
        return self._waiting

    def set_aside(self, aside: Iterable[Reject]) -> None:
        """Note what a transaction has set aside, until the next reading.

        Args:
            aside: the ops.
        """
        for one in aside:
            if one.state == WAITING:
                self._waiting.setdefault(one.table, WaitReason("waiting", self._shard, one.table, one.reason))

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
            self._waiting = {reason.scope: reason for reason in waiting_on(self._session, self._shard)}
        except NotMigrated as error:  # workers are newer than the tables: nothing can be stopped yet
            self._stops, self._waiting = [], {}
            if not self._warned:
                logger.warning(Event("stops_not_read", shard=self._shard, error=error))
            self._warned = True
        self._read_at_s = clock.mono_s()
        for scope in {stop.scope for stop in before} - {stop.scope for stop in self._stops}:
            self.breaker.forget(scope)
        self.room = self._most
        if self._waiting or any(stop.scope != WHOLE for stop in self._stops):
            self.room -= ledger_queries.counts(self._session)["parked"]
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


class Pace:
    """Additive-increase, multiplicative-decrease on the time of a batch, as TCP does on the loss of a packet.

    Args:
        settings: the time that a batch aims at, and its limits.
        log: measures large ops before they are read.
    """

    def __init__(self, settings: ApplySettings, log: Work):
        self._settings, self._log = settings, log
        self.rows, self.buckets = min(FIRST_ROWS, settings.max_rows), settings.buckets

    def learn_depth(self, deep: int, buckets: int) -> None:
        """Note how much buckets hold: where nearly all have more than one batch takes, the next has fewer of them.

        Args:
            deep: how many buckets had as many ops as were asked for.
            buckets: how many were read.
        """
        if 4 * deep > 3 * buckets and buckets >= self.buckets:
            self.buckets = max(min(LEAST_BUCKETS, self._settings.buckets), self.buckets // 2)
        elif 2 * deep < buckets:
            self.buckets = min(self._settings.buckets, 2 * self.buckets)

    def learn(self, rows: int, took_ms: int, size_bytes: int = 0) -> None:
        """Note how long a batch took. One of large ops says nothing of others.

        Args:
            rows: how many ops it applied.
            took_ms: from the first step to the last.
            size_bytes: of its ops.
        """
        if size_bytes > rows * self._settings.max_bytes // LARGE:
            return
        if took_ms > self._settings.target_ms:
            self.rows = max(LEAST_ROWS, int(self.rows * max(0.5, self._settings.target_ms / took_ms)))
        elif rows >= self.rows * 0.8:
            self.rows = min(self._settings.max_rows, self.rows + FIRST_ROWS // 2)

    def counts(self, after: Mapping[int, Position], largest_bytes: Mapping[int, int], rows: int) -> dict[int, int]:
        """Return how many entries to read of each bucket. Buckets for which there is no room are left out.

        What has been due for the longest time goes first: what is left out now comes first in the next batch.

        Args:
            after: of each bucket that is locked, its watermark.
            largest_bytes: of each due bucket the size of its largest op of late, 0 if none is large; the oldest first.
            rows: how many in all.
        """
        order = [bucket for bucket in largest_bytes if bucket in after]
        share = max(1, -(-rows // max(1, len(order))))
        room = self._settings.max_bytes
        large = {bucket: after[bucket] for bucket in order if largest_bytes[bucket]}
        small = [bucket for bucket in order if bucket not in large]
        if not large or not largest_bytes[order[0]]:
            counts = _unmeasured(small, share, room)
            measured, _ = self._measured(large, share, room - sum(counts.values()) * BIG_BYTES)
            return counts | measured
        counts, size_bytes = self._measured(large, share, room)
        return counts | _unmeasured(small, share, room - size_bytes)

    def most(self, bucket: int, after: Position, entries: int) -> int:
        """Return how many entries of one bucket to read.

        Args:
            bucket: the bucket.
            after: its watermark.
            entries: the most entries.
        """
        counts, _ = self._measured({bucket: after}, entries, self._settings.max_bytes)
        return counts[bucket]

    def _measured(self, after: Mapping[int, Position], share: int, room_bytes: int) -> tuple[dict[int, int], int]:
        """Return how many entries of each bucket fit, and their bytes."""
        if not after or room_bytes <= 0:
            return {}, 0
        found = self._log.sizes(after, share, room_bytes)
        return {bucket: max(1, len(sizes)) for bucket, sizes in found.items()}, sum(map(sum, found.values()))


def _unmeasured(buckets: Sequence[int], share: int, room_bytes: int) -> dict[int, int]:
    """Return how many entries of each bucket fit if all are as large as an unmeasured op may be."""
    if not buckets or room_bytes <= 0:
        return {}
    return dict.fromkeys(buckets, max(1, min(share, room_bytes // (BIG_BYTES * len(buckets)))))


class Guesses:
    """Decides which transactions are built on a guess: after one that is wrong, the next; then ever fewer.

    Exponential backoff, as of Ethernet's collisions. A wrong guess costs a transaction. One op in 1,000 that is refused
    must not end the guesses for long: where they ended for a second, the others took a sixth longer.
    """

    def __init__(self) -> None:
        self._wrong = self._left_out = 0

    def next(self) -> bool:
        """Return whether to guess now; to be asked where it can be."""
        if self._left_out:
            self._left_out -= 1
            return False
        return True

    def right(self) -> None:
        """Note that a guess was right."""
        self._wrong = 0

    def wrong(self) -> None:
        """Note that a guess was wrong."""
        self._wrong = min(self._wrong + 1, MOST_WRONG)
        self._left_out = 2**self._wrong - 2


class Lessons:
    """What the statements of one shard have taught this process.

    Attributes:
        believed: (schema, error number) of errors that no list names and that several tries met.
    """

    def __init__(self) -> None:
        self.believed: dict[tuple[str, int | None], bool] = {}
        #: Of each schema of which an op was refused of late, how many rows a statement has.
        self._rows: dict[str, int] = {}
        #: Of each schema of which a sheet's op was refused of late, how many rows more are sent in short statements.
        self._short: dict[str, int] = {}
        #: The same, where `INSERT IGNORE` has met what it would change.
        self._unignored: dict[str, int] = {}
        #: Of each schema, when the constraints of its table were last read, s, and a digest of its definition then.
        self._read: dict[str, tuple[float, str]] = {}

    def rows(self, kind: str, facts: Facts) -> int:
        """Return the most rows of one statement.

        Args:
            kind: of its ops.
            facts: of their table.
        """
        return min(most(kind), self._rows.get(facts.schema.hash, MAX_ROWS))

    def learn(self, facts: Facts, rows: int, *, failed: bool) -> None:
        """Note how a statement ended: the rows of a failed one are executed again, so the next have half of them.

        Args:
            facts: of its table.
            rows: how many it had.
            failed: whether an op of it was refused.
        """
        known = self._rows.get(facts.schema.hash)
        if failed:
            keep_newest(self._rows, facts.schema.hash, max(FEW_ROWS, min(rows // 2, MAX_ROWS)))
        elif known is not None and known < MAX_ROWS:
            self._rows[facts.schema.hash] = known + MORE_ROWS

    def learn_of_sheets(self, facts: Facts, rows: int, *, failed: bool) -> None:
        """Note how the statements of sheets ended.

        Args:
            facts: of their table.
            rows: how many they had.
            failed: whether an op of them was refused.
        """
        if failed:
            keep_newest(self._short, facts.schema.hash, SHORT_FOR_ROWS)
            return
        for counts in (self._short, self._unignored):
            if (left := counts.pop(facts.schema.hash, 0) - rows) > 0:
                counts[facts.schema.hash] = left

    def learn_to_part(self, facts: Facts) -> None:
        """Note that an `INSERT IGNORE` of sheets was undone.

        Args:
            facts: of their table.
        """
        keep_newest(self._unignored, facts.schema.hash, SHORT_FOR_ROWS)

    def may_ignore(self, facts: Facts) -> bool:
        """Return whether an `INSERT IGNORE` may leave out the rows of sheets that are refused, and do nothing else.

        Args:
            facts: of their table. A trigger may see what is left out.
        """
        return not facts.constraints.has_triggers("INSERT") and facts.schema.hash not in self._unignored

    def knows(self, facts: Facts, definition: str) -> bool:
        """Return whether constraints were read a moment ago, and the table's definition is the same since.

        Args:
            facts: of the table.
            definition: a digest of it, as it is now.
        """
        read_s, before = self._read.get(facts.schema.hash, (-READ_EVERY_S, ""))
        return before == definition and clock.mono_s() < read_s + READ_EVERY_S

    def learn_definition(self, facts: Facts, definition: str) -> None:
        """Note that a table's constraints are as they are known.

        Args:
            facts: of the table.
            definition: a digest of its definition, read in the same transaction.
        """
        keep_newest(self._read, facts.schema.hash, (clock.mono_s(), definition))

    def are_short(self, facts: Facts) -> bool:
        """Return whether sheets are sent in short statements.

        Args:
            facts: of their table.
        """
        return facts.schema.hash in self._short


class Portion(NamedTuple):
    """A part of a statement that failed.

    Attributes:
        items: its ops.
        fails: whether the server's word makes us expect that it fails; None: nobody knows.
        rest_of: of a second half, how many ops were refused when it was made. If no more are at its turn, the bad op is
            in the half, which is split without a try.
    """

    items: Sequence[Item]
    fails: bool | None = None
    rest_of: int | None = None


def chunk(items: Sequence[Item], start: int, rows: int) -> Sequence[Item]:
    """Return the ops of one statement: as many as its rows and its bytes allow, one at least.

    Args:
        items: of one group.
        start: the first op to take.
        rows: the most ops.
    """
    size_bytes, end = 0, start
    for item in items[start : start + rows]:
        size_bytes += len(item.entry.payload)
        if end > start and size_bytes > AIM_BYTES:
            break
        end += 1
    return items[start:end]


def accused(kind: str, items: Sequence[Item], row: int) -> int | None:
    """Return which op the server means by a row of a statement, or None where it can mean none.

    Args:
        kind: of the ops.
        items: of the statement.
        row: as the server counts, from 1.
    """
    if not 0 < row <= len(items):
        return None
    if kind in (INSERT, UPSERT):
        return row - 1
    # rows that exist are met in the order of their ids
    return sorted(range(len(items)), key=lambda n: items[n].op.id or 0)[row - 1]


def halves(items: Sequence[Item], refused: int) -> list[Portion]:
    """Split the ops of a statement of which nobody knows the bad one.

    Args:
        items: two ops or more.
        refused: how many ops of the batch are refused already.
    """
    half = len(items) // 2
    return [Portion(items[:half]), Portion(items[half:], rest_of=refused)]


def around(items: Sequence[Item], bad: int) -> list[Portion]:
    """Split the ops of a statement around the one that the server accuses. What is behind it may be bad too.

    Args:
        items: two ops or more.
        bad: which of them.
    """
    found = (Portion(items[:bad], False), Portion(items[bad : bad + 1], True), Portion(items[bad + 1 :]))
    return [part for part in found if part.items]


def shorts(rows: Sequence[int]) -> list[Sequence[int]]:
    """Return rows in the parts of short statements.

    Args:
        rows: their numbers.
    """
    return [rows[start : start + SHORT_ROWS] for start in range(0, len(rows), SHORT_ROWS)]


def are_few(rows: Sequence[int]) -> bool:
    """Return whether rows fit into one short statement.

    Args:
        rows: their numbers.
    """
    return len(rows) <= SHORT_ROWS


def marked_rows(rows: Sequence[str], mark: str) -> Sequence[str]:
    """Return rows of a statement, some of which are marked.

    Args:
        rows: as SQL, beginning with their ids.
        mark: what their ids are assigned to; empty: none is marked.
    """
    if not mark:
        return rows
    some = list(rows)
    some[::MARKED_EACH] = [f"{mark} := {row}" for row in some[::MARKED_EACH]]
    return some


def parted(rows: Sequence[int], last: int | None) -> list[Sequence[int]]:
    """Split the rows of a short statement that failed: what may be meant goes alone.

    Args:
        rows: their numbers, two or more.
        last: which of them is the last marked one that the server came to; None: it is not known.
    """
    if last is None:
        return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    meant = rows[last : last + MARKED_EACH]
    others = [*rows[:last], *rows[last + MARKED_EACH :]]
    return [*([one] for one in meant), others] if others else [[one] for one in meant]
