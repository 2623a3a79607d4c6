"""Apply what a shard's logs hold, many buckets in one transaction; publish what is done, and why buckets wait."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from pipeline import clock, tracing
from pipeline.apply import tell
from pipeline.apply.batch import Batch
from pipeline.apply.grouping import Item
from pipeline.apply.judge import Attempt
from pipeline.apply.pace import LARGE
from pipeline.apply.transaction import NO_NOTES, ApplyTransaction, Outcome, Take
from pipeline.apply.turns import SCHEMA_DELAY_MS, ShardTurns, ms_since
from pipeline.config import Topology
from pipeline.config.sections import MOST_BUCKETS
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import LogUnavailable, Unavailable
from pipeline.events import Event
from pipeline.model import INSERT, Position, TracedOp
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Log
from pipeline.oplog.shared_state import (
    APPLIED,
    BATCH_MS,
    BATCH_SUM_MS,
    BATCHES,
    BOUNDS_MS,
    COMMIT_MS,
    COMMIT_SUM_US,
    HELD,
    PARKED,
    REJECTED,
    SEEN,
    Waits,
    bound_of,
    note_of,
)
from pipeline.shard import NodeSession
from pipeline.shard.records import GONE, MOVED, ledger_queries, moves

if TYPE_CHECKING:
    from pipeline.oplog.doorbell import Bell, SilentBell


#: How long the due buckets of a paused shard rest, ms; `pipeline resume` ends their rest.
PAUSED_DELAY_MS = 1000
#: A note holds until its bucket's watermark moves, or for so long, ms: a batch may take 4 tries of 5 s, and rest 5 s.
NOTE_MS = 40_000
#: How long a bucket whose next op may be early rests, ms: what it waits for is often being committed at this moment.
EARLY_DELAY_MS, MOST_EARLY_DELAY_MS = 20, 500
#: How long a bucket rests that is on its way to the shard, ms; the move ends the rest.
ARRIVING_DELAY_MS = 1000
#: How long the oldest ops of all buckets are applied together after the last that needed it, s. Ops that need others
#: are seldom the last of their kind, and each time that is learnt a transaction is for nothing.
WHOLE_S = 10.0
#: How often others are rung while more buckets are due than one batch takes, s: a message costs as much as 500 rows.
RING_S = 0.5
#: The turn of large ops, one process of a host at a time: the others have time for small ones. It ends by itself, if
#: who has it is killed. A bucket for which it is taken rests so long.
LARGE_TURN, LARGE_TURN_MS, LARGE_REST_MS = f"large ops at {socket.gethostname()}", 5_000, 100
#: The longest detail that is noted, characters: a note is for each bucket.
_DETAIL = 300
logger = logging.getLogger("pipeline.apply")
#: The most calls of one batch that are linked, and that get a span each; a batch may have thousands of ops.
MOST_LINKS = 32


class Applier(ShardTurns):
    """Applies one shard's ops in this process.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: the logs, their schemas and dirty sets.
        settings: what one transaction may take.
        step: called with the name of each step before it is taken; crash tests kill the process in it.
        tables: what the configuration says of tables, by name: here `on_reject` counts.
        topology: tells in which bucket an op is that makes a row; None: it is looked for in all.

    Attributes:
        holder: who holds the shard's bell while this applies, see `Work.due`; the empty text: nobody.
    """

    holder = ""

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Log,
        settings: ApplySettings,
        step: Callable[[str], None] = lambda name: None,
        tables: Mapping[str, TableSettings] = MappingProxyType({}),
        topology: Topology | None = None,
    ):
        transaction = ApplyTransaction(shard, session, log, settings, step, tables, topology)
        super().__init__(shard, session, log, transaction)
        self._settings, self._failures = settings, 0
        self._leases, self._token = log, uuid4().hex
        #: Of each bucket whose next op may be early, its watermark, and how many turns in a row that was so there.
        self._early: dict[int, tuple[Position, int]] = {}
        #: Whether ops need ops of other buckets, so that the oldest of all buckets are applied together: until all is.
        self._whole = False
        #: Until when it is so for what comes next, s.
        self._whole_until_s = 0.0
        #: When others were last rung, since more is due than one batch takes, s.
        self._rung_s = -RING_S
        #: What `listen` has found due, and from when on that was looked for, s.
        self._found: tuple[dict[int, int], float] | None = None
        #: When the last turn looked at what is due, if that is in good hands, s; and what rings for others.
        self._looked_s: float | None = None
        self._bell: Bell | SilentBell | None = None

    def apply(self, bell: Bell | SilentBell | None = None) -> Outcome:
        """Apply one batch of what is due. Never raises for a fault that a retry may cure.

        Args:
            bell: rung at the start if more buckets are due than one batch takes. Another worker can begin at once,
                since workers never wait for each other's locks.
        """
        started = clock.mono_s()
        self._step("due")
        found, self._found = self._found, None
        due, looked_s = found or (self._log.due(self.shard, self._looks_for, self.holder), started)
        limit = MOST_BUCKETS + 1 if self._whole else self._transaction.pace.buckets
        self._bell, self._looked_s = bell, looked_s
        if not due:
            self._whole = clock.mono_s() < self._whole_until_s
            return Outcome()
        try:
            if (paused := self._stopped.whole()) is not None:
                self._log.postpone(self.shard, due, PAUSED_DELAY_MS)
                return Outcome(left=len(due), waiting=paused.sentence(), ms=ms_since(started))
            if bell is not None and len(due) > limit and started >= self._rung_s + RING_S:
                self._rung_s = started
                if not bell.waits((self.shard,)):  # while all workers are busy, one message is enough
                    bell.ring_now(self.shard, len(due))
            early = self._early
            outcome = self._turns(due, started)
            self._failures, self._transaction.void = 0, self._transaction.noted if outcome.crossed else NO_NOTES
            outcome.ring |= self._hand_on()
            if outcome.ring or ops_of(outcome):
                self._looked_s = None
            self._whole |= outcome.crossed
            has_early = self._early is not early
            if outcome.crossed or has_early:
                self._whole_until_s = clock.mono_s() + WHOLE_S
            if has_early:
                self._whole = True
                if not outcome.ring:  # others commit meanwhile what these wait for
                    clock.sleep_s(EARLY_DELAY_MS / 1000)
                outcome.ring = True
            else:
                self._whole &= outcome.left > 0 or clock.mono_s() < self._whole_until_s
        except Unavailable as error:
            outcome = self._postponed(due, error)
        outcome.ms = ms_since(started)
        tell(self.shard, outcome.refused)
        return outcome

    def _turns(self, due: Mapping[int, int], started: float) -> Outcome:
        """Apply what is due, large ops apart and last: one takes as long as thousands of others, which would wait."""
        self._transaction.elsewhere = {}
        least = self._settings.max_bytes // LARGE
        large = {} if self._whole else {bucket: size for bucket, size in due.items() if size >= least}
        if not large:
            return self._turn(Take(due, whole=self._whole), started)
        outcome = Outcome()
        if small := {bucket: size for bucket, size in due.items() if bucket not in large}:
            outcome = self._turn(Take(small), started)
        if outcome.crossed:
            return outcome
        with self._large_turn() as mine:
            if mine:
                outcome.add(self._turn(Take(large), started))
            else:
                self._log.postpone(self.shard, large, LARGE_REST_MS)
                outcome.left += len(large)
        return outcome

    @contextmanager
    def _large_turn(self) -> Iterator[bool]:
        """Take the host's turn of large ops; yield whether it was free."""
        mine = self._leases.hold_lease(LARGE_TURN, self._token, LARGE_TURN_MS)
        try:
            yield mine
        finally:
            if mine:
                with suppress(Unavailable):
                    self._leases.release_lease(LARGE_TURN, self._token)

    def listen(self, for_s: float) -> Generator[bool | None]:
        """Wait for an op; yield False meanwhile, then True, or None where nothing is due and another holds the bell.

        What is due then is what the next `apply` begins with.

        Args:
            for_s: the longest wait, s.

        Raises:
            LogUnavailable: the log does not answer.
        """
        began_s = clock.mono_s()  # what becomes due from now on may be what is found: it counts as not looked at
        with closing(self._log.listen(self.shard, self.holder, for_s, self._looks_for)) as waiting:
            for due in waiting:
                if isinstance(due, dict):
                    self._found = due, began_s
                yield True if isinstance(due, dict) else due

    @property
    def _looks_for(self) -> int:
        """How many due buckets to ask for; others are rung for what is more than one batch takes."""
        return MOST_BUCKETS + 1 if self._whole else 2 * self._transaction.pace.buckets

    def _postponed(self, due: Mapping[int, int], error: Unavailable) -> Outcome:
        """Leave buckets alone for a while: their database or the log is away."""
        self._failures += 1
        # what the last transaction noted then means nothing; what others have noted does
        self._transaction.void = self._transaction.noted if isinstance(error, LogUnavailable) else NO_NOTES
        self._log.postpone(self.shard, due, int(1000 * clock.backoff_s(self._failures)))
        reason = WaitReason("database", self.shard, self.shard, str(error))
        note_waits(self._log, self.shard, dict.fromkeys(due, reason), {})
        logger.warning(Event("batch_postponed", shard=self.shard, buckets=len(due), error=error))
        return Outcome(left=len(due), waiting=reason.sentence())

    def leave(self, bell: Bell | SilentBell) -> None:
        """Give up the bell, and ring if anything is due but what the last turn found in others' hands.

        Args:
            bell: is rung.

        Raises:
            LogUnavailable: the log does not answer; nobody holds the bell for long.
        """
        self._found = None
        self._leave(bell)
        self.holder = ""

    def _leave(self, bell: Bell | SilentBell) -> None:
        within_ms = None if self._looked_s is None else ms_since(self._looked_s) + 1
        ring, left = self._log.leave(self.shard, self.holder, within_ms=within_ms)
        if ring:
            bell.ring_now(self.shard, left)

    def _alone(
        self, bucket: int, attempt: Attempt | None, largest_bytes: int, outcome: Outcome, *, brief: bool = False
    ) -> Attempt | None:
        """Let others come meanwhile: this may take seconds."""
        if self.holder and self._bell is not None:
            self._leave(self._bell)
        return super()._alone(bucket, attempt, largest_bytes, outcome, brief=brief)

    def _hand_on(self) -> bool:
        """Leave buckets to the shard that they have gone to, as a producer did not know it yet; let others arrive.

        Returns whether one of these has arrived meanwhile.
        """
        met, self._transaction.elsewhere = self._transaction.elsewhere, {}
        if not met:
            return False
        left = [bucket for bucket, state in met.items() if state in (MOVED, GONE)]
        for bucket, leg in moves.legs(self._session, left).items() if left else ():
            self._log.mark_dirty(leg.target, [bucket if leg.of is None else leg.of.bucket])
        self._log.mark_clean(self.shard, left)
        if not (arriving := met.keys() - left):
            return False
        self._log.postpone(self.shard, arriving, ARRIVING_DELAY_MS)
        # the mover may have ended the rest before it began; nobody else would until it is over
        here = [bucket for bucket, mark in ledger_queries.marks_of(self._session, arriving).items() if mark.owned]
        if here:
            self._log.postpone(self.shard, here, 0)
        return bool(here)

    def _rests_of_early(self, marks: Mapping[int, Position]) -> dict[int, dict[int, Position]]:
        """Note that the next ops of buckets may be early; return the watermarks by how long each bucket rests, ms.

        Args:
            marks: the buckets' watermarks.
        """
        turns, rests = dict[int, tuple[Position, int]](), dict[int, dict[int, Position]]()
        for bucket, mark in marks.items():
            before, count = self._early.get(bucket, (mark, 0))
            turns[bucket] = mark, count + 1 if before == mark else 1
            rests.setdefault(min(MOST_EARLY_DELAY_MS, EARLY_DELAY_MS * turns[bucket][1]), {})[bucket] = mark
        self._early = self._early | turns
        return rests

    def _explain(self, bucket: int, reason: WaitReason, attempt: Attempt) -> None:
        note_waits(self._log, self.shard, {bucket: reason}, {bucket: attempt.after})

    def _rest(self, bucket: int, rest_s: float) -> None:
        self._log.postpone(self.shard, [bucket], int(1000 * rest_s))

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        """Publish watermarks and clean the dirty set. Rows are committed, so a failure here is for the sweeper."""
        self._transaction.committed(batch.after)
        self._step("finish")
        if self._transaction.lent:
            self._wake_pieces(batch)
        outcome.counts = counts_of(batch, outcome)
        done = batch.before | batch.after
        held = {bucket: done.pop(bucket) for bucket in batch.waiting}
        # the published watermark is the proof that the database was restored: it is not replaced
        restored = [bucket for bucket in held if batch.waiting[bucket].kind == "restored"]
        try:
            if restored:
                self._log.note_attempts(self.shard, dict.fromkeys(restored, ""), anew=True)
                self._log.postpone(self.shard, restored, SCHEMA_DELAY_MS)
            early = {bucket: mark for bucket, mark in held.items() if batch.waiting[bucket].kind == "early"}
            own = self._transaction.noted
            if early:
                for rest_ms, marks in self._rests_of_early(early).items():
                    self._log.finish(self.shard, marks, delay_ms=rest_ms, own=own)
            if resting := {bucket: mark for bucket, mark in held.items() if bucket not in (*restored, *early)}:
                self._log.finish(self.shard, resting, delay_ms=SCHEMA_DELAY_MS, own=own)
            if held:
                note_waits(self._log, self.shard, batch.waiting, held)
            note = note_of(clock.wall_ms(), batch.before, batch.after)
            outcome.ring, outcome.left = self._log.finish(
                self.shard, done, counts=outcome.counts, note=note, holder=self.holder, own=own
            )
        except Unavailable as error:
            logger.warning(Event("commit_not_published", shard=self.shard, error=error))
        self._stopped.room -= len(batch.halted)
        self._stopped.set_aside(batch.aside)
        if self._settings.breaker:
            for reject in self._stopped.breaker.learn(batch.items, batch.aside, batch.sheets):
                self._stopped.halt(reject, self._facts.database_name(reject.table))

    def _wake_pieces(self, batch: Batch) -> None:
        """Let the shards of keys that are away go on behind what was just applied without these keys."""
        for bucket, leg in self._transaction.lent.items():
            if bucket not in batch.after or self.shard not in (leg.source, leg.target):
                continue
            other = leg.other(self.shard)
            try:
                self._log.mark_dirty(other, [leg.bucket])
                ring, left = self._log.sweep(other, due_ms=0)
            except Unavailable as error:
                logger.warning(Event("commit_not_published", shard=self.shard, error=error))
                continue
            if ring and self._bell is not None:
                self._bell.ring_now(other, left)


