"""Follow a bucket's log on the shard that the bucket moves to, as far as the shard that it leaves has applied it.

Invariant: what the source has set aside is set aside here, too, as it stands there. Everything else is applied. What
this database refuses and the source's has taken ends the move: a shard decides nothing before it owns the bucket.
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
from pipeline.apply.transaction import ApplyTransaction, Outcome, Take
from pipeline.apply.turns import ShardTurns
from pipeline.config.settings import ApplySettings, TableSettings
from pipeline.errors import PipelineError
from pipeline.model import INSERT, Op, Position
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog import Work
from pipeline.shard import NodeSession, records
from pipeline.shard.records import CATCHING, Mark
from pipeline.shard.records.moves import legs_within
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


class Follow(ShardTurns):
    """Follows one move's buckets.

    Args:
        shard: the target's name.
        session: of its primary.
        log: has the entries and the schemas.
        settings: what one transaction may take.
        tables: what the configuration says of tables, by name.
        move: the number of the move.
    """

    def __init__(
        self,
        shard: str,
        session: NodeSession,
        log: Work,
        settings: ApplySettings,
        tables: Mapping[str, TableSettings],
        move: int,
    ):
        self._work = FollowTransaction(shard, session, log, settings, lambda step: None, tables)
        self._work.move = move
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

    def _finish(self, batch: Batch, outcome: Outcome) -> None:
        """Nothing follows: the bucket is not this shard's yet."""

    def _explain(self, bucket: int, reason: WaitReason, attempt: Attempt) -> None:
        """Nobody waits for the bucket here."""

    def _rest(self, bucket: int, rest_s: float) -> None:
        """The next call comes later."""


class FollowTransaction(ApplyTransaction):
    """What the transactions of one move share; the arguments are those of `ApplyTransaction`.

    Attributes:
        move: its number.
        ends: of each bucket, how far it may go.
        theirs: of each bucket, what the source keeps of ops that it has set aside.
    """

    move = 0
    guesses = False
    ends: Mapping[int, Position]
    theirs: Mapping[int, Aside]

    def _take(self, take: Take, blocked: Mapping[str, WaitReason]) -> tuple[Batch, Mapping[int, Mark]]:
        session, settings = self._session, self._settings
        self._limit(take)
        self._earlier = None
        locked = records.lock_buckets(session, take.due)
        mine = {bucket for bucket, leg in legs_within(session, take.due).items() if leg.move == self.move}
        before = {b: mark.position for b, mark in locked.items() if b in mine and mark.state == CATCHING}
        batch = Batch(before, self.facts, blocked, {}, 0, settings.max_rows, settings.max_bytes)
        for bucket, found in self._log.read(before, dict.fromkeys(before, self.pace.rows)).items():
            entries = [entry for entry in found if entry.position <= self.ends[bucket]]
            at = before[bucket]
            if at < self.ends[bucket] and (not entries or entries[0].position != Position(at.epoch, at.seq + 1)):
                raise CopyBehind(f"the log of bucket {bucket} does not go on at {at}")
            batch.take([entry for entry in entries if entry.position.epoch == at.epoch])
        return batch, locked

    def _execute(self, batch: Batch, locked: Mapping[int, Mark], take: Take, *, last_try: bool) -> Executor:
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
