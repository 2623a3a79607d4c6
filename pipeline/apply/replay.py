"""Replay or drop ops that were set aside, with everything that waits behind them, in order and exactly once.

Invariant: a replay is a transaction that holds the bucket's watermark, as an apply transaction does. The rows that it
writes, those that are held from then on and the state of each op are committed together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import NamedTuple

from pipeline import clock
from pipeline.apply.applier import applied_counts
from pipeline.apply.batch import Batch
from pipeline.apply.earlier_ops import CLOCKS_MS, QueuedOps
from pipeline.apply.grouping import Item
from pipeline.apply.judge import Attempt, NeededOps
from pipeline.apply.order import HeldRows, by_time
from pipeline.apply.own_keys import OwnKeys
from pipeline.apply.transaction import ApplyTransaction, Outcome, Take
from pipeline.apply.turns import ShardTurns
from pipeline.config.buckets import KeyName
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.model import DELETE, START, Op, Position
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.shard import NodeSession, records
from pipeline.shard.driver_errors import Fault, fault_of, passes_by_itself
from pipeline.shard.records import LENT, Reject, replays, set_aside
from pipeline.shard.records.moves import moving, pieces_within
from pipeline.shard.records.replays import DROPPED, REPLAYED, Aside, Place
from pipeline.shard.records.set_aside import REJECTED
from pipeline.shard.records.stops import stopped_tables

#: How often a replay waits for the watermarks that workers hold, each time for as long as the server waits for a lock.
LOCK_TRIES = 5


class Became(NamedTuple):
    """What became of one op: its state, and why it is still set aside if it is."""

    place: Place
    table: str
    state: str
    reason: str


class Replayed(NamedTuple):
    """What one turn of a replay did: how many ops it settled, and what it left.

    Attributes:
        replayed, dropped: ops that are settled.
        refused: ops that the database refused, once more or for the first time.
        parked: ops that still wait behind another.
        heads: of the ops that were chosen, how many this turn took.
    """

    replayed: int = 0
    dropped: int = 0
    refused: int = 0
    parked: int = 0
    heads: int = 0


class Trial(PipelineError):
    """All of the transaction is to be rolled back: an operator has asked what it would do."""


class Replay(ShardTurns):
    """Replays one shard's ops.

    Args:
        shard: its name.
        session: of its primary.
        log: has the schemas, and the notes of attempts.
        settings: what one transaction may take.
        tables: what the configuration says of tables, by name.
        despite: a table of which ops are replayed although it is stopped.
        patient: whether an op that a foreign key refuses waits for ops that are to be replayed.
        whole: whether all is replayed that can be. Then a delete waits for ops that may refer to its row, too.

    Attributes:
        became: what has become of each op of the last turn, in order.
        left: of each bucket that this run has given up, why: another program holds a row, or a statement took too long.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        settings: ApplySettings,
        tables: Mapping[str, TableSettings],
        despite: str = "",
        *,
        patient: bool = True,
        whole: bool = False,
    ):
        self._trial, self._done = False, Replayed()
        self.became, self.left = list[Became](), dict[int, str]()
        self._work = ReplayTransaction(shard, session, log, settings, self._before, tables)
        self._work.despite, self._work.patient, self._work.whole = despite, patient, whole
        super().__init__(shard, session, log, self._work)

    def run(
        self, chosen: Mapping[int, Iterable[Position]], who: str, *, drop: bool = False, trial: bool = False
    ) -> Iterator[Replayed]:
        """Replay ops and what waits behind them; what a turn did is committed when it is yielded.

        A run that is cut short leaves the first ops that it has not come to *waiting*; the next run may choose them.

        Args:
            chosen: the positions, by bucket.
            who: for the record of actions.
            drop: give the ops up instead, and replay what waits behind them.
            trial: roll each transaction back; see `became`.

        Raises:
            Unavailable: the shard or the log does not answer; what was yielded is done.
        """
        self._trial = trial
        self.left = {}
        self._work.begin(chosen, who, drop=drop)
        while self._work.todo:
            self._done, self.became = Replayed(), []
            self._turn(Take(dict.fromkeys(sorted(self._work.todo), 0)), clock.mono_s())
            self.left |= self._work.refused
            yield self._done

    def _before(self, step: str) -> None:
        if step == "commit" and self._trial:
            raise Trial

    def _with_retries(self, take: Take) -> tuple[Outcome, Batch]:
        try:
            return super()._with_retries(take)
        except Trial:
            return self._work.result

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        self.left = {bucket: why for bucket, why in self.left.items() if bucket not in batch.before}
        self._done = Replayed(*map(sum, zip(self._done, self._work.settled(), strict=True)))
        self.became += self._work.became
        self._log.note_attempts(self._transaction.notes_at, dict.fromkeys(batch.before, ""), anew=True)
        if not self._trial:
            self._log.finish(self.shard, {}, delay_ms=1, counts=outcome.counts)  # no bucket: no bell either

    def _explain(self, bucket: int, reason: WaitReason, attempt: Attempt) -> None:
        self.left[bucket] = reason.sentence()

    def _rest(self, bucket: int, rest_s: float) -> None:
        del self._work.todo[bucket]