def ops_of(outcome: Outcome) -> int:
    """Return how many ops a batch got on with, whatever became of them.

    Args:
        outcome: what it did.
    """
    return outcome.applied + outcome.rejected + outcome.parked + outcome.seen + outcome.lost


def counts_of(batch: Batch, outcome: Outcome) -> Counter[str]:
    """Return what a transaction adds to its shard's counters; see `oplog/shared_state`.

    Args:
        batch: what it took.
        outcome: what it did, with the time that it took.
    """
    counts = Counter[str]()
    for reason in batch.waiting.values():
        counts[f"{HELD} {reason.kind}"] += 1
    if not batch.taken:
        return counts
    for name, n in applied_counts(batch.done(batch.aside)).items():  # Counter's own `+` takes 15 µs for two names
        counts[name] += n
    for entry in batch.sheets:  # none of their ops is set aside: these were taken out
        counts[f"{APPLIED} {INSERT} {entry.sheet.table}"] += len(entry.sheet)
    for reject in outcome.refused:
        counts[f"{REJECTED} {reject.table}"] += 1
    for name, n in ((PARKED, outcome.parked), (SEEN, outcome.seen)):
        if n:
            counts[name] = n
    counts[BATCHES] = counts[f"{BATCH_MS} {bound_of(outcome.ms, BOUNDS_MS)}"] = 1
    counts[f"{COMMIT_MS} {bound_of(outcome.commit_us / 1000, BOUNDS_MS)}"] = 1
    counts[BATCH_SUM_MS], counts[COMMIT_SUM_US] = outcome.ms, outcome.commit_us
    return counts


