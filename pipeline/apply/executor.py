"""Run groups as statements; narrow down a bad op, and reject it without stopping the others.

A failed statement changes nothing: InnoDB and SQLite undo it. So a group is split until the bad op is alone: around the
row that the server names, or into parts. The op must fail alone, so a wrong row costs statements and changes no result.
Rows of sheets conflict with none of each other. Statements of such rows are sent together, and each may fail by itself.
Atomic groups run under a savepoint: many under one, and halved where one of them fails. So do versioned updates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

from pipeline.apply.earlier_ops import CLOCKS_MS, EarlierOps, Early, Place
from pipeline.apply.footprint import Needed, needed_by, versioned
from pipeline.apply.grouping import SHEETS_ROWS, Group, Item, item_of, items_of, taken_sheets
from pipeline.apply.judge import ConstraintsChanged, Judge, NeededOps, RefusedOp, RolledBack, check_upsert
from pipeline.apply.order import HeldRows
from pipeline.apply.pace import (
    Lessons,
    Portion,
    accused,
    are_few,
    around,
    chunk,
    halves,
    marked_rows,
    parted,
    shorts,
)
from pipeline.errors import PipelineError
from pipeline.model import COPY, DELETE, GROUP, INSERT, UPSERT, Entry, Op, Position
from pipeline.model.sheet import SheetEntry
from pipeline.model.wait_reason import WaitReason
from pipeline.shard import NodeSession
from pipeline.shard.driver_errors import (
    Fault,
    code_of,
    fault_of,
    is_driver_error,
    sentence_of,
)
from pipeline.shard.records import Reject, text_literal
from pipeline.shard.records.set_aside import why_needy
from pipeline.shard.statements import (
    MOST_STATEMENT_BYTES,
    CannotRender,
    copy_statement,
    insert_of,
    most,
    rows_of,
    statement,
)
from pipeline.shard.table_facts import Facts

#: So many rows are written with plain numbers, and the table's columns are read anew behind them (0.3 ms): in fewer it
#: costs less to write texts (0.2 µs each).
CHECKED_ROWS = 500


class Executor:
    """Executes one batch inside the open transaction.

    Args:
        session: of the shard's primary.
        known: the facts of every schema that an op names, by hash.
        rows: which rows are held, and by what.
        step: called with the name of each step before it is taken.
        lessons: what earlier batches have taught.
        earlier: tells which ops may be early; None: none is.
        last_try: see `Judge`.
        patient: whether the others are executed where one may be early, to find all that may be.
        awaited: tells which ops need what waits for longer; None: none does.

    Attributes:
        sent: of each statement that was sent, or kept back, the ops that it may be of.
        rejects: the ops that were rejected or parked.
        ids: the row ids that the database gave, with their entries.
    """

    def __init__(
        self,
        session: NodeSession,
        known: Mapping[str, Facts],
        rows: HeldRows,
        step: Callable[[str], None],
        lessons: Lessons,
        earlier: EarlierOps | None,
        *,
        last_try: bool,
        patient: bool,
        awaited: NeededOps | None,
    ):
        self._session, self._known, self._rows, self._step = session, known, rows, step
        self._lessons, self._earlier, self._patient = lessons, earlier, patient
        self._awaited = awaited
        self._judge = Judge(session, lessons, last_try=last_try)
        self._misled = False  # the server has named a row that was not the bad one
        self._limit = min(session.statement_bytes() - 1024, MOST_STATEMENT_BYTES)
        #: What was refused, and is tried again after all else, if others of the batch may help it.
        self._doubtful: list[tuple[Item, Needed]] = []
        self._early: dict[int, tuple[Position, WaitReason]] = {}
        self._at: Sequence[Item | SheetEntry] = ()
        self.sent: list[Sequence[Item | SheetEntry]] = []
        self.rejects: list[Reject] = []
        self.ids: list[tuple[Entry, int]] = []

    def run(self, groups: Iterable[Group], sheets: Iterable[Sequence[SheetEntry]] = ()) -> None:
        """Execute sheets, those of one shape together, then *groups*, each in order.

        Raises:
            SchemaBehind, ConstraintsChanged, NeverSeen, Halt, Early: the transaction must be rolled back and run again.
            RolledBack: it has been, by an error that no list names.
            Exception: the driver's own, if it is transient.
        """
        groups = list(groups)
        self._hold_deletes(groups)
        if guarded := self._judge.may_believe:
            self._execute("SAVEPOINT pipeline_whole")
        for alike in sheets:
            self._step("statement")
            self._insert(alike, self._known[alike[0].sheet.schema])
        for group in groups:
            self._step("statement")
            facts = group.facts or self._known[group.items[0].op.ops[0].schema]
            for some in self._chunks(group.kind, group.items, facts):
                if group.kind == GROUP:
                    self._atomic(some, group, facts)
                else:
                    self._run(group.kind, some, facts)
        if guarded and self._judge.unlisted is not None:
            self._back_to("RELEASE SAVEPOINT pipeline_whole")
        if self._early:
            self._leave_children_out()
            self._settle()
            raise Early(self._early)
        self._try_again()
        if self._early:
            self._leave_children_out()
            raise Early(self._early)

    def _chunks(self, kind: str, items: Sequence[Item], facts: Facts) -> Iterator[Sequence[Item]]:
        start = 0
        while start < len(items):
            some = chunk(items, start, self._lessons.rows(kind, facts))
            start += len(some)
            yield some

    def _insert(self, sheets: Sequence[SheetEntry], facts: Facts) -> None:
        """Insert the rows of sheets of one shape.

        Raises:
            ConstraintsChanged: a column has another type than when the facts were read, and may have got wrong values.
        """
        rest, columns = deque(sheets), facts.of_numbers(sheets[0].sheet.columns)
        numbers = bool(columns) and sum(len(entry.sheet) for entry in sheets) >= CHECKED_ROWS
        while rest:
            some = taken_sheets(rest, SHEETS_ROWS)
            try:
                with _rendering():
                    rows = rows_of([entry.sheet for entry in some], facts, numbers=numbers)
            except CannotRender:
                for items in self._chunks(INSERT, items_of(some), facts):  # one by one they show whose fault it is
                    self._run(INSERT, items, facts)
            else:
                self._insert_rows(some, rows, facts)
        if numbers and not facts.still_of_numbers(self._session, columns):
            raise ConstraintsChanged(f"the columns of {facts.schema.name} have changed")

    def _insert_rows(self, sheets: Sequence[SheetEntry], rows: Sequence[str], facts: Facts) -> None:
        """Insert rows in the order of their ids; where a statement fails, narrow it down."""
        ids = list(chain.from_iterable(entry.sheet.ids for entry in sheets))
        every = sorted(range(len(ids)), key=ids.__getitem__)
        self._lessons.learn_of_sheets(facts, len(ids), failed=False)
        marked = self._lessons.are_short(facts)
        parts = self._carefully(every, rows, sheets, facts) if marked else [every]
        while parts:
            self._at, again, refused = sheets, list[Sequence[int]](), list[RefusedOp]()
            for part, error, last in self._failed(parts, rows, sheets[0].sheet.columns, facts, marked=marked):
                if not self._judge.blames_op(error, facts):
                    raise error
                self._lessons.learn_of_sheets(facts, len(ids), failed=True)
                if len(part) == 1:
                    refused.append(RefusedOp(item_of(sheets, part[0]), error))
                elif not are_few(part):
                    again += self._carefully(part, rows, sheets, facts)
                else:
                    again += parted(part, next((at for at, nth in enumerate(part) if ids[nth] == last), None))
            self._refuse(refused)
            parts, marked = again, True

    def _carefully(
        self, part: Sequence[int], rows: Sequence[str], sheets: Sequence[SheetEntry], facts: Facts
    ) -> list[Sequence[int]]:
        """Insert all rows but those that are refused, and return these, each alone. Where that can't be done, insert
        nothing, and return all in parts.

        A statement that fails is undone, and its rows inserted again. One that ignores errors is not.
        """
        session = self._session
        if not (self._lessons.may_ignore(facts) and session.may_ignore()):
            return shorts(part)
        sql = insert_of(sheets[0].sheet.columns, [rows[nth] for nth in part], facts, "INSERT IGNORE")
        if len(sql) * 4 > self._limit:
            return shorts(part)
        self._at = sheets
        self.sent.append(sheets)
        try:
            ignored = session.insert_ignoring(sql, text_literal(facts.database_name), len(part))
        except Exception as error:
            if not self._judge.blames_op(error, facts):
                raise
            ignored = None
        if ignored is None:
            self._lessons.learn_to_part(facts)
            self._back_to("ROLLBACK TO SAVEPOINT pipeline_ignored")
            return shorts(part)
        return [part[row - 1 : row] for row in ignored]

    def _failed(
        self, parts: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[int], facts: Facts, *, marked: bool
    ) -> Iterator[tuple[Sequence[int], Exception, int | None]]:
        """Insert parts of rows, and yield those that are refused, each with the last marked id that was come to."""
        session, mark = self._session, self._session.dialect.mark if marked else ""
        failures, statements = dict[int, Exception](), dict[int, str]()
        for number, part in enumerate(parts):
            own = mark.format(number) if len(part) > 1 else ""
            sql = insert_of(columns, marked_rows([rows[nth] for nth in part], own), facts)
            try:
                self._see_it_fits(sql)
                statements[number] = sql
            except CannotRender as too_long:
                failures[number] = too_long
        self.sent.append(self._at)
        outcomes = session.execute_each([*statements.values()])
        failures |= {number: error for number, error in zip(statements, outcomes, strict=True) if error is not None}
        asked = [number for number in failures if mark and len(parts[number]) > 1 and number in statements]
        last = dict(zip(asked, session.marked_ids(asked), strict=True))
        for number, error in failures.items():
            yield parts[number], error, last.get(number)

    def _hold_deletes(self, groups: Iterable[Group]) -> None:
        """Let the delete of a row to which others may refer wait for older ops: children may be among them."""
        if self._earlier is None:
            return
        for group in groups:
            for item in self._reaching_children(group):
                if (
                    item.entry.bucket not in self._early
                    and (reason := self._earlier.awaited_by(item, deletes_from=group.facts, refused=False)) is not None
                ):
                    self._early[item.entry.bucket] = item.entry.position, reason
        if self._early:
            self._leave_children_out()
            raise Early(self._early)

    def _leave_children_out(self) -> None:
        """Leave out what refers to rows that are made behind early ops, too: it would be refused the next time."""
        if self._patient and self._earlier is not None:
            self._early = self._earlier.with_children(self._early)

    def _reaching_children(self, group: Group) -> Sequence[Item]:
        """Return the ops that delete a row to which others may refer."""
        if group.facts is not None:
            return group.items if group.kind == DELETE and group.facts.constraints.children else ()
        return [item for item in group.items if any(map(self._may_reach_children, item.op.ops))]

    def _may_reach_children(self, op: Op) -> bool:
        return op.kind == DELETE and bool(self._known[op.schema].constraints.children)

    def accused(self, nth: int) -> set[int]:
        """Return the buckets of the ops that a statement may be of; none where it was not sent from here.

        Args:
            nth: which of those that were sent.
        """
        some = self.sent[nth] if 0 <= nth < len(self.sent) else ()
        return {one.bucket if isinstance(one, SheetEntry) else one.entry.bucket for one in some}

    def condemn(self, items: Iterable[Item], why: str) -> None:
        """Reject ops without executing them.

        Args:
            items: the ops.
            why: the reason.
        """
        for item in items:
            self._reject(RefusedOp(item, PipelineError(why)))

    def _run(self, kind: str, items: Sequence[Item], facts: Facts) -> None:
        """Execute ops as one statement; where it fails, narrow it down."""
        waiting = [Portion(items)]
        for part, fails, _ in self._portions(waiting):
            self._at = part
            try:
                self._statement(kind, [item.op for item in part], facts)
            except Exception as error:
                self._misled |= fails is False
                # to be asked before anything else is sent
                row = self._session.bad_row(error) if len(part) > 1 and not self._misled else None
                bad = None if row is None else accused(kind, part, row)
                if not self._judge.blames_op(error, facts):
                    raise
                if len(part) == 1:
                    self._refuse([RefusedOp(part[0], error)])
                else:
                    if part is items:
                        self._lessons.learn(facts, len(part), failed=True)
                    waiting += reversed(halves(part, self._refused) if bad is None else around(part, bad))
                continue
            self._misled |= fails is True
            if part is items:
                self._lessons.learn(facts, len(part), failed=False)
            if kind == INSERT and part[0].op.id is None:
                self._learn_ids(part)

    def _atomic(self, items: Sequence[Item], group: Group, facts: Facts) -> None:
        """Execute atomic groups together; where one fails, narrow it down."""
        waiting = [Portion(items)]
        for part, _, _ in self._portions(waiting):
            self._at = part
            failed = self._all_or_none(self._members(part, group))
            if failed and len(part) == 1:
                self._refuse([RefusedOp(part[0], *failed)])
            else:
                if part is items:
                    self._lessons.learn(facts, len(part), failed=failed is not None)
                if failed:
                    waiting += reversed(halves(part, self._refused))

    def _portions(self, waiting: list[Portion]) -> Iterator[Portion]:
        """Take portions from the end of *waiting*, and yield of each what is to be executed now, if anything.

        The rest of a failed statement is split without a try while no op of the first half was refused.
        """
        while waiting:
            items, fails, rest_of = waiting.pop()
            part = self._free(items, waiting)
            if len(part) > 1 and rest_of == self._refused:
                waiting += reversed(halves(part, self._refused))
            elif part:
                yield Portion(part, fails)

    @property
    def _refused(self) -> int:
        """How many ops of the batch are refused, or early."""
        return len(self.rejects) + len(self._early)

    def _members(self, items: Sequence[Item], group: Group) -> Iterable[Sequence[Op]]:
        """Return the members of some of the atomic groups of *group*, statement by statement."""
        if len(items) == 1:
            return [[op] for op in items[0].op.ops]
        if not group.members:
            pairs = [pair for item in items if (pair := versioned(item.op, self._known)) is not None]
            return [pair.copy for pair in pairs], [pair.update for pair in pairs]
        places = {item.place for item in items}
        whole = len(items) == len(group.items)
        return [
            [item.op for item in part if whole or item.place in places] for one in group.members for part in _parts(one)
        ]

    def _all_or_none(self, statements: Iterable[Sequence[Op]]) -> tuple[Exception, Op] | None:
        """Execute statements, each of like ops. Where one fails for good, undo all and return why and the statement's
        first op. One alone needs no savepoint: if it fails, it changes nothing.
        """
        every = [ops for ops in statements if ops]
        if several := len(every) > 1:
            self._execute("SAVEPOINT pipeline_group")
        for ops in every:
            facts = self._known[ops[0].schema]
            try:
                self._statement(ops[0].kind, ops, facts)
            except Exception as error:
                if not self._judge.blames_op(error, facts):
                    raise
                if several:
                    self._back_to("ROLLBACK TO SAVEPOINT pipeline_group")
                return error, ops[0]
        if several:
            self._execute("RELEASE SAVEPOINT pipeline_group")
        return None

    def _statement(self, kind: str, ops: Sequence[Op], facts: Facts) -> None:
        if kind == UPSERT:
            check_upsert(ops[0], facts)
        with _rendering():
            sql = self._sql(kind, ops, facts)
        self._see_it_fits(sql)
        self._execute(sql)

    def _execute(self, sql: str) -> None:
        self.sent.append(self._at)
        self._session.execute(sql)

    def _back_to(self, sql: str) -> None:
        """Run a statement about a savepoint, which is there if the transaction is.

        An error that no list names is taken for its statement's alone. One that has ended the transaction would have
        what follows committed without what was before.
        """
        try:
            self._execute(sql)
        except Exception as error:
            unlisted = self._judge.unlisted
            if unlisted is None or not is_driver_error(error) or fault_of(error) is Fault.TRANSIENT:
                raise
            raise RolledBack(f"it has undone the whole transaction: {sentence_of(unlisted)}") from error

    def _see_it_fits(self, sql: str) -> None:
        # 4 bytes a character at most: count only what may be too long
        if len(sql) * 4 > self._limit and len(sql.encode()) > self._limit:
            raise CannotRender(f"one statement of {len(sql.encode()):,} bytes; the server takes {self._limit:,}")

    def _sql(self, kind: str, ops: Sequence[Op], facts: Facts) -> str:
        if kind != COPY:
            return statement(kind, ops, facts, self._session.dialect)
        read = ops[0].source
        if read is None:
            raise CannotRender("a copy without a source")
        return copy_statement(ops, facts, self._known[read.schema], self._session.dialect)

    def _refuse(self, refused: Sequence[RefusedOp]) -> None:
        """Reject ops, or set aside those that need what is, too; or let buckets end before those that may be early.

        Args:
            refused: the ops; of several, none needs what another does.
        """
        judged, earlier = list[tuple[RefusedOp, Needed | None]](), self._earlier
        every = [(one, self._needed_by(one)) for one in refused]
        if earlier is not None:
            earlier.look_at((one.item, needed) for one, needed in every if needed is not None)
        for one, needed in every:
            if (
                earlier is not None
                and needed is not None
                and (reason := earlier.awaited_by(one.item, needed=needed)) is not None
            ):
                self._end_before(one.item, reason)
                continue
            judged.append((one, needed))
        needs_of = self._awaited.of([one for one, _ in judged]) if self._awaited is not None else {}
        # another worker may have committed what an op needs between its refusal and the question what waits
        again = [one.item for one, needed in judged if needed is not None or one.item.place in needs_of]
        taken = self._taken(again)
        for one, needed in judged:
            if one.item.place in taken:
                continue
            if needed is not None:
                self._doubtful.append((one.item, needed))
            self._set_aside(one, needs_of.get(one.item.place, ""))

    def _needed_by(self, refused: RefusedOp) -> Needed | None:
        """Return what may help a refused op; None: no other op can, or it is refused for good."""
        if self._earlier is None or self._earlier.is_settled(refused.item):
            return None
        return needed_by(refused.op, self._known[refused.op.schema], refused.error)

    def _set_aside(self, refused: RefusedOp, needs: str) -> None:
        """Reject an op, or set it aside for as long as the table waits that it needs, if it needs any."""
        if not needs or self._awaited is None:
            self._reject(refused)
        elif (reason := self._awaited.in_log(needs)) is not None:
            self._end_before(refused.item, reason)
        else:
            self.rejects.append(self._rows.wait_all(refused.item, why_needy(needs)))

    def _end_before(self, item: Item, reason: WaitReason) -> None:
        if self._is_on_time(item):
            self._early[item.entry.bucket] = item.entry.position, reason
        if not self._patient:
            raise Early(self._early)

    def _taken(self, items: Sequence[Item]) -> set[Place]:
        """Try refused ops once more, each by itself; return the places of those that are taken now."""
        several = len(items) > 1  # then they are plain rows
        taken = self._taken_together(items) if several else [item for item in items if self._is_taken(item)]
        for item in taken:
            if item.op.kind == INSERT and item.op.id is None:
                self._learn_ids([item])
        return {item.place for item in taken}

    def _is_taken(self, item: Item) -> bool:
        self._at = (item,)
        return self._all_or_none([one] for one in item.op.members) is None

    def _taken_together(self, items: Sequence[Item]) -> list[Item]:
        self._at = items
        self.sent.append(items)
        sql = [self._sql(item.op.kind, [item.op], self._known[item.op.schema]) for item in items]
        outcomes = self._session.execute_each(sql)
        for item, error in zip(items, outcomes, strict=True):
            if error is not None and not self._judge.blames_op(error, self._known[item.op.schema]):
                raise error
        return [item for item, error in zip(items, outcomes, strict=True) if error is None]

    def _try_again(self) -> None:
        """Try after all else what was refused: clocks differ within a batch, too.

        What nothing has helped is settled: without what is put off it would wait for just that.
        """
        left, again = self._doubtful, len(self._doubtful)
        while again and self._earlier is not None:
            still, before = list[tuple[Item, Needed]](), 0  # how many were tried before the last that was taken
            for item, needed in left[:again]:
                if not self._is_helped(item, needed):
                    still.append((item, needed))
                    continue
                before = len(still)
                if self._is_on_time(item):
                    self._early[item.entry.bucket] = item.entry.position, self._earlier.put_off(item)
            left, again = [*still, *left[again:]], before
        if self._early and self._earlier is not None:
            for item, _ in left:
                self._earlier.settle(item)

    def _settle(self) -> None:
        """Note which refused ops nothing may help that is left out, and the rest of the batch does not."""
        if self._earlier is None:
            return
        left_out_ms = self._earlier.oldest_left_out({bucket: first for bucket, (first, _) in self._early.items()})
        for item, needed in self._doubtful:
            if item.op.at_ms + CLOCKS_MS < left_out_ms and not self._is_helped(item, needed):
                self._earlier.settle(item)

    def _is_helped(self, item: Item, needed: Needed) -> bool:
        return self._earlier is not None and self._earlier.has_others(item, needed) and self._is_taken(item)

    def _free(self, items: Sequence[Item], waiting: list[Portion]) -> Sequence[Item]:
        """Return what to execute now. What is behind an early op in its bucket is left out. What is behind a held row
        is parked, and what is to be judged after that is put off.

        Asked before each statement: ops of one group may be of one row, and the first of them may have been refused.
        """
        free, parked, rest = self._rows.part(self._on_time(items))
        self.rejects += parked
        if rest:
            waiting.append(Portion(rest))
        return free

    def _on_time(self, items: Sequence[Item]) -> Sequence[Item]:
        """Leave out what is behind an early op in its bucket."""
        return [item for item in items if self._is_on_time(item)] if self._early else items

    def _is_on_time(self, item: Item) -> bool:
        """Return whether an op is before the first early one of its bucket, if there is any."""
        first = self._early.get(item.entry.bucket)
        return first is None or item.entry.position < first[0]

    def _reject(self, refused: RefusedOp) -> None:
        item, op, error = refused.item, refused.op, refused.error
        row_key = str(op.id) if op.id is not None else str(op.where or dict(zip(op.columns, op.values, strict=True)))
        holds = self._rows.refuse(item)
        self.rejects.append(Reject(item.entry, op.table, row_key, code_of(error), sentence_of(error), holds=holds))

    def _learn_ids(self, items: Sequence[Item]) -> None:
        """Note the ids that the database gave: consecutive within one INSERT of known rows."""
        first, step = self._session.last_ids(len(items))
        self.ids.extend((item.entry, first + i * step) for i, item in enumerate(items))


@contextmanager
def _rendering() -> Iterator[None]:
    """Make the SQL of ops. Whatever fails here is the fault of these ops, and must not stop the others."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        raise CannotRender(f"not an op of its schema: {type(error).__name__}: {error}") from error


def _parts(group: Group) -> Iterator[Sequence[Item]]:
    """Yield the ops of each statement of a group."""
    start, rows = 0, most(group.kind)
    while start < len(group.items):
        some = chunk(group.items, start, rows)
        start += len(some)
        yield some
