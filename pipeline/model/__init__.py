"""Define the op, the one frozen value that travels from the caller to the row, its place in a log, and the row's id.

Lay out the 53-bit ids of rows: there before their row is, exact in JavaScript's numbers, with the row's bucket.

    43 bits counter of the bucket · 10 bits bucket

A counter is given once. Counters come in *spans* of 2**22. The database of a shard gives each span once, to the log's
server, which gives the counters of the span's buckets in blocks. A server that has forgotten what it gave needs another
span. So ids are unique whatever the server forgets and whatever clocks say.

Define the op, the one frozen value that travels from the caller to the row, and its place in a log.
A release that adds a kind or a field raises `VERSION`, and gives the new version to the ops that use what is new. An
older worker lets such ops wait. Bytes that no release makes are no op.

Log, spool, worker and rejects hold the same bytes: a JSON array, readable in `redis-cli`. A column is a number, its
place in the schema that `Op.schema` names. Values are in the canonical form of `pipeline.model.values`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import msgspec

from pipeline.errors import BadOp, NewerOp, NotAnOp

#: 2024-01-01T00:00:00Z in ms; a bucket's counter follows the clock from here, eight to the millisecond, until 2058.
EPOCH_MS, PER_MS = 1_704_067_200_000, 8
#: Every id is at least the first number and less than the second, so size distinguishes an id from a legacy key.
SMALLEST, END = 1 << 49, 1 << 53
#: Counters of a bucket in a span: what the clock passes in nine minutes.
SPAN = 1 << 22
#: The first span whose ids are large enough, and the end of all spans.
FIRST_SPAN, SPANS = (SMALLEST >> 10) // SPAN, (END >> 10) // SPAN
INSERT, UPDATE, DELETE, UPSERT, GROUP = "insert", "update", "delete", "upsert", "group"
#: An insert of the values that a row of another table has when the op is applied; nothing if that row is missing.
COPY = "copy"
#: The source of a copy: names a row or rows as an update does. Never an op by itself.
READ = "read"
ROW_WRITES = frozenset((INSERT, UPDATE, DELETE, UPSERT, COPY))
#: So much of a large op tells its kind, its table and its time; what is no larger is known whole.
HEAD_BYTES = 32_768
#: The newest ops that this release understands.
VERSION = 4
#: The first version that understands `TracedOp`.
_TRACED = 2
#: The first version whose logs may have several ops in one entry.
PACKED = 3
#: The first version whose logs may have like inserts as columns, see `sheet`.
SHEETS = 4
_Column = Annotated[int, msgspec.Meta(ge=0)]
#: Databases keep ids in 64 bits with a sign, and give 0 a number of their own.
_Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Value = None | bool | int | float | str | list[int | str]
#: The sequence number that stands for: none of this deployment wrote the entry. The producer is 0.
FORGED = -1
#: Positions and numbers of producers are below: databases keep them in 64 bits with a sign.
TOO_LARGE = 2**63
_encoder = msgspec.json.Encoder()
#: How an op begins that is cut: kind, table, schema, time.
_BEGINS = re.compile(rb'\["\w+","[^"\\]*","\w*",(\d+(?:\.\d+)?),')
encode = _encoder.encode


class Given(NamedTuple):
    """What the log gave of a shard's ids.

    Attributes:
        span: the span in use; 0: none.
        due: the span that the clock is in.
        starts: of each bucket the first of its counters; None: nothing was given, since the shard needs a new span.
    """

    span: int
    due: int
    starts: dict[int, int] | None


def counter_at(ms: int) -> int:
    """Return the counter that the clock is at.

    Args:
        ms: since 1970.
    """
    return max((ms - EPOCH_MS) * PER_MS, FIRST_SPAN * SPAN)


def ids_of(bucket: int, counters: range) -> range:
    """Return the ids of some counters of a bucket, in order.

    Args:
        bucket: from 0 to 1023.
        counters: the counters, without a gap.
    """
    return range(counters.start << 10 | bucket, counters.stop << 10 | bucket, 1 << 10)


def carries_bucket(value: int) -> bool:
    """Return whether *value* is an id made here, not some other key."""
    return SMALLEST <= value < END


def bucket_of(id: int) -> int:
    """Return the bucket that an id made here carries."""
    return id & 1023


class Position(NamedTuple):
    """A place in a bucket's log. Positions of one log compare in the order in which they were given out, across epochs
    too.
    """

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position from the text that `str` makes of one.

        Args:
            text: `epoch-seq`.
        """
        epoch, _, seq = text.partition("-")
        return cls(int(epoch), int(seq))


