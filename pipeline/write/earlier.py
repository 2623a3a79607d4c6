"""Where an earlier op stands that the same idempotency key was used for, as `enqueue.lua`, or a note, keeps it."""

from __future__ import annotations

import logging

import msgspec

from pipeline.errors import LogUnavailable, PipelineError, PipelineFull
from pipeline.log.contract import Log
from pipeline.op import Position

_log = logging.getLogger("pipeline.publish")


class Place(msgspec.Struct, frozen=True):
    """Where the first op of a bucket's run stands, and its producer's sequence; the others follow densely."""

    position: Position | None  # None: in the spool
    producer: int
    seq: int
    row_id: int | None = None  # of an earlier op with the same idempotency key


def found(log: Log, bucket: int, key: str) -> Place | None:
    """Return the place of an op that a key was used for; None also where Redis does not answer."""
    try:
        text = log.earlier(bucket, key)
    except LogUnavailable as error:
        _log.warning("whether an idempotency key was used before cannot be told now: %s", error)
        return None
    return kept(text) if text is not None else None


def note(log: Log, bucket: int, key: str, place: Place) -> None:
    """Let `found` find an op that was appended without its key; a hint, so that nothing is raised."""
    assert place.position is not None, "the op was sent"
    try:
        log.note_earlier(
            bucket, key, " ".join(map(str, (*place.position, place.producer, place.seq, place.row_id or 0)))
        )
    except (LogUnavailable, PipelineFull) as error:
        _log.warning("the id of a row with an idempotency key may not be found again: %s", error)


def kept(text: str) -> Place:
    """Read what is kept of an op."""
    try:
        epoch, seq, producer, producer_seq, row_id = map(int, text.split(" "))
    except ValueError as error:
        raise PipelineError("Redis keeps a receipt that this version cannot read") from error
    return Place(Position(epoch, seq), producer, producer_seq, row_id or None)
