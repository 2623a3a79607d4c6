"""Ops that are made now and sent later: once the request's own transaction has been committed, or never.

An atomic group: ops of one bucket that are one entry of its log, applied together or not at all.

A bulk call's chunk: many ops, one round trip per shard, receipts made only when looked at.

A validated insert: the table's validators first, as pyDAL's `validate_and_insert` runs them, then the op builder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.enqueue.shipment import UNCHECKED_BYTES, OpPlace
from pipeline.errors import BadOp, BadValue, CrossBucket
from pipeline.model import GROUP, INSERT, Op, Position, encode
from pipeline.model.receipt import Receipt
from pipeline.model.sheet import Sheet

if TYPE_CHECKING:
    from pipeline.model.receipt import Source


#: The most ops of one atomic group: a worker applies it in one transaction, and every row waits for its end.
MOST_MEMBERS = 10_000
#: Ops and bytes of one round trip of a bulk call. The more ops of a bucket go together, the fewer entries hold them;
#: more than these block Redis for longer than 5 ms. As columns, twice as much does not.
CHUNK_ROWS, CHUNK_BYTES = 4_000, 1_000_000
SHEET_ROWS, SHEET_BYTES = 50_000, 2_000_000


class HeldOp(NamedTuple):
    """One entry of a log to be: an op or a sealed group, and the receipts that wait for its position."""

    bucket: int
    op: Op
    durability: str
    receipts: list[Receipt]

    @property
    def plain(self) -> bool:
        """Whether it may share a round trip with others."""
        return self.durability == "redis" and self.op.idempotency_key is None


class HeldOps(Protocol):
    """Keeps entries until a commit: `Held`, or an outbox in the request's database.

    Attributes:
        early: whether they may be sent before the commit.
    """

    early: bool

    def __len__(self) -> int: ...
    def add(self, entry: HeldOp) -> None: ...  # noqa: D102
    def holds(self, table: str) -> bool: ...  # noqa: D102
    def send(self) -> list[Receipt]: ...  # noqa: D102
    def drop(self) -> None: ...  # noqa: D102


class Held:
    """The ops of one request, in the order of its calls. Used by one thread at a time.

    Args:
        send_all: sends entries that may share a round trip, in order per bucket.
        send_one: sends one entry by itself.
    """

    early = True

    def __init__(self, send_all: Callable[[list[HeldOp]], None], send_one: Callable[[HeldOp], None]):
        self._send_all, self._send_one = send_all, send_one
        self._waiting: list[HeldOp] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[HeldOp]:
        return iter(self._waiting)

    @property
    def receipts(self) -> list[Receipt]:
        """The receipts of all, in order."""
        return [receipt for entry in self._waiting for receipt in entry.receipts]

    def add(self, entry: HeldOp) -> None:
        """Take an entry in."""
        self._waiting.append(entry)

    def holds(self, table: str) -> bool:
        """Return whether an op for a table is among them."""
        return any(op.table == table for entry in self._waiting for op in entry.op.members)

    def drop(self) -> None:
        """Forget all: the request failed."""
        self._waiting.clear()

    def send(self) -> list[Receipt]:
        """Send all in order, and return their receipts. What has been sent is not held any more, also after an error.

        Raises:
            as the call that made the op would have: `PipelineFull`, `LogUnavailable`, `NotDurable`.
        """
        sent: list[Receipt] = []
        while self._waiting:
            run = self._run()
            try:
                if run[0].plain:
                    self._send_all(run)
                else:
                    self._send_one(run[0])
            finally:
                # sent, or its outcome is unknown: never send it again
                del self._waiting[: len(run)]
            sent += [receipt for entry in run for receipt in entry.receipts]
        return sent

    def _run(self) -> list[HeldOp]:
        """Return the first entries that may go together."""
        if not self._waiting[0].plain:
            return self._waiting[:1]
        end = next((i for i, entry in enumerate(self._waiting) if not entry.plain), len(self._waiting))
        return self._waiting[:end]


class Atomic:
    """Gathers the ops of one `with pipeline.atomic()` block."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self._ops: list[Op] = []
        self._bucket: int | None = None
        self._durability = "redis"

    def add(self, bucket: int, op: Op, receipt: Receipt, durability: str) -> None:
        """Take an op in.

        Raises:
            CrossBucket: it belongs to another bucket than the ops before it; nothing of the group has been sent.
        """
        if self._bucket is not None and bucket != self._bucket:
            raise CrossBucket(
                f"the op on {op.table!r} belongs to bucket {bucket}, the group to bucket {self._bucket}: one atomic "
                "group lives in one bucket; give its rows the same shard key"
            )
        if op.idempotency_key is not None:
            raise BadOp("an op in an atomic group takes no idempotency_key of its own")
        if len(self._ops) >= MOST_MEMBERS:
            raise BadOp(
                f"an atomic group has at most {MOST_MEMBERS:,} ops, since it is one transaction: divide it into groups"
            )
        self._bucket = bucket
        self._ops.append(op)
        self.receipts.append(receipt)
        if durability != "redis":
            self._durability = durability

    def holds(self, table: str) -> bool:
        """Return whether an op for a table is in the group."""
        return any(op.table == table for op in self._ops)

    def sealed(self) -> tuple[int, Op, str]:
        """Return the bucket, the one op that is the group, and the durability its members asked for."""
        assert self._bucket is not None, "only a group with ops is sealed"
        first = self._ops[0]
        op = first if len(self._ops) == 1 else Op(GROUP, first.table, first.schema, first.at_ms, ops=tuple(self._ops))
        return self._bucket, op, self._durability


