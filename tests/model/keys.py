"""A model of one shard key that has a shard of its own, though its ops stay in the log of its bucket.

Two shards read the one log, as all shards read the reference log. The *bucket's shard* A applies the ops of all other
keys, the *key's shard* B those of the key. An op by id alone names no key: both read it, and one of them has its row.
Whatever the key's move has in common with a bucket's (chunks, outcomes, comparisons) is in `moves.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.keys_mover import KEY_PART, OTHERS_PART, Mover
from model.keys_reads import Reads
from model.keys_values import (
    AWAY,
    BOTH,
    CATCHING,
    COPYING,
    ID_KINDS,
    KEY_KINDS,
    NAMES,
    OTHER_KINDS,
    OWNED,
    RULES,
    Bounds,
    Left,
    Node,
    Part,
    Place,
    Shard,
    State,
    appended,
    less,
    next_entry,
    place_of,
    put_node,
)
from model.search import Model, Move


def model(bounds: Bounds, off: frozenset[str] = frozenset()) -> Model[State]:
    """Return the model with some rules switched off."""
    assert off <= RULES.keys(), off
    a, b = Node(OWNED), Node(AWAY)
    start = State((Shard(a, a), Shard(b, b)), Left(*bounds[1:]))
    key = _Key(bounds, off)
    return Model(start, key.moves, key.wrong, key.done, key.describe)


class _Key:
    def __init__(self, bounds: Bounds, off: frozenset[str]):
        self.ops, self.off = bounds.ops, off
        self.mover, self.reads = Mover(bounds.ops, off), Reads(off)

    def describe(self, s: State) -> str:
        """Return what a state shows to a reader."""
        return ", ".join(f"{name} {shard.primary}" for name, shard in zip(NAMES, s.shards, strict=True))

    # what must never be, and what must come to be ------------------------------------------------------------

    def wrong(self, s: State) -> str:
        """Return what is wrong with a state, whatever comes after it."""
        if s.fault:
            return s.fault
        a, b = (shard.primary for shard in s.shards)
        if a.applies_key and b.applies_key:
            return "two owners of the key"
        if all(node.piece == AWAY for shard in s.shards for node in shard):
            return "nobody has the key, and nobody will"
        if a.applies_key and a.key.mark != a.others.mark:
            return f"A has the key at {a.key.mark}, and the bucket at {a.others.mark}"
        for node, other in ((a, b), (b, a)):
            if node.piece == AWAY and other.piece == OWNED and {*node.key.aside} & {*range(other.key.seen + 1)}:
                return f"{node.key.aside} is set aside by the shard that does not have the key"
        parts = [("A's others", a.others, OTHER_KINDS)]
        parts += [(f"{n}'s key", x.key, KEY_KINDS) for n, x in zip(NAMES, (a, b), strict=True) if x.follows]
        return next(filter(None, (self._wrong_part(*part) for part in parts)), "") or self._wrong_whole(s)

    def _wrong_part(self, name: str, part: Part, kinds: frozenset[str]) -> str:
        decided = [op for op in (*part.rows, *part.aside, *part.dropped) if self.ops[op - 1].kind != BOTH]
        mine = [op for op in range(1, part.seen + 1) if self.ops[op - 1].kind in kinds - {BOTH}]
        if sorted(decided) != mine:
            return f"{name}: {sorted(decided)} are decided, and should be {mine}"
        if list(part.rows) != sorted(set(part.rows)):
            return f"{name}: {part.rows} is doubled, or out of order"
        late = [op for op in part.aside if any(one > op for one in part.rows)]
        return f"{name}: op {late[0]} is set aside and overtaken" if late else ""

    def _wrong_whole(self, s: State) -> str:
        """Return what is wrong between the shards: with a group of both keys, or with what a receipt says."""
        a, key = s.shards[0].primary, self._serving(s)
        for op, (kind, _) in enumerate(self.ops, 1):
            if kind == BOTH and min(a.others.seen, key.seen) >= op and (op in a.others.rows) != (op in key.rows):
                return f"half of the group {op} is applied"
            if kind == BOTH and op in a.others.aside and a.piece == AWAY:
                return f"the group {op} may be replayed, though its keys are on two shards"
            part = key if kind in KEY_KINDS - {BOTH} else a.others
            if self._told(s, op) and op not in (*part.rows, *part.aside, *part.dropped):
                return f"the receipt of op {op} says that it is applied, and it is not"
        return ""

    def _serving(self, s: State) -> Part:
        """Return what readers of the key see."""
        a, b = (shard.primary for shard in s.shards)
        return b.key if b.piece == OWNED and (not b.stopped or a.piece != OWNED) else a.key

    def _told(self, s: State, op: int) -> bool:
        """Whether the receipt of an op says that it is applied: it knows no key, as that of an op by id alone."""
        a, b = (shard.primary for shard in s.shards)
        place = place_of(s.log, op)
        if place is None:
            return False
        if self.ops[op - 1].kind in ID_KINDS and a.piece != OWNED and self._on("receipt both"):
            return a.others.mark >= place and b.key.mark >= place
        of_key = self.ops[op - 1].kind in KEY_KINDS - ID_KINDS - {BOTH}
        return (self._serving(s).mark if of_key else a.others.mark) >= place

    def _told_so_far(self, s: State) -> tuple[Place, tuple[int, ...]]:
        """Return which ops of the key's row receipts call applied, and the place of the last one."""
        told = tuple(op for op in self._serving(s).rows if self.ops[op - 1].kind != BOTH and self._told(s, op))
        return max((place for op in told if (place := place_of(s.log, op))), default=(0, 0)), told

    def done(self, s: State) -> bool:
        """Whether the key is where it should be, all is decided, and nothing is left elsewhere."""
        a = s.shards[0].primary
        owner, other = s.shards[s.want].primary, s.shards[1 - s.want].primary
        settled = owner.piece == OWNED and not owner.stopped and other.piece == AWAY and not a.stopped
        level = all(part.seen == len(self.ops) and not next_entry(s.log, part.mark) for part in (a.others, owner.key))
        return settled and level and not other.key.rows

    def moves(self, s: State) -> Iterator[Move]:
        yield from self._enqueued(s)
        yield from self._bucket_applied(s)
        if s.shards[1].primary.applies_key:
            yield from self.mover.decided(s, 1, (KEY_PART,))
        yield from self.mover.moves(s)
        place, told = self._told_so_far(s)
        yield from self.reads.moves(s, told, place)
        yield from self._databases(s)
        yield from self._log(s)

    # ops and workers -----------------------------------------------------------------------------------------

    def _enqueued(self, s: State) -> Iterator[Move]:
        if s.sent < len(self.ops):
            op = s.sent + 1
            yield Move(f"op {op} is appended", s._replace(log=appended(s.log, s.epoch, (op,)), sent=op))
        if s.sent and s.left.again:
            twice = s._replace(log=appended(s.log, s.epoch, (s.sent,)), left=less(s, "again"))
            yield Move(f"op {s.sent} is appended again", twice, work=False)

    def _bucket_applied(self, s: State) -> Iterator[Move]:
        """Let a worker of A take the next entry: it decides for all keys, or for all but one."""
        a = s.shards[0].primary
        parts = (KEY_PART, OTHERS_PART) if a.applies_key else (OTHERS_PART,)
        waits = a.stopped and self._on("bucket waits")
        if s.worker:
            let_go = s._replace(worker=())
            if self._on("state locked") and (waits or parts != s.worker):
                yield Move("the slow worker of A lets go", let_go)
            else:
                yield from self.mover.decided(let_go, 0, s.worker)
        elif not waits:
            yield from self.mover.decided(s, 0, parts)
            if s.left.slow and next_entry(s.log, a.others.mark):
                slow = s._replace(worker=parts, left=less(s, "slow"))
                yield Move(f"a slow worker of A looks for {' and '.join(parts)}", slow, work=False)

    # the world -----------------------------------------------------------------------------------------------

    def _databases(self, s: State) -> Iterator[Move]:
        for n, shard in enumerate(s.shards):
            if shard.replica != shard.primary:
                replicated = put_node(s, n, shard.primary, replica=shard.primary)
                yield Move(f"{NAMES[n]} replicates", replicated)
                if s.left.failovers:
                    failed = put_node(s, n, shard.replica)
                    # a copy is kept where all nodes of its source have it, and none of its chunks was lost
                    kept = s.copy if s.copy is not None and s.copy.move % 2 == n else None
                    failed = failed._replace(copy=kept, reader=None, left=less(s, "failovers"))
                    yield Move(f"{NAMES[n]} FAILS OVER", failed, work=False)

    def _log(self, s: State) -> Iterator[Move]:
        if s.left.forgets and s.log:
            yield from self._forgotten(s)
        bound = min(self._holding(s, all_shards=self._on("trim both")))
        if s.left.trims and bound > s.trimmed:
            trimmed = s._replace(trimmed=bound, left=less(s, "trims"))
            yield Move(f"the log is trimmed up to {bound}", trimmed, work=False)

    def _forgotten(self, s: State) -> Iterator[Move]:
        """Let Redis forget the end of the log and its epoch; producers send again what not every node has."""
        epoch, ops = s.log[-1]
        if epoch != s.epoch:
            return
        known = self._holding(s, all_shards=self._on("piece counts"), low=False)
        safe = min(self._holding(s, all_shards=self._on("resend both")))
        for kept in range(len(ops)):
            log = (*s.log[:-1], (epoch, ops[:kept])) if kept else s.log[:-1]
            after = 1 + max(place[0] for place in (*known, *((one, 0) for one, _ in log)))
            again = [op for place, op in enumerate(ops[kept:], kept + 1) if (epoch, place) > safe]
            again = sorted({*again})
            gone = s._replace(log=appended(log, after, again), epoch=after, left=less(s, "forgets"))
            yield Move(f"REDIS FORGETS {ops[kept:]}, epoch {after}, again {again}", gone, work=False)

    def _holding(self, s: State, *, all_shards: bool, low: bool = True) -> list[tuple[int, int]]:
        """Return the watermarks of the log on every node, or on those of the bucket's shard."""
        nodes = [(n, node) for n, shard in enumerate(s.shards) for node in shard]
        found = [node.others.mark for n, node in nodes if n == 0]
        states = (COPYING, CATCHING, OWNED) if low else (CATCHING, OWNED)
        if all_shards:
            found += [node.key.mark for _, node in nodes if node.piece in states]
        return found

    def _on(self, rule: str) -> bool:
        return rule not in self.off
