"""Run transactions on one shard until they are committed: retried, or narrowed down to the op that makes them fail.

A bucket that fails beside others is applied alone, by ever fewer entries. Nothing waits longer for another bucket's op
than a second.
"""

from __future__ import annotations

import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import clock
from pipeline.apply.batch import Batch
from pipeline.apply.earlier_ops import Early
from pipeline.apply.judge import MOST_DEATHS, Attempt, ConstraintsChanged, NeverSeen, RolledBack, SchemaBehind
from pipeline.apply.order import Halt
from pipeline.apply.transaction import LOCK_REST_S, ApplyTransaction, Misguessed, Outcome, Take
from pipeline.errors import NotMigrated, PipelineError, ShardUnavailable, Unavailable
from pipeline.events import Event
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.shard import NodeSession
from pipeline.shard.driver_errors import (
    Fault,
    ended_abruptly,
    fault_of,
    is_driver_error,
    lacks_memory,
    passes_by_itself,
    sentence_of,
)

#: How often one batch is tried: InnoDB calls deadlocks and snapshot conflicts transient.
COMMIT_TRIES = 4
#: The try at which an error that no list names is believed; tries of one batch are 10 to 100 ms apart.
LAST_TRY = 3
#: How long a bucket waits for a schema that this worker or its shard does not have yet, ms.
SCHEMA_DELAY_MS = 1000
#: How long one turn goes on with suspected buckets, s; the others are due again after it.
TURN_S = 2.0
logger = logging.getLogger("pipeline.apply")


class Contended(PipelineError):
    """A statement met a lock that another transaction holds, took too long, or undid more than itself."""

    retryable = True

    def __init__(self, error: Exception):
        super().__init__(sentence_of(error))
        self.locked = fault_of(error) is Fault.LOCKED
        self.lacks_memory = lacks_memory(error)


class Crossed(PipelineError):
    """Ops need ops of buckets that the transaction did not take."""

    retryable = True


