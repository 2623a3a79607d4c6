"""Apply entries in one transaction: lock watermarks, note the attempt, read, execute, and move the watermarks.

Invariant: an entry's effects, its producer's sequence, its rejection and the watermark behind it are committed together
or not at all. After a crash the next worker reads the watermark and continues from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.apply.batch import Batch, FactBook
from pipeline.apply.earlier_ops import EarlierOps
from pipeline.apply.executor import Executor
from pipeline.apply.grouping import Item, grouped, grouped_sheets, may_stay
from pipeline.apply.judge import MOST_DEATHS, Attempt, NeededOps
from pipeline.apply.order import HeldRows, NamedRows, by_time, halted, meet_held_rows, oldest, record
from pipeline.apply.own_keys import OwnKeys
from pipeline.apply.pace import FIRST_ROWS, Guesses, Lessons, Pace, Stopped
from pipeline.config import Topology
from pipeline.config.buckets import FIRST_PIECE
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import PipelineError, Unavailable
from pipeline.model import Entry, Op, Position
from pipeline.model.sheet import Read, SheetEntry, count_ops, cut_at, singly
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.shard import NodeSession, Unanswered, records
from pipeline.shard.driver_errors import Fault, fault_of, is_driver_error
from pipeline.shard.records import APPLYING, HELD_IN, LENT, STOPPED, Mark, Reject
from pipeline.shard.records.moves import Leg, pieces_within
from pipeline.shard.records.replays import DROPPED
from pipeline.shard.records.set_aside import REJECTED

#: The longest statement of a batch of many buckets, s: one that takes longer is run with its bucket alone.
TOGETHER_S = 1
#: The longest statement of a bucket that is tried alone for the first time, while others wait for their turn, s.
BRIEF_S = 0.3
#: How many times as many entries as it executes a transaction reads that takes the oldest of all buckets.
OVER = 1.5
#: The longest rest of a bucket whose next op waits for a lock, s.
LOCK_REST_S = 5.0


#: The most bytes of statements that are sent together: a server reads no more while nobody reads its answers.
MOST_TOGETHER_BYTES = 65_536

#: No notes of any bucket.
NO_NOTES: Mapping[int, str] = {}


class Misguessed(PipelineError):
    """The transaction was built on a guess that is wrong: it has to run again, step by step."""

    retryable = True


@dataclass(slots=True)
class Outcome:
    """What one batch did. `left` buckets are still dirty; `ring` says that the caller must ring for them."""

    applied: int = 0
    rejected: int = 0
    parked: int = 0
    seen: int = 0
    lost: int = 0
    buckets: int = 0
    ms: int = 0
    commit_us: int = 0  # of that, the COMMIT
    left: int = 0
    ring: bool = False
    crossed: bool = False  # ops need what is in other workers' transactions
    waiting: str = ""  # why nothing, or not everything, was applied
    aside: str = ""  # why ops were set aside, where their table is stopped
    refused: list[Reject] = field(default_factory=list)  # the ops that were rejected
    counts: Counter[str] = field(default_factory=Counter)  # added to those of `oplog/shared_state`

    def summary(self) -> dict[str, int | str]:
        """Return what Flower shows of the outcome, without what is zero."""
        shown: dict[str, int | str] = {"applied": self.applied, "rejected": self.rejected, "ms": self.ms}
        for name in ("parked", "seen", "lost", "buckets", "left", "waiting", "aside"):
            if getattr(self, name):
                shown[name] = getattr(self, name)
        return shown

    def add(self, other: Outcome) -> None:
        """Count in what another transaction of the same turn did.

        Args:
            other: its outcome.
        """
        for name in ("applied", "rejected", "parked", "seen", "lost", "buckets", "refused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts.update(other.counts)
        self.left, self.ring = other.left, other.ring or self.ring
        self.crossed |= other.crossed
        self.waiting, self.aside = self.waiting or other.waiting, self.aside or other.aside


@dataclass(slots=True)
class Take:
    """What the transactions of one turn may take.

    Attributes:
        due: the buckets, each with the bytes of its largest op.
        alone: the attempt to make with one bucket; None: all buckets together, but those under suspicion.
        suspects: the next attempt of each bucket that an earlier attempt failed with.
        noted: the attempts of the current try.
        accused: the buckets of the statement that the last try failed with.
        others: where that waited for a lock or took too long, the buckets that had nothing to do with it.
        brief: whether the attempt is given up soon, as others wait.
        ends: of each bucket that halts, the position behind which nothing is executed.
        early: of each bucket, the position of its first op that may be early, and why that waits.
        whole: whether it takes the oldest ops of all due buckets, or nothing where another worker holds some.
        again: whether an earlier try of this process failed in an orderly way, so that its notes mean nothing.
    """

    due: Mapping[int, int]
    alone: Attempt | None = None
    suspects: dict[int, Attempt] = field(default_factory=dict)
    noted: dict[int, Attempt] = field(default_factory=dict)
    accused: set[int] = field(default_factory=set)
    others: Collection[int] = ()
    brief: bool = False
    ends: dict[int, Position] = field(default_factory=dict)
    early: dict[int, tuple[Position, WaitReason]] = field(default_factory=dict)
    whole: bool = False
    again: bool = False

    @property
    def notes(self) -> dict[int, str]:
        """The notes of the current try, by bucket."""
        return {bucket: str(one) for bucket, one in self.noted.items()}

    @property
    def patient(self) -> bool:
        """Whether it goes on without the ops that may be early; else it is given up for one that is `whole`."""
        return self.whole or self.alone is not None

    @property
    def anew(self) -> bool:
        """Whether earlier notes are to be replaced: what they say is known."""
        return self.again or self.alone is not None

    def before_early(self, bucket: int, entries: Sequence[Read]) -> list[Read]:
        """Return the entries of a bucket that are before its first op that may be early.

        Args:
            bucket: the bucket.
            entries: of it, in order.
        """
        first = self.early.get(bucket)
        return list(entries) if first is None else cut_at(first[0], entries)[0]

    def suspect(self, earlier: Mapping[int, str], void: Mapping[int, str] = NO_NOTES) -> None:
        """Leave out the buckets with which an earlier attempt failed.

        Args:
            earlier: the notes that were found instead of being written, by bucket.
            void: notes of this process's own that mean nothing, by bucket.
        """
        for bucket, note in earlier.items():
            meant = Attempt.parse(note) if void.get(bucket) == note else None
            if meant is not None and not meant.entries:
                continue
            mistrusted = self.noted.pop(bucket)
            self.suspects[bucket] = (
                meant._replace(ended=False) if meant else Attempt.suspected(note) or mistrusted.failed()
            )


class ApplyTransaction:
    """What every apply transaction of one shard in this process shares.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: the logs and their schemas.
        settings: what one transaction may take.
        step: called with the name of each step before it is taken.
        tables: what the configuration says of tables, by name.
        topology: see `EarlierOps`.

    Attributes:
        facts: of the tables.
        stopped: what is paused or halted on the shard.
        pace: how much one transaction takes.
        notes_at: where attempts are noted.
        noted: the notes of the last transaction, by bucket.
        void: notes of this process's own that mean nothing, by bucket.
        step: called with the name of each step before it is taken.
        elsewhere: the state of the buckets that a turn's transactions met, and that another shard owns.
        lent: of each bucket of the last transaction one of whose keys is away, the row of the key's move.
        guesses: whether small batches are sent before it is known what the shard has seen.
    """

    guesses = True

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        settings: ApplySettings,
        step: Callable[[str], None],
        tables: Mapping[str, TableSettings],
        topology: Topology | None = None,
    ):
        self._shard, self._session, self._log, self._tables = shard, session, log, tables
        self.notes_at, self.elsewhere = shard, dict[int, str]()
        self.noted = self.void = NO_NOTES
        self.lent = dict[int, Leg]()
        self._settings, self.step, self._longest_s = settings, step, settings.statement_s
        self.facts, self.stopped = FactBook(shard, session, log), Stopped(shard, session, settings.set_aside)
        self.pace = Pace(settings, log)
        self._lessons, self._guesses = Lessons(), Guesses()
        self._named = NamedRows(session)
        #: None: a constraint's word is final.
        self._earlier: EarlierOps | None = EarlierOps(
            shard, session, log, self.facts, settings.early_wait_s, topology, self._named
        )
        #: Tells the ops of this shard from those of another that reads the same logs; None: no other reads any.
        self._own: OwnKeys | None = None

    def run(self, take: Take, blocked: Mapping[str, WaitReason], *, last_try: bool) -> tuple[Outcome, Batch]:
        """Apply what *take* allows, inside the open transaction.

        Args:
            take: what it may take; grows by what is noted, and by what is under suspicion.
            blocked: why ops of a schema wait, by the schema's hash.
            last_try: whether an error that no list names is believed now.

        Raises:
            SchemaBehind, ConstraintsChanged, NeverSeen, Halt, Early: the transaction must be rolled back and run again.
            Unavailable: the log does not answer.
            Exception: the driver's own.
        """
        take.accused = set()
        batch, locked = self._take(take, blocked)
        if not batch.after:
            return Outcome(buckets=len(batch.before), waiting=batch.why), batch
        try:
            executor = self._guessed(batch, locked, take)
            if executor is None:
                batch.skip_seen(self._session)
                if self._own is not None:
                    self._own.divide(batch)
                executor = self._execute(batch, locked, take, last_try=last_try)
                self.step("mark")
                self._record_at_once(batch, executor, locked, take)
        except PipelineError as error:
            if not isinstance(error, Unavailable):
                self.note_ended(take)  # while the locks are held: whoever has them next finds no failed attempt
            raise
        return self._outcome(batch, executor), batch

    def _guessed(self, batch: Batch, locked: Mapping[int, Mark], take: Take) -> Executor | None:
        """Apply a small batch in one round trip, as if the shard had seen nothing of it, and held no row that it names.

        Whether that is so is answered in the same round trip, before the commit.

        None: nothing was sent, since it cannot be guessed, or some statement needs an answer.

        Raises:
            Misguessed: the shard has seen some op, or refuses one, or a row is held.
            Exception: the driver's own, after which the transaction is retried.
        """
        unusual = take.alone is not None or take.whole or take.ends or take.early or take.again
        if (
            unusual
            or self._own is not None
            or not self.guesses
            or (unseen := batch.unseen()) is None
            or not self._guesses.next()
        ):
            return None
        session, guessed = self._session, [records.read_seen(unseen)]
        try:
            with session.kept_back() as kept:
                batch.take_all()
                executor = self._execute(batch, locked, take, last_try=False, guessed=guessed)
                self.step("mark")
                self._record(batch, executor, locked, take)
        except PipelineError as error:
            if isinstance(error, Unavailable):
                raise
            return None  # nothing was sent: what the shard has seen already may be what is wrong
        if executor.rejects or sum(map(len, (*guessed, *kept))) > MOST_TOGETHER_BYTES:
            return None
        try:
            found = session.ask(" UNION ALL ".join(guessed), *kept)[0]  # one answer wakes this process once
        except Exception as error:
            take.accused = executor.accused(session.answered - 1)
            self._guesses.wrong()
            if not is_driver_error(error) or fault_of(error) in (Fault.TRANSIENT, Fault.LOCKED, Fault.OVERTIME):
                raise
            raise Misguessed("the server refuses a statement") from error
        if records.seen_in(found, unseen) != unseen or not all(producer for _, producer, _ in found):
            self._guesses.wrong()
            raise Misguessed("the shard has seen some of it, or not what was before it, or sets aside what is behind")
        self._guesses.right()
        return executor

    def committed(self, after: Mapping[int, Position]) -> None:
        """Note that a transaction is committed.

        Args:
            after: the watermarks that it has left.
        """
        if self._earlier is not None:
            self._earlier.committed(after)

    def note_ended(self, take: Take) -> None:
        """Note that an attempt ended in an orderly way.

        Args:
            take: what it took.
        """
        notes = {b: "" if take.alone is None else str(one._replace(ended=True)) for b, one in take.noted.items()}
        self._log.note_attempts(self.notes_at, notes, anew=True)

    def _take(self, take: Take, blocked: Mapping[str, WaitReason]) -> tuple[Batch, Mapping[int, Mark]]:
        """Lock watermarks, note the attempt, and read what is behind them."""
        self.step("lock")
        self._limit(take)
        if take.whole:
            locked = records.lock_all(self._session, take.due)
        else:
            locked = records.lock(self._session, take.due, self.pace.buckets)
        mine = {bucket: mark.position for bucket, mark in locked.items() if mark.owned}
        self.elsewhere = {bucket: state for bucket, state in self.elsewhere.items() if bucket not in locked}
        self.elsewhere |= {bucket: mark.state for bucket, mark in locked.items() if not mark.owned}
        waiting = halted(self._shard, locked)
        split = {b: mark.state for b, mark in locked.items() if b >= FIRST_PIECE or mark.state in (LENT, STOPPED)}
        self.lent, self._own = {}, None
        if split:
            self._own = self._apart(split, waiting)
        entries = self._read(take, {bucket: position for bucket, position in mine.items() if bucket not in waiting})
        batch = Batch(
            {bucket: position for bucket, position in mine.items() if bucket in entries or bucket in waiting},
            self.facts,
            blocked,
            self.stopped.tables(),
            self.stopped.room,
            self._rows(take),
            self._settings.max_bytes,
            behind=self.stopped.waiting(),
            waiting=waiting,
        )
        for bucket, found in entries.items():
            end = take.ends.get(bucket)
            found = found if end is None else [entry for entry in singly(found) if entry.position <= end]
            if bucket in take.early:
                found, batch.waiting[bucket] = take.before_early(bucket, found), take.early[bucket][1]
            batch.take(found)
        return batch, locked

    def _apart(self, split: Mapping[int, str], waiting: dict[int, WaitReason]) -> OwnKeys:
        """Return what tells this shard's ops from another's in some logs; note which of these wait for a move."""
        legs = pieces_within(self._session, split)
        self.lent = {leg.of.bucket: leg for leg in legs.values() if leg.of is not None and leg.apart}
        of = {number: leg.of for number, leg in legs.items() if leg.of is not None and number in split}
        for bucket, state in split.items():
            if bucket >= FIRST_PIECE:
                if bucket not in of:  # whose it is says the row of its move
                    waiting[bucket] = WaitReason("moving", self._shard, f"{bucket}", self._shard, buckets=1)
                continue
            moved = next((leg for leg in legs.values() if leg.of is not None and leg.of.bucket == bucket), None)
            if state == STOPPED or bucket not in self.lent:
                names = (moved.source, moved.target) if moved is not None else (self._shard, self._shard)
                waiting[bucket] = WaitReason("moving", names[0], f"{bucket}", names[1], buckets=1)
            elif (key := self.lent[bucket].of) is not None:
                of[bucket] = key
        return OwnKeys(self._session, self.facts.known, self._tables, of)

    def _execute(
        self,
        batch: Batch,
        locked: Mapping[int, Mark],
        take: Take,
        *,
        last_try: bool,
        guessed: list[str] | None = None,
    ) -> Executor:
        """Execute the ops of a batch; what is set aside is in the executor's `rejects`.

        Args:
            guessed: gets the queries whether rows are held, and none is taken to be; None: they are asked.
        """
        if batch.sheets and not self._stay(batch, locked, take):
            batch.take_apart()
        lent = [bucket for bucket, mark in locked.items() if mark.state not in APPLYING]
        rows = HeldRows(self.facts.known, self._tables, take.ends, lent)
        holding = [one for one in batch.items if locked[one.entry.bucket].state in HELD_IN]
        if guessed is None:
            stops = [one for one, _ in batch.halted if locked[one.entry.bucket].state in HELD_IN]
            rows.read(self._session, holding, stops)
        else:
            guessed += rows.queries(holding)
        stopped = rows.stop(batch.halted)
        if self._earlier is not None:
            self._earlier.begin(batch, again=bool(take.early))
        awaited = NeededOps(self._session, self.facts, batch.tables_waiting, batch.tables_in_logs)
        items = by_time(batch.items, self._reach)
        executor = self._executed(items, rows, take, batch.sheets, awaited=awaited, last_try=last_try)
        executor.rejects += [*batch.unreadable, *stopped]
        if executor.rejects:
            batch.take_out(executor.rejects)  # which ops are set aside, is asked of each
        return executor

    def _reach(self, delete: Op) -> Collection[int] | None:
        facts = self.facts.known[delete.schema]
        if not facts.constraints.children:
            return ()
        row = self._named.row(delete, facts)
        return None if row is None else (row,)

    def _stay(self, batch: Batch, locked: Mapping[int, Mark], take: Take) -> bool:
        """Return whether sheets are inserted as they are: nothing is unusual, and no other op is of their tables."""
        unusual = take.alone is not None or take.ends or batch.halted
        if unusual or not may_stay(batch.sheets, batch.items, self.facts.known):
            return False
        holding = [entry for entry in batch.sheets if locked[entry.bucket].state in HELD_IN]
        return not holding or not meet_held_rows(self._session, holding, self.facts.known)

    def _executed(
        self,
        items: Sequence[Item],
        rows: HeldRows,
        take: Take,
        sheets: Sequence[SheetEntry] = (),
        *,
        last_try: bool,
        awaited: NeededOps | None = None,
    ) -> Executor:
        self.step("execute")
        known, earlier, patient = self.facts.known, self._earlier, take.patient
        executor = Executor(
            self._session,
            known,
            rows,
            self.step,
            self._lessons,
            earlier,
            last_try=last_try,
            patient=patient,
            awaited=awaited,
        )
        if take.alone is not None and (verdict := self._verdict(take.alone)):
            executor.condemn(items, verdict)
            return executor
        try:
            executor.run(grouped(items, known), grouped_sheets(sheets, known))
        except PipelineError:
            raise
        except Exception:
            take.accused = executor.accused(len(executor.sent) - 1)
            raise
        return executor

    def _record_at_once(self, batch: Batch, executor: Executor, locked: Mapping[int, Mark], take: Take) -> None:
        """Record a batch in one round trip, if no statement of it needs an answer."""
        try:
            with self._session.kept_back() as kept:
                self._record(batch, executor, locked, take)
        except Unanswered:  # nothing was sent
            self._record(batch, executor, locked, take)
        else:
            self._session.ask(*kept)

    def _record(self, batch: Batch, executor: Executor, locked: Mapping[int, Mark], take: Take) -> None:
        """Write what became of the batch, and move the watermarks."""
        if batch.last:
            records.remember(self._session, batch.last)
        record(self._session, executor.rejects, locked, take.ends)
        records.lose(self._session, batch.losses)
        batch.use_keys(self._session, executor.rejects)
        if executor.ids:
            records.keep_ids(self._session, executor.ids)
        records.move(self._session, batch.after)

    def _read(self, take: Take, mine: Mapping[int, Position]) -> Mapping[int, list[Read]] | dict[int, list[Entry]]:
        """Note what is attempted, and read the entries for it. Suspected buckets are left out."""
        if take.alone is not None:
            if not take.noted:  # later tries would find the note of the first
                notes = self._log.attempts(self.notes_at)
                note = next(
                    (notes.get(bucket, "") for bucket in mine if notes.get(bucket) != self.void.get(bucket)), ""
                )
                take.alone = take.alone.after_note(note)
            counts = {
                bucket: self.pace.most(bucket, position, take.alone.entries)
                for bucket, position in mine.items()
                if position == take.alone.after
            }
            # what is noted is what is there to be blamed: no attempt is lost on narrowing down what is not
            take.noted = {bucket: take.alone.of(found) for bucket, found in counts.items()}
            take.alone = next(iter(take.noted.values()), take.alone)
        else:
            rows = int(self._rows(take) * (OVER if take.whole else 1))
            counts = self.pace.counts({b: after for b, after in mine.items() if b not in take.suspects}, take.due, rows)
            take.noted = {bucket: Attempt(mine[bucket], count) for bucket, count in counts.items()}
        self.step("read")
        after = {bucket: mine[bucket] for bucket in counts}
        self.noted = take.notes
        entries, earlier = self._log.read_noted(self.notes_at, after, counts, take.notes, anew=take.anew)
        take.suspect(earlier, self.void)
        entries = {bucket: found for bucket, found in entries.items() if bucket in take.noted}
        if take.whole:  # without what follows early ops: what these wait for may be younger than all of it
            return oldest({b: take.before_early(b, found) for b, found in entries.items()}, counts, self._rows(take))
        if take.alone is None:
            deep = sum(count_ops(found) >= counts[bucket] for bucket, found in entries.items())
            self.pace.learn_depth(deep, len(counts))
        return entries

    def _rows(self, take: Take) -> int:
        """Return how many entries a transaction executes at most."""
        return max(self.pace.rows, FIRST_ROWS) if take.whole else self.pace.rows

    def _limit(self, take: Take) -> None:
        most_s = TOGETHER_S if take.alone is None else BRIEF_S if take.brief else self._longest_s
        self._session.limit_statements(min(most_s, self._longest_s))

    def _verdict(self, attempt: Attempt) -> str:
        """Return why the next op is rejected without another try, or the empty string."""
        if attempt.entries == 1 and attempt.deaths >= MOST_DEATHS:
            what = "the worker, the server, the transaction or the statement's time"
            return f"poison: alone, it ended {what} {attempt.deaths} times"
        if attempt.entries == 1 and attempt.waits * LOCK_REST_S >= self._settings.lock_wait_s:
            return f"it waited for a lock for [apply] lock_wait_s = {self._settings.lock_wait_s} s"
        return ""

    def _outcome(self, batch: Batch, executor: Executor) -> Outcome:
        parked = sum(one.state not in (REJECTED, DROPPED) for one in executor.rejects)
        batch.aside = executor.rejects
        return Outcome(
            applied=batch.tried + len(batch.halted) + len(batch.unreadable) - len(executor.rejects),
            rejected=len(executor.rejects) - parked,
            parked=parked,
            seen=batch.seen,
            lost=batch.lost,
            buckets=len(batch.after),
            waiting=batch.why,
            aside=next((reason.sentence() for _, reason in batch.halted), ""),
            refused=[one for one in executor.rejects if one.state in (REJECTED, DROPPED)],
        )
