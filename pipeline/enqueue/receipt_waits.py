"""Find why one op waits: its shard is stopped, its bucket is noted as waiting, or it has not been its turn yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.errors import LogUnavailable, NotMigrated, ShardUnavailable
from pipeline.model.op import Position
from pipeline.model.receipt import Receipt
from pipeline.model.wait_reason import Evidence, WaitReason, noted, reasons_of
from pipeline.oplog.contract import Log
from pipeline.oplog.waits import Noted
from pipeline.shard import ledger_queries
from pipeline.shard.session import NodeSession
from pipeline.shard.stops import stops_of

#: Reasons that hold for every op of a shard.
_OF_ALL = ("paused", "no-worker")


def why_queued(shard: str, primary: NodeSession, log: Log, receipt: Receipt) -> WaitReason | None:
    """Return why an op that is queued waits; None if it is applied by now.

    Args:
        shard: the op's shard.
        primary: a session of the shard's primary.
        log: has the op and the workers' notes.
        receipt: of the op.
    """
    try:
        found = ledger_queries.marks_of(primary, [receipt.bucket])
        mark = found[receipt.bucket].position if found else None
        evidence = evidence_of(shard, primary, log, {receipt.bucket: mark} if mark is not None else {})
        for reason in reasons_of(evidence):
            if reason.kind in _OF_ALL and reason.scope == shard:
                return reason
        note = noted(receipt.bucket, evidence)
        return note if note is not None or mark is None else _queued(shard, log, receipt, mark)
    except NotMigrated:
        return None
    except LogUnavailable as error:
        return WaitReason("redis-away", shard, shard, str(error))
    except ShardUnavailable as error:
        return WaitReason("primary-away", shard, shard, str(error))


def evidence_of(shard: str, primary: NodeSession, log: Log, marks: Mapping[int, Position]) -> Evidence:
    """Read what is known about the waiting ops of a shard.

    Args:
        shard: its name.
        primary: a session of its primary.
        log: has the workers' notes.
        marks: the watermark of each bucket that has ops behind it.
    """
    try:
        stops = [stop.reason_on(shard) for stop in stops_of(primary)]
    except NotMigrated:  # the tables are older than this process: nothing can be stopped
        stops = []
    return with_notes(shard, marks, stops, log.waits(shard))


def with_notes(shard: str, marks: Mapping[int, Position], stops: Sequence[WaitReason], found: Noted) -> Evidence:
    """Return the evidence with the workers' notes.

    Args:
        shard: the shard's name.
        marks: the watermark of each bucket that has ops behind it.
        stops: what is stopped on the shard.
        found: the notes as they are in the log.
    """
    notes = {}
    for bucket, note in found.notes.items():
        reason = WaitReason.from_json(note.text)
        if reason is not None:
            notes[bucket] = reason if reason.since_ms else replace(reason, since_ms=note.since_ms)
    return Evidence(shard, marks, stops, notes, found.alive)


def _queued(shard: str, log: Log, receipt: Receipt, mark: Position) -> WaitReason | None:
    if receipt.position is None or mark >= receipt.position:
        return None
    behind_mark, behind_op = (log.queued({receipt.bucket: place})[receipt.bucket] for place in (mark, receipt.position))
    return WaitReason("queued", shard, shard, f"{max(0, behind_mark - behind_op - 1):,} ops in its bucket")
