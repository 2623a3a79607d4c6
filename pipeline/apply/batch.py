"""The entries of one transaction: of each bucket the next ones, as many as fit, without what the shard has seen.

Invariant: of a bucket nothing is left out in between. Entries are taken in order up to the first that has to wait.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from pipeline.apply.grouping import Item
from pipeline.model.op import Entry, Op, Position, decode
from pipeline.shard import ledger as marks
from pipeline.shard.ledger import Loss, Reject
from pipeline.shard.session import Session
from pipeline.shard.table_facts import FactBook

_log = logging.getLogger("pipeline.apply")


@dataclass(slots=True)
class Batch:
    """What one transaction applies.

    Attributes:
        before: the watermarks that it found, of the buckets that are its own.
        facts: of the tables; an op is understood if they know its definition.
        blocked: tables of which the shard is behind the schema.
        after: the watermarks that it leaves.
        last: of each bucket and producer, the last sequence that is applied then.
        waiting: the buckets that were cut short, and why.
        unreadable: what is no op of this version.
    """

    before: dict[int, Position]
    facts: FactBook
    blocked: Collection[str]
    most_rows: int
    most_bytes: int
    after: dict[int, Position] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    last: dict[tuple[int, int], int] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    keys: list[tuple[int, str]] = field(default_factory=list)
    waiting: dict[int, str] = field(default_factory=dict)
    unreadable: list[Reject] = field(default_factory=list)
    seen: int = 0
    size_bytes: int = 0

    @property
    def why(self) -> str:
        """Why one of the buckets waits, or nothing."""
        return next(iter(self.waiting.values()), "")

    @property
    def lost(self) -> int:
        """How many entries the logs have lost."""
        return sum(loss.last - loss.first + 1 for loss in self.losses)

    def take(self, entries: Sequence[Entry]) -> None:
        """Take a bucket's entries up to the batch's limits, or up to an op that is not understood yet."""
        if not entries:
            return
        bucket = entries[0].bucket
        before, items = self.before[bucket], self.items
        for entry in entries:
            if items and (len(items) >= self.most_rows or self.size_bytes >= self.most_bytes):
                break
            try:
                op = decode(entry.payload)
            except msgspec.MsgspecError as error:
                self.unreadable.append(Reject(entry, "?", "?", None, f"not an op of this version: {error}"))
                before = entry.position
                continue
            if self.blocked or op.ops or op.source or not self.facts.knows(op.schema):
                puzzle = self._puzzle(op)
                if puzzle:
                    self.waiting[bucket] = puzzle
                    break
            gap = _gap(entry, before)
            if gap is not None:
                self.losses.append(gap)
                _log.error("bucket %d: epoch %d of its log lost %d to %d", bucket, gap.epoch, gap.first, gap.last)
            before = entry.position
            items.append(Item(entry, op))
            self.size_bytes += len(entry.payload)
        if before is not self.before[bucket]:
            self.after[bucket] = before

    def skip_seen(self, session: Session) -> None:
        """Drop what the shard has applied before, under another position: after a failover, or sent twice."""
        if not self.items:
            return
        self.last = marks.seen(session, ((i.entry.bucket, i.entry.producer) for i in self.items))
        named = [(i.entry.bucket, i.op.idempotency_key) for i in self.items if i.op.idempotency_key]
        used = marks.known_keys(session, [(b, k) for b, k in named if k]) if named else set()
        fresh = []
        for item in self.items:
            entry, key = item.entry, item.op.idempotency_key
            pair = (entry.bucket, entry.producer)
            if entry.producer_seq <= self.last[pair]:
                self.seen += 1
                continue
            self.last[pair] = entry.producer_seq
            if key is not None:
                if (entry.bucket, key) in used:
                    self.seen += 1
                    continue
                used.add((entry.bucket, key))
                self.keys.append((entry.bucket, key))
            fresh.append(item)
        self.items = fresh

    def _puzzle(self, op: Op) -> str:
        """Return why an op must wait, or nothing."""
        for one in op.named:
            if one.table in self.blocked:
                return f"the shard is behind the schema of {one.table}"
            if self.facts.of(one) is None:
                return f"definition {one.schema} of table {one.table} is not known here"
        return ""


def _gap(entry: Entry, before: Position) -> Loss | None:
    """Return what is missing between two positions: positions are dense within an epoch."""
    first = before.seq + 1 if entry.position.epoch == before.epoch else 0
    if entry.position.seq == first:
        return None
    return Loss(entry.bucket, entry.position.epoch, 0, first, entry.position.seq - 1)
