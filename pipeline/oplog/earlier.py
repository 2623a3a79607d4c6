"""Where an earlier op stands that the same idempotency key was used for, and which id the key stands for."""

from __future__ import annotations

import logging

import msgspec

from pipeline.errors import LogUnavailable, PipelineError, PipelineFull
from pipeline.model.op import Position
from pipeline.oplog.contract import Log

_log = logging.getLogger("pipeline.publish")


class Place(msgspec.Struct, frozen=True):
    """Where the first op of a bucket's run stands, and its producer's sequence; the others follow densely."""

    position: Position | None  # None: in the spool
    producer: int
    seq: int
    row_id: int | None = None  # of an earlier op with the same idempotency key


def reserved(log: Log, bucket: int, key: str, row_id: int) -> int:
    """Return the id that a key stands for, *row_id* where it stood for none; also where Redis cannot tell."""
    try:
        return log.reserve(bucket, key, row_id)
    except (LogUnavailable, PipelineFull) as error:
        _log.warning("two calls with one idempotency key may tell two ids: %s", error)
        return row_id


def kept(text: str) -> Place:
    """Read what is kept of an op."""
    try:
        epoch, seq, producer, producer_seq, row_id = map(int, text.split(" "))
    except ValueError as error:
        raise PipelineError("Redis keeps a receipt that this version cannot read") from error
    return Place(Position(epoch, seq), producer, producer_seq, row_id or None)
