"""Keep like inserts of one call and bucket column by column: one object, where each row would be one.

A sheet is what its ops are, one by one, for all that read them: a sequence of their bytes. The sheet's text is an op of
the kind `sheet`, which a release that knows no sheets lets wait. A sheet has plain values only: no lists, no
idempotency keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import msgspec

from pipeline.errors import NewerOp, NotAnOp
from pipeline.model import INSERT, SHEETS, Entry, Op, Position, decode, encode

#: What the text of a sheet begins with.
KIND = b'["sheet",'
_LARGEST_ID = 2**63 - 1


class Sheet(Sequence[bytes]):
    """Inserts of one table, definition and shape, with their ids. As a sequence: the encoded ops; a part is a sheet.

    Args:
        table: its name.
        schema: the hash of its definition.
        at_ms: when they were enqueued, as `Op.at_ms`.
        ids: the rows' ids, in order.
        columns: the numbers of the columns that have values.
        values: of each of these columns, the value of each row.
        text: as `text` makes it, if that is known.
    """

    __slots__ = ("_bytes", "_text", "at_ms", "columns", "ids", "schema", "table", "values")

    def __init__(
        self,
        table: str,
        schema: str,
        at_ms: float,
        ids: Sequence[int],
        columns: tuple[int, ...],
        values: Sequence[Sequence[Any]],
        text: bytes = b"",
    ):
        self.table, self.schema, self.at_ms, self.ids = table, schema, at_ms, ids
        self.columns, self.values, self._text, self._bytes = columns, values, text, len(text)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Sheet: ...
    def __getitem__(self, at: int | slice) -> bytes | Sheet:
        if isinstance(at, slice):
            values = [column[at] for column in self.values]
            part = Sheet(self.table, self.schema, self.at_ms, self.ids[at], self.columns, values)
            part._bytes = self._bytes * len(part) // len(self)
            return part
        return encode(self.op(at))

    def __iter__(self) -> Iterator[bytes]:
        return map(encode, self.ops())

    def op(self, nth: int) -> Op:
        """Return one of the ops."""
        return self._op(self.ids[nth], [column[nth] for column in self.values])

    def ops(self) -> Iterator[Op]:
        """Return all ops, in order."""
        rows: Iterable[Sequence[Any]] = zip(*self.values, strict=True) if self.values else ((),) * len(self)
        return map(self._op, self.ids, rows)

    @property
    def size_bytes(self) -> int:
        """About how long the text is."""
        return self._bytes or len(self.text)

    @property
    def text(self) -> bytes:
        """The sheet as a log keeps it: ids as first, number and step between them where that names all."""
        if not self._text:
            ids, step = self.ids, 0
            if len(ids) > 1:
                step = ids[1] - ids[0]
                even = step > 0 and list(ids) == list(range(ids[0], ids[0] + step * len(ids), step))
                ids, step = ((ids[0], len(ids)), step) if even else (ids, 0)
            self._text = encode(
                _Text("sheet", self.table, self.schema, self.at_ms, ids, self.columns, self.values, step)
            )
        return self._text

    @classmethod
    def read(cls, text: bytes) -> Sheet:
        """Return the sheet of a text.

        Args:
            text: as `text` makes it.

        Raises:
            NotAnOp: no release makes such a text.
        """
        try:
            found = _decoder.decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise NotAnOp(f"no sheet: {error}") from error
        ids: Sequence[int] = found.ids
        if found.step:
            first, count = ids if len(ids) == 2 else (0, 0)
            ids = range(first, first + count * found.step, found.step) if 0 < count <= _MOST_ROWS else ()
        lengths = {len(ids), *map(len, found.values)}
        if lengths != {len(ids)} or not ids or len(found.values) != len(found.columns) or not _are_ids(ids):
            raise NotAnOp("a sheet whose columns differ in length, or without rows")
        return cls(found.table, found.schema, found.at_ms, ids, found.columns, found.values, text)

    def _op(self, row: int, values: Iterable[Any]) -> Op:
        return Op(INSERT, self.table, self.schema, self.at_ms, row, self.columns, tuple(values))


#: More rows than any sheet has.
_MOST_ROWS = 10_000


def _are_ids(ids: Sequence[int]) -> bool:
    return min(ids) > 0 and max(ids) <= _LARGEST_ID


class _Text(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a sheet's text holds. The version is where an op has it."""

    kind: str
    table: str
    schema: str
    at_ms: float
    ids: Sequence[int]
    columns: tuple[int, ...]
    values: Sequence[Sequence[bool | int | float | str | None]]
    step: int = 0  # 0: `ids` has them all
    no_8: None = None
    no_9: None = None
    no_10: None = None
    no_11: None = None
    no_12: None = None
    no_13: None = None
    version: int = SHEETS


_decoder = msgspec.json.Decoder(_Text)


