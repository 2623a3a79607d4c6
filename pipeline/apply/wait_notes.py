"""Note why buckets wait, for the people who ask; ops never depend on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from pipeline.errors import Unavailable
from pipeline.model.op import Position
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.waits import Waits

#: A note holds until its bucket's watermark moves, or for so long, ms: a batch may take 4 tries of 5 s, and rest 5 s.
NOTE_MS = 40_000
#: The longest detail that is noted, characters: a note is for each bucket.
_DETAIL = 300
logger = logging.getLogger("pipeline.apply")


def note_waits(log: Waits, shard: str, reasons: Mapping[int, WaitReason], marks: Mapping[int, Position]) -> None:
    """Note why buckets wait. A log that does not answer is no failure: its readers say so themselves.

    Args:
        log: takes the notes.
        shard: the shard's name.
        reasons: of each bucket, why it waits.
        marks: of each bucket, its watermark, where it is known.
    """
    notes = {}
    for bucket, reason in reasons.items():
        after = str(marks[bucket]) if bucket in marks else ""
        text = replace(reason, after=after, detail=reason.detail[:_DETAIL]).to_json()
        notes[bucket] = (f"{reason.kind}/{after}", text)
    try:
        if notes:
            log.note_waits(shard, notes, NOTE_MS)
    except Unavailable as error:
        logger.info("not noted why %d buckets of shard %s wait: %s", len(notes), shard, error)
