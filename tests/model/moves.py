"""A model of a bucket that moves from one shard to another while ops arrive, databases fail over and movers die.

A mover keeps nothing that counts: each step is one transaction on one database. The log is the move's change stream.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.moves_mover import Mover
from model.moves_values import (
    ACTIVE,
    CATCHING,
    GONE,
    MOVED,
    NAMES,
    RULES,
    Bounds,
    Left,
    Node,
    Op,
    Shard,
    State,
    less,
    put_node,
    put_shard,
    with_ops,
)
from model.search import Model, Move


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    rows = tuple(() for _ in range(1 + max(op.row for op in bounds.ops)))
    parent = not any(op.needs for op in bounds.ops)
    a, b = Node(ACTIVE, rows=rows, parent=parent), Node(GONE, rows=rows, parent=parent)
    bucket, left = _Bucket(bounds, off), Left(*bounds[2:])
    return Model(State((Shard(a, a), Shard(b, b)), left), bucket.moves, bucket.wrong, bucket.done, bucket.describe)


class _Bucket:
    def __init__(self, bounds: Bounds, off: frozenset[str]):
        self.ops, self.open, self.off = bounds.ops, bounds.open, off
        self.mover = Mover(bounds.ops, off)

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return f"A {_shown(s.shards[0].primary)}, B {_shown(s.shards[1].primary)}, the map says {NAMES[s.map]}"

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        if s.fault:
            return s.fault
        nodes = [shard.primary for shard in s.shards]
        if all(node.state == ACTIVE for node in nodes):
            return "two owners"
        if all(node.state in (MOVED, GONE) for shard in s.shards for node in shard[:2]):
            return "nobody owns the bucket, and nobody will"
        for name, node in zip(NAMES, nodes, strict=True):
            if node.state in (ACTIVE, MOVED, CATCHING) and (why := self._wrong_rows(s, node)):
                return f"{name}: {why}"
        return ""

    def _wrong_rows(self, s: State, node: Node) -> str:
        decided = sorted([op for row in node.rows for op in row] + [abs(op) for op in node.aside] + [*node.dropped])
        if decided != list(range(1, max(s.log[: node.mark], default=0) + 1)):
            return f"{decided} are decided, and the watermark is {node.mark} of {s.log}"
        if any(self.ops[op - 1].needs for row in node.rows for op in row) and not node.parent:
            return "a row has no parent"
        for op in node.aside:
            if self.ops[abs(op) - 1] == Op(needs=True):
                return f"op {op} is set aside, though its parent was queued"
            later = [one for one in node.rows[self.ops[abs(op) - 1].row] if one > abs(op)]
            if later:
                return f"op {later[0]} has overtaken op {abs(op)}, which is set aside"
        return next((f"row {row} is out of order" for row in node.rows if list(row) != sorted(row)), "")

    def done(self, s: State) -> bool:
        """Whether the bucket is where it should be, with all that was enqueued, and nothing is left elsewhere."""
        owner, other = s.shards[s.want].primary, s.shards[1 - s.want].primary
        ended = owner.state == ACTIVE and not owner.move and other.state == GONE and not any(other.rows)
        return ended and s.map == s.want and s.sent == len(self.ops) and owner.mark == len(s.log)

    def moves(self, s: State) -> Iterator[Move]:
        yield from self._enqueued(s)
        for n in (0, 1):
            yield from self._applied(s, n)
            yield from self._acted(s, n)
            yield from self.mover.copied(s, n)
            yield from self.mover.followed(s, n)
            yield from self.mover.handed_over(s, n)
            yield from self.mover.cleaned(s, n)
            yield from self.mover.given_up(s, n)
            yield from self.mover.back(s, n)
            yield from self._databases(s, n)
        yield from self._log(s)

    # ops and workers ----------------------------------------------------------------------------------------

    def _enqueued(self, s: State) -> Iterator[Move]:
        if s.sent < len(self.ops):
            yield Move(f"op {s.sent + 1} is appended", s._replace(log=(*s.log, s.sent + 1), sent=s.sent + 1))
        if s.sent and s.left.again:
            twice = s._replace(log=(*s.log, s.sent), left=less(s, "again"))
            yield Move(f"op {s.sent} is appended again", twice, work=False)

    def _applied(self, s: State, n: int) -> Iterator[Move]:
        """Let a worker take the next entry, and decide it under the lock of the watermark."""
        shard, node = s.shards[n], s.shards[n].primary
        at = shard.work or node.mark + 1
        if not shard.work:
            if node.state != ACTIVE or at > len(s.log):
                return
            if at < s.first:
                yield Move(
                    f"{NAMES[n]} needs entry {at}", s._replace(fault=f"entry {at} is trimmed, and never applied")
                )
                return
            if self.open:
                yield Move(f"a worker of {NAMES[n]} begins with entry {at}", put_shard(s, n, shard._replace(work=at)))
                return
        owned = node.state == ACTIVE or not self._on("state locked")
        if not owned or at != node.mark + 1:
            yield Move(f"a worker of {NAMES[n]} lets go", put_shard(s, n, shard._replace(work=0)))
            return
        for how, after in self._decided(node, s.log[at - 1]):
            yield Move(f"{NAMES[n]} {how}", put_shard(s, n, shard._replace(primary=after, work=0)))

    def _decided(self, node: Node, op: int) -> Iterator[tuple[str, Node]]:
        done, (row, refusable, needs) = node._replace(mark=node.mark + 1, seen=max(op, node.seen)), self.ops[op - 1]
        if op <= node.seen:
            yield f"skips op {op}, which it has seen", done
        elif any(one > 0 and self.ops[one - 1].row == row for one in node.aside):
            yield f"parks op {op}", done._replace(aside=(*node.aside, op))
        elif needs and not node.parent:
            if not self._on("early waits"):
                yield f"refuses op {op}, whose parent is queued", done._replace(aside=(*node.aside, op))
        else:
            yield f"applies op {op}", done._replace(rows=with_ops(node.rows, row, (op,)))
            if refusable:
                yield f"sets op {op} aside", done._replace(aside=(*node.aside, op))

    def _acted(self, s: State, n: int) -> Iterator[Move]:
        """Let an operator replay or drop the first op that is set aside; what is parked behind it is applied."""
        node = s.shards[n].primary
        if not s.left.actions or node.state != ACTIVE or not node.aside:
            return
        if node.move and self._on("actions refused"):
            return
        head = abs(node.aside[0])
        row = self.ops[head - 1].row
        freed = tuple(abs(op) for op in node.aside if self.ops[abs(op) - 1].row == row)
        left = node._replace(aside=tuple(op for op in node.aside if abs(op) not in freed))
        s = s._replace(left=less(s, "actions"))
        replayed = left._replace(rows=with_ops(node.rows, row, freed))
        yield Move(f"an operator replays op {head} on {NAMES[n]}", put_node(s, n, replayed), work=False)
        dropped = left._replace(rows=with_ops(node.rows, row, freed[1:]), dropped=(*node.dropped, head))
        yield Move(f"an operator drops op {head} on {NAMES[n]}", put_node(s, n, dropped), work=False)

    # the world -----------------------------------------------------------------------------------------------

    def _databases(self, s: State, n: int) -> Iterator[Move]:
        shard = s.shards[n]
        if not shard.primary.parent:
            yield Move(f"{NAMES[n]} applies the parent", put_node(s, n, shard.primary._replace(parent=True)))
        if shard.replica != shard.primary:
            yield Move(f"{NAMES[n]} replicates", put_shard(s, n, shard._replace(replica=shard.primary)))
            if s.left.failovers:
                cut = tuple(
                    copy._replace(cut=copy.cut or copy.source == n, torn=copy.torn or copy.source != n)
                    for copy in s.copies
                )
                failed = put_shard(s, n, Shard(shard.replica, shard.replica))
                failed = failed._replace(copies=cut, left=less(s, "failovers"))
                yield Move(f"{NAMES[n]} FAILS OVER", failed, work=False)

    def _log(self, s: State) -> Iterator[Move]:
        owner = next((shard for shard in s.shards if shard.primary.state == ACTIVE), None)
        if s.left.forgets and owner is not None and s.log:
            for k in range(s.first, owner.low() + 1):
                lost = tuple(range(k, owner.low() + 1))
                if owner.low() == len(s.log):
                    gone = s._replace(lost=lost, epochs=(len(s.log) + 1,), left=less(s, "forgets"))
                    yield Move(f"REDIS FORGETS entries {lost}", gone, work=False)
        held = [shard for shard in s.shards if any(node.state != GONE for node in (shard.primary, shard.replica))]
        if not self._on("trim both"):
            held = [s.shards[s.map]]
        bound = min((shard.low() for shard in held), default=0)
        if bound >= s.first:
            yield Move(f"the log is trimmed up to {bound}", s._replace(first=bound + 1))

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _shown(node: Node) -> str:
    return f"{node.state} at {node.mark}: rows {node.rows}, aside {node.aside}"