class Chunk:
    """Ops in the caller's order, sorted by bucket for sending."""

    __slots__ = ("_at", "_bytes", "_ids", "_order", "_places", "payloads", "what")

    def __init__(self) -> None:
        self._bytes = 0
        self.payloads: dict[int, Any] = {}  # of each bucket a list of encoded ops, or a sheet
        #: How many ops there are of each bucket, kind and table.
        self.what: dict[tuple[int, str, str], int] = {}
        self._at: list[tuple[int, int]] = []  # per row: bucket, and its how-manieth there
        self._ids: list[int | None] = []
        self._places: Mapping[int, OpPlace] = {}
        self._order: tuple[Sequence[int], Mapping[int, Sequence[int]]] = ((), {})  # as `of` was told, and its ids

    @classmethod
    def of(cls, order: Sequence[int], sheets: Mapping[int, Sheet]) -> Chunk:
        """Return the chunk of sheets.

        Args:
            order: of each row, in the caller's order, its bucket.
            sheets: of each bucket.
        """
        chunk = cls()
        chunk.payloads = dict(sheets)
        chunk.what = {(bucket, INSERT, sheet.table): len(sheet) for bucket, sheet in sheets.items()}
        chunk._order = order, {bucket: sheet.ids for bucket, sheet in sheets.items()}
        chunk._bytes = sum(sheet.size_bytes for sheet in sheets.values())
        return chunk

    @property
    def large(self) -> Iterator[bytes]:
        """The ops of sheets that may be too large for a worker."""
        for sheet in self.payloads.values():
            if sheet.size_bytes > UNCHECKED_BYTES:
                yield from (payload for payload in sheet if len(payload) > UNCHECKED_BYTES)

    @property
    def is_too_large(self) -> bool:
        """Whether its rows are much larger than those that its number of rows was chosen for."""
        return len(self) > 1 and self._bytes > 2 * SHEET_BYTES

    @property
    def rows_like(self) -> int:
        """How many rows of this size a chunk of sheets takes."""
        return rows_like(len(self), self._bytes)

    def add(self, bucket: int, op: Op) -> bytes:
        """Add the next row's op, and return its bytes."""
        run = self.payloads.setdefault(bucket, [])
        self._at.append((bucket, len(run)))
        self._ids.append(op.id)
        run.append(payload := encode(op))
        self._bytes += len(payload)
        for member in op.members if op.ops else (op,):
            kind = bucket, member.kind, member.table
            self.what[kind] = self.what.get(kind, 0) + 1
        return payload

    def __len__(self) -> int:
        return len(self._at) or len(self._order[0])

    @property
    def full(self) -> bool:
        """Whether it is to be sent before more is added."""
        return len(self._at) >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES

    def placed(self, places: Mapping[int, OpPlace]) -> None:
        """Note where the ops are, and let the payloads go."""
        self._places = places
        self.payloads = {}

    def queued(self, numbered: Mapping[int, tuple[int, int]], source: Source) -> list[Receipt | None]:
        """Return the receipt of each row that may be queued, where the chunk was not taken as a whole; else None.

        Args:
            numbered: of each bucket that may be, the producer and the sequence of its first op.
        """
        self._places = {bucket: OpPlace(None, *number) for bucket, number in numbered.items()}
        self._place_rows()
        return [self.receipt(row, source) if at[0] in numbered else None for row, at in enumerate(self._at)]

    def receipt(self, row: int, source: Source) -> Receipt:
        """Return the receipt of a row."""
        self._place_rows()
        bucket, nth = self._at[row]
        place = self._places[bucket]
        position = place.position
        if position is not None:
            position = Position(position.epoch, position.seq + nth)
        return Receipt(bucket, position, self._ids[row], place.producer, place.seq + nth, source)

    def _place_rows(self) -> None:
        """Find out where each row is among those of its bucket, and its id; few callers of a bulk call ask."""
        order, ids = self._order
        if len(self._at) < len(order):
            counts = dict.fromkeys(ids, 0)
            at = []
            for bucket in order:
                at.append((bucket, counts[bucket]))
                counts[bucket] += 1
            self._ids = [ids[bucket][nth] for bucket, nth in at]
            self._at = at


