"""An op and where it goes; and the id of its row, as far as it has one before the row is there."""

from __future__ import annotations

import msgspec

from pipeline.errors import BadOp
from pipeline.model.op import INSERT, UPSERT, Op


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
