"""Decide whether an op that a constraint refuses, or that deletes, comes before ops that it has to wait for.

A database enforces order across buckets: a child's row needs its parent's, a unique value has to be free. A log keeps
order within one bucket. So a constraint's word is final once what was enqueued before the op is applied or set aside. A
row to which others may refer is deleted then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from operator import attrgetter
from typing import NamedTuple, TypeVar

from pipeline import clock
from pipeline.apply.batch import Batch, FactBook
from pipeline.apply.footprint import ANYTHING, Needed, references
from pipeline.apply.grouping import Item, items_of
from pipeline.apply.order import NamedRows, sent_ms_of
from pipeline.config import Topology
from pipeline.config.buckets import log_number
from pipeline.errors import NewerOp, NotAnOp, PipelineError
from pipeline.model import COPY, DELETE, HEAD_BYTES, INSERT, UPDATE, Entry, Op, Position, decode
from pipeline.model.sheet import Read, SheetEntry, count_ops, cut_at, entry_bytes, last_of, last_seq
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.shard import NodeSession, records
from pipeline.shard.table_facts import Facts

AnyRead = TypeVar("AnyRead", Entry, Read)
#: The bucket and the position of an op.
Place = tuple[int, Position]
#: By how much the clocks of two hosts may differ, ms: an op that is younger by no more counts as enqueued before, for
#: so long, s. Two that are both refused for good must not wait for each other.
CLOCKS_MS, CLOCKS_S = 250.0, 1.0
#: The share of that time that a delete waits at most. An op of its bucket that was enqueued before it may be behind it,
#: sent from a spool; and what needs that op waits, too. Of the two the delete goes on: a child is gone either way. That
#: is seldom so where ops name its row; but a server may be away for long, and its buckets be tried one by one.
DELETES, NAMED_DELETES = 0.25, 0.5
#: How many entries of a bucket are looked at before an op is rejected.
DEEP = 100
#: How long it is remembered what was queued, s: Redis may have lost it.
AHEAD_S = 1.0
#: How many entries are kept in mind meanwhile, and how many bytes. A row may be deleted, or is missing, to which what
#: is behind these may refer: that counts.
MOST_AHEAD = 20_000
MOST_BYTES = 8_000_000
#: How many waiting ops a process keeps in mind before it forgets those that are decided.
MOST_NOTED = 1_000
#: The most that one look at a waiting op adds to how long it has waited, s: a server that was away proves nothing.
LOOK_S = 1.0


class Early(PipelineError):
    """Constraints refuse ops that may be early: the transaction has to run again without these and what follows them.

    Attributes:
        ops: of each bucket, the position of its first early op, and why that waits.
    """

    retryable = True

    def __init__(self, ops: Mapping[int, tuple[Position, WaitReason]]):
        super().__init__(f"{len(ops)} buckets wait for what was enqueued before")
        self.ops = ops


class Wait(NamedTuple):
    """How long an op has waited while nothing moved.

    Attributes:
        seen_s: when it was looked at last.
        waited_s: how long it had waited then.
        marks: the watermarks of the buckets that had older ops queued.
    """

    seen_s: float
    waited_s: float
    marks: Mapping[int, Position]

    def looked(self, now_s: float, older: Collection[int], marks: Mapping[int, Position]) -> Wait:
        """Return the wait at the next look: it begins again where one of the buckets has got on since.

        Args:
            now_s: the time by this process's steady clock.
            older: the buckets in which older ops are queued now, beside what the transaction takes.
            marks: what is committed of all buckets.
        """
        now = {bucket: marks[bucket] for bucket in older}
        if any(marks.get(bucket) != position for bucket, position in self.marks.items()):
            return Wait(now_s, 0.0, now)
        return Wait(now_s, self.waited_s + min(now_s - self.seen_s, LOOK_S), {**self.marks, **now})


@dataclass(slots=True)
class Ahead:
    """What is queued in one bucket, as far as it was looked at.

    Attributes:
        start: the queue begins behind it.
        to: up to where it was read.
        entries: what is to be applied yet of what was read.
        head: how the first entry begins, where nothing was read.
        ended: whether nothing was behind `to`, within one transaction.
    """

    start: Position
    to: Position
    entries: list[Read] = field(default_factory=list)
    head: Entry | None = None
    ended: bool = False

    @property
    def is_large(self) -> bool:
        """Whether the first op is so large that nobody reads all of it to know when it was enqueued."""
        return self.head is not None and not self.entries and len(self.head.payload) >= HEAD_BYTES

    def behind(self, start: Position) -> Ahead:
        """Return what is queued once the queue begins elsewhere.

        Args:
            start: behind it; before the last one where a primary without the last commits was promoted.
        """
        if start < self.start:
            return Ahead(start, start)
        head = self.head if self.head is not None and self.head.position > start else None
        _, entries = cut_at(Position(start.epoch, start.seq + 1), self.entries)
        return Ahead(start, max(start, self.to), entries, head)

    def oldest(self) -> dict[int, float]:
        """Return when each producer's oldest op was enqueued, ms."""
        found: dict[int, float] = {}
        for entry in self.entries or ([] if self.head is None else [self.head]):
            found[entry.producer] = min(sent_ms_of(entry), found.get(entry.producer, inf))
        return found


