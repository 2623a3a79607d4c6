"""Follow a bucket's log on the shard that the bucket moves to, as far as the shard that it leaves has applied it.

Invariant: what the source has set aside is set aside here, too, as it is there. Everything else is applied. What this
database refuses and the source's has taken ends the move: a shard decides nothing before it owns the bucket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline import clock
from pipeline.apply.batch import Batch, FactBook
from pipeline.apply.executor import Executor
from pipeline.apply.footprint import reach
from pipeline.apply.grouping import Item
from pipeline.apply.judge import Attempt
from pipeline.apply.order import HeldRows
from pipeline.apply.own_keys import OwnKeys
from pipeline.apply.transaction import ApplyTransaction, Outcome, Take
from pipeline.apply.turns import ShardTurns
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import PipelineError
from pipeline.model import INSERT, Op, Position
from pipeline.model.sheet import Read
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.shard import NodeSession, records
from pipeline.shard.records import CATCHING, MOVED, STOPPED, Mark
from pipeline.shard.records.moves import Fence, legs_within, lock_both
from pipeline.shard.stored_rows import insert


class KeptRows(NamedTuple):
    """Rows that one of the pipeline's own tables keeps of ops that are set aside, each with the position of its op."""

    columns: str
    rows: Sequence[tuple[Position, Sequence[object]]]


#: What is kept of ops that are set aside: `pipeline_rejects` and `pipeline_held`, by their names.
Aside = Mapping[str, KeptRows]


class CopyBehind(PipelineError):
    """The log does not continue where the copy stands: the bucket has to be copied again."""


class Differs(PipelineError):
    """The target refuses what the source has taken."""


class MoversTurns(ShardTurns):
    """Turns of a mover: no other worker applies there, and nobody waits."""

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        """What follows is the mover's."""

    def _explain(self, bucket: int, reason: WaitReason, attempt: Attempt) -> None:
        """Nobody waits for the bucket here."""

    def _rest(self, bucket: int, rest_s: float) -> None:
        """The next call comes later."""


