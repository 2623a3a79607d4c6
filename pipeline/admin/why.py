"""Answer why something waits: an op, a shard, a table, or anything of the deployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from pipeline import clock
from pipeline.admin.observe.moves import MoveRecord, moves_of
from pipeline.admin.stops import Target, target_of
from pipeline.client import Client
from pipeline.config.buckets import numbers, parse_ranges
from pipeline.enqueue.buckets import where
from pipeline.errors import BadOp, BadToken, LogUnavailable, PipelineError, ShardUnavailable, Unavailable
from pipeline.model.receipt import Receipt
from pipeline.model.wait_reason import WaitReason, reasons_of, sentences_of
from pipeline.shard.records import MOVED, STOPPED, ledger_queries, moves
from pipeline.shard.records.moves import Leg
from pipeline.shard.records.stops import stop_reasons


class Answer(NamedTuple):
    """What was found.

    Attributes:
        what: the op, the shard, the table or the deployment.
        state: of an op, its status; `waiting` or `fine` of a shard or a table.
        reasons: why it waits, what stops the most first.
        sentences: the same for people; one that says so where nothing waits.
    """

    what: str
    state: str
    reasons: tuple[WaitReason, ...]
    sentences: tuple[str, ...]


def why(pipeline: Client, name: str = "") -> Answer:
    """Return why something waits.

    Args:
        pipeline: the deployment.
        name: a receipt's text, the name of a shard or a table, or a bucket's number. Or a key that has a shard of its
            own, such as `purchase=4711`. Without a name, what waits on any shard.

    Raises:
        BadOp: it is none of them.
    """
    if not name:
        return _of(pipeline, "the deployment", pipeline.topology.shards, "")
    try:
        receipt = receipt_of(pipeline, name)
    except BadToken:
        try:
            target = _target(pipeline, name)
        except BadOp:
            if name.isdecimal():
                return _of_bucket(pipeline, int(name))
            if "=" in name:
                [piece] = pipeline.topology.placement.numbers_named(name)
                return _of_bucket(pipeline, piece)
            raise
        return _of(pipeline, str(target), target.shards, target.name)
    return _of_op(pipeline, receipt)


def _of(pipeline: Client, what: str, shards: Iterable[str], first: str) -> Answer:
    """Return why ops of shards wait; reasons of the scope *first* come first."""
    found = [reason for shard in shards for reason in _reasons(pipeline, shard)]
    reasons = tuple(sorted(found, key=lambda reason: reason.scope != first))
    sentences = tuple(sentences_of(reasons))
    return Answer(what, "waiting" if reasons else "fine", reasons, sentences or (f"nothing of {what} waits",))


def receipt_of(pipeline: Client, text: str) -> Receipt:
    """Return the receipt that was printed as *text*.

    Where neither Redis nor this host has the secret, the text is taken as it is: who may run this command reads the
    databases themselves.

    Args:
        pipeline: the deployment.
        text: a printed receipt.

    Raises:
        BadToken: it is none of this deployment.
    """
    follower = pipeline.follower
    try:
        return Receipt.parse(text, follower.seal, follower)
    except LogUnavailable:
        return Receipt.parse(text, None, follower)


def _target(pipeline: Client, name: str) -> Target:
    try:
        return target_of(pipeline, name)
    except BadOp as error:
        raise BadOp(f"{name!r} is no receipt, and {error}") from error


def _of_op(pipeline: Client, receipt: Receipt) -> Answer:
    what = f"the op at {receipt.bucket}:{receipt.position}"
    try:
        state = receipt.status()
    except ShardUnavailable:
        state = "unknown"
    reason = pipeline.follower.why(receipt) if state in ("queued", "spooled", "parked", "unknown") else None
    if reason is not None:
        return Answer(what, state, (reason,), (reason.sentence(what),))
    try:
        receipt.wait(0)
    except PipelineError as error:  # rejected or lost: the error says why
        return Answer(what, state, (), (str(error),))
    return Answer(what, state, (), (f"{what} does not wait: it is {state}",))


def _of_bucket(pipeline: Client, bucket: int) -> Answer:
    """Return why ops of a bucket wait, and how far its move is."""
    what, topology = f"bucket {bucket}", pipeline.topology
    if (piece := topology.placement.pieces.get(bucket)) is not None:
        what, shard = str(piece.of), piece.shard
        if shard == topology.shard_of(piece.of.bucket):  # its ops are applied with those of its bucket
            return _of_bucket(pipeline, piece.of.bucket)._replace(what=what)
    elif bucket >= topology.buckets:
        raise BadOp(f"no {what}: there are 0-{topology.buckets - 1}")
    else:
        shard = topology.shard_of(bucket)
        with suppress(Unavailable):
            shard, _ = where(pipeline.nodes, bucket, shard)
    reasons = _reasons(pipeline, shard, bucket)
    sentences = [reason.sentence() for reason in reasons] or [f"nothing of {what} waits; {shard} owns it"]
    if (lent := topology.split.get(bucket)) is not None and lent.shard != shard:
        sentences.append(f"{lent.of} of it is on {lent.shard}: see pipeline why {lent.of}")
    if (move := _move_of(pipeline, bucket, shard)) is not None:
        state = f"{move.state}{f': {move.still}' * bool(move.still)}"
        which = move.buckets if "=" in move.buckets else bucket
        words = f"{what} is being moved from {move.source} to {move.target}: {state}; see pipeline move list"
        sentences = [
            *(sentences if reasons else ()),
            f"{words}{f'; or run: pipeline move give-up {which}' * move.ends}",
        ]
    return Answer(what, "waiting" if reasons else "fine", reasons, tuple(sentences))


def _move_of(pipeline: Client, bucket: int, shard: str) -> MoveRecord | None:
    """Return the move that a bucket is part of."""
    told = dict[str, Mapping[int, Leg]]()
    with suppress(Unavailable):
        told[shard] = moves.legs(pipeline.nodes.primary(shard))
        every = told[shard]
        leg = every.get(bucket) or next((one for one in every.values() if one.of and one.of.bucket == bucket), None)
        for other in {leg.source, leg.target} - {shard} if leg is not None else ():
            told[other] = moves.legs(pipeline.nodes.primary(other))
    found = moves_of(told, clock.wall_ms())
    keys = {
        str(leg.of) for legs in told.values() for leg in legs.values() if leg.of and bucket in (leg.bucket, leg.of[0])
    }
    mine = (one for one in found if "=" in one.buckets or bucket in numbers(parse_ranges(one.buckets)))
    return next((one for one in mine if "=" not in one.buckets or one.buckets in keys), None)


def _reasons(pipeline: Client, shard: str, bucket: int | None = None) -> tuple[WaitReason, ...]:
    """Return why ops of a shard wait, or those of one of its buckets."""
    try:
        primary = pipeline.nodes.primary(shard)
        found = ledger_queries.marks_of(primary)
        mine = {b: mark.position for b, mark in found.items() if bucket in (None, b)}
        stopped = _stopped(pipeline, shard, {b for b in mine if found[b].state in (MOVED, STOPPED)})
        queued = pipeline.log.queued({b: mine[b] for b in mine if found[b].owned or b in stopped})
        behind = {b: mine[b] for b, ops in queued.items() if ops}
        moving = moves.moving_reasons({b: leg for b, leg in stopped.items() if behind.pop(b, None) is not None})
        noted, full = pipeline.log.waits(shard), pipeline.log.full()
        stops = [stop for stop in stop_reasons(primary, shard) if bucket is None or (behind and stop.scope == shard)]
        reasons = reasons_of(shard, behind, [*stops, *moving], noted.notes, noted.alive)
        if full is not None:
            reasons = (WaitReason("redis-full", shard, "Redis", full), *reasons)
    except LogUnavailable as error:
        return (WaitReason("redis-away", shard, shard, str(error)),)
    except ShardUnavailable as error:
        return (WaitReason("primary-away", shard, shard, str(error)),)
    if not reasons and behind:
        return (WaitReason("queued", shard, shard, f"{sum(queued.values()):,} ops are queued"),)
    return reasons


def _stopped(pipeline: Client, shard: str, buckets: set[int]) -> dict[int, Leg]:
    """Return those of a shard's buckets that it has stopped for a move, and the other has not begun with."""
    if not buckets:
        return {}
    every = moves.legs(pipeline.nodes.primary(shard))
    mine = {n: leg for n, leg in every.items() if n in buckets or (leg.of is not None and leg.of.bucket in buckets)}
    told = {shard: mine}
    for other in {leg.target for leg in mine.values()} & {*pipeline.topology.shards} - {shard}:
        with suppress(ShardUnavailable):
            told[other] = moves.legs(pipeline.nodes.primary(other), mine)
    return moves.stopped(told, shard)
