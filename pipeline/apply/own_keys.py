"""Leave out of a batch what another shard applies: two shards read the log of a bucket one of whose keys is away.

The key's shard applies the ops of the key, the bucket's shard all others. An op that names a row by its id alone names
no key: both look for the row, which is on one of them. Each notes the sequence of every op that it passes.

A group that names the key and another one is refused for good. A group that names rows of both by their ids alone looks
like one of rows that are gone: each shard applies what is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from pipeline.apply.batch import Batch
from pipeline.apply.grouping import Item
from pipeline.config.buckets import FIRST_PIECE, KeyName, key_texts, spread_alike
from pipeline.config.settings import TableSettings
from pipeline.dal.trees import pinned
from pipeline.events import Event
from pipeline.model import COPY, INSERT, UPSERT, Op
from pipeline.model.sheet import SheetEntry
from pipeline.shard import NodeSession
from pipeline.shard.co_location import key_sql
from pipeline.shard.records import Reject, set_aside
from pipeline.shard.records.replays import DROPPED
from pipeline.shard.records.set_aside import written_row
from pipeline.shard.stored_rows import id_column
from pipeline.shard.table_facts import Facts

#: What is known of one row write: whether it is of the key; the id of its row, if it names that alone; or None.
_Named = bool | int | None
#: A row: the number of its bucket or piece, its table's name in the database, and its id.
_Row = tuple[int, str, int]
#: The most ids of one query.
_MOST_IDS = 1000
logger = logging.getLogger("pipeline.apply")


class OwnKeys:
    """Tells the ops of a shard from those of the other one, within one transaction.

    Args:
        session: of the shard's primary, inside the transaction that has locked the watermarks.
        known: the facts of every schema that an op names, by hash.
        tables: what the configuration says of tables, by name.
        of: by number, the key that is away: of each piece that is taken, and of each bucket that has lent one.
        whole: whether one shard has applied the ops that had the key and the others: a group may be of both.
    """

    def __init__(
        self,
        session: NodeSession,
        known: Mapping[str, Facts],
        tables: Mapping[str, TableSettings],
        of: Mapping[int, KeyName],
        *,
        whole: bool = False,
    ):
        self._session, self._known, self._tables, self._of, self._whole = session, known, tables, of, whole
        self._texts: dict[str, Callable[[Any], str]] = {}
        #: Whether a row is of the key, as far as the batch or the database say so.
        self._rows: dict[_Row, bool] = {}

    def divide(self, batch: Batch) -> None:
        """Leave in a batch what is this shard's own, and refuse groups that are of both.

        Args:
            batch: without what the shard has seen.
        """
        if self._of.keys().isdisjoint(batch.after):
            return
        halted = [item for item, _ in batch.halted]
        self._look([*batch.items, *halted], batch.sheets)
        stops = {item.place: why for item, why in batch.halted}
        batch.items, refused = self._own(batch.items)
        stopped, more = self._own(halted)
        batch.halted = [(item, stops[item.place]) for item in stopped]
        batch.sheets = [part for entry in batch.sheets for part in self._parts(entry)]
        # what is no op is no key's: the bucket's shard sets it aside
        batch.unreadable = [
            one for one in batch.unreadable if one.entry.bucket < FIRST_PIECE or one.entry.bucket not in self._of
        ]
        batch.unreadable += [*refused, *more]

    def again(self, items: Sequence[Item]) -> tuple[list[Item], list[Reject]]:
        """Return what of ops that were set aside this shard applies, and those that are refused for good.

        Args:
            items: in order.
        """
        self._look(items, ())
        return self._own(items)

    def of_key(self, items: Sequence[Item]) -> list[bool | None]:
        """Return of ops that are set aside whether they are of the key; None where a group is of both, or may be.

        Args:
            items: in order, of buckets or pieces whose key is asked for.
        """
        self._look(items, ())
        return [self._decided(item) for item in items]

    def _own(self, items: Iterable[Item]) -> tuple[list[Item], list[Reject]]:
        found, refused = list[Item](), list[Reject]()
        for item in items:
            own = self._part(item) if item.entry.bucket in self._of else item
            if isinstance(own, Reject):
                refused.append(own)
            elif own is not None:
                found.append(own)
        return found, refused

    def _part(self, item: Item) -> Item | Reject | None:
        """Return what of an op this shard applies; None: nothing. Of a group whose rows are not all here, its own."""
        number, members = item.entry.bucket, item.op.members
        of, is_piece, part = self._of[number], number >= FIRST_PIECE, list[Op]()
        here = [self._known_of(number, member) for member in members]
        if not self._whole:
            named = {own for own in (self._named(member, of) for member in members) if isinstance(own, bool)}
            strange = any(own and self._is_strange(member) for member, own in zip(members, here, strict=True))
            if len(named) > 1 or (strange and is_piece):
                return _refused(item, of, strange=strange)
        for member, own in zip(members, here, strict=True):
            if self._is_by_query(member, number):
                part.append(self._limited(member, number))
            elif (own is True) is is_piece and not (self._whole and self._is_strange(member)):
                part.append(member)
        # of an op whose rows are not here, nothing is done; rows that are nowhere are the bucket's
        if not part or (item.op.ops and not is_piece and all(own is not False for own in here) and True in here):
            return None
        if len(part) < len(members) and True in here and False in here and not self._whole:
            logger.warning(Event("group_in_parts", bucket=of.bucket, position=str(item.entry.position), key=str(of)))
        return Item(item.entry, replace(item.op, ops=tuple(part)) if item.op.ops else part[0])

    def _decided(self, item: Item) -> bool | None:
        number, members = item.entry.bucket, item.op.members
        here = [self._known_of(number, member) for member in members]
        if any(self._is_by_query(member, number) or self._is_strange(member) for member in members):
            return None
        return True if all(one is True for one in here) else None if True in here else False

    # one row write ------------------------------------------------------------------------------------------

    def _known_of(self, number: int, op: Op) -> bool | None:
        """Return whether a row write is of the key; None where its row is not here, or it names neither."""
        named = self._named(op, self._of[number])
        if named is None or isinstance(named, bool):
            return named
        return self._rows.get((number, self._known[_read_by(op).schema].database_name, named))

    def _named(self, op: Op, of: KeyName) -> _Named:
        op = _read_by(op)  # a copy is with the row that it copies
        rules = self._rules(op.table)
        if not spread_alike(rules, self._rules(of.table)):
            return False
        schema = self._known[op.schema].schema
        key = schema.index.get(rules.shard_key or schema.id_name)
        if key is None:
            return False
        row = written_row(op, schema)
        if key == schema.id_index and row is not None:
            return str(row) == of.key
        if op.kind in (INSERT, UPSERT):
            given = dict(zip(op.columns, op.values, strict=True))
            return given.get(key) is not None and self._text(op)(given[key]) == of.key
        value = pinned(op.where, key) if op.where else None
        return row if value is None else self._text(op)(value) == of.key

    def _is_by_query(self, op: Op, number: int) -> bool:
        """Return whether an op names neither the key nor a row: it may be about rows of both."""
        return self._named(op, self._of[number]) is None

    def _is_strange(self, op: Op) -> bool:
        """Return whether an op makes a version of a row that would not have the row's key."""
        if op.kind != COPY or op.source is None:
            return False
        into, source = self._rules(op.table), self._rules(op.source.table)
        by_id = into.shard_key in (None, self._known[op.schema].schema.id_name)
        return by_id and source.shard_key not in (None, self._known[op.source.schema].schema.id_name)

    def _limited(self, op: Op, number: int) -> Op:
        """Return an op by a query that touches no row of the other shard."""
        schema, of = self._known[op.schema].schema, self._of[number]
        which = key_sql(self._session.dialect, self._rules(op.table), schema, of.key)
        which = f"({which})" if number >= FIRST_PIECE else f"({which}) IS NOT TRUE"
        if op.source is not None:
            return replace(op, source=self._limited(op.source, number))
        return replace(op, where=["and", op.where, ["sql", which]])

    # rows -----------------------------------------------------------------------------------------------------

    def _look(self, items: Sequence[Item], sheets: Iterable[SheetEntry]) -> None:
        """Learn of the rows that ops name by their ids alone whether they are of the key."""
        for entry in sheets:
            if entry.bucket in self._of:
                for id, own in zip(entry.sheet.ids, self._flags(entry), strict=True):
                    self._rows[entry.bucket, self._known[entry.sheet.schema].database_name, id] = own
        mine = [(one.entry.bucket, op) for one in items if one.entry.bucket in self._of for op in one.op.members]
        asked: dict[tuple[int, str], set[int]] = {}
        for number, op in mine:
            named = self._named(op, self._of[number])
            if named is not None and not isinstance(named, bool):
                asked.setdefault((number, _read_by(op).schema), set()).add(named)
        for (number, schema), ids in asked.items():
            self._ask(number, self._known[schema], ids)
        for number, op in mine:
            if op.kind in (INSERT, UPSERT, COPY) and op.id is not None:
                made = self._known_of(number, op)
                if made is not None:
                    self._rows[number, self._known[op.schema].database_name, op.id] = made

    def _ask(self, number: int, facts: Facts, ids: set[int]) -> None:
        schema, session, of = facts.schema, self._session, self._of[number]
        id_name, table = session.dialect.quote(id_column(schema)), facts.database_name
        own = key_sql(session.dialect, self._rules(schema.name), schema, of.key)
        for some in _portions(sorted(ids)):
            which = f"{id_name} IN ({', '.join(map(str, some))})"
            for id, is_own in session.rows(
                f"SELECT {id_name}, CASE WHEN {own} THEN 1 ELSE 0 END FROM {facts.table} WHERE {which}"
            ):
                self._rows[number, table, int(id)] = bool(is_own)
        left = {f"{table} {id}": id for id in ids if (number, table, id) not in self._rows}
        if left:  # what would make the row may be set aside
            for _, key in set_aside.holders(session, [(number, key) for key in left]):
                self._rows[number, table, left[key]] = number >= FIRST_PIECE

    def _parts(self, entry: SheetEntry) -> Iterator[SheetEntry]:
        if entry.bucket not in self._of:
            yield entry
            return
        wanted, begin, flags = entry.bucket >= FIRST_PIECE, None, self._flags(entry)
        if all(own is wanted for own in flags):
            yield entry
            return
        for nth, own in enumerate((*flags, not wanted)):
            if own is wanted and begin is None:
                begin = nth
            elif own is not wanted and begin is not None:
                yield entry.part(begin, nth)
                begin = None

    def _flags(self, entry: SheetEntry) -> list[bool]:
        """Return of each row of a sheet whether it is of the key."""
        sheet, of = entry.sheet, self._of[entry.bucket]
        rules, schema = self._rules(sheet.table), self._known[sheet.schema].schema
        key = schema.index.get(rules.shard_key or schema.id_name)
        if key is None or not spread_alike(rules, self._rules(of.table)):
            return [False] * len(sheet)
        if key == schema.id_index:
            return [str(id) == of.key for id in sheet.ids]
        if key not in sheet.columns:
            return [False] * len(sheet)
        text = self._text(sheet)
        return [value is not None and text(value) == of.key for value in sheet.values[sheet.columns.index(key)]]

    def _text(self, one: Any) -> Callable[[Any], str]:
        """Return the function from a shard key to the text by which it is found, of an op's table, or a sheet's."""
        if one.schema not in self._texts:
            rules, schema = self._rules(one.table), self._known[one.schema].schema
            column = schema.columns[schema.index[rules.shard_key or schema.id_name]]
            self._texts[one.schema] = key_texts(rules, column)
        return self._texts[one.schema]

    def _rules(self, table: str) -> TableSettings:
        return self._tables.get(table) or TableSettings(table)


def _refused(item: Item, of: KeyName, *, strange: bool) -> Reject:
    why = (
        f"{of} has a shard of its own, and this group keeps a version of a row in a table without the key: give the "
        "archive the shard key of its table"
        if strange
        else f"{of} has a shard of its own, and this group writes rows of that key and of another one: send two groups"
    )
    return Reject(item.entry, item.op.table, "", None, why, DROPPED)


def _read_by(op: Op) -> Op:
    """Return what names the row of an op: of a copy, what it copies."""
    return op.source if op.kind == COPY and op.source is not None else op


def _portions(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _MOST_IDS] for start in range(0, len(ids), _MOST_IDS))
