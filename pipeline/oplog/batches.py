"""Write and read the notes of the newest batches of a shard: who committed each, when, and what of each bucket.

A note names both ends of what its transaction applied, so it proves what it says of an op, or says nothing of it. Notes
are bounded in number and size, and Redis forgets them: they explain, and nothing depends on them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from pipeline.model.op import Position

#: The newest notes of a shard, and the most buckets of one, 50 bytes each: 1.6 MB in all. Further ones are left out.
MOST_NOTES, MOST_NOTED = 500, 64
_HOST = socket.gethostname()[:64]


def this_process() -> str:
    """Return host and process, for people."""
    return f"{_HOST}:{os.getpid()}"


class Committed(NamedTuple):
    """Who committed a batch, as host and process, and when by that host's clock, ms since 1970."""

    at_ms: int
    worker: str


class _Note(msgspec.Struct, frozen=True, array_like=True):
    """A note: the encoder takes the batch's own values, since each bucket's own text would cost a microsecond."""

    at_ms: int
    worker: str
    before: Mapping[int, Position]
    after: Mapping[int, Position]


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(_Note)


def note_of(now_ms: int, before: Mapping[int, Position], after: Mapping[int, Position]) -> str:
    """Return the note of a batch that this process has committed; empty where it has applied nothing.

    Args:
        now_ms: the time of the commit, ms since 1970.
        before: of each bucket, the watermark that the batch found.
        after: of each bucket that it moved, the watermark that it left.
    """
    if not after:
        return ""
    if len(before) > MOST_NOTED:
        after = dict(islice(after.items(), MOST_NOTED))
        before = {bucket: before[bucket] for bucket in after}
    return _encoder.encode(_Note(now_ms, this_process(), before, after)).decode()


def committed_in(notes: Iterable[str], bucket: int, position: Position) -> Committed | None:
    """Return which batch took an op; None where no note says so.

    Args:
        notes: from `note_of`.
        bucket: the op's bucket.
        position: the op's position.
    """
    for text in notes:
        try:
            note = _decoder.decode(text)
        except msgspec.MsgspecError:  # no note of ours
            continue
        if bucket in note.after and note.before.get(bucket, position) < position <= note.after[bucket]:
            return Committed(note.at_ms, note.worker)
    return None
