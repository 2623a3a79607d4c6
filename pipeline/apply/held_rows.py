"""Keep the order of each row across ops that are set aside, within one transaction.

An op that meets a held row is parked, and holds its own rows from then on. Ops of one group may be of one row: what the
first of them holds is known before the next is parked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from pipeline.apply.grouping import Item
from pipeline.config.settings import TableSettings
from pipeline.errors import PipelineError
from pipeline.model.op import Op, Position
from pipeline.model.sheet import SheetEntry
from pipeline.model.wait_reason import WaitReason
from pipeline.shard.records import set_aside
from pipeline.shard.records.ledger import HALTED, HOLDING, Mark, Reject
from pipeline.shard.records.row_keys import row_keys, table_keys
from pipeline.shard.records.set_aside import WAITING
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import Facts

PARK, SKIP, HALT = "park", "skip", "halt"


class Halt(PipelineError):
    """A table that halts had an op refused: the transaction must leave the rest of the bucket's log alone."""

    retryable = True

    def __init__(self, item: Item):
        super().__init__(f"bucket {item.entry.bucket} halts at {item.entry.position}")
        self.bucket, self.position = item.entry.bucket, item.entry.position


class HeldRows:
    """The rows that ops set aside hold, while a transaction adds to them.

    Args:
        known: the facts of every schema that an op names, by hash.
        tables: what the configuration says of tables, by name; others park.
        ends: of each bucket that may halt, the position behind which nothing is executed. None: no bucket halts, and
            its ops are parked instead.

    Attributes:
        held: (bucket, row key) -> the first op that holds the row.
    """

    def __init__(
        self, known: Mapping[str, Facts], tables: Mapping[str, TableSettings], ends: Mapping[int, Position] | None
    ):
        self._known, self._tables, self._ends = known, tables, ends
        self.held: dict[tuple[int, str], Position] = {}

    def read(
        self, session: NodeSession, items: Iterable[Item], without: Set[tuple[int, Position]] = frozenset()
    ) -> None:
        """Read which rows of ops are held.

        Args:
            session: inside the transaction.
            items: the ops.
            without: (bucket, position) of the ops that hold rows no more.
        """
        rows = {(item.entry.bucket, key) for item in items for key in self._keys(item) | table_keys(item.op)}
        for row, first in set_aside.holders(session, rows).items():
            if (row[0], first) not in without:
                self.held[row] = first

    def part(self, items: Sequence[Item]) -> tuple[Sequence[Item], list[Reject], Sequence[Item]]:
        """Return the first ops that may be executed, those that are parked, and the rest.

        The rest begins with an op that is behind another, and shares a row with one that may be executed. Whether that
        one holds its row must be known before.

        Args:
            items: ops in order.
        """
        if not self.held:
            return items, [], ()
        free: list[Item] = []
        parked: list[Reject] = []
        rows: set[tuple[int, str]] = set()
        for n, item in enumerate(items):
            own = {(item.entry.bucket, key) for key in self._keys(item)}
            behind = self._behind(item)
            if behind is None:
                free.append(item)
                rows |= own
            elif rows.isdisjoint(own):
                parked.append(self.park(item, *behind))
            else:
                return free, parked, items[n:]
        return free, parked, ()

    def park(self, item: Item, key: str, first: Position) -> Reject:
        """Set an op aside behind another.

        Args:
            item: the op.
            key: of the row that they have in common.
            first: the other's position.
        """
        bucket = item.entry.bucket
        # what waits for a table holds the table too, so that even a later op without a row key stays behind it
        keys = self._keys(item) | {key for key in table_keys(item.op) if (bucket, key) in self.held}
        row = "the table" if key in table_keys(item.op) else "the row"
        why = f"waits behind the op at {bucket}:{first}, which holds {row} {key.removesuffix(' *')}"
        return Reject(item.entry, item.op.table, key, None, why, set_aside.PARKED, self._hold(item, keys))

    def stop(self, items: Iterable[tuple[Item, WaitReason]]) -> list[Reject]:
        """Set aside ops whose table is stopped. Each holds its tables, so that later ops of these wait behind it.

        Args:
            items: the ops in order, and what stops each.
        """
        aside = []
        for item, reason in items:
            if (behind := self._behind(item)) is not None:
                aside.append(self.park(item, *behind))
                continue
            why = set_aside.why_stopped(reason.scope, {one.table for one in item.op.named})
            aside.append(self.wait_all(item, why))
        return aside

    def wait_all(self, item: Item, why: str) -> Reject:
        """Set aside an op that waits for a table. It holds its tables, so that later ops of these wait behind it.

        Args:
            item: the op.
            why: what it waits for.
        """
        return self.wait(item, self._keys(item) | table_keys(item.op), why, WAITING)

    def wait(self, item: Item, keys: frozenset[str], why: str, state: str = set_aside.PARKED) -> Reject:
        """Leave an op set aside for a reason of its own.

        Args:
            item: the op.
            keys: of the rows that it holds.
            why: what it waits for.
            state: whether it waits for itself, or behind another.
        """
        return Reject(item.entry, item.op.table, "", None, why, state, self._hold(item, keys))

    def refuse(self, item: Item) -> frozenset[str]:
        """Return the keys of the rows that a refused op holds: none if its table skips.

        Args:
            item: the op.

        Raises:
            Halt: the table of the op halts, and later ops of the bucket are part of the transaction.
        """
        words = {self._word(member) for member in item.op.members}
        if HALT in words and self._ends is not None:
            if self._ends.get(item.entry.bucket) != item.entry.position:
                raise Halt(item)
            return frozenset()
        return frozenset() if words == {SKIP} else self._hold(item, self._keys(item))

    def _word(self, op: Op) -> str:
        table = self._tables.get(op.table)
        return table.on_reject if table is not None else PARK

    def _hold(self, item: Item, keys: frozenset[str]) -> frozenset[str]:
        bucket, position = item.entry.bucket, item.entry.position
        for key in keys:
            self.held[bucket, key] = min(position, self.held.get((bucket, key), position))
        return keys

    def _behind(self, item: Item) -> tuple[str, Position] | None:
        """Return a row or a table of an op that an earlier op holds, and that op's position."""
        for key in sorted(self._keys(item) | table_keys(item.op)):
            first = self.held.get((item.entry.bucket, key))
            if first is not None and first < item.entry.position:
                return key, first
        return None

    def _keys(self, item: Item) -> frozenset[str]:
        return row_keys(item.op, {one.schema: self._known[one.schema].schema for one in item.op.named})


