"""Choose the entries of one transaction: of each bucket the next ones, as many as fit, without what the shard has seen.

Invariant: a batch leaves no gap in a bucket. Entries are taken in order up to the first that has to wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from pipeline.apply.footprint import Shape, is_like, misfit, shape_in
from pipeline.apply.grouping import Item, items_of
from pipeline.bounds import MOST_DEFINITIONS
from pipeline.errors import BadOp, NewerOp, NotAnOp
from pipeline.events import Event
from pipeline.model import DELETE, FORGED, INSERT, TOO_LARGE, Entry, Op, Position, decode, deleted_behind
from pipeline.model.schema import TableSchema, is_hash, is_hash_of
from pipeline.model.sheet import Read, Sheet, SheetEntry, count_ops
from pipeline.model.wait_reason import OF_TABLE, WaitReason
from pipeline.oplog import Entries
from pipeline.shard import NodeSession, records
from pipeline.shard.records import LostRange, Reject
from pipeline.shard.table_facts import Facts, facts_of

#: Ops name columns in few orders; a visitor may make any number of them.
_MOST_SHAPES = 1000
#: A batch of no more is small: nothing in it is asked for before its statements are sent.
MOST_GUESSED, MOST_GUESSED_BYTES = 200, 100_000
_FORGED = "not an op of this deployment: its signature is missing or wrong"
logger = logging.getLogger("pipeline.apply")


@dataclass(slots=True)
class Batch:
    """What one transaction applies.

    Attributes:
        before: the watermarks that the transaction found, of the buckets that it locked.
        facts: of the tables; a batch takes an op once the facts of its schema are known.
        blocked: why ops of a schema wait, by the schema's hash: the shard is behind that schema.
        stopped: why ops of a table wait, by the table's name.
        room: how many ops may yet be set aside because their table is stopped; then their buckets wait instead.
        most_rows: the most ops of one batch.
        most_bytes: the size of entries at which a batch takes no more.
        taken: the entries up to `after`, in order per bucket, whether the shard has seen them before or not.
        after: the watermarks that the transaction leaves.
        items: the ops to apply among `taken`; filled by `skip_seen`.
        sheets: the sheets of ops to apply among `taken`, in place of their ops; filled by `skip_seen`.
        halted: the ops to set aside among `taken`, and what stops each; filled by `skip_seen`.
        last: of each bucket and producer, the last sequence that is applied or rejected after this batch.
        losses: what the logs have lost before the entries taken.
        keys: (bucket, scoped idempotency key) of `taken`: no two ops of a batch share one.
        behind: why ops of a table are set aside, by the table's name: what may delete their rows is set aside, too.
        waiting: the buckets that were cut short, and why.
        unreadable: the entries among `taken` to reject, since no release makes such ops; filled by `skip_seen`.
        aside: the ops among `taken` that are set aside, once the batch is executed.
        seen: how many ops among `taken` the shard has seen.
        ops: how many ops `taken` has.
        size_bytes: the size of `taken`.
    """

    before: dict[int, Position]
    facts: FactBook
    blocked: Mapping[str, WaitReason]
    stopped: Mapping[str, WaitReason]
    room: int
    most_rows: int
    most_bytes: int
    taken: list[Item | Reject | SheetEntry] = field(default_factory=list)
    after: dict[int, Position] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    sheets: list[SheetEntry] = field(default_factory=list)
    halted: list[tuple[Item, WaitReason]] = field(default_factory=list)
    last: dict[tuple[int, int], int] = field(default_factory=dict)
    losses: list[LostRange] = field(default_factory=list)
    keys: set[tuple[int, str]] = field(default_factory=set)
    behind: Mapping[str, WaitReason] = field(default_factory=dict)
    waiting: dict[int, WaitReason] = field(default_factory=dict)
    unreadable: list[Reject] = field(default_factory=list)
    aside: list[Reject] = field(default_factory=list)
    seen: int = 0
    ops: int = 0
    size_bytes: int = 0

    @property
    def why(self) -> str:
        """Why one of the buckets waits, or the empty string."""
        return next((reason.sentence() for reason in self.waiting.values()), "")

    @property
    def tried(self) -> int:
        """How many ops there are to apply."""
        return len(self.items) + count_ops(self.sheets)

    @property
    def lost(self) -> int:
        """How many ops the logs have lost."""
        return records.ops_in(self.losses)

    def take(self, entries: Sequence[Read]) -> None:
        """Take entries up to the batch's limits, or up to an op whose schema is not known yet.

        Args:
            entries: of one bucket, in order.
        """
        if not entries:
            return
        bucket = entries[0].bucket
        before, taken = self.before[bucket], self.taken
        if not self.facts.follows(entries[0], before):
            self.waiting[bucket] = self._reason("restored", f"bucket {bucket} ends at {before}")
            return
        for entry in self._apart(entries):
            if taken and (self.ops >= self.most_rows or self.size_bytes >= self.most_bytes):
                break
            gap = _gap(entry, before)
            if isinstance(entry, SheetEntry):
                if gap is not None:
                    self._lose(gap)
                before = entry.last
                taken.append(entry)
                self.ops += len(entry.sheet)
                self.size_bytes += entry.sheet.size_bytes
                continue
            one, puzzle = self.understood(entry)
            if self._may_stop and isinstance(one, Item) and (stop := self._stop(one.op, puzzle)) is not None:
                puzzle = stop if self.room <= 0 else None
                self.room -= 1
            if puzzle is not None:
                self.waiting[bucket] = puzzle
                break
            if isinstance(one, Item) and one.op.idempotency_key is not None and not self.is_first(one):
                break
            # a gap before an entry is lost whether or not the entry can be decoded
            if gap is not None:
                self._lose(gap)
            before = entry.position
            taken.append(one)
            self.ops += 1
            self.size_bytes += len(entry.payload)
        if before is not self.before[bucket]:
            self.after[bucket] = before

    def _apart(self, entries: Iterable[Read]) -> Iterator[Read]:
        """Yield entries; the ops of a sheet one by one, unless its shape is known to fit, and nothing waits."""
        for entry in entries:
            if isinstance(entry, SheetEntry) and not self._may_be_whole(entry):
                yield from entry.entries()
            else:
                yield entry

    def _may_be_whole(self, entry: SheetEntry) -> bool:
        placed = entry.position.epoch < TOO_LARGE and entry.last.seq < TOO_LARGE
        return placed and not self._stops and self.facts.has_met(entry.sheet)

    def is_first(self, item: Item) -> bool:
        """Note an op's idempotency key; return whether no earlier op of the batch has it.

        A batch ends before a second one: what becomes of the first decides whether the second is to be done.

        Args:
            item: the next op.
        """
        key = _key_of(item)
        if key in self.keys:
            return False
        if key is not None:
            self.keys.add(key)
        return True

    def unseen(self) -> dict[tuple[int, int], int] | None:
        """Return the last sequences that the shard has of each bucket and producer if it has seen none of few ops.

        None: that cannot be guessed, or would save nothing.
        """
        if self.ops > MOST_GUESSED or self.size_bytes > MOST_GUESSED_BYTES or self._stops or self.keys or self.losses:
            return None
        first, last = dict[tuple[int, int], int](), dict[tuple[int, int], int]()
        for one in self.taken:
            if not isinstance(one, Item) or (self.behind and self.stop(one.op) is not None):
                return None
            pair, seq = (one.entry.bucket, one.entry.producer), one.entry.producer_seq
            if last.setdefault(pair, seq - 1) != seq - 1:
                return None
            first.setdefault(pair, seq - 1)
            last[pair] = seq
        return first

    def take_all(self) -> None:
        """Take it that the shard has seen none of `taken`."""
        self.items = [one for one in self.taken if isinstance(one, Item)]
        self.last = {(item.entry.bucket, item.entry.producer): item.entry.producer_seq for item in self.items}

    def skip_seen(self, session: NodeSession) -> None:
        """Keep the entries that the shard has not seen under another position: after a failover, or after a resend.

        Args:
            session: of the shard's primary, inside the transaction.
        """
        if not self.taken:
            return
        places = (one if isinstance(one, SheetEntry) else one.entry for one in self.taken)
        senders = [(entry.bucket, entry.producer) for entry in places if entry.producer]
        self.items = []
        self.last = records.seen(session, senders) if senders else {}
        for one in self.taken:
            if isinstance(one, SheetEntry):
                self._take_unseen(one)
                continue
            entry = one.entry
            if not entry.producer and isinstance(one, Reject):
                self.unreadable.append(one)
                continue
            pair = (entry.bucket, entry.producer)
            last = self.last[pair]
            if entry.producer_seq <= last:
                self.seen += 1
                continue
            self._miss(entry, last)
            self.last[pair] = entry.producer_seq
            if isinstance(one, Reject):
                self.unreadable.append(one)
                continue
            if self._may_stop and (stop := self.stop(one.op)) is not None:
                self.halted.append((one, stop))
            else:
                self.items.append(one)
        self.skip_used(session)

    def _take_unseen(self, entry: SheetEntry) -> None:
        """Keep what the shard has not seen of a sheet."""
        pair, count = (entry.bucket, entry.producer), len(entry.sheet)
        last = self.last[pair]
        seen = min(max(0, last + 1 - entry.producer_seq), count)
        self.seen += seen
        if seen < count:
            self._miss(entry, last)
            self.last[pair] = entry.producer_seq + count - 1
            self.sheets.append(entry.part(seen) if seen else entry)

    def _miss(self, entry: Read, last: int) -> None:
        """Note what is between an op and the last of its producer: these come in order, so that is gone for good."""
        if entry.producer_seq > last + 1:
            epoch = entry.position.epoch
            self._lose(LostRange(entry.bucket, epoch, entry.producer, last + 1, entry.producer_seq - 1))

    def take_apart(self) -> None:
        """Put the ops of sheets among the others, one by one."""
        self.items = sorted([*self.items, *items_of(self.sheets)], key=attrgetter("place"))
        self.sheets = []

    def take_out(self, refused: Iterable[Reject]) -> None:
        """Put refused ops of sheets among the others; what is around them stays parts of the sheets.

        Args:
            refused: what was refused, or parked.
        """
        places: dict[int, list[Position]] = {}
        for one in refused:
            places.setdefault(one.entry.bucket, []).append(one.entry.position)
        sheets, out = list[SheetEntry](), list[SheetEntry]()
        for entry in self.sheets:
            if entry.bucket not in places:
                sheets.append(entry)
                continue
            start = 0
            for position in sorted(places[entry.bucket]):
                if entry.position <= position <= entry.last:
                    nth = position.seq - entry.position.seq
                    sheets += [entry.part(start, nth)] if nth > start else []
                    out.append(entry.part(nth, nth + 1))
                    start = nth + 1
            if start < len(entry.sheet):
                sheets.append(entry.part(start) if start else entry)
        if out:
            self.items = sorted([*self.items, *items_of(out)], key=attrgetter("place"))
            self.sheets = sheets

    def skip_used(self, session: NodeSession) -> None:
        """Drop the ops whose idempotency key another op has used up.

        Args:
            session: of the shard's primary, inside the transaction.
        """
        if self.keys:
            used = records.known_keys(session, self.keys)
            every = self.items
            self.items = [item for item in every if _key_of(item) not in used]
            self.seen += len(every) - len(self.items)

    def use_keys(self, session: NodeSession, aside: Iterable[Reject]) -> None:
        """Record the idempotency keys of the ops that took effect: what is set aside uses none up.

        Args:
            session: inside the transaction.
            aside: what is set aside.
        """
        keys = (_key_of(item) for item in self.done(aside)) if self.keys else ()
        if used := [key for key in keys if key is not None]:
            records.keep_keys(session, used)

    def done(self, aside: Iterable[Reject]) -> list[Item]:
        """Return the ops to apply that took effect.

        Args:
            aside: what is set aside.
        """
        places = {(one.entry.bucket, one.entry.position) for one in aside}
        if not places:
            return self.items
        return [item for item in self.items if item.place not in places]

    def _lose(self, lost: LostRange) -> None:
        self.losses.append(lost)
        logger.error(Event("ops_lost", ops=lost.last - lost.first + 1, **lost._asdict()))

    def understood(self, entry: Entry) -> tuple[Item | Reject, WaitReason | None]:
        """Return what an entry holds, and why it waits: junk is set aside, what a newer release made waits.

        Args:
            entry: of a log, or kept in the shard.
        """
        if entry.position.epoch >= TOO_LARGE or entry.position.seq >= TOO_LARGE:
            return _junk(entry), self._reason("misplaced", f"{entry.position} of bucket {entry.bucket}")
        if not entry.producer:
            return _junk(entry, _FORGED) if entry.producer_seq == FORGED else _junk(entry), None
        try:
            op = decode(entry.payload)
        except NewerOp as error:
            op_at = f"{entry.bucket}:{entry.position}, of version {error.version}"
            return _junk(entry), self._reason("newer", op_at)
        except NotAnOp as error:
            return _junk(entry, str(error)), None
        if not self.blocked and is_like(op, self.facts.fitting):
            return Item(entry, op), None
        plain = not (op.ops or op.source) and op.schema in self.facts.known
        if not plain and not all(is_hash(one.schema) for one in op.named):
            return Reject(entry, op.table, "?", None, "not an op of its schema: the schema has no hash"), None
        try:
            puzzle = self._puzzle(op) if self.blocked or not plain else None
            fault = misfit(op, self.facts.known) if puzzle is None or puzzle.kind in OF_TABLE else ""
        except BadOp as error:
            puzzle, fault = None, str(error)
        if fault:
            return Reject(entry, op.table, "?", None, f"not an op of its schema: {fault}"), None
        if puzzle is None:
            self.facts.learn_shapes(op)
        return Item(entry, op), puzzle

    def _reason(self, kind: str, detail: str) -> WaitReason:
        return WaitReason(kind, self.facts.shard, self.facts.shard, detail)

    @property
    def _stops(self) -> bool:
        """Whether ops of some tables or definitions are set aside, or wait in their logs."""
        return bool(self.stopped or self.blocked)

    @property
    def _may_stop(self) -> bool:
        """Whether an op may be set aside: of such a table, or a delete that may reach rows of one."""
        return self._stops or bool(self.behind)

    @property
    def tables_waiting(self) -> Mapping[str, WaitReason]:
        """Why ops of tables are set aside, all of them or those of one definition, by the table's name."""
        of_definition = (reason for reason in self.blocked.values() if reason.kind in OF_TABLE)
        return {**self.behind, **{reason.scope: reason for reason in of_definition}, **self.stopped}

    @property
    def tables_in_logs(self) -> Mapping[str, WaitReason]:
        """Why ops of tables wait in their logs, by the table's name."""
        others = {reason.scope: reason for reason in self.blocked.values() if reason.kind not in OF_TABLE}
        return {**others, **self.tables_waiting} if self.room <= 0 else others

    def stop(self, op: Op) -> WaitReason | None:
        """Return why *op* waits, or the ops of a table in which it may delete rows; None: it need not.

        Its table is stopped, or the shard is behind its definition.
        """
        for one in op.named:
            if (stopped := self.stopped.get(one.table)) is not None:
                return stopped
            if (behind := self.blocked.get(one.schema)) is not None and behind.kind in OF_TABLE:
                return behind
        deletes = [one for one in op.named if one.kind == DELETE]
        waiting = self.tables_waiting if deletes else {}
        return next((why for table, why in waiting.items() if any(self._reaches(one, table) for one in deletes)), None)

    def _stop(self, op: Op, puzzle: WaitReason | None) -> WaitReason | None:
        """Return why an op is to be set aside that is understood so far; None: it is not, or stays in its log."""
        return self.stop(op) if puzzle is None or puzzle.kind in OF_TABLE else None

    def _reaches(self, delete: Op, table: str) -> bool:
        """Return whether a delete may take a row to which rows of a table may refer."""
        facts = self.facts.known.get(delete.schema)
        return facts is not None and self.facts.database_name(table) in facts.constraints.children

    def _puzzle(self, op: Op) -> WaitReason | None:
        """Return why an op must wait, or None."""
        for one in op.named:
            if not self.facts.learn(one.schema):
                return WaitReason("unpublished", self.facts.shard, one.table, f"its hash is {one.schema}")
        return next((self.blocked[one.schema] for one in op.named if one.schema in self.blocked), None)