class ShardTurns(ABC):
    """Turns of transactions on one shard; what they take, and what follows a commit, is a subclass's.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: has the notes of attempts.
        transaction: takes, executes and records ops.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        transaction: ApplyTransaction,
    ):
        self.shard, self.node = shard, session.node
        self._session, self._log, self._step, self._transaction = session, log, transaction.step, transaction
        self._facts, self._stopped = transaction.facts, transaction.stopped
        #: Why ops of a schema wait, by its hash, and when the shard is tried again, s.
        self._behind: dict[str, tuple[float, WaitReason]] = {}
        #: How many transactions with ops are committed; and how many were, as an op alone last met a server without
        #: memory, by its bucket.
        self._commits, self._without_memory = 0, dict[int, int]()

    @abstractmethod
    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        """Do what follows a commit."""

    @abstractmethod
    def _explain(self, bucket: int, reason: WaitReason, attempt: Attempt) -> None:
        """Note why a bucket waits."""

    @abstractmethod
    def _rest(self, bucket: int, rest_s: float) -> None:
        """Leave a bucket alone for a while."""

    def _turn(self, take: Take, started: float) -> Outcome:
        """Apply what is due together; then the suspected buckets, each alone, the least suspected first."""
        with _uncollected():
            return self._all(take, started)

    def _all(self, take: Take, started: float) -> Outcome:
        outcome, rest = self._together(take), take
        while rest.others and clock.mono_s() - started < TURN_S:
            rest = Take({b: take.due[b] for b in take.due if b in rest.others}, suspects=take.suspects, again=True)
            outcome.add(self._together(rest))
        order = sorted(take.suspects.items(), key=lambda one: (one[1].deaths, one[1].waits, -one[1].entries))
        slow = list[tuple[int, Attempt]]()
        for n, (bucket, attempt) in enumerate(order):
            if n and clock.mono_s() - started > TURN_S:
                break
            brief = n + 1 < len(order) and not (attempt.deaths or attempt.waits)
            left = self._alone(bucket, attempt, take.due[bucket], outcome, brief=brief)
            slow += [] if left is None else [(bucket, left)]
        for bucket, attempt in slow:
            if clock.mono_s() - started > TURN_S:
                break
            self._alone(bucket, attempt, take.due[bucket], outcome)
        return outcome

    def _together(self, take: Take) -> Outcome:
        started = clock.mono_s()
        try:
            outcome, batch = self._with_retries(take)
        except Crossed:
            return Outcome(left=len(take.due), ring=True, crossed=True)
        except Contended as error:
            if error.locked and take.whole and not take.noted:
                return Outcome(left=len(take.due), ring=True, crossed=True)  # a transaction of another worker is long
            if error.locked and not take.whole and any(facts.parents for facts in self._facts.known.values()):
                self._transaction.note_ended(take)
                # a child waits for its parent in another worker's transaction, and that one for a parent in ours
                return Outcome(left=len(take.due), ring=True, crossed=True)
            suspects = take.noted.keys() if take.whole else take.noted.keys() & take.accused or take.noted.keys()
            logger.warning(Event("buckets_tried_alone", shard=self.shard, buckets=len(suspects), error=error))
            self._transaction.pace.learn(0, ms_since(started))  # a slow server is asked for less the next time
            take.suspects |= {bucket: take.noted[bucket].failed() for bucket in suspects}
            take.others = take.noted.keys() - suspects
            return Outcome()
        if batch.before:
            self._finish(batch, outcome)
            if batch.tried:
                # a whole take is cut to the oldest ops: that it is short says nothing
                rows = self._transaction.pace.rows if take.whole else batch.tried
                self._transaction.pace.learn(rows, ms_since(started), batch.size_bytes)
        elif not take.suspects:
            # the worker that holds these buckets rings when it is done; a bell from here would repeat until then
            return Outcome(left=len(take.due), waiting="held by another worker")
        return outcome

    def _alone(
        self, bucket: int, attempt: Attempt | None, largest_bytes: int, outcome: Outcome, *, brief: bool = False
    ) -> Attempt | None:
        """Apply what is under suspicion in one bucket, in ever smaller steps where these fail.

        Returns the attempt that is left where a brief one was given up: others have their turn first.
        """
        until_s = clock.mono_s() + TURN_S
        while attempt is not None:
            take = Take({bucket: largest_bytes}, alone=attempt, brief=brief)
            if attempt.deaths:  # the next try may end this process too
                tries = f"{attempt.deaths} of {MOST_DEATHS} tries have failed"
                reason = WaitReason("testing", self.shard, self.shard, tries)
                self._explain(bucket, reason, attempt)
            try:
                done, batch = self._with_retries(take)
                attempt = take.alone or attempt
            except Contended as error:
                attempt = take.alone or attempt
                if brief and not error.locked:
                    self._note_ended(bucket, attempt)
                    return attempt
                attempt = self._after_contention(bucket, attempt, error, outcome)
                continue
            if bucket not in batch.before:
                return None  # another worker is at it, or has been
            self._finish(batch, done)
            outcome.add(done)
            attempt = attempt.succeeded(batch.after[bucket], batch.ops) if batch.taken else None
            if attempt is not None and clock.mono_s() > until_s:
                self._note_ended(bucket, attempt)
                return None
        return None

    def _after_contention(self, bucket: int, attempt: Attempt, error: Contended, outcome: Outcome) -> Attempt | None:
        """Return the attempt to make at once; None where the bucket rests first."""
        again = attempt.waited() if error.locked else attempt.failed()
        if error.lacks_memory and attempt.entries == 1 and not self._others_have_some(bucket):
            again = attempt
        self._note_ended(bucket, again)
        if again.entries < attempt.entries:
            return again
        reason = WaitReason("locked" if error.locked else "overtime", self.shard, self.shard, str(error))
        self._explain(bucket, reason, attempt)
        outcome.waiting = reason.sentence()
        rest_s = clock.backoff_s(max(1, again.waits + again.deaths), most_s=LOCK_REST_S)
        self._rest(bucket, rest_s)
        logger.warning(Event("bucket_rests", shard=self.shard, bucket=bucket, rest_s=rest_s, error=error))
        return None

    def _others_have_some(self, bucket: int) -> bool:
        """Return whether others were committed since an op, alone, last met a server without memory."""
        before = self._without_memory.get(bucket, self._commits)
        self._without_memory[bucket] = self._commits
        return self._commits > before

    def _note_ended(self, bucket: int, attempt: Attempt) -> None:
        note = str(attempt._replace(ended=True))
        self._log.note_attempts(self._transaction.notes_at, {bucket: note}, anew=True)

    def _with_retries(self, take: Take) -> tuple[Outcome, Batch]:
        blocked, attempt, met = self._blocked(), 1, 1
        self._facts.bound()
        while True:
            try:
                return self._once(take, blocked, last_try=met >= LAST_TRY)
            except (SchemaBehind, Halt, Early) as error:  # each time something else is left out: no try is used up
                self._leave_out(error, take, blocked)
                take.again = True
                continue
            except Misguessed:
                take.again = True
                continue
            except RolledBack as error:
                raise Contended(error) from error
            except ConstraintsChanged as error:
                self._facts.forget()
                failure: Exception = error
                take.again = True
            except NeverSeen as error:
                logger.warning(Event("unknown_error", shard=self.shard, tries=met, error=error))
                clock.sleep_s(clock.backoff_s(met, first_s=0.01, most_s=0.1))
                met += 1  # its own count: a deadlock is no reason to believe it
                take.again = True
                continue
            except Unavailable:
                raise
            except Exception as error:
                failure = self._retried(take, error)
            if attempt == COMMIT_TRIES:
                raise self._given_up(take, failure) from failure
            clock.sleep_s(clock.backoff_s(attempt, first_s=0.01, most_s=0.1))
            attempt += 1

    def _once(self, take: Take, blocked: dict[str, WaitReason], *, last_try: bool) -> tuple[Outcome, Batch]:
        started = clock.mono_s()
        with self._session.transaction():
            result = self._transaction.run(take, blocked, last_try=last_try)
            self._step("commit")
            committing = clock.mono_s()
        self._commits += bool(result[1].tried)
        result[0].ms, result[0].commit_us = ms_since(started), round((clock.mono_s() - committing) * 1e6)
        self._step("committed")
        return result

    def _leave_out(self, error: SchemaBehind | Halt | Early, take: Take, blocked: dict[str, WaitReason]) -> None:
        """Let the next transaction do without a schema, or end a bucket earlier.

        Raises:
            Crossed: early ops are for a turn of all buckets.
        """
        if isinstance(error, SchemaBehind):
            self._facts.forget()
            blocked[error.schema] = reason = WaitReason(error.kind, self.shard, error.table, error.why)
            self._behind[error.schema] = (clock.mono_s() + SCHEMA_DELAY_MS / 1000, reason)
            logger.warning(
                Event("ops_wait", shard=self.shard, kind=reason.kind, scope=reason.scope, text=reason.sentence())
            )
        elif isinstance(error, Halt):
            take.ends[error.bucket] = error.position
        elif take.patient:
            take.early |= error.ops
        else:
            raise Crossed from error

    def _retried(self, take: Take, error: Exception) -> Exception:
        """Return an error of the driver after which the transaction is retried in place.

        Raises:
            ShardUnavailable, Contended: a retry in place would not help.
            Exception: *error* itself, if it is none of these.
        """
        if not is_driver_error(error) or fault_of(error) is Fault.PERMANENT:
            raise error
        if fault_of(error) is Fault.SCHEMA:  # not of an op: the pipeline's own tables are behind this release
            take.again = True
            raise self._given_up(take, NotMigrated(self.node, sentence_of(error))) from error
        if fault_of(error) is Fault.TABLE:  # as above: what is set aside takes room, and there may be none
            self._stopped.room = 0
        if not passes_by_itself(error):
            raise Contended(error) from error
        # a statement may have ended the server: its note is to be believed
        take.again = not ended_abruptly(error)
        if take.alone is not None and take.noted and not take.again:
            # a retry in place would replace the note, and the next crash would not count
            raise self._given_up(take, error) from error
        return error

    def _given_up(self, take: Take, failure: Exception) -> PipelineError:
        """Return what to raise after the last try. Where the server is at fault, no op is under suspicion for it."""
        if is_driver_error(failure) and fault_of(failure) is Fault.LOCKED:
            return Contended(failure)
        if take.again:  # orderly
            self._transaction.note_ended(take)
        return ShardUnavailable(self.shard, sentence_of(failure))

    def _blocked(self) -> dict[str, WaitReason]:
        """Return why ops of a schema wait, by its hash, until the shard is to be tried again."""
        now_s = clock.mono_s()
        for schema in [schema for schema, (until_s, _) in self._behind.items() if until_s <= now_s]:
            del self._behind[schema]
            self._facts.forget_one(schema)  # read while the shard was behind
        return {schema: why for schema, (_, why) in self._behind.items()}


def ms_since(started: float) -> int:
    """Return the time since *started*, a reading of `clock.mono_s`, in ms."""
    return round((clock.mono_s() - started) * 1000)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Do not look for cyclic garbage: ops and rows make none, and are many."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