def applied_counts(items: Iterable[Item]) -> Counter[str]:
    """Return what ops that took effect add to their shard's counters.

    Args:
        items: the ops.
    """
    found = Counter[str]()
    kind, table, n = "", "", 0
    for item in items:  # like ops come in runs: 0.03 us for each, where one by one takes 0.16
        op = item.op
        if op.kind == kind and op.table == table:
            n += 1
            continue
        if n:
            found[f"{APPLIED} {kind} {table}"] += n
        kind, table, n = op.kind, op.table, 1
    if n:
        found[f"{APPLIED} {kind} {table}"] += n
    return found


def note_waits(log: Waits, shard: str, reasons: Mapping[int, WaitReason], marks: Mapping[int, Position]) -> None:
    """Note why buckets wait. A log that does not answer is no failure: its readers say so themselves.

    Args:
        log: takes the notes.
        shard: the shard's name.
        reasons: of each bucket, why it waits.
        marks: of each bucket, its watermark, where it is known.
    """
    notes = {}
    for bucket, reason in reasons.items():
        after = str(marks[bucket]) if bucket in marks else ""
        text = replace(reason, after=after, detail=reason.detail[:_DETAIL]).to_json()
        notes[bucket] = (f"{reason.kind}/{after}", text)
    try:
        if notes:
            log.note_waits(shard, notes, NOTE_MS)
    except Unavailable as error:
        logger.info(Event("waits_not_noted", shard=shard, buckets=len(notes), error=error))


