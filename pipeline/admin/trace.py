"""Trace one op: who enqueued it, its place in the log, its commit, who has seen it, what became of it.

It is read from the log, the spool of this host, the pipeline's tables in the shards, and the notes of the newest
batches in Redis.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.admin.story import CallOfOp, OnReplica, OnShard, Place, Story
from pipeline.admin.why import receipt_of
from pipeline.client import Client
from pipeline.errors import LogUnavailable, NewerOp, NotAnOp, PipelineError, ShardUnavailable
from pipeline.events import without_values
from pipeline.model.op import START, Entry, Op, Position, decode, may_come_again
from pipeline.model.receipt import Receipt
from pipeline.oplog.batches import Committed, committed_in
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.one_op import KeptOfOp, kept_of
from pipeline.shard.session import NodeSession

#: Entries of a bucket among which an op is looked for whose position no receipt says.
_MOST_READ = 10_000
#: What a receipt calls a state of an op that was set aside, where it has another word.
_SHOWN = {"waiting": "parked"}


def story(pipeline: Client, text: str) -> Story:
    """Return an op's story.

    Args:
        pipeline: the deployment.
        text: a printed receipt.

    Raises:
        BadToken: it is no receipt of this deployment.
    """
    receipt = receipt_of(pipeline, text)
    entry, there = _entry(pipeline, receipt)
    position = receipt.position or (entry.position if entry is not None else None)
    kept = {shard: _kept(pipeline, shard, receipt, position) for shard in pipeline.topology.shards_of(receipt.bucket)}
    aside = next((one.aside for one in kept.values() if isinstance(one, KeptOfOp) and one.aside is not None), None)
    if aside is not None:
        position = position or aside.position
    payload = entry.payload if entry is not None else aside.payload if aside is not None else None
    status = _status(receipt)
    shards = tuple(_on_shard(pipeline, shard, one, receipt, position) for shard, one in kept.items())
    replicas = tuple(one for shard in kept for one in _on_replicas(pipeline, shard, receipt))
    place = Place(receipt.bucket, str(position) if position is not None else None, there)
    return Story(
        status,
        _enqueued(pipeline, receipt, status, payload),
        place,
        shards,
        replicas,
        _waits(pipeline, receipt, status),
    )


def _status(receipt: Receipt) -> str:
    try:
        return receipt.status()
    except PipelineError:
        return "unknown"


def _waits(pipeline: Client, receipt: Receipt, status: str) -> str:
    if status not in ("queued", "spooled", "parked", "unknown"):
        return ""
    reason = pipeline.follower.why(receipt)
    return reason.sentence("the op") if reason is not None else ""


def _entry(pipeline: Client, receipt: Receipt) -> tuple[Entry | None, bool | None]:
    """Return the op's entry in the log, and whether it is there."""
    bucket, place = receipt.bucket, receipt.position
    after = START if place is None else Position(place.epoch, place.seq - 1)
    try:
        found = pipeline.log.read({bucket: after}, {bucket: 1 if place is not None else _MOST_READ})
    except LogUnavailable:
        return None, None
    wanted = (receipt.producer, receipt.producer_seq)
    entry = next((one for one in found.get(bucket, ()) if (one.producer, one.producer_seq) == wanted), None)
    return entry, entry is not None


def _enqueued(pipeline: Client, receipt: Receipt, status: str, payload: bytes | None) -> CallOfOp:
    way = "spooled" if status == "spooled" else "kept" if may_come_again(receipt.producer) else "direct"
    op, by = _decoded(payload), _sender(pipeline, receipt.producer)
    if op is None:
        return CallOfOp(receipt.producer, receipt.producer_seq, way, by)
    first = op.members[0]
    return CallOfOp(receipt.producer, receipt.producer_seq, way, by, op.at_ms, first.table, op.kind, len(op.members))


def _sender(pipeline: Client, producer: int) -> str | None:
    try:
        return pipeline.log.sender(producer)
    except LogUnavailable:
        return None


def _decoded(payload: bytes | None) -> Op | None:
    try:
        return decode(payload) if payload is not None else None
    except (NotAnOp, NewerOp):
        return None


def _kept(pipeline: Client, shard: str, receipt: Receipt, position: Position | None) -> KeptOfOp | ShardUnavailable:
    try:
        session = pipeline.nodes.primary(shard)
        return kept_of(session, receipt.bucket, position or START, receipt.producer, receipt.producer_seq)
    except ShardUnavailable as error:
        return error


def _on_shard(
    pipeline: Client, shard: str, kept: KeptOfOp | ShardUnavailable, receipt: Receipt, position: Position | None
) -> OnShard:
    if isinstance(kept, ShardUnavailable):
        return OnShard(shard, None, why=str(kept))
    reached = _reached(kept.fate, receipt, position)
    aside = kept.aside
    state = "lost" if kept.fate.lost else "applied" if reached else "queued"
    noted = _noted(pipeline, shard, receipt.bucket, position) if reached else None
    worker, at_ms = (noted.worker, kept.exact_ms or noted.at_ms) if noted is not None else (None, kept.exact_ms)
    if aside is None:
        before_ms = kept.mark_ms if reached and at_ms is None else None
        return OnShard(shard, state, at_ms if reached else None, before_ms, worker, actions=kept.actions)
    why = (aside.code, without_values(aside.reason), aside.aside_ms, aside.changed_ms)
    return OnShard(shard, _SHOWN.get(aside.state, aside.state), at_ms, None, worker, *why, kept.actions)


def _noted(pipeline: Client, shard: str, bucket: int, position: Position | None) -> Committed | None:
    try:
        return committed_in(pipeline.log.batches(shard), bucket, position) if position is not None else None
    except LogUnavailable:
        return None


def _reached(fate: ledger_queries.Fate, receipt: Receipt, position: Position | None) -> bool:
    if position is not None:
        return fate.reached(position, receipt.producer_seq)
    return fate.applied_seq is not None and fate.applied_seq >= receipt.producer_seq


def _on_replicas(pipeline: Client, shard: str, receipt: Receipt) -> Iterator[OnReplica]:
    for session in pipeline.nodes.replicas(shard):
        unfit = pipeline.nodes.unfit(session.node)
        try:
            yield OnReplica(shard, session.node, _seen(session, receipt), unfit)
        except PipelineError as error:
            yield OnReplica(shard, session.node, None, unfit, str(error))


def _seen(session: NodeSession, receipt: Receipt) -> bool:
    place = receipt.position
    fate = ledger_queries.fate(session, receipt.bucket, place or START, receipt.producer, receipt.producer_seq)
    return _reached(fate, receipt, place)
