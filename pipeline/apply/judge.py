"""Note what is about to be applied, and judge an error: wrong op, early op, schema behind, try again.

Note what a worker is about to apply, so that whatever ends the worker leaves a trace; narrow down what failed.
A note is written under the lock of the bucket's watermark, and removed after the commit. So a worker that gets the lock
and finds a note for the present watermark knows that the noted attempt has failed. The next attempt is narrower: the
bucket alone, an eighth of its entries, and so on down to one op. One op is rejected after `MOST_DEATHS` attempts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.apply.batch import FactBook
from pipeline.apply.footprint import EVENTS
from pipeline.apply.grouping import Item
from pipeline.apply.pace import Lessons
from pipeline.bounds import keep_newest
from pipeline.errors import PipelineError, Rejected
from pipeline.model import DELETE, Op, Position
from pipeline.model.wait_reason import OF_TABLE, WaitReason
from pipeline.shard import NodeSession
from pipeline.shard.driver_errors import (
    Fault,
    code_of,
    fault_of,
    is_about_other_rows,
    is_about_parents,
    is_about_related_rows,
    is_about_values,
    is_driver_error,
    is_signal,
    lacks_right,
    required_column,
    sentence_of,
)
from pipeline.shard.records.replays import tables_waiting
from pipeline.shard.records.stops import definition_now
from pipeline.shard.statements import CannotRender
from pipeline.shard.table_facts import Constraints, Facts, constraints_in, constraints_of

#: How often an op alone may end its worker, its server or its time before it is rejected.
MOST_DEATHS = 3
#: An attempt that failed is followed by one with so many times fewer entries.
NARROWER = 8
#: What an attempt beside other buckets has behind `left`; its note leaves that out.
_FIRST = (0, 0, 0, False)


class Attempt(NamedTuple):
    """An attempt to apply the next entries of one bucket.

    Args:
        after: the watermark that the attempt begins at.
        left: how many entries are under suspicion.
        entries: how many of these the attempt takes, with no other bucket; 0: it takes all, beside other buckets.
        deaths: how many attempts with one entry ended the worker, the server or the statement's time.
        waits: how many attempts with one entry ended in a lock that another program holds.
        ended: whether the attempt has failed in an orderly way, so that nothing is to be concluded from the note.
    """

    after: Position
    left: int
    entries: int = 0
    deaths: int = 0
    waits: int = 0
    ended: bool = False

    def of(self, found: int) -> Attempt:
        """Return this attempt with no more entries than it takes.

        Args:
            found: how many of its entries are there, and fit into one transaction.
        """
        return self._replace(entries=min(self.entries, found))

    def failed(self) -> Attempt:
        """Return the attempt that follows this one's failure: what is at fault is among the entries that it took."""
        if self.entries == 0:
            return self._replace(entries=self.left, ended=False)
        if self.entries > 1:
            return self._replace(left=self.entries, entries=max(1, self.entries // NARROWER), ended=False)
        return self._replace(deaths=self.deaths + 1, ended=False)

    def waited(self) -> Attempt:
        """Return the attempt that follows this one's failure to get a lock."""
        return self._replace(waits=self.waits + 1) if self.entries == 1 else self.failed()

    def succeeded(self, to: Position, taken: int) -> Attempt | None:
        """Return the attempt for the entries that are still under suspicion; None where none are left.

        Args:
            to: the watermark that this attempt left.
            taken: how many entries it applied.
        """
        left = self.left - taken
        return Attempt(to, left, min(self.entries, left)) if left > 0 else None

    def after_note(self, note: str) -> Attempt:
        """Return the attempt to make where another worker may have noted a narrower one since this was planned.

        Args:
            note: of the bucket, or the empty text.
        """
        noted = self.suspected(note) if note else None
        if noted is None or noted.after != self.after:
            return self
        return max(self, noted, key=lambda one: (-one.entries, one.deaths, one.waits))

    def __str__(self) -> str:
        if self[2:] == _FIRST:
            return f"{self.after} {self.left}"
        return f"{self.after} {self.left} {self.entries} {self.deaths} {self.waits} {int(self.ended)}"

    @classmethod
    def parse(cls, note: str) -> Attempt | None:
        """Return the attempt of a note; None for a note that this version cannot read.

        Args:
            note: what `str` made of an attempt.
        """
        after, *numbers = note.split()
        try:
            left, *more = map(int, numbers)
            entries, deaths, waits, ended = more or _FIRST
            return cls(Position.parse(after), max(1, left), entries, deaths, waits, bool(ended))
        except ValueError:
            return None

    @classmethod
    def suspected(cls, note: str) -> Attempt | None:
        """Return the attempt to make where *note* was found for the present watermark.

        Args:
            note: of an earlier attempt; no living worker makes it, since the bucket's lock was free.
        """
        noted = cls.parse(note)
        return None if noted is None else noted._replace(ended=False) if noted.ended else noted.failed()


class SchemaBehind(PipelineError):
    """The database lacks a column, a table, an index or a right that ops of one schema need, or cannot write to their
    table; these ops wait.

    Attributes:
        schema: the hash of the schema.
        table: its table.
        why: what is lacking.
        kind: `right`, `unwritable` or `schema`, as in `model.wait_reason.KINDS`.
    """

    retryable = True

    def __init__(self, facts: Facts, why: str, cause: Exception | None = None):
        super().__init__(f"the shard is behind the schema of {facts.schema.name} ({facts.schema.hash}): {why}")
        self.schema, self.table, self.why = facts.schema.hash, facts.schema.name, why
        self.kind = "schema"
        if cause is not None and lacks_right(cause):
            self.kind = "right"
        elif cause is not None and fault_of(cause) is Fault.TABLE:
            self.kind = "unwritable"


class ConstraintsChanged(PipelineError):
    """A unique index or a foreign key has come or gone since the batch was grouped; it has to be grouped anew."""

    retryable = True


class NeverSeen(PipelineError):
    """An op met an error that no list names; the transaction is retried before anybody believes it."""

    retryable = True


class RolledBack(PipelineError):
    """An error that no list names has ended more than its statement: nothing of the transaction is there any more."""

    retryable = True


class MissingIndex(PipelineError):
    """An upsert's key has no unique index in the database, or has none for the moment."""


class RefusedOp(NamedTuple):
    """An op that the database refuses, and why; of an atomic group, the member that it is about."""

    item: Item
    error: Exception
    member: Op | None = None

    @property
    def op(self) -> Op:
        """The op itself, or that member."""
        return self.member or self.item.op


class NeededOps:
    """Tells whether an op that is refused may need ops that wait for longer than a batch.

    What a foreign key refuses may need those of another table; what a unique index refuses, those of its own: some may
    wait for their definition while others are applied.

    Args:
        session: of the shard's primary, inside the transaction.
        facts: of the tables.
        stopped: why the ops of tables are set aside, by the table's name.
        queued: why the ops of tables wait in their logs.
        aside: whether ops that are set aside, and are to be replayed, count as those of a table that is stopped.
        older: tells whether what is older than an op may be queued in logs, for those that wait for it while they are
            set aside; None: none does.
    """

    def __init__(
        self,
        session: NodeSession,
        facts: FactBook,
        stopped: Mapping[str, WaitReason],
        queued: Mapping[str, WaitReason],
        *,
        aside: bool = True,
        older: Callable[[Item], bool] | None = None,
    ):
        self._session, self._facts, self._stopped, self._queued = session, facts, stopped, queued
        self._aside, self._older = aside, older

    def of(self, refused: Sequence[RefusedOp]) -> dict[tuple[int, Position], str]:
        """Return the tables that ops wait for, by the ops' places; the empty string where a foreign key refuses one for
        good. Of what a unique index refuses only those that wait are named.

        Args:
            refused: the ops.
        """
        related = [one for one in refused if is_about_related_rows(one.error)]
        valued = [one for one in refused if is_about_values(one.error)]
        if not (related or valued):
            return {}
        aside = tables_waiting(self._session) if self._aside else {}
        behind = {reason.scope for reason in self._stopped.values() if reason.kind in OF_TABLE}
        behind |= {table for table, is_behind in aside.items() if is_behind}
        names = {table: self._facts.database_name(table) for table in {*self._stopped, *self._queued, *aside}}
        theirs = constraints_in(self._session, sorted(names.values())) if names and related else {}
        found = {one.item.place: one.op.table for one in valued if one.op.table in behind}
        return found | {one.item.place: self._needed(one.op, names, theirs) or self._queues(one) for one in related}

    def _needed(self, op: Op, names: Mapping[str, str], theirs: Mapping[str, Constraints]) -> str:
        facts = self._facts.known[op.schema]
        if op.kind == DELETE:
            found = [table for table, name in names.items() if name in facts.constraints.children]
        else:
            found = [table for table, name in names.items() if facts.database_name in theirs[name].children]
        return min(found, key=lambda name: (name not in self._queued, name not in self._stopped, name), default="")

    def _queues(self, refused: RefusedOp) -> str:
        if self._older is None or not self._older(refused.item):
            return ""
        facts = self._facts.known[refused.op.schema]
        parents = (parent for _, parent in facts.parents)
        return self._facts.first_named(facts.constraints.children if refused.op.kind == DELETE else parents)

    def in_log(self, table: str) -> WaitReason | None:
        """Return why an op stays in its log; None where it is set aside, as those are that it waits for.

        Args:
            table: what it waits for.
        """
        return self._queued.get(table)


class Judge:
    """Judges the errors of one batch.

    Args:
        session: of the shard's primary, inside the transaction.
        lessons: what earlier batches have taught.
        last_try: whether an error that no list names is believed now.

    Attributes:
        unlisted: the last error that no list names, for which an op was refused.
    """

    def __init__(self, session: NodeSession, lessons: Lessons, *, last_try: bool):
        self._session, self._lessons, self._last_try = session, lessons, last_try
        self._checked: set[str] = set()
        self.unlisted: Exception | None = None

    @property
    def may_believe(self) -> bool:
        """Whether an op may be refused for an error that no list names."""
        return self._last_try or bool(self._lessons.believed)

    def blames_op(self, error: Exception, facts: Facts) -> bool:
        """Return whether an op is refused for good by an error; else the transaction is tried again.

        Args:
            error: what executing a statement raised.
            facts: of its table.

        Raises:
            SchemaBehind, ConstraintsChanged, NeverSeen: what the transaction has to do before it is tried again.
        """
        if isinstance(error, MissingIndex):
            raise SchemaBehind(facts, str(error)) from error
        if isinstance(error, CannotRender | Rejected):
            return True
        if isinstance(error, PipelineError) or not is_driver_error(error):
            return False
        fault = fault_of(error)
        if fault is Fault.TABLE or (fault is Fault.SCHEMA and not facts.has(required_column(error))):
            raise SchemaBehind(facts, sentence_of(error), error) from error
        if fault in (Fault.TRANSIENT, Fault.LOCKED, Fault.OVERTIME):
            return False
        if fault is Fault.UNKNOWN:
            self._believe(error, facts)
            self.unlisted = error
        if facts.constraints.triggers or is_about_other_rows(error) or is_signal(error):
            own = not is_about_other_rows(error) or is_about_parents(error) or is_about_values(error)
            self._check_constraints(facts, own=own)
        return True

    def _check_constraints(self, facts: Facts, *, own: bool = False) -> None:
        """See that the batch was grouped by the constraints that the table has now, once per table and batch.

        To read all takes the server 4 ms, and longer where there are many tables; the table's definition takes 0.3 ms.

        Args:
            facts: of the table.
            own: whether the error is about the table's own constraints, which its definition shows.
        """
        if facts.schema.hash in self._checked:
            return
        self._checked.add(facts.schema.hash)
        definition = definition_now(self._session, facts.database_name)
        if own and not facts.constraints.writes(*EVENTS) and self._lessons.knows(facts, definition):
            return
        if constraints_of(self._session, facts.database_name) != facts.constraints:
            raise ConstraintsChanged(f"the constraints of {facts.schema.name} have changed")
        self._lessons.learn_definition(facts, definition)

    def _believe(self, error: Exception, facts: Facts) -> None:
        known = (facts.schema.hash, code_of(error))
        if known in self._lessons.believed:
            return
        if not self._last_try:
            raise NeverSeen(sentence_of(error)) from error
        self._check_constraints(facts)
        keep_newest(self._lessons.believed, known, True)


def check_upsert(op: Op, facts: Facts) -> None:
    """Refuse an upsert that the database could match by an index other than the named one.

    Args:
        op: the first upsert of a statement.
        facts: of its table.

    Raises:
        MissingIndex, CannotRender: for `Judge.blames_op`.
    """
    if op.key == (facts.schema.id_index,):
        others = facts.unique
    else:
        others = tuple(columns for columns in facts.unique if set(columns) != set(op.key))
        if len(others) == len(facts.unique):
            names = ", ".join(facts.schema.columns[c].name for c in op.key)
            raise MissingIndex(f"an upsert needs a UNIQUE index on ({names})")
    if others or facts.hidden_unique:
        raise CannotRender(f"an upsert into {facts.schema.name} is ambiguous: it has another unique index")
