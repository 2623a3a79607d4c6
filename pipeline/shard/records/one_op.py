"""Read all that a shard's own tables keep of one op: its commit, why it was set aside, and who settled it.

Each call is a transaction of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.model.op import Position
from pipeline.shard.records.ledger_queries import Fate, fate
from pipeline.shard.session import NodeSession


class SetAside(NamedTuple):
    """Why an op was set aside, and how it is now.

    Attributes:
        position: of the op.
        state: rejected, waiting, parked, replayed or dropped.
        code: the database's number of the error.
        aside_ms: when it was set aside.
        changed_ms: when that changed last.
        payload: the op, as it is kept.
    """

    position: Position
    state: str
    code: int | None
    reason: str
    aside_ms: int
    changed_ms: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ActionOnOp:
    """What an operator did to an op; `result` is the state that the action left."""

    at_ms: int
    who: str
    action: str
    result: str


class KeptOfOp(NamedTuple):
    """What one shard keeps of an op.

    Attributes:
        fate: as every node knows it.
        mark_ms: when the transaction committed that moved the bucket's watermark last.
        exact_ms: when the op's own transaction committed; None where no row of it says so.
        aside: None where the op was never set aside, or where that was forgotten.
        actions: the oldest first.
    """

    fate: Fate
    mark_ms: int | None
    exact_ms: int | None
    aside: SetAside | None
    actions: tuple[ActionOnOp, ...]


def kept_of(session: NodeSession, bucket: int, position: Position, producer: int, producer_seq: int) -> KeptOfOp:
    """Return what a shard keeps of one op.

    Args:
        session: of the shard's primary.
        bucket: the op's bucket.
        position: the op's position; `START` where it is not known.
        producer: the number of its producer.
        producer_seq: the producer's sequence number.
    """
    mine = f"bucket = {bucket} AND producer = {producer} AND producer_seq = {producer_seq}"
    marks = session.query(f"SELECT epoch, seq, committed_ms FROM pipeline_watermarks WHERE bucket = {bucket}")
    given = session.query(f"SELECT seen_ms FROM pipeline_ids WHERE {mine}")
    columns = "epoch, seq, state, code, reason, rejected_ms, changed_ms, op"
    found = session.query(f"SELECT {columns} FROM pipeline_rejects WHERE {mine}")
    aside = None
    for epoch, seq, state, code, reason, aside_ms, changed_ms, op in found:
        position = Position(epoch, seq)
        aside = SetAside(position, state, code, reason, aside_ms, changed_ms, op.encode())
    exact = [row[0] for row in given] + ([aside.aside_ms] if aside is not None else [])
    exact += [ms for epoch, seq, ms in marks if Position(epoch, seq) == position and ms]
    done = session.query(
        "SELECT at_ms, who, action, result FROM pipeline_actions"
        f" WHERE bucket = {bucket} AND epoch = {position.epoch} AND seq = {position.seq} ORDER BY id"
    )
    return KeptOfOp(
        fate(session, bucket, position, producer, producer_seq),
        next((int(row[2]) for row in marks), None) or None,
        exact[0] if exact else None,
        aside,
        tuple(ActionOnOp(*row) for row in done),
    )