class ReplayTransaction(ApplyTransaction):
    """What the transactions of a replay share; the arguments are those of `ApplyTransaction`.

    Attributes:
        todo: the positions that are left, by bucket.
        result, became: of the last transaction.
        refused: why, of each bucket in which nothing may be replayed now.
        despite, patient, whole: see `Replay`.
    """

    result: tuple[Outcome, Batch]
    became: list[Became]
    despite, patient, whole = "", True, False
    #: What is queued beside the open transaction, once that has been looked at.
    _queued: QueuedOps | None = None

    def begin(self, chosen: Mapping[int, Iterable[Position]], who: str, *, drop: bool) -> None:
        """Take over what is to be done.

        Args:
            chosen: the positions, by bucket.
            who: for the record of actions.
            drop: whether the ops are given up.
        """
        self.notes_at = f"{self._shard}:replay"
        self.todo = {bucket: set(own) for bucket, own in chosen.items()}
        self._heads = {(bucket, position) for bucket, own in self.todo.items() for position in own}
        self._who, self._drop = who, drop
        self._earlier = None  # whoever replays an op has waited
        self.refused = dict[int, str]()

    def settled(self) -> Replayed:
        """Strike what the last transaction took, and add what it made the first in all its rows; return what it did."""
        for bucket, position in self._taken:
            self.todo[bucket].discard(position)
        for bucket, position in self._untried:
            self.todo[bucket].add(position)
        self.todo = {bucket: own for bucket, own in self.todo.items() if own}
        return self._did

    def run(self, take: Take, blocked: Mapping[str, WaitReason], *, last_try: bool) -> tuple[Outcome, Batch]:
        """Replay what *take* allows, inside the open transaction; see `ApplyTransaction.run`.

        Args:
            take: the buckets; grows by what is noted, and by what is under suspicion.
            blocked: why ops of a schema wait, by the schema's hash.
            last_try: whether an error that no list names is believed now.
        """
        session = self._session
        self._limit(take)
        places = self._places(take)
        ops, gone = replays.take(session, list(places), self._settings.max_bytes)
        stops = {table: WaitReason("paused", self._shard, table) for table in stopped_tables(session) - {self.despite}}
        before = dict.fromkeys(take.noted, START)
        batch = Batch(before, self.facts, blocked, stops, 0, self._settings.max_rows, self._settings.max_bytes)
        dropped = {op.place for op in ops if self._drop and op.place in self._heads}
        left = self._replay(batch, ops, places, dropped, take, last_try=last_try)
        ops = ops[: len(batch.taken)]
        dropped &= {op.place for op in ops}
        unsettled = {(one.entry.bucket, one.entry.position): one for one in left}
        replayed = [op.place for op in ops if op.place not in unsettled.keys() | dropped]
        rows = {(op.entry.bucket, key) for op in ops for key in places[op.place]}
        self._untried = replays.settle(session, ops, rows, {REPLAYED: replayed, DROPPED: dropped}, left)
        self._taken = [*(op.place for op in ops), *gone]
        self.became = [_became(op, unsettled.get(op.place), op.place in dropped) for op in ops]
        acted = {one.place: one.state for one in self.became if one.place in self._heads}
        replays.note_actions(session, self._who, "drop" if self._drop else "replay", acted)
        refused = sum(one.state == REJECTED for one in left)
        self._did = Replayed(len(replayed), len(dropped), refused, len(left) - refused, len(acted) + len(gone))
        batch.after = {bucket: self._next(bucket) for bucket in before}
        counts = applied_counts(batch.done(left))
        self.result = Outcome(applied=len(replayed), rejected=refused, buckets=len(before), counts=counts), batch
        return self.result

    def _reached(self, op: Op) -> list[str]:
        """Return the tables in the database whose rows may refer to what an op deletes."""
        deletes = (one for one in op.members if one.kind == DELETE)
        return [child for one in deletes for child in self.facts.known[one.schema].constraints.children]

    def _young(self, ops: Iterable[Aside]) -> set[Place]:
        """Return which ops have been set aside for less than an op waits for older ones."""
        [(now_ms,)] = self._session.rows(f"SELECT {self._session.dialect.now_ms}")
        return {op.place for op in ops if now_ms - op.rejected_ms < 1000 * self._settings.early_wait_s}

    def _follows_queued(self, item: Item, batch: Batch, young: Set[Place]) -> bool:
        """Return whether ops are queued that are older than a young one."""
        if item.place not in young:
            return False
        if self._queued is None:
            self._queued = QueuedOps(self._session, self._log, self.facts, None)
            self._queued.begin(batch)
            self._queued.look(None)
        return bool(self._queued.near(item, CLOCKS_MS))

    def _next(self, bucket: int) -> Position:
        """Return where the next attempt of a bucket begins, or the start where nothing is left to do."""
        left = {(bucket, position) for position in self.todo[bucket]}.difference(self._taken)
        return min((position for own, position in left.union(self._untried) if own == bucket), default=START)

    def _places(self, take: Take) -> dict[Place, frozenset[str]]:
        """Lock some buckets, and note the attempt; return the places of the ops to take, in order within each bucket,
        and their row keys.
        """
        buckets = sorted((take.due.keys() & self.todo.keys()) - take.suspects.keys())[: self._settings.buckets]
        if buckets:
            self._lock(buckets)
        for bucket in moving(self._session, self._shard, buckets):
            buckets.remove(bucket)
            del self.todo[bucket]
            self.refused[bucket] = (
                f"bucket {bucket} is being moved: wait for that, or run: pipeline move give-up {bucket}"
            )
        found: dict[int, dict[Place, frozenset[str]]] = {}
        room = self._settings.max_rows if take.alone is None else min(take.alone.entries, self._settings.max_rows)
        for bucket in buckets:
            if room > 0:
                found[bucket] = replays.behind(self._session, bucket, sorted(self.todo[bucket]), room)
                room -= len(found[bucket])
        take.noted = {
            bucket: take.alone or Attempt(min(self.todo[bucket]), max(1, len(own))) for bucket, own in found.items()
        }
        take.suspect(self._log.note_attempts(self.notes_at, take.notes, anew=take.anew))
        return {place: keys for bucket in take.noted for place, keys in found[bucket].items()}

    def _keys_away(self, take: Take) -> dict[int, KeyName]:
        """Return of each piece that is replayed, and of each bucket that has lent one, the key that is away."""
        found = dict[int, KeyName]()
        for number, leg in pieces_within(self._session, take.noted).items() if take.noted else ():
            if leg.of is not None and number in take.noted:
                found[number] = leg.of
            elif leg.of is not None and leg.apart and leg.home == LENT:
                found[leg.of.bucket] = leg.of
        return found

    def _lock(self, buckets: Iterable[int]) -> None:
        """Lock watermarks. To wait for a worker's batch says nothing about the ops that are to be replayed."""
        for _ in range(LOCK_TRIES):
            try:
                records.lock_buckets(self._session, buckets)
                return
            except Exception as error:
                if fault_of(error) is not Fault.LOCKED or passes_by_itself(error):
                    raise
        raise ShardUnavailable(self._shard, "workers hold the watermarks of the ops: try again")

    def _understood(
        self, batch: Batch, ops: Iterable[Aside], dropped: Set[Place]
    ) -> list[tuple[Item | Reject, WaitReason | None]]:
        """Have a batch take ops; return what each is, and why it waits.

        The first whose idempotency key the batch has is for the next transaction, and so is all behind it.
        """
        found = list[tuple[Item | Reject, WaitReason | None]]()
        for op in ops:
            one, puzzle = (_as_it_was(op), None) if op.place in dropped else batch.understood(op.entry)
            if isinstance(one, Item) and not batch.is_first(one):
                break
            batch.taken.append(one)
            found.append((one, puzzle))
        return found

    def _replay(
        self,
        batch: Batch,
        ops: Sequence[Aside],
        keys: Mapping[Place, frozenset[str]],
        dropped: Set[Place],
        take: Take,
        *,
        last_try: bool,
    ) -> list[Reject]:
        """Execute ops but for the dropped; return those that stay set aside: refused, parked, or not known yet."""
        understood, late = self._understood(batch, ops, dropped), list[tuple[Item, str]]()
        ops = ops[: len(understood)]
        left = [
            _as_it_was(op)
            for op, (one, _) in zip(ops, understood, strict=True)
            if isinstance(one, Reject) and op.place not in dropped
        ]
        self._queued, older = None, None
        if self.whole:
            older = partial(self._follows_queued, batch=batch, young=self._young(ops))
            # a delete comes behind all that may refer to its row
            beside = replays.aside_beside(self._session, ops) if self.patient else ()
            batch.behind = {table: WaitReason("parked", self._shard, table) for table in beside}
        for one, puzzle in understood:
            if isinstance(one, Reject):
                continue
            if (stop := batch.stop(one.op)) is not None:
                late.append((one, set_aside.why_waiting(stop, {op.table for op in one.op.named})))
            elif older is not None and (reached := self._reached(one.op)) and older(one):
                late.append((one, set_aside.why_needy(self.facts.first_named(reached))))
            elif puzzle is not None:
                late.append((one, puzzle.sentence()))
            else:
                batch.items.append(one)
        batch.skip_used(self._session)
        if of := self._keys_away(take):
            batch.items, torn = OwnKeys(self._session, self.facts.known, self._tables, of).again(batch.items)
            left += torn
        rows = HeldRows(self.facts.known, self._tables, None)
        rows.read(self._session, batch.items, without={op.place for op in ops})
        left += [rows.wait(item, keys[item.entry.bucket, item.entry.position], why) for item, why in late]
        awaited = NeededOps(self._session, self.facts, batch.tables_waiting, {}, aside=self.patient, older=older)
        executor = self._executed(by_time(batch.items, self._reach), rows, take, last_try=last_try, awaited=awaited)
        if executor.ids:
            records.keep_ids(self._session, executor.ids)
        batch.use_keys(self._session, executor.rejects)
        return left + executor.rejects


def _as_it_was(op: Aside) -> Reject:
    return Reject(op.entry, op.table, op.row_key, op.code, op.reason, op.state)


def _became(op: Aside, left: Reject | None, dropped: bool) -> Became:
    if left is not None:
        return Became(op.place, op.table, left.state, left.reason)
    return Became(op.place, op.table, DROPPED if dropped else REPLAYED, "")