class Follow(MoversTurns):
    """Follows one move's buckets.

    Args:
        shard: the target's name.
        session: of its primary.
        log: has the entries and the schemas.
        settings: what one transaction may take.
        tables: what the configuration says of tables, by name.
        move: the number of the move.
        leaves: whether it is about a key that leaves its bucket: the source sets aside ops of other keys, too.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        settings: ApplySettings,
        tables: Mapping[str, TableSettings],
        move: int,
        *,
        leaves: bool = False,
    ):
        self._work = FollowTransaction(shard, session, log, settings, lambda step: None, tables)
        self._work.move, self._work.leaves = move, leaves
        super().__init__(shard, session, log, self._work)

    def upto(self, ends: Mapping[int, Position], aside: Mapping[int, Aside]) -> int:
        """Apply one batch of what stands in the logs up to some positions; return how many ops were applied.

        Args:
            ends: of each bucket, how far.
            aside: of each bucket, what the source keeps of ops that it has set aside up to there.

        Raises:
            CopyBehind, Differs: nothing was applied.
            Unavailable: the log or the database does not answer.
        """
        self._work.ends, self._work.theirs = ends, aside
        outcome = self._turn(Take(dict.fromkeys(ends, 0)), clock.mono_s())
        return outcome.applied + outcome.seen + outcome.parked


class FollowTransaction(ApplyTransaction):
    """What the transactions of one move share; the arguments are those of `ApplyTransaction`.

    Attributes:
        move: its number.
        leaves: whether it is about a key that leaves its bucket.
        ends: of each bucket, how far it may go.
        theirs: of each bucket, what the source keeps of ops that it has set aside.
    """

    move = 0
    leaves = False
    guesses = False
    ends: Mapping[int, Position]
    theirs: Mapping[int, Aside]

    def _take(self, take: Take, blocked: Mapping[str, WaitReason]) -> tuple[Batch, Mapping[int, Mark]]:
        session, settings = self._session, self._settings
        self._limit(take)
        self._earlier = None
        locked = records.lock_buckets(session, take.due)
        mine = {bucket: leg for bucket, leg in legs_within(session, take.due).items() if leg.move == self.move}
        before = {b: mark.position for b, mark in locked.items() if b in mine and mark.state == CATCHING}
        of = {b: leg.of for b, leg in mine.items() if leg.of is not None}
        self._own = OwnKeys(session, self.facts.known, self._tables, of, whole=True) if of else None
        batch = Batch(before, self.facts, blocked, {}, 0, settings.max_rows, settings.max_bytes)
        for bucket, found in self._log.read(before, dict.fromkeys(before, self.pace.rows)).items():
            entries = [entry for entry in found if entry.position <= self.ends[bucket]]
            at = before[bucket]
            if at < self.ends[bucket] and (not entries or entries[0].position != Position(at.epoch, at.seq + 1)):
                raise CopyBehind(f"the log of bucket {bucket} does not go on at {at}")
            batch.take([entry for entry in entries if entry.position.epoch == at.epoch])
        return batch, locked

    def _execute(
        self,
        batch: Batch,
        locked: Mapping[int, Mark],
        take: Take,
        *,
        last_try: bool,
        guessed: list[str] | None = None,
    ) -> Executor:
        if self.leaves:  # what was set aside of other keys' ops stays where it is
            places = {item.place for item in batch.items}
            self.theirs = {b: _only(kept, {at for one, at in places if one == b}) for b, kept in self.theirs.items()}
        aside = {(bucket, at) for bucket, kept in self.theirs.items() for at, _ in kept["pipeline_rejects"].rows}
        batch.items = [item for item in batch.items if item.place not in aside]
        for op in (member for item in batch.items for member in item.op.members):
            rules = self._tables.get(op.table)
            if op.kind == INSERT and rules is not None and rules.ids == "database":
                raise Differs(f"a row of {op.table!r} would get another id: its ids are the database's")
        rows = HeldRows(self.facts.known, self._tables, take.ends)
        executor = self._executed(batch.items, rows, take, last_try=last_try)
        if executor.rejects:
            first = executor.rejects[0]
            raise Differs(
                f"{self._session.node} refuses the op at {first.entry.bucket}:{first.entry.position} of table "
                f"{first.table!r}, which the other shard has taken: {first.reason}"
            )
        return executor

    def _record(self, batch: Batch, executor: Executor, locked: Mapping[int, Mark], take: Take) -> None:
        for bucket, before in batch.before.items():
            after = batch.after.get(bucket, before)
            for table, kept in self.theirs[bucket].items():
                if now := [row for at, row in kept.rows if before < at <= after]:
                    insert(self._session, table, kept.columns, now)
        super()._record(batch, executor, locked, take)


def _only(kept: Aside, places: set[Position]) -> Aside:
    return {
        table: KeptRows(rows.columns, [(at, row) for at, row in rows.rows if at in places])
        for table, rows in kept.items()
    }


class Level(MoversTurns):
    """Lets a bucket that has stopped, or its key, go on to where the other stands, before the key comes back.

    It decides as any worker of its shard would: nobody else applies anything there.

    Args:
        shard: its name.
        session: of its primary.
        log: has the entries and the schemas.
        settings: what one transaction may take.
        tables: what the configuration says of tables, by name.
        piece: the key's number.
        move: the number of the move.
        number: what goes on: the bucket, or the piece.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        settings: ApplySettings,
        tables: Mapping[str, TableSettings],
        piece: int,
        move: int,
        number: int,
    ):
        self._work = LevelTransaction(shard, session, log, settings, lambda step: None, tables)
        self._work.fence = Fence((piece,), move, (CATCHING,) if number != piece else (MOVED,))
        self._number = number
        super().__init__(shard, session, log, self._work)

    def upto(self, end: Position) -> int:
        """Apply one batch of what stands in the log up to a position; return how many entries it passed, and tried.

        Args:
            end: the position.

        Raises:
            Unavailable: the log or the database does not answer.
        """
        self._work.end, self._work.passed = end, 0
        self._turn(Take({self._number: 0}, whole=True), clock.mono_s())
        return self._work.passed