def rows_like(count: int, size_bytes: int) -> int:
    """Return how many rows a chunk of sheets takes.

    Args:
        count: of other rows that are like them.
        size_bytes: of these.
    """
    return min(SHEET_ROWS, max(1, SHEET_BYTES * count // size_bytes))


def even(count: int, most: int) -> int:
    """Return how many of a number of rows go into each chunk, so that the last is no smaller than the others.

    Args:
        count: 0 or less where it is not known.
        most: of one chunk.
    """
    return -(-count // -(-count // most)) if count > 0 else most


class Validated(dict[str, Any]):
    """What pyDAL's `validate_and_insert` returns: `id`, `errors` by field, `success`; and the receipt beside them."""

    def __init__(self, receipt: Receipt | None, errors: dict[str, Any]):
        super().__init__(id=receipt.id if receipt else None, errors=errors, success=not errors)
        self.receipt = receipt

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def validated(table: Any, fields: Mapping[str, Any], insert: Callable[[dict[str, Any]], Receipt]) -> Validated:
    """Validate, and insert what is valid. A value that its column cannot hold exactly is its field's error, too.

    Args:
        fields: by name; a field that is unknown, not writable or computed is an error, as in pyDAL.
        insert: queues the insert of the validated values.
    """
    try:
        errors, values = table._validate_fields(dict(fields))
    except (RecursionError, OverflowError, ValueError) as error:  # of a value that is too large or too deep for it
        raise BadOp(f"a validator of {table._tablename!r} cannot take the values: {error}") from error
    if errors:
        return Validated(None, dict(errors))
    try:
        return Validated(insert(values), {})
    except BadValue as error:
        return Validated(None, {error.field: error.why})


def fill_like(made: Receipt | None, receipts: Iterable[Receipt]) -> None:
    """Note in the receipts of an entry where it is.

    Args:
        made: a receipt of the same entry; None: it was not taken.
        receipts: those that callers have.
    """
    if made is not None:
        for receipt in receipts:
            receipt.position, receipt.producer, receipt.producer_seq = made.position, made.producer, made.producer_seq


def fill(receipt: Receipt, place: OpPlace) -> None:
    """Note in a receipt where its op is.

    Args:
        receipt: of the op.
        place: of the op.
    """
    receipt.position, receipt.producer, receipt.producer_seq = place.position, place.producer, place.seq
    if place.row_id is not None:
        receipt.name_row(place.row_id)