def meet_held_rows(session: NodeSession, sheets: Iterable[SheetEntry], known: Mapping[str, Facts]) -> bool:
    """Return whether a row of sheets may be held by an op that is set aside; also where too many are held to look.

    Args:
        session: inside the transaction.
        sheets: of buckets in which ops are set aside.
        known: the facts of every schema that one names, by hash.
    """
    entries = list(sheets)
    held = set_aside.held_in(session, _ranges_of(entries, known))
    if held is None:
        return True
    for entry in entries:
        keys, sheet = held.get(entry.bucket, set()), entry.sheet
        row = f"{known[sheet.schema].schema.name_there} "
        if f"{sheet.table} *" in keys:
            return True
        ids = (key[len(row) :] for key in keys if key.startswith(row))
        if any(int(id) in sheet.ids for id in ids if id.isdecimal()):
            return True
    return False


def _ranges_of(entries: Iterable[SheetEntry], known: Mapping[str, Facts]) -> Iterator[tuple[int, str, str]]:
    """Yield where keys are that could hold rows of sheets: texts of one length are in the order of their numbers."""
    ends: dict[tuple[int, str, str], tuple[int, int]] = {}
    for entry in entries:
        sheet = entry.sheet
        of, first, last = (entry.bucket, sheet.table, sheet.schema), min(sheet.ids), max(sheet.ids)
        least, most = ends.get(of, (first, last))
        ends[of] = min(least, first), max(most, last)
    for (bucket, table, schema), (least, most) in ends.items():
        row, digits = f"{known[schema].schema.name_there} ", len(str(least)) == len(str(most))
        yield bucket, f"{table} *", f"{table} *"
        yield bucket, f"{row}{least if digits else ''}", f"{row}{most if digits else '~'}"


def record(
    session: NodeSession, rejects: Sequence[Reject], before: Mapping[int, Mark], ends: Mapping[int, Position]
) -> None:
    """Record what was set aside, and the state in which that leaves its buckets.

    Args:
        session: inside the apply transaction.
        rejects: what was set aside.
        before: the watermarks that the transaction found.
        ends: of the buckets that may halt, the position behind which nothing was executed.
    """
    set_aside.set_aside(session, rejects)
    refused = (one.entry for one in rejects if one.state == set_aside.REJECTED)
    halted = {entry.bucket for entry in refused if ends.get(entry.bucket) == entry.position}
    holding = {one.entry.bucket for one in rejects if one.holds and before[one.entry.bucket].state != HOLDING}
    set_aside.note_holding(session, holding - halted)
    set_aside.halt(session, halted)


def halted(shard: str, marks: Mapping[int, Mark]) -> dict[int, WaitReason]:
    """Return why nothing of a halted bucket is applied, by bucket.

    Args:
        shard: the shard's name.
        marks: the watermarks that are locked.
    """
    return {
        bucket: WaitReason("halted", shard, f"bucket {bucket}", f"{bucket}:{mark.position}")
        for bucket, mark in marks.items()
        if mark.state == HALTED
    }
