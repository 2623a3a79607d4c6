"""Apply what a shard's logs hold: many buckets in one transaction, rows and watermarks in one commit.

Invariant: an entry's effects, its producer's sequence, its rejection and the watermark behind it are committed together
or not at all. After a crash the next worker reads the watermark and continues from there.

One transaction takes as many rows as commit in about `target_ms`, within the limits of the settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline import clock
from pipeline.apply.batch import Batch, FactBook
from pipeline.apply.executor import ConstraintsChanged, Executor, NeverSeen, SchemaBehind
from pipeline.apply.grouping import grouped
from pipeline.apply.held_rows import Halt, HeldRows, halted, settle
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import ShardUnavailable, Unavailable
from pipeline.model.op import Position
from pipeline.oplog.contract import Work
from pipeline.shard import ledger
from pipeline.shard.driver_errors import Fault, fault_of, is_driver_error, sentence_of
from pipeline.shard.ledger import HOLDING
from pipeline.shard.session import NodeSession
from pipeline.shard.set_aside import PARKED

if TYPE_CHECKING:
    from pipeline.oplog.doorbell import Bell, SilentBell

#: How often one batch is tried: InnoDB calls deadlocks and snapshot conflicts transient.
COMMIT_TRIES = 4
#: The try at which an error that no list names is believed; tries of one batch are 10 to 100 ms apart.
LAST_TRY = 3
#: How long a bucket waits for a schema that this worker or its shard does not have yet, ms.
SCHEMA_DELAY_MS = 1000
#: Rows of the first batch of a process, before any commit was timed.
FIRST_ROWS = 1000
LEAST_ROWS = 50
logger = logging.getLogger("pipeline.apply")


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

    def summary(self) -> dict[str, int | str]:
        """Return what Flower shows of the outcome, without what is zero."""
        shown: dict[str, int | str] = {"applied": self.applied, "rejected": self.rejected, "ms": self.ms}
        for name in ("parked", "seen", "lost", "buckets", "left", "waiting"):
            if getattr(self, name):
                shown[name] = getattr(self, name)
        return shown


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
        self._pace = Pace(settings)
        self._facts = FactBook(session, log)
        self._failures = 0
        #: Why ops of a schema wait, by its hash, and when the shard is tried again, s.
        self._behind: dict[str, tuple[float, str]] = {}
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
        if bell is not None and len(due) > limit:
            bell.ring_now(self.shard, len(due))
        try:
            outcome, batch = self._with_retries(due, limit)
        except Unavailable as error:
            self._failures += 1
            self._log.postpone(self.shard, due, int(1000 * clock.backoff_s(self._failures)))
            logger.warning("batch postponed shard=%s buckets=%d: %s", self.shard, len(due), error)
            return Outcome(left=len(due), waiting=str(error), ms=_ms_since(started))
        self._failures = 0
        if not batch.before:
            # the worker that holds these buckets rings when it is done; a bell from here would repeat until then
            return Outcome(left=len(due), waiting="held by another worker", ms=_ms_since(started))
        self._step("finish")
        outcome.ring, outcome.left = self._finish(batch)
        outcome.ms = _ms_since(started)
        if batch.items:
            self._pace.learn(len(batch.items), outcome.ms)
        return outcome

    def _with_retries(self, due: dict[int, int], limit: int) -> tuple[Outcome, Batch]:
        blocked, attempt, met = self._blocked(), 1, 1
        ends: dict[int, Position] = {}
        while True:
            try:
                with self._session.transaction():
                    result = self._transaction(due, limit, blocked, ends, last_try=met >= LAST_TRY)
                    self._step("commit")
                self._step("committed")
                return result
            except SchemaBehind as error:  # each time another schema is left out: no try is used up
                self._facts.forget()
                blocked[error.schema] = str(error)
                self._behind[error.schema] = (clock.mono_s() + SCHEMA_DELAY_MS / 1000, str(error))
                logger.warning("shard %s is behind its schema: %s", self.shard, error)
                continue
            except Halt as error:  # each time a bucket ends earlier: no try is used up
                ends[error.bucket] = error.position
                continue
            except ConstraintsChanged as error:
                self._facts.forget()
                failure: Exception = error
            except NeverSeen as error:
                logger.warning("an error that no list names, shard=%s try=%d: %s", self.shard, met, error)
                clock.sleep_s(clock.backoff_s(met, first_s=0.01, most_s=0.1))
                met += 1  # its own count: a deadlock is no reason to believe it
                continue
            except Unavailable:
                raise
            except Exception as error:
                if not is_driver_error(error) or fault_of(error) in (Fault.PERMANENT, Fault.SCHEMA):
                    raise
                failure = error
            if attempt == COMMIT_TRIES:
                raise ShardUnavailable(self.shard, sentence_of(failure)) from failure
            clock.sleep_s(clock.backoff_s(attempt, first_s=0.01, most_s=0.1))
            attempt += 1

    def _blocked(self) -> dict[str, str]:
        """Return why ops of a schema wait, by its hash, until the shard is to be tried again."""
        now_s = clock.mono_s()
        self._behind = {schema: known for schema, known in self._behind.items() if known[0] > now_s}
        return {schema: why for schema, (_, why) in self._behind.items()}

    def _transaction(
        self, due: dict[int, int], limit: int, blocked: dict[str, str], ends: dict[int, Position], *, last_try: bool
    ) -> tuple[Outcome, Batch]:
        self._step("lock")
        locked = ledger.lock(self._session, due, limit)
        mine = {bucket: mark.position for bucket, mark in locked.items() if mark.owned}
        batch = Batch(mine, self._facts, blocked, self._pace.rows, self._settings.max_bytes, waiting=halted(locked))
        self._step("read")
        read = {bucket: position for bucket, position in mine.items() if bucket not in batch.waiting}
        for entries in self._log.read(read, self._pace.counts(read, due)).values():
            batch.take([entry for entry in entries if entry.position <= ends.get(entry.bucket, entry.position)])
        if not batch.after:
            return Outcome(buckets=len(mine), waiting=batch.why), batch
        batch.skip_seen(self._session)
        rows = HeldRows(self._facts.known, self._tables, ends)
        rows.read(self._session, (one for one in batch.items if locked[one.entry.bucket].state == HOLDING))
        self._step("execute")
        executor = Executor(self._session, self._facts.known, rows, self._step, self._believed, last_try=last_try)
        executor.run(grouped(batch.items, self._facts.known))
        self._step("mark")
        if batch.last:
            ledger.remember(self._session, batch.last)
        executor.rejects += batch.unreadable
        settle(self._session, executor.rejects, locked, ends)
        ledger.lose(self._session, batch.losses)
        if batch.keys:
            ledger.keep_keys(self._session, batch.keys)
        if executor.ids:
            ledger.keep_ids(self._session, executor.ids)
        ledger.move(self._session, batch.after)
        return self._outcome(batch, executor), batch

    def _outcome(self, batch: Batch, executor: Executor) -> Outcome:
        parked = sum(one.state == PARKED for one in executor.rejects)
        return Outcome(
            applied=len(batch.items) + len(batch.unreadable) - len(executor.rejects),
            rejected=len(executor.rejects) - parked,
            parked=parked,
            seen=batch.seen,
            lost=batch.lost,
            buckets=len(batch.after),
            waiting=batch.why,
        )

    def _finish(self, batch: Batch) -> tuple[bool, int]:
        """Publish watermarks and clean the dirty set. Rows are committed, so a failure here is for the sweeper."""
        done = batch.before | batch.after
        held = {bucket: done.pop(bucket) for bucket in batch.waiting}
        try:
            if held:
                self._log.finish(self.shard, held, delay_ms=SCHEMA_DELAY_MS)
            return self._log.finish(self.shard, done)
        except Unavailable as error:
            logger.warning("committed, but not published in Redis shard=%s: %s", self.shard, error)
            return False, 0


def _ms_since(started: float) -> int:
    return round((clock.mono_s() - started) * 1000)


class Pace:
    """Additive-increase, multiplicative-decrease on the time of a batch, as TCP does on the loss of a packet.

    Args:
        settings: the time that a batch aims at, and its limits.
    """

    def __init__(self, settings: ApplySettings):
        self._settings = settings
        self.rows = min(FIRST_ROWS, settings.max_rows)

    def learn(self, rows: int, took_ms: int) -> None:
        """Note how long a batch took.

        Args:
            rows: how many ops it applied.
            took_ms: from the first step to the last.
        """
        if took_ms > self._settings.target_ms:
            self.rows = max(LEAST_ROWS, int(self.rows * max(0.5, self._settings.target_ms / took_ms)))
        elif rows >= self.rows * 0.8:
            self.rows = min(self._settings.max_rows, self.rows + FIRST_ROWS // 2)

    def counts(self, buckets: Iterable[int], largest_bytes: Mapping[int, int]) -> dict[int, int]:
        """Return how many entries to read of each bucket.

        A bucket with large ops is read a few at a time, by the size of its largest op. Entries that do not fit into the
        batch would be read for nothing.

        Args:
            buckets: the buckets that are locked.
            largest_bytes: the size of each bucket's largest op; 0 for a small one.
        """
        buckets = list(buckets)
        share = max(1, -(-self.rows // max(1, len(buckets))))
        room = self._settings.max_bytes // max(1, len(buckets))
        counts = {}
        for bucket in buckets:
            large = largest_bytes.get(bucket, 0)
            counts[bucket] = max(1, min(share, room // large)) if large else share
        return counts