def until_ms(item: Item, producer: int, younger_ms: float) -> float:
    """Return up to when what a producer enqueued counts as before an op: a producer is of one host, with one clock.

    Args:
        item: the op.
        producer: its number.
        younger_ms: by how much the clocks of two hosts may differ.
    """
    return item.op.at_ms + (0.0 if producer == item.entry.producer else younger_ms)


class NamedRow(NamedTuple):
    """A row, for ops that name its id, which is a number here and as a text has it."""

    row: int
    number: bytes
    until_ms: float

    def fits(self, entry: Read) -> bool:
        """Return whether an entry may be of such ops, enqueued by then.

        Args:
            entry: read from a log.
        """
        if isinstance(entry, SheetEntry):
            named = self.row in entry.sheet.ids or self.number in entry.sheet.text
        else:
            named = self.number in entry.payload
        return named and sent_ms_of(entry) <= self.until_ms


class HelpingOps(NamedTuple):
    """Ops that may help a refused one, and were enqueued before it."""

    needed: Needed
    facts: FactBook
    refused: Item
    younger_ms: float

    def fits(self, entry: Read) -> bool:
        """Return whether an entry may be of such ops.

        Args:
            entry: read from a log.
        """
        return self.may_help(entry) and sent_ms_of(entry) <= until_ms(self.refused, entry.producer, self.younger_ms)

    def may_help(self, entry: Read) -> bool:
        """Return whether an entry may be of such ops, whenever it was enqueued.

        Args:
            entry: read from a log.
        """
        rows, read = self.needed.rows, self.needed.read
        if isinstance(entry, SheetEntry):
            table = self._there(entry.sheet.table)
            return table in read or any(row in entry.sheet.ids for row in rows.get(table, ()))
        kind, begun = _begins(entry.payload)
        if kind == b"insert" and b"\\" not in begun:
            table = self._there(begun.decode(errors="replace"))
            if table not in rows and table not in read:
                return False
        if kind in (b"update", b"delete") and rows:
            return False
        try:
            members = decode(entry.payload).members
        except (NewerOp, NotAnOp):
            return True
        helps = self._makes if rows else self._is_read if read else self._frees
        return any(map(helps, members))

    def _makes(self, op: Op) -> bool:
        ids = self.needed.rows.get(self._there(op.table), ())
        return op.kind not in (UPDATE, DELETE) and bool(ids) and (op.id is None or op.id in ids)

    def _is_read(self, op: Op) -> bool:
        return self._there(op.table) in self.needed.read

    def _frees(self, op: Op) -> bool:
        if op.kind in (INSERT, COPY):
            return False
        return self.needed.cascades or self._there(op.table) == self.needed.freed

    def _there(self, table: str) -> str:
        """Return the name in the database of a table, as `Needed` has it."""
        return self.facts.database_name(table).lower()


def _begins(payload: bytes) -> tuple[bytes, bytes]:
    """Return the kind of an op, and its table as JSON has it; nothing where that is not how an op begins."""
    words = payload[:HEAD_BYTES].split(b'"', 4)
    return (words[1], words[3]) if len(words) == 5 else (b"", b"")


