"""Answer why something waits: an op, a shard, a table, or anything of the deployment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.admin.stops import Target, target_of
from pipeline.client import Client
from pipeline.errors import BadOp, BadToken, LogUnavailable, PipelineError, ShardUnavailable
from pipeline.model.receipt import Receipt
from pipeline.model.wait_reason import WaitReason, reasons_of
from pipeline.shard.records import ledger_queries
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
        name: a receipt's text, or the name of a shard or a table; without one, what waits on any shard.

    Raises:
        BadOp: it is none of them.
    """
    if not name:
        return _of(pipeline, "the deployment", pipeline.topology.shards, "")
    try:
        receipt = receipt_of(pipeline, name)
    except BadToken:
        target = _target(pipeline, name)
        return _of(pipeline, str(target), target.shards, target.name)
    return _of_op(pipeline, receipt)


def _of(pipeline: Client, what: str, shards: Iterable[str], first: str) -> Answer:
    """Return why ops of shards wait; reasons of the scope *first* come first."""
    found = [reason for shard in shards for reason in _reasons(pipeline, shard)]
    reasons = tuple(sorted(found, key=lambda reason: reason.scope != first))
    sentences = tuple(dict.fromkeys(reason.sentence() for reason in reasons))
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


def _reasons(pipeline: Client, shard: str) -> tuple[WaitReason, ...]:
    try:
        primary = pipeline.nodes.primary(shard)
        marks = {b: m.position for b, m in ledger_queries.marks_of(primary).items() if m.owned}
        queued = pipeline.log.queued(marks)
        behind = {bucket: marks[bucket] for bucket, ops in queued.items() if ops}
        noted, full = pipeline.log.waits(shard), pipeline.log.full()
        found = reasons_of(shard, behind, stop_reasons(primary, shard), noted.notes, noted.alive)
        if full is not None:
            found = (WaitReason("redis-full", shard, "Redis", full), *found)
    except LogUnavailable as error:
        return (WaitReason("redis-away", shard, shard, str(error)),)
    except ShardUnavailable as error:
        return (WaitReason("primary-away", shard, shard, str(error)),)
    if not found and behind:
        return (WaitReason("queued", shard, shard, f"{sum(queued.values()):,} ops are queued"),)
    return found
