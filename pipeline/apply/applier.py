"""Apply what a shard's logs hold: many buckets in one transaction, rows and watermarks in one commit.

Invariant: an entry's effects, its producer's sequence, its rejection and the watermark behind it are committed together
or not at all. After a crash the next worker reads the watermark and continues from there.

One transaction takes as many rows as commit in about `target_ms`, within the limits of the settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline import clock
from pipeline.apply import rejections
from pipeline.apply.attempt import MOST_DEATHS, Attempt
from pipeline.apply.batch import Batch, FactBook
from pipeline.apply.executor import ConstraintsChanged, Executor, NeverSeen, SchemaBehind
from pipeline.apply.grouping import grouped
from pipeline.apply.held_rows import Halt, HeldRows, halted, record
from pipeline.apply.pace import Pace
from pipeline.apply.stopped import Stopped
from pipeline.apply.wait_notes import note_waits
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import NotMigrated, PipelineError, ShardUnavailable, Unavailable
from pipeline.model.op import Position
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.contract import Work
from pipeline.shard import ledger
from pipeline.shard.driver_errors import (
    Fault,
    ended_abruptly,
    fault_of,
    is_driver_error,
    passes_by_itself,
    sentence_of,
)
from pipeline.shard.ledger import HOLDING, Reject
from pipeline.shard.session import NodeSession
from pipeline.shard.set_aside import REJECTED

if TYPE_CHECKING:
    from pipeline.oplog.doorbell import Bell, SilentBell

#: How often one batch is tried: InnoDB calls deadlocks and snapshot conflicts transient.
COMMIT_TRIES = 4
#: The try at which an error that no list names is believed; tries of one batch are 10 to 100 ms apart.
LAST_TRY = 3
#: How long a bucket waits for a schema that this worker or its shard does not have yet, ms.
SCHEMA_DELAY_MS = 1000
#: How long the due buckets of a paused shard rest, ms; `pipeline resume` ends their rest.
PAUSED_DELAY_MS = 1000
#: The longest statement of a batch of many buckets, s: one that takes longer is run with its bucket alone.
TOGETHER_S = 1
#: How long one turn goes on with suspected buckets, s; the others are due again after it.
TURN_S = 2.0
#: The longest rest of a bucket whose next op waits for a lock, s.
LOCK_REST_S = 5.0
logger = logging.getLogger("pipeline.apply")


class Contended(PipelineError):
    """A statement met a lock that another transaction holds, or took too long."""

    retryable = True

    def __init__(self, error: Exception):
        super().__init__(sentence_of(error))
        self.locked = fault_of(error) is Fault.LOCKED


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
    left: int = 0
    ring: bool = False
    waiting: str = ""  # why nothing, or not everything, was applied
    refused: list[Reject] = field(default_factory=list)  # the ops that were rejected

    def summary(self) -> dict[str, int | str]:
        """Return what Flower shows of the outcome, without what is zero."""
        shown: dict[str, int | str] = {"applied": self.applied, "rejected": self.rejected, "ms": self.ms}
        for name in ("parked", "seen", "lost", "buckets", "left", "waiting"):
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
        self.left, self.ring = other.left, other.ring or self.ring
        self.waiting = self.waiting or other.waiting


@dataclass(slots=True)
class Take:
    """What the transactions of one turn may take.

    Attributes:
        due: the buckets, each with the bytes of its largest op.
        alone: the attempt to make with one bucket; None: all buckets together, but those under suspicion.
        suspects: the next attempt of each bucket that an earlier attempt failed with.
        noted: the attempts of the current try.
        ends: of each bucket that halts, the position behind which nothing is executed.
        again: whether an earlier try of this process failed in an orderly way, so that its notes mean nothing.
    """

    due: Mapping[int, int]
    alone: Attempt | None = None
    suspects: dict[int, Attempt] = field(default_factory=dict)
    noted: dict[int, Attempt] = field(default_factory=dict)
    ends: dict[int, Position] = field(default_factory=dict)
    again: bool = False


class Applier:
    """Applies one shard's ops in this process.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: the logs, their schemas and dirty sets.
        settings: what one transaction may take.
        step: called with the name of each step before it is taken; crash tests kill the process in it.
        tables: what the configuration says of tables, by name: here `on_reject` counts.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        settings: ApplySettings,
        step: Callable[[str], None] = lambda name: None,
        tables: Mapping[str, TableSettings] = MappingProxyType({}),
    ):
        self.shard, self.node, self._tables = shard, session.node, tables
        self._session, self._log, self._settings, self._step = session, log, settings, step
        self._pace = Pace(settings, log)
        self._facts, self._stopped = FactBook(shard, session, log), Stopped(shard, session, settings.set_aside)
        self._breaker = self._stopped.breaker
        self._failures, self._longest_s = 0, settings.statement_s
        #: Why ops of a schema wait, by its hash, and when the shard is tried again, s.
        self._behind: dict[str, tuple[float, WaitReason]] = {}
        self._believed: set[tuple[str, int | None]] = set()

    def apply(self, bell: Bell | SilentBell | None = None) -> Outcome:
        """Apply one batch of what is due. Never raises for a fault that a retry may cure.

        Args:
            bell: rung at the start if more buckets are due than one batch takes. Another worker can begin at once,
                since workers never wait for each other's locks.
        """
        started = clock.mono_s()
        self._step("due")
        limit = self._settings.buckets
        due = self._log.due(self.shard, 2 * limit)
        if not due:
            return Outcome()
        try:
            if (paused := self._stopped.whole()) is not None:
                self._log.postpone(self.shard, due, PAUSED_DELAY_MS)
                return Outcome(left=len(due), waiting=paused.sentence(), ms=_ms_since(started))
            if bell is not None and len(due) > limit:
                bell.ring_now(self.shard, len(due))
            outcome = self._turn(Take(due), started)
            self._failures = 0
        except Unavailable as error:
            self._failures += 1
            self._log.postpone(self.shard, due, int(1000 * clock.backoff_s(self._failures)))
            reason = WaitReason("database", self.shard, self.shard, str(error))
            note_waits(self._log, self.shard, dict.fromkeys(due, reason), {})
            logger.warning("batch postponed shard=%s buckets=%d: %s", self.shard, len(due), error)
            outcome = Outcome(left=len(due), waiting=reason.sentence())
        outcome.ms = _ms_since(started)
        rejections.tell(self.shard, outcome.refused)
        return outcome

    def _turn(self, take: Take, started: float) -> Outcome:
        """Apply what is due together; then the suspected buckets, each alone, the least suspected first."""
        outcome = self._together(take)
        order = sorted(take.suspects.items(), key=lambda one: (one[1].deaths, one[1].waits, -one[1].entries))
        for n, (bucket, attempt) in enumerate(order):
            if n and clock.mono_s() - started > TURN_S:
                break
            self._alone(bucket, attempt, take.due[bucket], outcome)
        return outcome

    def _together(self, take: Take) -> Outcome:
        started = clock.mono_s()
        try:
            outcome, batch = self._with_retries(take)
        except Contended as error:
            logger.warning("each of %d buckets is tried alone, shard=%s: %s", len(take.noted), self.shard, error)
            take.suspects |= {bucket: attempt.failed() for bucket, attempt in take.noted.items()}
            return Outcome()
        if batch.before:
            self._finish(batch, outcome)
            if batch.items:
                self._pace.learn(len(batch.items), _ms_since(started))
        elif not take.suspects:
            # the worker that holds these buckets rings when it is done; a bell from here would repeat until then
            return Outcome(left=len(take.due), waiting="held by another worker")
        return outcome

    def _alone(self, bucket: int, attempt: Attempt | None, largest_bytes: int, outcome: Outcome) -> None:
        """Apply what is under suspicion in one bucket, in ever smaller steps where these fail."""
        until_s = clock.mono_s() + TURN_S
        while attempt is not None:
            take = Take({bucket: largest_bytes}, alone=attempt)
            if attempt.deaths:  # the next try may end this process too
                tries = f"{attempt.deaths} of {MOST_DEATHS} tries have failed"
                reason = WaitReason("testing", self.shard, self.shard, tries)
                note_waits(self._log, self.shard, {bucket: reason}, {bucket: attempt.after})
            try:
                done, batch = self._with_retries(take)
            except Contended as error:
                attempt = self._after_contention(bucket, attempt, error, outcome)
                continue
            if bucket not in batch.before:
                return  # another worker is at it, or has been
            self._finish(batch, done)
            outcome.add(done)
            attempt = attempt.succeeded(batch.after[bucket], len(batch.taken)) if batch.taken else None
            if attempt is not None and clock.mono_s() > until_s:
                self._log.note_attempts(self.shard, {bucket: str(replace(attempt, ended=True))}, anew=True)
                return

    def _after_contention(self, bucket: int, attempt: Attempt, error: Contended, outcome: Outcome) -> Attempt | None:
        """Return the attempt to make at once; None where the bucket rests first."""
        again = attempt.waited() if error.locked else attempt.failed()
        self._log.note_attempts(self.shard, {bucket: str(replace(again, ended=True))}, anew=True)
        if again.entries < attempt.entries:
            return again
        reason = WaitReason("locked" if error.locked else "overtime", self.shard, self.shard, str(error))
        note_waits(self._log, self.shard, {bucket: reason}, {bucket: attempt.after})
        outcome.waiting = reason.sentence()
        rest_s = clock.backoff_s(again.waits + again.deaths, most_s=LOCK_REST_S)
        self._log.postpone(self.shard, [bucket], int(1000 * rest_s))
        logger.warning("bucket %d rests %.1f s, shard=%s: %s", bucket, rest_s, self.shard, error)
        return None

    def _with_retries(self, take: Take) -> tuple[Outcome, Batch]:
        blocked, attempt, met = self._blocked(), 1, 1
        while True:
            try:
                with self._session.transaction():
                    result = self._transaction(take, blocked, last_try=met >= LAST_TRY)
                    self._step("commit")
                self._step("committed")
                return result
            except SchemaBehind as error:  # each time another schema is left out: no try is used up
                self._facts.forget()
                blocked[error.schema] = reason = WaitReason(error.kind, self.shard, error.table, error.why)
                self._behind[error.schema] = (clock.mono_s() + SCHEMA_DELAY_MS / 1000, reason)
                logger.warning("%s", reason.sentence())
                take.again = True
                continue
            except Halt as error:  # each time a bucket ends earlier: no try is used up
                take.ends[error.bucket] = error.position
                take.again = True
                continue
            except ConstraintsChanged as error:
                self._facts.forget()
                failure: Exception = error
                take.again = True
            except NeverSeen as error:
                logger.warning("an error that no list names, shard=%s try=%d: %s", self.shard, met, error)
                clock.sleep_s(clock.backoff_s(met, first_s=0.01, most_s=0.1))
                met += 1  # its own count: a deadlock is no reason to believe it
                take.again = True
                continue
            except Unavailable:
                raise
            except Exception as error:
                if not is_driver_error(error) or fault_of(error) is Fault.PERMANENT:
                    raise
                if fault_of(error) is Fault.SCHEMA:  # not of an op: the pipeline's own tables are behind this release
                    take.again = True
                    raise self._given_up(take, NotMigrated(self.node, sentence_of(error))) from error
                if not passes_by_itself(error):
                    raise Contended(error) from error
                failure = error
                # a statement may have ended the server: its note is to be believed
                take.again = not ended_abruptly(error)
            if attempt == COMMIT_TRIES:
                raise self._given_up(take, failure) from failure
            clock.sleep_s(clock.backoff_s(attempt, first_s=0.01, most_s=0.1))
            attempt += 1

    def _given_up(self, take: Take, failure: Exception) -> PipelineError:
        """Return what to raise after the last try. Where the server is at fault, no op is under suspicion for it."""
        if is_driver_error(failure) and fault_of(failure) is Fault.LOCKED:
            return Contended(failure)
        if take.again:  # orderly
            notes = {b: "" if take.alone is None else str(replace(one, ended=True)) for b, one in take.noted.items()}
            self._log.note_attempts(self.shard, notes, anew=True)
        return ShardUnavailable(self.shard, sentence_of(failure))

    def _blocked(self) -> dict[str, WaitReason]:
        """Return why ops of a schema wait, by its hash, until the shard is to be tried again."""
        now_s = clock.mono_s()
        self._behind = {schema: known for schema, known in self._behind.items() if known[0] > now_s}
        return {schema: why for schema, (_, why) in self._behind.items()}

    def _transaction(self, take: Take, blocked: dict[str, WaitReason], *, last_try: bool) -> tuple[Outcome, Batch]:
        self._step("lock")
        self._session.limit_statements(min(TOGETHER_S, self._longest_s) if take.alone is None else self._longest_s)
        locked = ledger.lock(self._session, take.due, self._settings.buckets)
        mine = {bucket: mark.position for bucket, mark in locked.items() if mark.owned}
        waiting = halted(self.shard, locked)
        counts = self._note(take, {bucket: position for bucket, position in mine.items() if bucket not in waiting})
        mine = {bucket: position for bucket, position in mine.items() if bucket in counts or bucket in waiting}
        batch = Batch(
            mine,
            self._facts,
            blocked,
            self._stopped.tables(),
            self._stopped.room,
            self._pace.rows,
            self._settings.max_bytes,
            waiting=waiting,
        )
        self._step("read")
        for entries in self._log.read({bucket: mine[bucket] for bucket in counts}, counts).values():
            batch.take([entry for entry in entries if entry.position <= take.ends.get(entry.bucket, entry.position)])
        if not batch.after:
            return Outcome(buckets=len(mine), waiting=batch.why), batch
        batch.skip_seen(self._session)
        rows = HeldRows(self._facts.known, self._tables, take.ends)
        every = (*batch.items, *(item for item, _ in batch.halted))
        rows.read(self._session, (one for one in every if locked[one.entry.bucket].state == HOLDING))
        stopped = rows.stop(batch.halted)
        self._step("execute")
        executor = Executor(self._session, self._facts.known, rows, self._step, self._believed, last_try=last_try)
        if take.alone is not None and (verdict := self._verdict(take.alone)):
            executor.condemn(batch.items, verdict)
        else:
            executor.run(grouped(batch.items, self._facts.known))
        self._step("mark")
        if batch.last:
            ledger.remember(self._session, batch.last)
        executor.rejects += [*batch.unreadable, *stopped]
        record(self._session, executor.rejects, locked, take.ends)
        ledger.lose(self._session, batch.losses)
        if batch.keys:
            ledger.keep_keys(self._session, batch.keys)
        if executor.ids:
            ledger.keep_ids(self._session, executor.ids)
        ledger.move(self._session, batch.after)
        return self._outcome(batch, executor), batch

    def _note(self, take: Take, mine: Mapping[int, Position]) -> dict[int, int]:
        """Note what is attempted; return how many entries to read of each bucket. Suspected buckets are left out."""
        if take.alone is not None:
            take.noted = {b: take.alone for b, position in mine.items() if position == take.alone.after}
            self._log.note_attempts(self.shard, {b: str(one) for b, one in take.noted.items()}, anew=True)
            return {bucket: self._pace.most(bucket, one.after, one.entries) for bucket, one in take.noted.items()}
        counts = self._pace.counts({b: after for b, after in mine.items() if b not in take.suspects}, take.due)
        take.noted = {bucket: Attempt(mine[bucket], count) for bucket, count in counts.items()}
        notes = {bucket: str(one) for bucket, one in take.noted.items()}
        for bucket, note in self._log.note_attempts(self.shard, notes, anew=take.again).items():
            mistrusted = take.noted.pop(bucket)
            take.suspects[bucket] = Attempt.suspected(note) or mistrusted.failed()
        return {bucket: counts[bucket] for bucket in take.noted}

    def _verdict(self, attempt: Attempt) -> str:
        """Return why the next op is rejected without another try, or the empty string."""
        if attempt.entries == 1 and attempt.deaths >= MOST_DEATHS:
            return f"poison: alone, it ended the worker, the server or the statement's time {attempt.deaths} times"
        if attempt.entries == 1 and attempt.waits * LOCK_REST_S >= self._settings.lock_wait_s:
            return f"it waited for a lock for [apply] lock_wait_s = {self._settings.lock_wait_s} s"
        return ""

    def _outcome(self, batch: Batch, executor: Executor) -> Outcome:
        parked = sum(one.state != REJECTED for one in executor.rejects)
        batch.aside = executor.rejects
        return Outcome(
            applied=len(batch.items) + len(batch.halted) + len(batch.unreadable) - len(executor.rejects),
            rejected=len(executor.rejects) - parked,
            parked=parked,
            seen=batch.seen,
            lost=batch.lost,
            buckets=len(batch.after),
            waiting=batch.why,
            refused=[one for one in executor.rejects if one.state == REJECTED],
        )

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        """Publish watermarks and clean the dirty set. Rows are committed, so a failure here is for the sweeper."""
        self._step("finish")
        done = batch.before | batch.after
        held = {bucket: done.pop(bucket) for bucket in batch.waiting}
        try:
            if held:
                self._log.finish(self.shard, held, delay_ms=SCHEMA_DELAY_MS)
                note_waits(self._log, self.shard, batch.waiting, held)
            outcome.ring, outcome.left = self._log.finish(self.shard, done)
        except Unavailable as error:
            logger.warning("committed, but not published in Redis shard=%s: %s", self.shard, error)
        self._stopped.room -= len(batch.halted)
        if self._settings.breaker:
            for reject in self._breaker.learn(batch.items, batch.aside):
                self._stopped.halt(reject, self._facts.database_name(reject.table))


def _ms_since(started: float) -> int:
    return round((clock.mono_s() - started) * 1000)