class FactBook:
    """The facts of every schema that this worker has met on one shard.

    Args:
        shard: its name.
        session: of the shard's primary.
        log: has the schemas that were published.
    """

    def __init__(self, shard: str, session: NodeSession, log: Entries):
        self.shard, self._session, self._log = shard, session, log
        #: By the schema's hash.
        self.known: dict[str, Facts] = {}
        #: The names in the database of tables that this worker may not have met, by their names.
        self._names: dict[str, str] = {}
        #: The shapes of ops that fitted, each with its table, by the schema's hash; bounded by `_MOST_SHAPES`.
        self.fitting: dict[str, dict[Shape, str]] = {}

    def learn(self, hash: str) -> bool:
        """Make the facts of a schema known if they are not; return False while no process has published the schema.

        Args:
            hash: the schema's hash.

        Raises:
            BadOp: no table of ours has the schema.
        """
        if hash in self.known:
            return True
        text = self._log.schema(hash)
        if text is None or not is_hash_of(hash, text):  # another text under the hash is as good as none
            text = records.stored_schema(self._session, hash)
        if text:
            self.known[hash] = facts_of(self._session, TableSchema.from_json(text, hash))
        return text is not None

    def learn_shapes(self, op: Op) -> None:
        """Remember the shapes of an op that fits its schema: the usual ones are checked once per shape.

        Args:
            op: a row write or a group.
        """
        for one in op.members:
            shapes = self.fitting.setdefault(one.schema, {})
            # a shape says nothing of expressions, and an update without any may be one of nothing
            if not (one.expressions or one.source) and len(shapes) < _MOST_SHAPES:
                shapes[shape_in(one)] = one.table

    def has_met(self, sheet: Sheet) -> bool:
        """Return whether the ops of a sheet are of a shape that fitted.

        Args:
            sheet: read from a log.
        """
        shape = INSERT, sheet.columns, (), ()
        return sheet.schema in self.known and self.fitting.get(sheet.schema, {}).get(shape) == sheet.table

    def follows(self, entry: Read, before: Position) -> bool:
        """Return False where the log has deleted what is between a watermark and the next entry, as applied.

        Args:
            entry: the next entry.
            before: the watermark.
        """
        epoch, seq = entry.position
        if epoch == before.epoch and seq == before.seq + 1:
            return True
        if seq == 0 and before.epoch == 0:  # a bucket's first op: nothing could be between
            return True
        deleted = deleted_behind(before, entry.position, self._log.mark(self.shard, entry.bucket))
        return not (deleted and self._log.trimmed(entry.bucket))

    def database_name(self, table: str) -> str:
        """Return a table's name in the database.

        Args:
            table: its name in the model.
        """
        if (found := next((one.database_name for one in self.known.values() if one.schema.name == table), "")) != "":
            return found
        if table not in self._names:
            self._names = {
                name: TableSchema.from_json(text).name_there for name, text in self._log.newest_schemas().items()
            }
        return self._names.setdefault(table, table)

    def table_named(self, database_name: str) -> str | None:
        """Return the name in the model of a table; None where no definition of just one is published.

        Args:
            database_name: its name in the database, in lower case.
        """
        schemas = (TableSchema.from_json(text) for text in self._log.newest_schemas().values())
        found = [schema.name for schema in schemas if schema.name_there.lower() == database_name]
        return found[0] if len(found) == 1 else None

    def first_named(self, tables: Iterable[str]) -> str:
        """Return the name in the model of the first of some tables, or that in the database; empty where there is none.

        Args:
            tables: their names in the database.
        """
        name = min(tables, default="")
        return self.table_named(name.lower()) or name

    def bound(self) -> None:
        """Forget all where it is too much: whoever writes to Redis may publish definitions without end."""
        if len(self.known) > MOST_DEFINITIONS:
            self.forget()

    def forget_one(self, hash: str) -> None:
        """Forget the facts of one schema.

        Args:
            hash: the schema's hash.
        """
        self.known.pop(hash, None)
        self.fitting.pop(hash, None)

    def forget(self) -> None:
        """Forget all constraints: the schema of the database may have changed."""
        self.known.clear()
        self._names.clear()
        self.fitting.clear()


def _junk(entry: Entry, why: str = "not an op: the entry has not the fields that a producer writes") -> Reject:
    return Reject(entry, "?", "?", None, why)


def _key_of(item: Item) -> tuple[int, str] | None:
    return None if item.op.idempotency_key is None else (item.entry.bucket, item.op.scoped_key)


def _gap(entry: Read, before: Position) -> LostRange | None:
    """Return the positions that are missing before an entry: positions are dense within an epoch."""
    first = before.seq + 1 if entry.position.epoch == before.epoch else 0
    if entry.position.seq == first:
        return None
    return LostRange(entry.bucket, entry.position.epoch, 0, first, entry.position.seq - 1)
