"""Trace one op and say its story: who enqueued it, its commit, who has seen it, what became of it.

The story is read from the log, the spool of this host, the pipeline's tables in the shards, and Redis's notes of the
newest batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.admin.why import receipt_of
from pipeline.client import Client
from pipeline.errors import LogUnavailable, NewerOp, NotAnOp, PipelineError, ShardUnavailable
from pipeline.events import without_values
from pipeline.model import START, Entry, Op, Position, decode, may_come_again
from pipeline.model.receipt import Receipt
from pipeline.model.wait_reason import utc_text
from pipeline.oplog.shared_state import Committed, committed_in
from pipeline.shard import NodeSession
from pipeline.shard.records import ledger_queries
from pipeline.shard.records.ledger_queries import ActionOnOp, KeptOfOp, kept_of

#: The version of the JSON.
VERSION = 1
#: Where the text of a line begins, characters.
INDENT = 9
#: Entries of a bucket among which an op is looked for whose position no receipt says.
_MOST_READ = 10_000
#: What a receipt calls a state of an op that was set aside, where it has another word.
_SHOWN = {"waiting": "parked"}


@dataclass(frozen=True, slots=True)
class CallOfOp:
    """What is known of the call.

    Attributes:
        at_ms: by the clock of the caller's host; None where nobody keeps the op any more.
        way: `direct` into the log; `kept`: sent by what may send it again, a spool, an outbox or a repeated call;
            `spooled`: it waits in the spool of this host.
        by: host and process that sent it to the log; None: not kept, or not sent yet.
        table, kind: of the op; a group has its first member's table.
        members: row writes of the op.
    """

    producer: int
    producer_seq: int
    way: str
    by: str | None = None
    at_ms: float | None = None
    table: str | None = None
    kind: str | None = None
    members: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the op is in its bucket's log.

    Attributes:
        there: whether the log has its entry now; None where Redis does not answer.
    """

    bucket: int
    position: str | None
    there: bool | None


