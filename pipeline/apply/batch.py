"""The entries of one transaction: of each bucket the next ones, as many as fit, without what the shard has seen.

Invariant: of a bucket nothing is left out in between. Entries are taken in order up to the first that has to wait.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pipeline.apply.grouping import Item
from pipeline.model.op import Entry, Op, Position, decode
from pipeline.shard import ledger
from pipeline.shard.ledger import Loss, Reject
from pipeline.shard.session import NodeSession
from pipeline.shard.table_facts import FactBook

logger = logging.getLogger("pipeline.apply")


@dataclass(slots=True)
class Batch:
    """What one transaction applies.

    Attributes:
        before: the watermarks that it found, of the buckets that are its own.
        facts: of the tables; an op is understood if they know its definition.
        blocked: why ops of a schema wait, by the hash of that schema: the shard is behind it.
        taken: the entries up to `after`, in order per bucket, whether the shard has seen them before or not.
        after: the watermarks that it leaves.
        items: of those taken, the ops to apply; filled by `skip_seen`.
        unreadable: of those taken, the entries to refuse, since this version cannot decode them; filled by `skip_seen`.
        last: of each bucket and producer, the last sequence that is applied or refused then.
        waiting: the buckets that were cut short, and why.
    """

    before: dict[int, Position]
    facts: FactBook
    blocked: Mapping[str, str]
    most_rows: int
    most_bytes: int
    taken: list[Item | Reject] = field(default_factory=list)
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
        before, taken = self.before[bucket], self.taken
        for entry in entries:
            if taken and (len(taken) >= self.most_rows or self.size_bytes >= self.most_bytes):
                break
            one = _decoded(entry)
            if isinstance(one, Item) and (puzzle := self._puzzle(one.op)):
                self.waiting[bucket] = puzzle
                break
            # whether or not it was decoded: what is missing in front of an entry is lost all the same
            if (gap := _gap(entry, before)) is not None:
                self._lose(gap)
            before = entry.position
            taken.append(one)
            self.size_bytes += len(entry.payload)
        if before is not self.before[bucket]:
            self.after[bucket] = before

    def skip_seen(self, session: NodeSession) -> None:
        """Keep what the shard has not seen under another position: after a failover, or sent twice."""
        if not self.taken:
            return
        self.last = ledger.seen(session, ((one.entry.bucket, one.entry.producer) for one in self.taken))
        used = self._used_keys(session)
        for one in self.taken:
            entry = one.entry
            pair = (entry.bucket, entry.producer)
            if entry.producer_seq <= self.last[pair]:
                self.seen += 1
                continue
            self.last[pair] = entry.producer_seq
            if isinstance(one, Reject):
                self.unreadable.append(one)
                continue
            key = one.op.idempotency_key
            if key is not None:
                if (entry.bucket, key) in used:
                    self.seen += 1
                    continue
                used.add((entry.bucket, key))
                self.keys.append((entry.bucket, key))
            self.items.append(one)

    def _used_keys(self, session: NodeSession) -> set[tuple[int, str]]:
        """Return which idempotency keys of the ops taken the shard has applied before."""
        ops = (one for one in self.taken if isinstance(one, Item))
        named = [(one.entry.bucket, key) for one in ops if (key := one.op.idempotency_key)]
        return ledger.known_keys(session, named) if named else set()

    def _lose(self, gap: Loss) -> None:
        self.losses.append(gap)
        logger.error("bucket %d: epoch %d of its log lost %d to %d", gap.bucket, gap.epoch, gap.first, gap.last)

    def _puzzle(self, op: Op) -> str:
        """Return why an op must wait, or nothing."""
        if not (self.blocked or op.ops or op.source) and self.facts.knows(op.schema):
            return ""
        for one in op.named:
            if one.schema in self.blocked:
                return self.blocked[one.schema]
            if self.facts.of(one) is None:
                return f"definition {one.schema} of table {one.table} is not known here"
        return ""


def _decoded(entry: Entry) -> Item | Reject:
    """Return the op of an entry; what this version cannot decode is to be refused."""
    try:
        return Item(entry, decode(entry.payload))
    except msgspec.MsgspecError as error:
        return Reject(entry, "?", "?", None, f"not an op of this version: {error}")


def _gap(entry: Entry, before: Position) -> Loss | None:
    """Return what is missing between two positions: positions are dense within an epoch."""
    first = before.seq + 1 if entry.position.epoch == before.epoch else 0
    if entry.position.seq == first:
        return None
    return Loss(entry.bucket, entry.position.epoch, 0, first, entry.position.seq - 1)