class QueuedOps:
    """What is queued in a shard's logs behind the open transaction, as far as it was looked at.

    Args:
        session: of the shard's primary.
        log: the logs.
        facts: of the tables.
        topology: tells in which bucket an op is that makes a row; None: in any.

    Attributes:
        marks: what is committed of each bucket, as of the last look at it.
        oldest: of each bucket that has ops queued, when the oldest of each producer was enqueued, ms; None before the
            first look of a transaction.
        is_deep: whether more was looked at than the next op of each bucket.
    """

    def __init__(self, session: NodeSession, log: Work, facts: FactBook, topology: Topology | None):
        self._session, self._log, self._facts, self._topology = session, log, facts, topology
        self.marks: dict[int, Position] = {}
        self.oldest: dict[int, dict[int, float]] | None = None
        self.is_deep = False
        self._batch: Batch | None = None
        #: The logs whose watermarks were read in this transaction; None: all.
        self._looked: set[int] | None = set()
        self._headed = False
        #: By bucket, and since when, s.
        self._ahead, self._ahead_from_s = dict[int, Ahead](), 0.0
        #: By a table's name in the database, its name in the model.
        self._models: dict[str, str | None] = {}
        #: How many more bytes and entries may be kept in mind.
        self._room = 0, 0

    def begin(self, batch: Batch) -> bool:
        """Begin a transaction.

        Args:
            batch: what it applies; what is behind that is queued.

        Returns:
            Whether a watermark that it has locked has gone back: a primary without the last commits was promoted.
        """
        gone_back = self._note(batch.before)
        self._batch, self._looked, self.oldest, self.is_deep = batch, set(), None, False
        now_s = clock.mono_s()
        if now_s >= self._ahead_from_s + AHEAD_S:
            self._ahead, self._models, self._ahead_from_s = {}, {}, now_s
        return gone_back

    def _note(self, now: Mapping[int, Position]) -> bool:
        """Note what is committed of some buckets; return whether that is less than before."""
        gone_back = any(position < self.marks.get(bucket, position) for bucket, position in now.items())
        self.marks |= now
        return gone_back

    def has_looked(self, logs: Collection[int] | None) -> bool:
        """Return whether it was looked in this transaction where the queues of some logs begin.

        Args:
            logs: their numbers; None: all.
        """
        return self._looked is None or (logs is not None and self._looked.issuperset(logs))

    def look(self, logs: Collection[int] | None, keep: Collection[int] = ()) -> bool:
        """Read where the queues of buckets begin, and forget what is not queued any more.

        Args:
            logs: the numbers of the logs whose buckets are looked at; None: all.
            keep: buckets of which it stays known when their oldest ops were enqueued.

        Returns:
            Whether a watermark has gone back: a primary without the last commits was promoted.
        """
        marks = records.marks(self._session, logs)
        gone_back = self._note({bucket: mark.position for bucket, mark in marks.items()})
        others = {one: ahead for one, ahead in self._ahead.items() if logs is not None and log_number(one) not in logs}
        behind = self._behind(bucket for bucket, mark in marks.items() if mark.owned)
        known = {bucket: self._ahead.get(bucket, Ahead(after, after)) for bucket, after in behind.items()}
        self._ahead = others | {bucket: ahead.behind(behind[bucket]) for bucket, ahead in known.items()}
        kept = [entry_bytes(entry) for ahead in self._ahead.values() for entry in ahead.entries]
        self._room = MOST_BYTES - sum(kept), MOST_AHEAD - len(kept)
        self.oldest, self._headed = {one: oldest for one, oldest in (self.oldest or {}).items() if one in keep}, False
        self._looked = None if logs is None else {*(self._looked or ()), *logs}
        return gone_back

    def look_deep(self) -> None:
        """Look at more than the next op of each bucket: older ones are behind younger where a host has spooled them."""
        self.is_deep = True
        short = {bucket: DEEP - count_ops(ahead.entries) for bucket, ahead in self._ahead.items() if ahead.oldest()}
        self._look_further({bucket: ops for bucket, ops in short.items() if ops > 0})
        self._note_oldest()

    def note(self, bucket: int, oldest: Mapping[int, float]) -> None:
        """Note that a bucket has ops queued.

        Args:
            bucket: the bucket.
            oldest: when the oldest of each producer was enqueued, ms.
        """
        if self.oldest is not None:
            noted = self.oldest.setdefault(bucket, {})
            noted |= {producer: min(sent_ms, noted.get(producer, inf)) for producer, sent_ms in oldest.items()}

    def near(self, item: Item, younger_ms: float) -> dict[int, float]:
        """Return the buckets with an op that was enqueued before another, or perhaps: clocks of hosts differ.

        A producer is of one host: its own clock says which of its ops was before.

        Args:
            item: the other op.
            younger_ms: by how much the clocks may differ.

        Returns:
            By bucket, when the oldest such op was enqueued, ms.
        """
        self._look_at_all_heads()
        found = dict[int, float]()
        for bucket, oldest in (self.oldest or {}).items():
            if bucket == item.entry.bucket:
                continue
            before = [ms for producer, ms in oldest.items() if ms <= until_ms(item, producer, younger_ms)]
            if before:
                found[bucket] = min(before)
        return found

    def fitting(
        self, item: Item, what: NamedRow | HelpingOps, among: Collection[int] | None = None
    ) -> tuple[dict[int, Read], list[int]]:
        """Look in the other buckets for ops that fit, as far as may be looked.

        Args:
            item: the op that waits for them.
            what: tells which ops fit.
            among: the numbers of the logs to look in; None: all.

        Returns:
            The first such op of each bucket that has one, and the other buckets with older ops that were not all read.
        """
        found = self._first_in_each(item, what, among)
        return found, [bucket for bucket in self._unread(item, among) if bucket not in found]

    def _first_in_each(
        self, item: Item, what: NamedRow | HelpingOps, among: Collection[int] | None = None
    ) -> dict[int, Read]:
        """Return the first op that fits of each other bucket that has one, as far as may be looked."""
        found = dict[int, Read]()
        looked = dict.fromkeys(self._others(item, among), 0)
        ops = DEEP
        while ops <= MOST_AHEAD:
            for bucket, start in looked.items():
                entries = self._ahead[bucket].entries
                if (entry := next(filter(what.fits, entries[start:]), None)) is not None:
                    found[bucket] = entry
                looked[bucket] = len(entries)
            looked = {b: n for b, n in looked.items() if b not in found and not self._ahead[b].ended}
            if not looked or min(self._room) <= 0:
                break
            self._look_further(dict.fromkeys(looked, min(ops, max(1, self._room[1] // len(looked)))))
            ops *= 4
        return found

    def _unread(self, item: Item, among: Collection[int] | None = None) -> list[int]:
        """Return the other buckets with an older op of which more is queued than may be looked at."""
        return [
            bucket
            for bucket in self._others(item, among)
            if not self._ahead[bucket].ended
            and any(sent_ms < item.op.at_ms for sent_ms in self._ahead[bucket].oldest().values())
        ]

    def buckets_making(self, needed: Needed) -> set[int] | None:
        """Return the numbers of the logs in which an op is that makes one of some rows; None: any may have one.

        Args:
            needed: names the rows.
        """
        if not needed.rows or self._topology is None:
            return None
        found = set[int | None]()
        for table, rows in needed.rows.items():
            if table not in self._models:
                self._models[table] = self._facts.table_named(table)
            model = self._models[table]
            found |= {None if model is None else self._topology.bucket_making(model, row) for row in rows}
        return None if None in found else {bucket for bucket in found if bucket is not None}

    def _others(self, item: Item, among: Collection[int] | None) -> list[int]:
        """Return the buckets, and pieces, beside an op's own; those whose log is *among* some."""
        if among is None:
            self._look_at_all_heads()
            return [bucket for bucket in self.oldest or () if bucket != item.entry.bucket]
        there = [one for one in self._ahead if one != item.entry.bucket and log_number(one) in among]
        self._look_at_heads(there)
        return there

    def _look_at_all_heads(self) -> None:
        """Note of each bucket when the oldest op of each producer was enqueued that is queued in the shard, ms.

        The logs say so: a bucket that a worker drained on a primary that died since is not marked dirty.
        """
        if not self._headed:
            self._look_at_heads(self._ahead)
            self._note_oldest()

    def _note_oldest(self) -> None:
        self._headed = True
        for bucket, ahead in self._ahead.items():
            if oldest := ahead.oldest():
                self.note(bucket, oldest)

    def _look_at_heads(self, buckets: Iterable[int]) -> None:
        """Look how the next op begins of those buckets of which none is known."""
        bare = [bucket for bucket in buckets if not self._ahead[bucket].oldest()]
        heads = self._log.heads({bucket: self._ahead[bucket].to for bucket in bare})
        unseen = self._unseen({bucket: [head] for bucket, head in heads.items()})
        self._look_further({bucket: DEEP for bucket, queued in unseen.items() if not queued})
        for bucket, head in heads.items():
            ahead = self._ahead[bucket]
            if not (ahead.entries or ahead.ended):
                ahead.head = head  # also where nothing but copies was seen: what is behind these may be older

    def _look_further(self, ops: Mapping[int, int]) -> None:
        """Read the next ops of buckets, behind those that were looked at.

        Args:
            ops: of each bucket, how many.
        """
        after = {bucket: self._ahead[bucket].to for bucket in ops if not self._ahead[bucket].ended}
        wanted = {bucket: ops[bucket] for bucket in after}
        large = {bucket: mark for bucket, mark in after.items() if self._ahead[bucket].is_large}
        if large:  # measured before it is read
            sizes = self._log.sizes(large, DEEP, max(0, self._room[0]))
            wanted |= {bucket: len(sizes.get(bucket, ())) for bucket in large}
        wanted = {bucket: count for bucket, count in wanted.items() if count}
        found = self._log.read_whole({bucket: after[bucket] for bucket in wanted}, wanted) if wanted else {}
        unseen = self._unseen(found)
        for bucket, entries in found.items():
            ahead = self._ahead[bucket]
            ahead.entries += unseen[bucket]
            ahead.to = last_of(entries[-1]) if entries else ahead.to
            ahead.ended = count_ops(entries) < ops[bucket] and bucket not in large
            size_bytes, count = self._room
            self._room = size_bytes - sum(map(entry_bytes, unseen[bucket])), count - len(unseen[bucket])

    def _behind(self, buckets: Iterable[int]) -> dict[int, Position]:
        """Return of each bucket where its queue begins: behind what the transaction takes."""
        after = self._batch.after if self._batch is not None else {}
        return {bucket: after.get(bucket, self.marks[bucket]) for bucket in buckets}

    def _unseen(self, found: Mapping[int, Sequence[AnyRead]]) -> dict[int, list[AnyRead]]:
        """Return the entries that are to be applied yet; others were sent again when an epoch had ended."""
        pairs = {(entry.bucket, entry.producer) for queued in found.values() for entry in queued}
        last = records.seen(self._session, pairs) if pairs else {}
        last |= self._batch.last if self._batch is not None else {}
        return {
            bucket: [entry for entry in queued if last_seq(entry) > last[bucket, entry.producer]]
            for bucket, queued in found.items()
        }


class EarlierOps:
    """Tells what was enqueued before an op, and is neither applied on the shard nor in the open transaction.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: the logs.
        facts: of the tables.
        wait_s: how long an op waits at most, while this process looks at it and nothing older moves.
        topology: tells in which bucket an op is that makes a row, and which buckets have left; None: in any, and none.
        named: tells which row a delete takes.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        facts: FactBook,
        wait_s: float,
        topology: Topology | None,
        named: NamedRows,
    ):
        self._shard, self._session, self._log, self._facts, self._wait_s = shard, session, log, facts, wait_s
        self._named = named
        self._topology, self._queued = topology, QueuedOps(session, log, facts, topology)
        self._waits: dict[Place, Wait] = {}
        #: Of each bucket for which an op has waited as long as it may, its watermark; and of those for which a delete
        #: has waited once more.
        self._stuck: dict[int, Position] = {}
        self._stuck_still: dict[int, Position] = {}
        #: The op of the open transaction that waits no longer. It is one alone: others may wait for just that op.
        self._let_go: Place | None = None
        #: Of each bucket, its op that the open transaction puts off.
        self._putting_off: dict[int, Position] = {}
        #: Of these, when they were enqueued, and the other buckets of the transaction that have older ops.
        self._behind_what: dict[int, tuple[float, set[int]]] = {}
        #: What is put off no more, see `committed`; and the buckets of which an op waits: its time ends.
        self._spent: dict[int, Position] = {}
        self._waiting: set[int] = set()
        #: The refused ops of the open transaction that are refused for good, see `settle`.
        self._settled: set[Place] = set()
        self._batch: Batch | None = None

    def begin(self, batch: Batch, *, again: bool = False) -> None:
        """Begin a transaction.

        Args:
            batch: what it applies; what is behind that is queued.
            again: whether it is the last one without its early ops.
        """
        if not again:
            self._putting_off, self._settled, self._let_go, self._waiting = {}, set(), None, set()
        self._batch = batch
        if self._queued.begin(batch):
            self._forget()

    def awaited_by(
        self,
        item: Item,
        *,
        deletes_from: Facts | None = None,
        refused: bool = True,
        needed: Needed = ANYTHING,
    ) -> WaitReason | None:
        """Return why an op that a constraint refuses, or that deletes, waits; None where it has its turn.

        Args:
            item: the op.
            deletes_from: of the table from which it deletes, if it does and is no group.
            refused: whether a constraint refuses it: then what is younger by `CLOCKS_MS` counts for a second.
            needed: what may help a refused op.
        """
        at_ms, bucket = item.op.at_ms, item.entry.bucket
        row = self._named.row(item.op, deletes_from) if deletes_from is not None else None
        making = self._queued.buckets_making(needed) if refused else None
        self._look_at(item, making)
        younger_ms, share = (CLOCKS_MS, 1.0) if refused else (0.0, DELETES if row is None else NAMED_DELETES)
        most_s = share * self._wait_s
        near = self._naming(item, row) if row is not None else self._helping(item, needed, making, younger_ms)
        if not near:
            return None
        older = [one for one, sent_ms in near.items() if sent_ms < at_ms]
        now = {one: self._queued.marks[one] for one in older}
        stuck = bool(now) and not refused and now.items() <= self._stuck.items()
        if stuck and now.items() <= self._stuck_still.items():
            return None  # the deletes of a bucket would wait for as long, one after another
        before_s, waited_s = self._waited_s(item.place, older)
        # the delete that waited for these buckets may be what they waited for: they have a moment to get on
        # a delete is looked at first; what is before it in its bucket goes on with it, else neither does
        alone = self._let_go is None or (self._let_go[0] == bucket and self._let_go >= item.place)
        if alone and waited_s >= (min(most_s, LOOK_S) if stuck else most_s):
            self._let_go = item.place
            self._stuck |= now
            self._stuck_still |= now if stuck else {}
            return None
        if not older and waited_s >= CLOCKS_S:
            return None
        # it may rest because its server was away; and it is looked at before this one waits no longer
        ends = not refused and (before_s < 0 or before_s < max(0.0, most_s - LOOK_S) <= waited_s)
        self._wake(near, begins=not waited_s, ends=ends)
        self._queued.note(bucket, {item.entry.producer: at_ms})  # this one is queued from now on
        self._waiting.add(bucket)
        return self._reason(item)

    def _wake(self, buckets: Collection[int], *, begins: bool, ends: bool) -> None:
        """Let buckets be looked at for which an op begins to wait, or whose rest it ends.

        A bucket that has left stays another shard's, though a backup of before says that it is here.
        """
        left = self._topology.elsewhere(self._shard, buckets) if self._topology is not None else ()
        here = [one for one in buckets if one not in left]
        if begins:  # else a bucket would rest that a worker drained on a primary that died since
            self._log.mark_dirty(self._shard, here)
        if ends:
            self._log.postpone(self._shard, here, 0)

    def look_at(self, refused: Iterable[tuple[Item, Needed]]) -> None:
        """Look once where the queues of all logs begin that may help some refused ops.

        Args:
            refused: the ops, and what may help each.
        """
        every = [(item, self._queued.buckets_making(needed)) for item, needed in refused]
        logs = {log for item, making in every if making is not None for log in self._logs_of(item, making)}
        if logs and not self._queued.has_looked(logs):
            self._look(logs)

    def _logs_of(self, item: Item, making: Collection[int]) -> set[int]:
        """Return the logs that may help an op, and those that it has waited for."""
        wait = self._waits.get(item.place)
        return {*making, *map(log_number, wait.marks if wait is not None else ())}

    def _look_at(self, item: Item, making: Collection[int] | None) -> None:
        """Look where the queues of the logs begin that may help an op, and of those that it has waited for; once in a
        transaction, which has locked the watermark of its own.
        """
        logs = None if making is None else self._logs_of(item, making)
        if not self._queued.has_looked(logs):
            self._look(logs)

    def _look(self, logs: Collection[int] | None = None) -> None:
        """Look what is queued now; where what was waited for is undone, forget who waited."""
        if self._queued.look(logs, keep=self._waiting):
            self._forget()

    def _forget(self) -> None:
        self._waits, self._stuck, self._stuck_still, self._spent = {}, {}, {}, {}

    def _naming(self, item: Item, row: int) -> dict[int, float]:
        """Return the buckets with an older op that may refer to the row that is deleted: such an op names its id."""
        found, unread = self._queued.fitting(item, NamedRow(row, str(row).encode(), item.op.at_ms))
        # two deletes must not wait for each other for nothing
        return dict.fromkeys([*found, *(bucket for bucket in unread if bucket not in self._waiting)], 0.0)

    def _helping(
        self, item: Item, needed: Needed, making: Collection[int] | None, younger_ms: float
    ) -> dict[int, float]:
        """Return the buckets with an older op that may help a refused one, each with when that was enqueued, ms."""
        queued = self._queued
        if needed == ANYTHING:
            near = queued.near(item, younger_ms)
            if queued.is_deep or any(sent_ms < item.op.at_ms for sent_ms in near.values()):
                return near
            self._look()  # else the database's word would be final, and the row gone
            queued.look_deep()
            return queued.near(item, younger_ms)
        helping = HelpingOps(needed, self._facts, item, younger_ms)
        found, unread = queued.fitting(item, helping, making)
        return dict.fromkeys(unread, 0.0) | {bucket: sent_ms_of(entry) for bucket, entry in found.items()}

    def _waited_s(self, place: Place, older: Collection[int]) -> tuple[float, float]:
        """Return how long an op had waited at the last look, -1 where its wait begins, and how long it has now."""
        now_s = clock.mono_s()
        if len(self._waits) > MOST_NOTED:
            self._waits = {one: wait for one, wait in self._waits.items() if now_s - wait.seen_s < 2 * self._wait_s}
        wait = self._waits.get(place, Wait(now_s, 0.0, {}))
        self._waits[place] = looked = wait.looked(now_s, older, self._queued.marks)
        return wait.waited_s if looked.waited_s else -1.0, looked.waited_s

    def settle(self, item: Item) -> None:
        """Note that an op is refused for good, for as long as its transaction is run again without its early ops.

        Nothing is queued that may help it but in this transaction, and it was refused after that, too. Without the
        early ops more would be queued, and it would wait for that.

        Args:
            item: the op.
        """
        self._settled.add(item.place)

    def with_children(self, early: Mapping[int, tuple[Position, WaitReason]]) -> dict[int, tuple[Position, WaitReason]]:
        """Return the first op of each bucket that a transaction leaves out, with those that refer to what they make.

        Else each try would find one bucket more: where each row's parent is in another one, all of them in turn.

        Args:
            early: of each bucket, its first early op, and why that waits: what follows is left out, too.
        """
        items = [] if self._batch is None else [*self._batch.items, *items_of(self._batch.sheets)]
        items.sort(key=attrgetter("place"))
        found, children = dict(early), self._children(items)
        ends: dict[int, int] = {}  # of each bucket, behind the last of its ops that is still in
        out = deque[int]()

        def leave_out(bucket: int, first: Position) -> None:
            own = ends.get(bucket, len(items))
            while own and items[own - 1].entry.bucket == bucket and items[own - 1].entry.position >= first:
                own -= 1
                out.append(own)
            ends[bucket] = own

        for n, item in enumerate(items):
            ends[item.entry.bucket] = n + 1
        for bucket, (first, _) in early.items():
            leave_out(bucket, first)
        while out:
            maker = items[out.popleft()]
            inserts = (op for op in maker.op.members if op.kind == INSERT)
            made = ((self._facts.database_name(op.table).lower(), op.id) for op in inserts if op.id is not None)
            for child in chain.from_iterable(children.get(row, ()) for row in made):
                bucket, first = child.entry.bucket, child.entry.position
                if bucket not in found or first < found[bucket][0]:
                    found[bucket] = first, found[maker.entry.bucket][1]
                    leave_out(bucket, first)
        return found

    def _children(self, items: Iterable[Item]) -> dict[tuple[str, int], list[Item]]:
        """Return the ops that refer to a row, by the row's table in the database and its id."""
        found: dict[tuple[str, int], list[Item]] = {}
        for item in items:
            for op in item.op.members:
                for row in references(op, self._facts.known[op.schema]):
                    found.setdefault(row, []).append(item)
        return found

    def oldest_left_out(self, early: Mapping[int, Position]) -> float:
        """Return when the oldest op was enqueued that a transaction leaves out, ms.

        Args:
            early: of each bucket, its first early op: what follows that is left out, too.
        """
        every = list[tuple[Read, float]]()
        if self._batch is not None:
            every += ((item.entry, item.op.at_ms) for item in self._batch.items)
            every += ((entry, entry.sheet.at_ms) for entry in self._batch.sheets)
        return min(
            (at_ms for entry, at_ms in every if entry.bucket in early and last_of(entry) >= early[entry.bucket]),
            default=inf,
        )

    def is_settled(self, item: Item) -> bool:
        """Return whether an op that is refused is refused for good.

        Args:
            item: the op.
        """
        return item.place in self._settled

    def has_others(self, item: Item, needed: Needed) -> bool:
        """Return whether ops of other buckets in the transaction may help a refused op, see `committed`.

        Args:
            item: the op.
            needed: what may help it.
        """
        spent = self._spent.get(item.entry.bucket) == item.entry.position
        if self._batch is None or len(self._batch.after) < 2 or spent:
            return False
        helping = HelpingOps(needed, self._facts, item, inf)
        return needed == ANYTHING or bool(self._batch.items) or any(map(helping.may_help, self._batch.sheets))

    def put_off(self, item: Item) -> WaitReason:
        """Return why an op waits that is taken after the rest of its batch: next time it is the first of its bucket.

        It is put off until `committed`. What of the rest still waits then may wait for this op: its turn is now.

        Args:
            item: the op.
        """
        self._putting_off[item.entry.bucket] = item.entry.position
        at_ms, bucket, older = item.op.at_ms, item.entry.bucket, set[int]()
        if self._batch is not None:
            older |= {one.entry.bucket for one in self._batch.items if one.op.at_ms < at_ms}
            older |= {one.bucket for one in self._batch.sheets if one.sheet.at_ms < at_ms}
        older.discard(bucket)
        self._behind_what[bucket] = at_ms, older
        return self._reason(item)

    def committed(self, after: Mapping[int, Position]) -> None:
        """Note that the transaction is committed without the ops that were put off.

        Where nothing of the buckets that have older ops was committed, nor waits, an op would be put off for ever. So
        the youngest is put off no more; an older one only once no younger is put off, as it may need what that helps.

        Args:
            after: the watermarks that it has left.
        """
        if self._putting_off:
            youngest = max(self._putting_off, key=lambda bucket: self._behind_what[bucket][0])
            if not self._behind_what[youngest][1] & (self._waiting | after.keys()):
                self._spent[youngest] = self._putting_off[youngest]
        self._putting_off, self._behind_what = {}, {}
        self._queued.marks.update(after)

    def _reason(self, item: Item) -> WaitReason:
        detail = f"{item.entry.bucket}:{item.entry.position} for at most [apply] early_wait_s = {self._wait_s:g} s"
        return WaitReason("early", self._shard, self._shard, detail)
