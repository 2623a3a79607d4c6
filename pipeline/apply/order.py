"""Keep the order: of the ops of several buckets, and of each row across ops that are set aside.

Of each bucket the order stays; between buckets it is that of the calls, since a row needs rows of other buckets.

Keep the order of each row across ops that are set aside, within one transaction.
An op that meets a held row is parked, and holds its own rows from then on. Ops of one group may be of one row: what the
first of them holds is known before the next is parked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from heapq import heappop, heappush
from itertools import accumulate, groupby
from math import inf

from pipeline import clock
from pipeline.apply.grouping import Item
from pipeline.apply.pace import READ_EVERY_S
from pipeline.bounds import keep_newest
from pipeline.config.settings import TableSettings
from pipeline.errors import PipelineError
from pipeline.model import DELETE, GROUP, INSERT, Op, Position, enqueued_ms
from pipeline.model.schema import TableSchema
from pipeline.model.sheet import Read, SheetEntry, count_ops
from pipeline.model.wait_reason import OF_TABLE, WaitReason
from pipeline.shard import NodeSession
from pipeline.shard.records import ACTIVE, HALTED, Mark, Reject, set_aside
from pipeline.shard.records.set_aside import WAITING, loose_keys, row_keys, some_keys, table_keys, waiting_keys
from pipeline.shard.table_facts import Facts, constraints_in

#: Tells of a delete which ids those name that refer to rows that it reaches.
Reach = Callable[[Op], Collection[int] | None]
PARK, SKIP, HALT = "park", "skip", "halt"


def oldest(entries: Mapping[int, Sequence[Read]], counts: Mapping[int, int], most: int) -> dict[int, list[Read]]:
    """Return the entries that were enqueued first of all, whatever their buckets.

    Args:
        entries: of each bucket the next ones, in order.
        counts: how many ops of each bucket were asked for: where that many were found, there may be more.
        most: how many ops to return, and more where others of the last one's call were enqueued with it.
    """
    times = {bucket: list(accumulate(map(sent_ms_of, found), max)) for bucket, found in entries.items()}
    end_ms = min(
        (sent[-1] for bucket, sent in times.items() if count_ops(entries[bucket]) >= counts[bucket]), default=inf
    )
    every = sorted(
        (sent_ms, count_ops((entry,)))
        for bucket, sent in times.items()
        for sent_ms, entry in zip(sent, entries[bucket], strict=True)
        if sent_ms <= end_ms
    )
    ops = 0
    for sent_ms, count in every:
        if (ops := ops + count) >= most:
            end_ms = sent_ms
            break
    return {bucket: list(found[: bisect_right(times[bucket], end_ms)]) for bucket, found in entries.items()}


class NamedRows:
    """Tells which row a delete takes, if whatever it may reach refers to the row by its id.

    Args:
        session: of the shard's primary.
    """

    def __init__(self, session: NodeSession):
        self._session = session
        #: By a table's name, whether others refer to its rows by their ids alone, and when that was read, s.
        self._by_id: dict[str, tuple[float, bool]] = {}

    def row(self, delete: Op, facts: Facts) -> int | None:
        """Return the id of the row that a delete takes; None where others may refer to what it takes in another way.

        Args:
            delete: the op.
            facts: of its table.
        """
        row = set_aside.written_row(delete, facts.schema)
        return row if row is not None and self._is_named_by_id(facts) else None

    def _is_named_by_id(self, facts: Facts) -> bool:
        name, children = facts.database_name, facts.constraints.children
        read_s, found = self._by_id.get(name, (-inf, False))
        if clock.mono_s() - read_s >= READ_EVERY_S:
            theirs = constraints_in(self._session, children).values() if children else ()
            keys = [key for one in theirs for key in one.parents if key.parent.lower() == name.lower()]
            by_id = all(key.parent_columns == (facts.schema.id_name,) for key in keys)
            found = by_id and not any(one.children for one in theirs)
            keep_newest(self._by_id, name, (clock.mono_s(), found))
        return found


def by_time(items: Sequence[Item], reach: Reach) -> list[Item]:
    """Order ops of several buckets by the time of their calls, and keep the order within each bucket.

    An op has its turn behind younger ones that stand before it in its bucket. What comes too early is refused, and
    tried again after all else. A delete that came before such an op would take the row away that the op refers to.
    So a delete has its turn after older ops that may refer to rows that it reaches, and those after their parents.

    Args:
        items: bucket by bucket, of each in order.
        reach: tells of a delete which ids those name that refer to rows that it reaches; None: there may be others.
    """
    turns = _in_buckets(items)
    order: Sequence[int] = sorted(range(len(items)), key=turns.__getitem__)
    if items and items[0].entry.bucket != items[-1].entry.bucket:
        some = [n for n, item in enumerate(items) if item.op.kind in (DELETE, GROUP)]
        deletes = {n: ids for n in some if (ids := _reached(items[n], reach)) != ()}
        order = _sorted(items, turns, deletes) if deletes else order
    return [items[n] for n in order]


def _in_buckets(items: Sequence[Item]) -> list[float]:
    """Return when each op has its turn, ms: none before the one before it in its bucket, as clocks may be set back."""
    return [ms for _, own in groupby(items, key=_bucket) for ms in accumulate((item.op.at_ms for item in own), max)]


def _reached(item: Item, reach: Reach) -> Collection[int] | None:
    """Return the ids by which others refer to what an op deletes, or reaches with that; None where they may not."""
    found: set[int] = set()
    for op in item.op.members:
        if op.kind == DELETE:
            if (ids := reach(op)) is None:
                return None
            found.update(ids)
    return found or ()


def _after(items: Sequence[Item], deletes: Mapping[int, Collection[int] | None]) -> dict[int, list[int]]:
    """Return what has to come after which ops of other buckets: children after parents, a delete after children."""
    made = {op.id: n for n, item in enumerate(items) for op in item.op.members if op.kind == INSERT and op.id}
    by_id: dict[int, list[int]] = {}
    for n, ids in deletes.items():
        for id in ids or ():
            by_id.setdefault(id, []).append(n)
    found: dict[int, list[int]] = {}
    for n, item in enumerate(items):
        for id in {value for op in item.op.members for value in op.values if type(value) is int}:
            pairs = [(n, made[id])] if id in made else []
            for later, sooner in (*pairs, *((delete, n) for delete in by_id.get(id, ()))):
                first, second = items[sooner], items[later]
                if first.entry.bucket != second.entry.bucket and first.op.at_ms <= second.op.at_ms:
                    found.setdefault(later, []).append(sooner)
    return found


def _sorted(items: Sequence[Item], turns: Sequence[float], deletes: Mapping[int, Collection[int] | None]) -> list[int]:
    """Sort ops by their turns, each behind what it has to come after: Kahn's algorithm, the earliest turn first.

    A delete that may reach any row waits until nothing older is left that could come before it. In a circle, which
    clocks that differ may make, an op goes that is refused and tried again, rather than a delete.
    """
    sooner, open_items = _after(items, deletes), set(range(len(items)))
    for n in range(1, len(items)):
        if items[n - 1].entry.bucket == items[n].entry.bucket:
            sooner.setdefault(n, []).append(n - 1)
    later: dict[int, list[int]] = {}
    for n, others in sooner.items():
        for one in others:
            later.setdefault(one, []).append(n)
    left = {n: len(others) for n, others in sooner.items()}
    by_age = deque(sorted(open_items, key=lambda n: (items[n].op.at_ms, deletes.get(n, ()) is None)))
    free, last = list[tuple[float, int]](), list[tuple[float, int]]()
    found = list[int]()

    def ready(n: int) -> None:
        if deletes.get(n, ()) is None:
            heappush(last, (items[n].op.at_ms, n))
        else:
            heappush(free, (turns[n], n))

    for n in open_items - left.keys():
        ready(n)
    while open_items:
        while by_age[0] not in open_items:
            by_age.popleft()
        if last and (not free or last[0][1] == by_age[0]):
            n = heappop(last)[1]
        elif free:
            n = heappop(free)[1]
        else:
            heads = (n for n in open_items if n - 1 not in open_items or _bucket(items[n - 1]) != _bucket(items[n]))
            n = min(heads, key=lambda n: (n in deletes, turns[n], n))
            left[n] = 0
        open_items.remove(n)
        found.append(n)
        for one in later.get(n, ()):
            left[one] -= 1
            if not left[one]:
                ready(one)
    return found


def _bucket(item: Item) -> int:
    return item.entry.bucket


def sent_ms_of(entry: Read) -> float:
    """Return when an op was enqueued, ms; of one that this release cannot read, that it was before all others.

    Args:
        entry: of the op, or of a sheet.
    """
    return entry.sheet.at_ms if isinstance(entry, SheetEntry) else enqueued_ms(entry.payload) or 0.0


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
        going_on: buckets that do not halt in any case.

    Attributes:
        held: (bucket, row key) -> the first op that holds the row.
    """

    def __init__(
        self,
        known: Mapping[str, Facts],
        tables: Mapping[str, TableSettings],
        ends: Mapping[int, Position] | None,
        going_on: Collection[int] = (),
    ):
        self._known, self._tables, self._ends, self._going_on = known, tables, ends, going_on
        self.held: dict[tuple[int, str], Position] = {}

    def read(
        self,
        session: NodeSession,
        items: Iterable[Item],
        stops: Iterable[Item] = (),
        *,
        without: Set[tuple[int, Position]] = frozenset(),
    ) -> None:
        """Read which rows of ops are held.

        Args:
            session: inside the transaction.
            items: the ops.
            stops: ops for `stop`.
            without: (bucket, position) of the ops that hold rows no more.
        """
        rows = {(item.entry.bucket, key) for item in items for key in self._asked(item)}
        rows |= {(item.entry.bucket, key) for item in stops for key in self._all_keys(item)}
        for row, first in set_aside.holders(session, rows).items():
            if (row[0], first) not in without:
                self.held[row] = first

    def queries(self, items: Iterable[Item]) -> Iterator[str]:
        """Yield the queries that answer nothing where no row of ops is held.

        Args:
            items: the ops.
        """
        return set_aside.read_whether_held({(item.entry.bucket, key) for item in items for key in self._asked(item)})

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
        of_tables = table_keys(item.op) | some_keys(item.op)
        keys = self._keys(item) | {key for key in of_tables if (bucket, key) in self.held}
        # what may mean any row, and waits for some: later ops of any row stay behind it
        loose = (key for key in loose_keys(item.op, self._schemas(item)) if (bucket, key) in self.held)
        keys |= {f"{key.removesuffix(' ?')} *" for key in loose}
        row = "the table" if key in of_tables else "the row"
        why = f"waits behind the op at {bucket}:{first}, which holds {row} {key.rstrip(' *?')}"
        return Reject(item.entry, item.op.table, key, None, why, set_aside.PARKED, self._hold(item, keys))

    def stop(self, items: Iterable[tuple[Item, WaitReason]]) -> list[Reject]:
        """Set aside ops whose table is stopped. Each holds its tables, so that later ops of these wait behind it.

        Args:
            items: the ops in order, and what stops each.
        """
        aside = []
        for item, reason in items:
            if (behind := self._behind(item, self._all_keys(item))) is not None:
                aside.append(self.park(item, *behind))
                continue
            why = set_aside.why_waiting(reason, {one.table for one in item.op.named})
            if reason.kind in OF_TABLE:
                aside.append(self.wait(item, self._keys(item) | waiting_keys(item.op, self._known), why, WAITING))
            else:
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
        if HALT in words and self._ends is not None and item.entry.bucket not in self._going_on:
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

    def _asked(self, item: Item) -> frozenset[str]:
        return self._keys(item) | table_keys(item.op) | loose_keys(item.op, self._schemas(item))

    def _all_keys(self, item: Item) -> frozenset[str]:
        return self._keys(item) | table_keys(item.op) | some_keys(item.op)

    def _behind(self, item: Item, keys: frozenset[str] = frozenset()) -> tuple[str, Position] | None:
        """Return a row or a table of an op that an earlier op holds, and that op's position; or of some *keys*."""
        for key in sorted(keys or self._asked(item)):
            first = self.held.get((item.entry.bucket, key))
            if first is not None and first < item.entry.position:
                return key, first
        return None

    def _keys(self, item: Item) -> frozenset[str]:
        return row_keys(item.op, self._schemas(item))

    def _schemas(self, item: Item) -> dict[str, TableSchema]:
        return {one.schema: self._known[one.schema].schema for one in item.op.named}


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
    holding = {one.entry.bucket for one in rejects if one.holds and before[one.entry.bucket].state == ACTIVE}
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
