"""Say one op's story, for people and for programs: what nobody keeps is None, and the sentence says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.model.wait_reason import utc_text
from pipeline.shard.records.one_op import ActionOnOp

#: The version of the JSON.
VERSION = 1
#: Where the text of a line begins, characters.
INDENT = 9


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