class LevelTransaction(ApplyTransaction):
    """What the transactions of one `Level` share; the arguments are those of `ApplyTransaction`.

    Attributes:
        fence: what must hold.
        end: how far it may go.
        passed: how many entries the last transaction has taken.
    """

    guesses = False
    fence = Fence()
    end: Position
    passed = 0

    def _take(self, take: Take, blocked: Mapping[str, WaitReason]) -> tuple[Batch, Mapping[int, Mark]]:
        session, settings, [number], [piece] = self._session, self._settings, take.due, self.fence.buckets
        self._limit(take)
        locked = lock_both(session, [piece])
        leg = legs_within(session, [piece]).get(piece)
        stands = self.fence.holds(session) and leg is not None and (number == piece or leg.home == STOPPED)
        before = {number: locked[number].position} if stands else {}
        of = {number: leg.of} if leg is not None and leg.of is not None else {}
        self._own = OwnKeys(session, self.facts.known, self._tables, of)
        room, stops, behind = self.stopped.room, self.stopped.tables(), self.stopped.waiting()
        batch = Batch(before, self.facts, blocked, stops, room, settings.max_rows, settings.max_bytes, behind=behind)
        for bucket, found in self._log.read(before, dict.fromkeys(before, self.pace.rows)).items():
            # what Redis has forgotten is never reached: then it goes on behind that, and the other has to follow
            entries: list[Read] = [entry for entry in found if entry.position <= self.end] or [*found[:1]]
            if bucket in take.early:
                entries, batch.waiting[bucket] = take.before_early(bucket, entries), take.early[bucket][1]
            batch.take(entries)
        self.passed = len(batch.taken)
        return batch, {number: locked[number]} if number in locked else {}


#: How many entries of a log are read at once for what they touch, and of how many rows of a table it is remembered.
_READ, MOST_TOUCHED = 1_000, 100_000


class Touched:
    """Which rows ops may have changed, by table.

    Args:
        facts: of the shard whose rows these are.

    Attributes:
        rows: by the table's name in the database, in small letters: the ids; None: any of its rows.
    """

    def __init__(self, facts: FactBook):
        self._facts = facts
        self.rows: dict[str, set[int] | None] = {}

    def by_logs(self, log: Work, after: Mapping[int, Position], upto: Mapping[int, Position]) -> bool:
        """Add what the ops between two watermarks of each bucket touch; return whether the logs still have them all.

        Args:
            log: has the entries.
            after: of each bucket, the earlier watermark.
            upto: of each bucket, the later one.
        """
        return all(self._by_log(log, bucket, after[bucket], end) for bucket, end in upto.items())

    def _by_log(self, log: Work, bucket: int, at: Position, end: Position) -> bool:
        batch = Batch({}, self._facts, {}, {}, 0, 0, 0)
        while at < end:
            entries = log.read({bucket: at}, {bucket: _READ}).get(bucket, ())
            if not entries:
                return False
            for entry in entries:
                if entry.position != Position(at.epoch, at.seq + 1):
                    return False
                one, puzzle = batch.understood(entry)
                if puzzle is not None:
                    return False
                if isinstance(one, Item):  # the shard has set aside the rest
                    self._by_op(one.op)
                at = entry.position
                if at == end:
                    break
        return at == end

    def _by_op(self, op: Op) -> None:
        for member in op.members:
            facts = self._facts.known[member.schema]
            tables, row = reach(member, facts)
            for table in tables:
                self.rows[table.lower()] = None
            ids = self.rows.setdefault(facts.database_name.lower(), set())
            if ids is not None and row is not None:
                ids.add(row)
            if ids is not None and (row is None or len(ids) > MOST_TOUCHED):
                self.rows[facts.database_name.lower()] = None