@dataclass(frozen=True, slots=True)
class OnShard:
    """What one shard knows of the op.

    Attributes:
        state: queued, applied, rejected, parked, replayed, dropped or lost; None: the primary does not answer.
        committed_ms: when the transaction committed that applied it or set it aside; None: not kept.
        before_ms: that commit was no later than this.
        worker: host and process that applied it; None: not kept.
        code, reason: the database's, of an op that was set aside.
        aside_ms, changed_ms: when it was set aside, and when that changed last.
        actions: what operators did to it.
        why: why it is not known.
    """

    shard: str
    state: str | None
    committed_ms: int | None = None
    before_ms: int | None = None
    worker: str | None = None
    code: int | None = None
    reason: str | None = None
    aside_ms: int | None = None
    changed_ms: int | None = None
    actions: tuple[ActionOnOp, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class OnReplica:
    """Whether a replica has the op; None: it does not answer. When it got the op is kept nowhere."""

    shard: str
    node: str
    seen: bool | None
    unfit: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """One op's story.

    Attributes:
        status: as `Receipt.status` says it; `unknown` where a primary does not answer.
        waits: why it waits, with the command that mends it; empty where it does not wait.
    """

    status: str
    enqueued: CallOfOp
    place: Place
    shards: tuple[OnShard, ...]
    replicas: tuple[OnReplica, ...]
    waits: str

    def as_json(self) -> dict[str, Any]:
        """Return the story for programs; null is what nobody keeps."""
        return {"version": VERSION, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """Yield the story for people, in the order in which it happened."""
        place = self.place
        yield f"op       {place.bucket}:{place.position or 'position not kept'}, {self.status}"
        yield f"enqueued {_enqueued_text(self.enqueued)}"
        yield f"log      {_place_text(place)}"
        for shard in self.shards:
            yield from (f"{name:8} {text}" for name, text in _shard_texts(shard))
        for replica in self.replicas:
            yield f"replica  {_replica_text(replica)}"
        if self.waits:
            yield f"waits    {self.waits}"
        if self.status in ("rejected", "parked") and place.position is not None:
            yield f"next     pipeline dead show {place.bucket}:{place.position}"


def _enqueued_text(one: CallOfOp) -> str:
    what = "an op that nobody keeps any more"
    if one.kind is not None:
        group = f", a group of {one.members} row writes" if one.members != 1 else ""
        what = f"{one.kind} on {one.table}{group}"
    when = f"at {utc_text(round(one.at_ms))}" if one.at_ms is not None else "when is not kept"
    way = {
        "direct": "straight into the log",
        "kept": "by what may send it again: a spool, an outbox or a repeated call",
        "spooled": "into the spool of this host, where it waits",
    }[one.way]
    by = f"sent by {one.by}" if one.by else "sent by a process that is not kept"
    return f"{what}, {when}, {way}, {by}; producer {one.producer}, its op {one.producer_seq} of this bucket"


def _place_text(place: Place) -> str:
    there = {
        None: "Redis does not answer",
        True: "the log has its entry",
        False: "the log has no entry of it now",
    }[place.there]
    return f"{place.position or 'no position is kept'} in the log of bucket {place.bucket}; {there}"


def _shard_texts(one: OnShard) -> Iterator[tuple[str, str]]:
    if one.state is None:
        yield "shard", f"{one.shard}: {one.why}"
        return
    if one.state == "lost":
        yield "lost", f"{one.shard} never got it: Redis lost it before it was applied"
        return
    if one.aside_ms is None:
        text = "not applied yet" if one.state == "queued" else f"applied {_commit_text(one)}"
        yield "shard", f"{one.shard}: {text}"
    else:
        code = f" ({one.code})" if one.code is not None else ""
        yield "shard", f"{one.shard}: set aside {_commit_text(one)}{code}: {one.reason}"
    for action in one.actions:
        yield "action", f"{action.action} by {action.who} at {utc_text(action.at_ms)}: {action.result}"
    if one.aside_ms is not None and not one.actions:
        settled = f"{one.state} since {utc_text(one.changed_ms or one.aside_ms)}"
        by = "; no operator did it" if one.state in ("replayed", "dropped") else ""
        yield "now", f"{settled}{by}"


def _commit_text(one: OnShard) -> str:
    worker = f"by {one.worker}" if one.worker else "by a worker that is not kept"
    if one.committed_ms is not None:
        return f"at {utc_text(one.committed_ms)}, {worker}"
    if one.before_ms is not None:
        return f"{worker}; when is not kept, no later than {utc_text(one.before_ms)}"
    return f"{worker}; when is not kept"


def _replica_text(one: OnReplica) -> str:
    unfit = ", and is unfit" if one.unfit else ""
    if one.seen is None:
        return f"{one.node} of {one.shard} does not answer{unfit}: {one.why}"
    return f"{one.node} of {one.shard} {'has it; when it got it is not kept' if one.seen else 'has it not yet'}{unfit}"


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
    topology = pipeline.topology
    # a key that has a shard of its own has a number there, by which that shard keeps what it knows of the op
    at = {
        shard: receipt.elsewhere(topology.mark_of(shard, receipt.bucket))
        for shard in topology.shards_of(receipt.bucket)
    }
    kept = {shard: _kept(pipeline, shard, one, position) for shard, one in at.items()}
    aside = next((one.aside for one in kept.values() if isinstance(one, KeptOfOp) and one.aside is not None), None)
    if aside is not None:
        position = position or aside.position
    payload = entry.payload if entry is not None else aside.payload if aside is not None else None
    status = _status(receipt)
    shards = tuple(_on_shard(pipeline, shard, one, at[shard], position) for shard, one in kept.items())
    replicas = tuple(one for shard in kept for one in _on_replicas(pipeline, shard, at[shard]))
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
