"""The movers of the model of moves. A mover keeps nothing that counts: each step is one transaction on one database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model.moves_values import (
    ACTIVE,
    CATCHING,
    COPYING,
    GONE,
    MOVED,
    NAMES,
    Copy,
    Node,
    Op,
    State,
    less,
    put_node,
    with_ops,
)
from model.search import Move


class Mover:
    """Moves the bucket from shard n to the other, for as long as it is wanted there."""

    def __init__(self, ops: tuple[Op, ...], off: frozenset[str]):
        self.ops, self.off = ops, off

    # the copy: from shard n to the other ---------------------------------------------------------------------

    def copied(self, s: State, n: int) -> Iterator[Move]:
        source, target = s.shards[n].primary, s.shards[1 - n].primary
        if s.want != n and source.state == ACTIVE and target.state == GONE:
            if not source.move:
                row = 2 * (s.begun + 1) + n
                yield Move(
                    f"{NAMES[n]} has the row of a move",
                    put_node(s, n, source._replace(move=row))._replace(begun=s.begun + 1),
                )
            elif source.move % 2 == n and (self._on("copying first") or s.copies):
                yield Move(f"{NAMES[1 - n]} says copying", put_node(s, 1 - n, self._copying(s, n)))
        yield from self._snapshot(s, n)
        for copy in s.copies:
            if copy.source == n:
                yield from self._written(s, n, copy)

    def _copying(self, s: State, n: int) -> Node:
        target = s.shards[1 - n].primary
        copy = 0 if self._on("copying first") else s.copies[-1].number
        return target._replace(
            state=COPYING, mark=s.shards[n].low(), move=s.shards[n].primary.move, chunks=0, base=0, copy=copy
        )

    def _snapshot(self, s: State, n: int) -> Iterator[Move]:
        source, target = s.shards[n].primary, s.shards[1 - n].primary
        copying = target.state == COPYING and source.move == target.move
        if not self._on("copying first") and source.state == ACTIVE and target.state == GONE:
            copying = source.move > 0
        if not copying or source.move % 2 != n or source.state not in (ACTIVE, MOVED) or len(s.copies) > 1:
            return
        if s.copies and not s.left.movers:
            return
        number = s.copied + 1
        if target.state == COPYING:
            s = put_node(s, 1 - n, target._replace(copy=number))
        if s.copies:
            s = s._replace(left=less(s, "movers"))
        taken = s._replace(copied=number, copies=(*s.copies, Copy(number, source, n)))
        yield Move(f"mover {number} takes a snapshot of {NAMES[n]} at {source.mark}", taken, work=not s.copies)

    def _written(self, s: State, n: int, copy: Copy) -> Iterator[Move]:
        """Write a chunk of a copy, or make the copy count, or give it up."""
        left = s._replace(copies=tuple(one for one in s.copies if one is not copy))
        source, target = s.shards[n], s.shards[1 - n].primary
        void = copy.cut and not copy.counts and self._on("source stays")
        void = void or (copy.torn and self._on("target stays"))
        mine = target.state == COPYING and (target.copy == copy.number or not self._on("chunks fenced"))
        if target.state == GONE and not self._on("copying first") and len(s.copies) == 1:
            return
        if void or not mine:
            yield Move(f"mover {copy.number} finds its copy void", left)
        elif not copy.counts:
            if source.low() >= copy.node.mark or not self._on("watermark replicated"):
                yield Move(f"mover {copy.number} finds that its snapshot counts", _put_copy(s, copy, counts=True))
        elif copy.renewed < target.chunks and target.base < copy.node.mark:
            yield self._renewed(s, n, copy)
        elif target.chunks < len(target.rows):
            at = target.chunks
            rows = (*target.rows[:at], copy.node.rows[at], *target.rows[at + 1 :])
            node = target._replace(rows=rows, chunks=at + 1, base=copy.node.mark)
            yield Move(f"mover {copy.number} writes chunk {at}", put_node(s, 1 - n, node))
        elif target.parent or not copy.node.parent or not self._on("parents first"):
            node = copy.node
            seen = node.seen if self._on("producers along") else 0
            aside = node.aside if self._on("held along") else tuple(-abs(op) for op in node.aside)
            got = target._replace(state=CATCHING, mark=node.mark, seen=seen, aside=aside, dropped=node.dropped)
            yield Move(f"{NAMES[1 - n]} says catching, at {node.mark}", put_node(left, 1 - n, got._replace(copy=0)))

    def _renewed(self, s: State, n: int, copy: Copy) -> Move:
        """Bring a chunk that an earlier mover has written up to the snapshot; the last one moves the watermark."""
        target, at = s.shards[1 - n].primary, copy.renewed
        between = range(target.base + 1, copy.node.mark + 1)
        if self._on("log whole") and any(one in s.lost or one in s.epochs for one in between):
            return Move(f"mover {copy.number} begins anew", put_node(s, 1 - n, target._replace(chunks=0)))
        here = [s.log[one - 1] for one in between if one not in s.lost]
        if self._on("touched anew") and any(self.ops[op - 1].row == at for op in here):
            target = target._replace(rows=(*target.rows[:at], copy.node.rows[at], *target.rows[at + 1 :]))
        last = at + 1 == target.chunks
        target = target._replace(base=copy.node.mark) if last else target
        after = _put_copy(put_node(s, 1 - n, target), copy, renewed=at + 1)
        return Move(f"mover {copy.number} copies again what ops have touched of chunk {at}", after)

    # the log, followed ---------------------------------------------------------------------------------------

    def followed(self, s: State, n: int) -> Iterator[Move]:
        source, target = s.shards[n].primary, s.shards[1 - n].primary
        if target.state != CATCHING or source.move != target.move or source.state not in (ACTIVE, MOVED):
            return
        to = s.shards[n].low() if self._on("follow replicated") else source.mark
        if target.mark >= to:
            return
        at = target.mark + 1
        if at in s.lost or at in s.epochs:
            if self._on("one epoch"):
                void = target._replace(state=COPYING)
                yield Move(f"{NAMES[1 - n]} cannot follow into another epoch: copying", put_node(s, 1 - n, void))
                return
            at = next((one for one in range(at, len(s.log) + 1) if one not in s.lost), 0)
            if not at:
                return
        if at < s.first:
            yield Move(
                f"{NAMES[1 - n]} needs entry {at}", s._replace(fault=f"entry {at} is trimmed, and never followed")
            )
            return
        op = s.log[at - 1]
        after = self._as_the_source(source, target, op)._replace(mark=at, seen=max(op, target.seen))
        if op > target.seen and self.ops[op - 1].needs and not target.parent and op not in source.aside:
            if not self._on("parents first"):
                yield Move(f"{NAMES[1 - n]} refuses op {op}", s._replace(fault="a move ends, though nothing is wrong"))
            return
        yield Move(f"{NAMES[1 - n]} follows with op {op}", put_node(s, 1 - n, after))

    def _as_the_source(self, source: Node, target: Node, op: int) -> Node:
        if op <= target.seen:
            return target
        if op in source.aside and self._on("follow outcomes"):
            return target._replace(aside=(*target.aside, op if self._on("held along") else -op))
        if op in source.dropped:
            return target._replace(dropped=(*target.dropped, op))
        return target._replace(rows=with_ops(target.rows, self.ops[op - 1].row, (op,)))

    # from one owner to the other -----------------------------------------------------------------------------

    def handed_over(self, s: State, n: int) -> Iterator[Move]:
        source, target = s.shards[n], s.shards[1 - n]
        a, b = source.primary, target.primary
        same = a.move == b.move and a.move % 2 == n and a.move > 0
        held = target.all_say(CATCHING) or (b.state == CATCHING and not self._on("target replicated"))
        if same and held and a.state == ACTIVE and a.mark - b.mark <= 1 and not s.ready:
            yield Move("a mover sees that the source may stop", s._replace(ready=a.move))
        if s.ready and s.ready % 2 == n:
            mine = a.move == s.ready or not self._on("same move")
            if a.state == ACTIVE and mine:
                yield Move(f"{NAMES[n]} stops at {a.mark}", put_node(s, n, a._replace(state=MOVED))._replace(ready=0))
            else:
                yield Move("a mover lets go", s._replace(ready=0))
        stopped = source.all_say(MOVED) or (a.state == MOVED and not self._on("moved replicated"))
        level = b.mark == a.mark or not self._on("exactly level")
        if same and stopped and b.state == CATCHING and level:
            started = put_node(s, 1 - n, b._replace(state=ACTIVE))
            why = (
                ""
                if a.content == b.content
                else f"{NAMES[1 - n]} starts with {b.content[1:]}, and {NAMES[n]} had {a.content[1:]}"
            )
            yield Move(f"{NAMES[1 - n]} is active", started._replace(fault=why))
        if a.state == ACTIVE and s.map != n:
            yield Move(f"the map says {NAMES[n]}", s._replace(map=n))

    def cleaned(self, s: State, n: int) -> Iterator[Move]:
        """Delete the rows of a shard that a bucket has left, and the rows of the move."""
        old, new = s.shards[n].primary, s.shards[1 - n]
        everywhere = new.all_say(ACTIVE) or not self._on("clean replicated")
        parted = old.move // 2 != new.primary.move // 2
        if old.state == MOVED and new.primary.state == ACTIVE and s.map != n and everywhere and (s.want != n or parted):
            yield Move(f"{NAMES[n]} says gone", put_node(s, n, old._replace(state=GONE, move=0)))
        if old.state == GONE and any(old.rows) and s.cleaner < 0:
            yield Move(f"a mover will delete rows of {NAMES[n]}", s._replace(cleaner=n))
        if s.cleaner == n:
            let_go = s._replace(cleaner=-1)
            if old.state == GONE or not self._on("clean fenced"):
                empty = old._replace(rows=tuple(() for _ in old.rows))
                if old.state == GONE:
                    empty = empty._replace(mark=0, seen=0, aside=(), dropped=())
                yield Move(f"rows of {NAMES[n]} are deleted", put_node(let_go, n, empty))
            else:
                yield Move(f"a mover lets rows of {NAMES[n]} be", let_go)
        owner = s.shards[n].primary
        if owner.state == ACTIVE and owner.move and owner.move % 2 != n and new.primary.state == GONE:
            yield Move(f"{NAMES[n]} has no row of a move any more", put_node(s, n, owner._replace(move=0)))

    def given_up(self, s: State, n: int) -> Iterator[Move]:
        """Give a move up; a target whose move is not the source's any more is gone."""
        source, target = s.shards[n].primary, s.shards[1 - n].primary
        under_way = target.state in (COPYING, CATCHING)
        unknown = s.shards[n].replica.move != target.move or not self._on("given up everywhere")
        if under_way and source.state == ACTIVE and source.move != target.move and unknown:
            yield Move(f"{NAMES[1 - n]} says gone", put_node(s, 1 - n, target._replace(state=GONE, move=0)))
        if s.left.given_up and under_way and source.state == ACTIVE and source.move == target.move and not s.giver:
            spent = s._replace(left=less(s, "given_up"))
            if self._on("source gives up"):
                yield Move(f"{NAMES[n]} gives the move up", put_node(spent, n, source._replace(move=0)), work=False)
            else:
                yield Move("an operator sees that the source is active", spent._replace(giver=True), work=False)
        if s.giver and under_way:
            gone = put_node(s, 1 - n, target._replace(state=GONE, move=0))._replace(giver=False)
            yield Move(f"{NAMES[1 - n]} gives the move up", gone)

    def back(self, s: State, n: int) -> Iterator[Move]:
        """Let an operator want the bucket back on shard n, which has stopped and still has its rows."""
        old, new = s.shards[n].primary, s.shards[1 - n]
        if s.left.backs and s.want != n and new.primary.state == ACTIVE:
            wanted = s._replace(want=n, left=less(s, "backs"))
            yield Move(f"an operator wants the bucket back on {NAMES[n]}", wanted, work=False)
        if s.want != n or new.primary.state != ACTIVE or old.state != MOVED:
            return
        unbroken = old.move // 2 == new.primary.move // 2 or not self._on("back unbroken")
        row = 2 * (old.move // 2) + 1 - n
        everywhere = new.all_say(ACTIVE) or not self._on("back replicated")
        if unbroken and everywhere and new.primary.move != row:
            yield Move(f"{NAMES[1 - n]} has the row of a move back", put_node(s, 1 - n, new.primary._replace(move=row)))
        if unbroken and new.primary.move == row:
            yield Move(f"{NAMES[n]} says catching", put_node(s, n, old._replace(state=CATCHING, move=row)))

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _put_copy(s: State, copy: Copy, **changes: Any) -> State:
    return s._replace(copies=tuple(one._replace(**changes) if one is copy else one for one in s.copies))