#: The watermark of a bucket to which nothing was ever applied.
START = Position(0, -1)


def deleted_behind(mark: Position, first: Position | None, published: Position | None) -> bool:
    """Return whether a log has deleted entries that a watermark lacks, since a later watermark was committed once.

    Args:
        mark: the watermark.
        first: of the first entry behind it; None where there is none.
        published: the last watermark of the bucket that was committed somewhere, as far as it is known.
    """
    if published is None or published <= mark or published.epoch == 0:
        return False
    if first is None or first.epoch > mark.epoch == published.epoch:
        return True
    dense_from = mark.seq + 1 if first.epoch == mark.epoch else 0
    return first.seq > dense_from and published >= Position(first.epoch, first.seq - 1)


class Op(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One row write, or an atomic group of row writes (`kind` group, its members in `ops`).

    An update or delete names its row by `id`, or its rows by `where`. An upsert finds its row by the columns `key`; in
    a row that exists it sets only the columns `renew`. An expression is `["+", ["c", column], ["v", value]]` and the
    like.

    A copy inserts the row `id` of its own table. A copy takes `values` as they are, and computes `expressions` from the
    row that `source` names, a READ of another table.
    """

    kind: str
    table: str
    schema: str
    at_ms: float  # when it was enqueued, by its host's clock, to a microsecond
    id: _Id | None = None
    columns: tuple[_Column, ...] = ()
    values: tuple[_Value, ...] = ()
    where: list[Any] | None = None
    expressions: tuple[tuple[_Column, list[Any]], ...] = ()
    key: tuple[_Column, ...] = ()
    renew: tuple[_Column, ...] = ()
    idempotency_key: str | None = None
    ops: tuple[Op, ...] = ()
    # fields are only ever added at the end: older entries of a log decode without them
    source: Op | None = None
    version: int = 1  # the lowest that understands the op: of a group, the highest of its members

    @property
    def scoped_key(self) -> str:
        """What log and shard keep of the idempotency key, within the op's bucket; the empty text without a key.

        A digest of kind, table and key: 40 letters whatever the key's length. Keys that a collation finds equal differ.
        """
        if self.idempotency_key is None:
            return ""
        scoped = f"{self.kind}\0{self.table}\0{self.idempotency_key}"
        return blake2b(scoped.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()

    @property
    def members(self) -> tuple[Op, ...]:
        """The row writes of the op, in order."""
        return self.ops or (self,)

    @property
    def named(self) -> tuple[Op, ...]:
        """The members, and the READs of the copies among them: each names a table and its schema."""
        return tuple(one for member in self.members for one in (member, member.source) if one is not None)


class TracedOp(Op, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An op that names the span of the call that enqueued it, as W3C's `traceparent`; it is applied as any other.

    Only such ops have the field: an op that no trace has met has no byte more.
    """

    traceparent: Annotated[str, msgspec.Meta(pattern="^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")] = ""


class Entry(NamedTuple):
    """One entry of a log: payload bytes, position, producer, and the producer's sequence number.

    An entry that no producer wrote has the producer 0, and its fields as a JSON array in place of an op. If its
    signature is missing or wrong, its sequence is `FORGED`.
    """

    bucket: int
    position: Position
    producer: int
    producer_seq: int
    payload: bytes


_decoder, _traced_decoder = msgspec.json.Decoder(Op), msgspec.json.Decoder(TracedOp)


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """The fields with which every op begins, whatever its version."""

    kind: str
    table: str
    schema: str
    at_ms: float


_head_decoder = msgspec.json.Decoder(_Head)


def new_producer(*, kept: bool = False) -> int:
    """Return a random 63-bit number for a producer, never used before.

    Args:
        kept: whether a holder keeps the ops and may send them again after they were acknowledged: the number is odd.
    """
    return int.from_bytes(os.urandom(8), "big") >> 2 << 1 | kept


def may_come_again(producer: int) -> bool:
    """Return whether a holder keeps the ops of a producer, as `new_producer` was told.

    Args:
        producer: its number.
    """
    return producer % 2 == 1


def decode(payload: bytes) -> Op:
    """Read an op from the bytes that `encode` makes of one.

    Args:
        payload: the JSON of an op.

    Raises:
        NotAnOp: no release makes such bytes.
        NewerOp: a newer release made the op.
    """
    try:
        op = _decoder.decode(payload)
        if op.version <= VERSION:
            return op
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        fields = _fields(payload)
        if len(fields) == len(TracedOp.__struct_fields__) and (traced := _traced(payload)) is not None:
            return traced
        if _version(fields) <= VERSION:
            raise NotAnOp(f"not an op of this version: {error}") from error
    else:
        fields = _fields(payload)
    news = [] if fields[0] in (*ROW_WRITES, GROUP) else [f"of the kind {fields[0]!r}"]
    news += [f"with {len(fields)} fields"] if len(fields) > len(TracedOp.__struct_fields__) else []
    raise NewerOp(_version(fields), VERSION, " ".join(news))


def with_trace(payload: bytes, traceparent: str) -> bytes:
    """Return an op that names the span of its call.

    Args:
        payload: from `encode`.
        traceparent: as W3C writes it, version 00.
    """
    head, _, version = payload[:-1].rpartition(b",")
    if not version.isdigit():  # it names one already
        return payload
    return b'%b,%d,"%b"]' % (head, max(_TRACED, int(version)), traceparent.encode())


def _traced(payload: bytes) -> TracedOp | None:
    try:
        op = _traced_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return op if _TRACED <= op.version <= VERSION else None


def head_of(payload: bytes) -> tuple[str, str]:
    """Return kind and table of an op.

    Args:
        payload: from `encode`.
    """
    head = _head_decoder.decode(payload)
    return head.kind, head.table


def tables_written(payload: bytes) -> set[str]:
    """Return the tables whose rows an op writes; none where this release cannot read it.

    Args:
        payload: of an entry.
    """
    try:
        kind, table = head_of(payload)
        return {op.table for op in decode(payload).ops} if kind == GROUP else {table}
    except (NotAnOp, NewerOp, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return set()


def enqueued_ms(payload: bytes) -> float | None:
    """Return when an op was enqueued, ms since 1970; None where the bytes are no op of any version.

    Args:
        payload: of an entry; of a large op, its first `HEAD_BYTES` are enough.
    """
    try:
        return _head_decoder.decode(payload).at_ms
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        begins = _BEGINS.match(payload) if len(payload) == HEAD_BYTES else None
        return float(begins[1]) if begins else None


def _fields(payload: bytes) -> list[Any]:
    """Return what is in a JSON array; nothing where the bytes are none."""
    try:
        return msgspec.json.decode(payload, type=list[Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return []


def _version(fields: Sequence[Any]) -> int:
    """Return which version an op is of; ops older than the field `version` are of the first."""
    at = Op.__struct_fields__.index("version")
    return fields[at] if len(fields) > at and type(fields[at]) is int else 1


class Addressed(msgspec.Struct, frozen=True):
    """An op, and the bucket whose log it goes to."""

    bucket: int
    op: Op
    id_given: bool = False  # the caller has chosen the id and may use it elsewhere, so it cannot change


def id_of(op: Op) -> int | None:
    """Return the id of an op's row. None for an upsert, which may find a row under another id."""
    return op.id if op.kind != UPSERT else None


def id_of_new(op: Op) -> int | None:
    """Return the id that an op's row will have, if the op makes one and brings its id."""
    return op.id if op.kind == INSERT else None


def with_id(addressed: Addressed, row_id: int) -> Op:
    """Return the op with the row id that its idempotency key has claimed.

    Args:
        addressed: an insert.
        row_id: the id that the key has claimed.

    Raises:
        BadOp: the caller has given another id.
    """
    op = addressed.op
    if op.id == row_id:
        return op
    if addressed.id_given:
        raise BadOp(
            f"idempotency_key {op.idempotency_key!r} has claimed the row {row_id} of {op.table!r}, and this insert "
            f"gives the id {op.id}: use a new key for another row"
        )
    return msgspec.structs.replace(op, id=row_id)