class _Met(NamedTuple):
    """The first op of a call that a batch has committed, what became of it, and when, ns since 1970."""

    item: Item
    state: str
    at_ns: int


class TracedApplier(Applier):
    """An applier whose batches join the traces of their ops, and the open one, such as Celery's own span."""

    def apply(self, bell: Bell | SilentBell | None = None) -> Outcome:
        """Apply one batch; see `Applier.apply`."""
        began_ns = clock.wall_ns()
        self._met, self._commits_ns = dict[str, _Met](), list[int]()
        outcome = super().apply(bell)
        if self._met or (self._commits_ns and tracing.recording()):
            self._export(outcome, began_ns)
        return outcome

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        at_ns = clock.wall_ns()
        super()._finish(batch, outcome)
        self._commits_ns.append(at_ns)
        aside = {(one.entry.bucket, one.entry.position): one.state for one in batch.aside}
        for item in (*batch.items, *(item for item, _ in batch.halted)):
            if isinstance(item.op, TracedOp) and len(self._met) < MOST_LINKS:
                state = aside.get(item.place, "applied")
                self._met.setdefault(item.op.traceparent, _Met(item, state, at_ns))

    def _export(self, outcome: Outcome, began_ns: int) -> None:
        about = {"pipeline.shard": self.shard, "pipeline.applied": outcome.applied, "pipeline.buckets": outcome.buckets}
        about |= {"pipeline.rejected": outcome.rejected, "pipeline.parked": outcome.parked}
        batch = tracing.started("pipeline.apply", "CONSUMER", about, links=self._met, start_ns=began_ns)
        for at_ns in self._commits_ns:
            batch.add_event("commit", timestamp=at_ns)
        batch.end()
        for parent, (item, state, at_ns) in self._met.items():
            bucket, position = item.entry.bucket, str(item.entry.position)
            one = {"pipeline.shard": self.shard, "pipeline.bucket": bucket, "pipeline.position": position}
            one |= {"pipeline.table": item.op.table, "pipeline.kind": item.op.kind, "pipeline.state": state}
            links = [tracing.parent_of(batch)]
            commit = tracing.started("pipeline.commit", "CONSUMER", one, parent=parent, links=links, start_ns=began_ns)
            if state == "rejected":
                tracing.failed(commit)
            commit.end(at_ns)


def applier_type() -> type[Applier]:
    """Return which applier this process uses."""
    return TracedApplier if tracing.on() else Applier