class SheetEntry(NamedTuple):
    """A sheet in a log, or a part of one: position and producer's sequence are those of its first op."""

    bucket: int
    position: Position
    producer: int
    producer_seq: int
    sheet: Sheet

    @property
    def last(self) -> Position:
        """The position of the last op."""
        return Position(self.position.epoch, self.position.seq + len(self.sheet) - 1)

    def part(self, start: int, stop: int | None = None) -> SheetEntry:
        """Return the part with some of the ops.

        Args:
            start: the first of them.
            stop: the first behind them; None: all from the start.
        """
        epoch, seq = self.position
        place = self.bucket, Position(epoch, seq + start), self.producer, self.producer_seq + start
        return SheetEntry(*place, self.sheet[start:stop])

    def pairs(self) -> Iterator[tuple[Entry, Op]]:
        """Yield the ops one by one, each with its entry."""
        bucket, (epoch, seq), producer, number, sheet = self
        for nth, op in enumerate(sheet.ops()):
            yield Entry(bucket, Position(epoch, seq + nth), producer, number + nth, encode(op)), op

    def entries(self) -> list[Entry]:
        """Return the entries of the ops, one for each."""
        return [entry for entry, _ in self.pairs()]


Read = Entry | SheetEntry


def count_ops(entries: Iterable[Read]) -> int:
    """Return how many ops there are.

    Args:
        entries: read from logs.
    """
    return sum(len(entry.sheet) if isinstance(entry, SheetEntry) else 1 for entry in entries)


def singly(entries: Iterable[Read]) -> list[Entry]:
    """Return entries, one for each op.

    Args:
        entries: in order.
    """
    return [one for entry in entries for one in (entry.entries() if isinstance(entry, SheetEntry) else (entry,))]


def last_of(entry: Read) -> Position:
    """Return the position of the last op of an entry.

    Args:
        entry: read from a log.
    """
    return entry.last if isinstance(entry, SheetEntry) else entry.position


def entry_bytes(entry: Read) -> int:
    """Return about how many bytes the ops of an entry have.

    Args:
        entry: read from a log.
    """
    return entry.sheet.size_bytes if isinstance(entry, SheetEntry) else len(entry.payload)


def last_seq(entry: Read) -> int:
    """Return the producer's sequence of the last op of an entry.

    Args:
        entry: read from a log.
    """
    return entry.producer_seq + (len(entry.sheet) - 1 if isinstance(entry, SheetEntry) else 0)


def cut_at(position: Position, entries: Iterable[Read]) -> tuple[list[Read], list[Read]]:
    """Return the entries before a position, and those from there on; a sheet is cut.

    Args:
        position: where to cut.
        entries: of one bucket, in order.
    """
    before, rest = list[Read](), list[Read]()
    for entry in entries:
        if isinstance(entry, SheetEntry) and entry.position < position <= entry.last:
            nth = position.seq - entry.position.seq
            before.append(entry.part(0, nth))
            rest.append(entry.part(nth))
        else:
            (before if entry.position < position else rest).append(entry)
    return before, rest


def in_sheets(entries: Iterable[Entry]) -> list[Read]:
    """Return entries, neighbours that may have been one sheet as one.

    Args:
        entries: of one bucket, in order.
    """
    found: list[Read] = []
    run: list[tuple[Entry, Op]] = []
    for entry in entries:
        op = _like_a_row(entry)
        if run and (op is None or not _goes_on(*run[-1], entry, op)):
            found.append(_of(run))
            run = []
        if op is None:
            found.append(entry)
        else:
            run.append((entry, op))
    return [*found, _of(run)] if run else found


def _like_a_row(entry: Entry) -> Op | None:
    try:
        op = decode(entry.payload)
    except (NotAnOp, NewerOp):
        return None
    if type(op) is not Op or not entry.producer or encode(op) != entry.payload:
        return None
    like = Op(INSERT, op.table, op.schema, op.at_ms, op.id, op.columns, op.values)
    plain = list not in map(type, op.values) and len(op.columns) == len(op.values)
    return op if op == like and op.id is not None and plain else None


def _goes_on(before: Entry, last: Op, entry: Entry, op: Op) -> bool:
    (epoch, seq), head = before.position, (op.table, op.schema, op.at_ms, op.columns)
    follows = entry.position == (epoch, seq + 1) and entry.producer_seq == before.producer_seq + 1
    alike = head == (last.table, last.schema, last.at_ms, last.columns)
    return follows and alike and entry.producer == before.producer


def _of(run: Sequence[tuple[Entry, Op]]) -> Read:
    entry, op = run[0]
    if len(run) == 1:
        return entry
    ids = [one.id for _, one in run if one.id is not None]
    values = list(zip(*(one.values for _, one in run), strict=True))
    return SheetEntry(*entry[:4], Sheet(op.table, op.schema, op.at_ms, ids, op.columns, values))
