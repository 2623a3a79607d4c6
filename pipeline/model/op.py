"""The op: the one frozen value that travels, from the caller to the row.

Log, spool, worker and dead letters carry the same bytes: a JSON array, readable in `redis-cli`. Columns are numbers,
their place in the table definition that `schema` names; values are in the canonical form of `pipeline.values`.

An op and where it goes; and the id of its row, as far as it has one before the row is there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from pipeline.errors import BadOp

INSERT, UPDATE, DELETE, UPSERT, GROUP = "insert", "update", "delete", "upsert", "group"
#: An insert of what a row of another table is when the op is applied; nothing, where that row is not there.
COPY = "copy"
#: What a copy reads: names a row or rows as an update does. Never an op by itself.
READ = "read"


class Position(NamedTuple):
    """A place in a bucket's log. Positions of one log compare as they were given out; across epochs too."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what `str` wrote."""
        epoch, _, seq = text.partition("-")
        return cls(int(epoch), int(seq))


#: The watermark of a bucket to which nothing was ever applied.
START = Position(0, -1)


class Op(msgspec.Struct, frozen=True, array_like=True):
    """One row write, or an atomic group of them (`kind` group, its members in `ops`).

    An update or delete names its row by `id`, or its rows by `where`; an upsert finds it by the columns `key` and, if
    it is there, sets only the columns `renew`. An expression is `["+", ["c", column], ["v", value]]` and the like.

    A copy inserts the row `id` of its own table: `values` as they are, and `expressions` of the columns of the row that
    `source` names, a READ of another table.
    """

    kind: str
    table: str
    schema: str
    at_ms: int
    id: int | None = None
    columns: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()
    where: list[Any] | None = None
    expressions: tuple[tuple[int, list[Any]], ...] = ()
    key: tuple[int, ...] = ()
    renew: tuple[int, ...] = ()
    idempotency_key: str | None = None
    ops: tuple[Op, ...] = ()
    # fields are only ever added at the end: older entries of a log decode without them
    source: Op | None = None

    @property
    def members(self) -> tuple[Op, ...]:
        """The row writes in it, in order."""
        return self.ops or (self,)

    @property
    def named(self) -> tuple[Op, ...]:
        """The members, and what copies among them read: each names a table and its definition."""
        return tuple(one for member in self.members for one in (member, member.source) if one is not None)


class Entry(NamedTuple):
    """One entry of a log: an op, where it stands, and who sent it as its how-manieth."""

    bucket: int
    position: Position
    producer: int
    producer_seq: int
    payload: bytes


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Op)

encode = _encoder.encode


def decode(payload: bytes) -> Op:
    """Read an op that `encode` wrote."""
    return _decoder.decode(payload)


class Addressed(msgspec.Struct, frozen=True):
    """An op and the bucket whose log it goes to."""

    bucket: int
    op: Op
    id_given: bool = False  # by the caller, who may use it elsewhere: it cannot be another


def id_of(op: Op) -> int | None:
    """Return the id of an op's row. None for an upsert: it may find a row that has one already."""
    return op.id if op.kind != UPSERT else None


def id_of_new(op: Op) -> int | None:
    """Return the id that an op's row will have, if the op makes one and brings its id."""
    return op.id if op.kind == INSERT else None


def with_id(addressed: Addressed, row_id: int) -> Op:
    """Return the op with the id that its idempotency key stands for.

    Raises:
        BadOp: the caller has given another.
    """
    op = addressed.op
    if op.id == row_id:
        return op
    if addressed.id_given:
        raise BadOp(
            f"idempotency_key {op.idempotency_key!r} stands for the row {row_id} of {op.table!r}, and this insert "
            f"gives the id {op.id}: use a new key for another row"
        )
    return msgspec.structs.replace(op, id=row_id)
