"""The movers of the model of a key that has a shard of its own. Each step is one transaction on one database.

Out: A stops the bucket, B goes on to exactly there and begins, A goes on without the key. Back: both stop, whoever is
behind goes on to where the other stands, A takes the key, and B lets go.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.keys_values import (
    AWAY,
    BOTH,
    CATCHING,
    COPYING,
    KEY_ID,
    KEY_KINDS,
    NAMES,
    OTHER_KINDS,
    OWNED,
    Copy,
    Node,
    Op,
    Part,
    Place,
    State,
    Step,
    less,
    next_entry,
    put_node,
)
from model.search import Move

KEY_PART, OTHERS_PART = "key", "others"


class Mover:
    """Decides ops, as workers do, and brings the key to the shard where it is wanted."""

    def __init__(self, ops: tuple[Op, ...], off: frozenset[str]):
        self.ops, self.off = ops, off

    def moves(self, s: State) -> Iterator[Move]:
        yield from self._wanted(s)
        yield from self._replayed(s)
        yield from self._copied(s)
        yield from self._followed(s)
        yield from self._levelled(s)
        for step in self._steps(s):
            if (after := self._done(s, step)) is not None:
                yield Move(f"{NAMES[step.shard]}: {step.name}", after)
                if s.left.late and s.seen is None:
                    seen = s._replace(seen=step, left=less(s, "late"))
                    yield Move(f"a late mover sees: {NAMES[step.shard]} may {step.name}", seen, work=False)
        if s.seen is not None:
            let_go = s._replace(seen=None)
            after = self._done(let_go, s.seen)
            yield Move(f"the late mover: {NAMES[s.seen.shard]} {s.seen.name}", let_go if after is None else after)

    # one entry of the log ------------------------------------------------------------------------------------

    def decided(self, s: State, n: int, parts: tuple[str, ...]) -> Iterator[Move]:
        """Let a shard take the next entry for some of its parts, which stand at one watermark."""
        node = s.shards[n].primary
        part: Part = getattr(node, parts[-1])
        found = next_entry(s.log, part.mark)
        if found is None:
            return
        place, op = found
        name = f"{NAMES[n]}, {' and '.join(parts)}: op {op}"
        if place <= s.trimmed:
            yield Move(name, s._replace(fault=f"{NAMES[n]} needs op {op}, which is trimmed"))
        elif op > part.seen + 1:
            yield Move(name, s._replace(fault=f"{NAMES[n]} calls op {part.seen + 1} lost"))
        else:
            for how, after in self._outcomes(node, parts, op):
                passed = {one: self._passed(getattr(after, one), one, place, op) for one in parts}
                yield Move(f"{name} {how}", put_node(s, n, after._replace(**passed)))

    def _passed(self, part: Part, name: str, place: Place, op: int) -> Part:
        own = self.ops[op - 1].kind in (KEY_KINDS if name == KEY_PART else OTHER_KINDS)
        counts = own or self._on("all count")
        return part._replace(mark=place, seen=max(part.seen, op) if counts else part.seen)

    def _outcomes(self, node: Node, parts: tuple[str, ...], op: int) -> Iterator[tuple[str, Node]]:
        kind, refusable = self.ops[op - 1]
        if op <= getattr(node, parts[-1]).seen:
            yield "was seen before", node
            return
        if kind == BOTH and len(parts) == 1 and self._on("groups refused"):
            dropped = node._replace(others=node.others._replace(dropped=(*node.others.dropped, op)))
            yield "is passed, or refused for good", dropped if parts == (OTHERS_PART,) else node
            return
        touched = self._touched(node, parts, kind)
        if any(getattr(node, one).aside for one in touched):
            yield "is parked", _with(node, touched, aside=op)
            return
        yield "is applied" if touched else "is passed", _with(node, touched, rows=op)
        if refusable and touched:
            yield "is set aside", _with(node, touched, aside=op)

    def _touched(self, node: Node, parts: tuple[str, ...], kind: str) -> tuple[str, ...]:
        """Return the parts that an op touches: those of its rows, and of the key's that are still, or again, here."""
        of_key = kind in KEY_KINDS and (kind != KEY_ID or OTHERS_PART in parts or self._on("both read"))
        touched = (KEY_PART,) * (of_key and KEY_PART in parts)
        touched += (OTHERS_PART,) * (kind in OTHER_KINDS and OTHERS_PART in parts)
        if kind == KEY_ID and KEY_PART not in parts:
            stale = node.key.rows if not self._on("own rows") else node.piece == AWAY and node.key.aside
            touched += (KEY_PART,) * bool(stale)
        return touched

    # the copy, and the log behind it -------------------------------------------------------------------------

    def _wanted(self, s: State) -> Iterator[Move]:
        """Let an operator want the key elsewhere, and order it; or give the move up before the target has begun."""
        for n in (0, 1):
            source, target = s.shards[n], s.shards[1 - n]
            here, there = source.primary, target.primary
            settled = here.applies_key and there.piece == AWAY and not there.stopped
            under_way = here.move and here.move % 2 == n
            if s.want == n and settled and not under_way and s.left.backs:
                elsewhere = s._replace(want=1 - n, left=less(s, "backs"))
                yield Move(f"an operator wants the key on {NAMES[1 - n]}", elsewhere, work=False)
            parted = target.all_say(AWAY) or not self._on("parted replicated")
            parted &= all(x.move in (0, here.move) for x in source) or not self._on("one row")
            if s.want != n and settled and parted and not under_way and not self._group_held(here):
                ordered = put_node(s, n, here._replace(move=2 * (s.begun + 1) + n))
                yield Move(f"{NAMES[n]} has the row of a move", ordered._replace(begun=s.begun + 1))
            if s.want != n and under_way and there.piece in (COPYING, CATCHING) and s.left.given_up:
                given_up = s._replace(want=n, left=less(s, "given_up"))
                yield Move("an operator gives the move up", given_up, work=False)

    def _replayed(self, s: State) -> Iterator[Move]:
        """Let an operator replay a group of the key and another one that is set aside; not while the key moves."""
        a = s.shards[0].primary
        if a.applies_key and not a.move % 2 == 0 < a.move and self._group_held(a):
            parts = {one: _replayed(getattr(a, one)) for one in (KEY_PART, OTHERS_PART)}
            yield Move("an operator replays the group", put_node(s, 0, a._replace(**parts)))

    def _copied(self, s: State) -> Iterator[Move]:
        for n in (0, 1):
            source, target = s.shards[n], s.shards[1 - n].primary
            here = source.primary
            move = here.move
            if here.piece == OWNED and move and move % 2 == n and target.piece == COPYING and target.move == move:
                everywhere = source.replica.key == here.key and source.replica.move == move
                if s.copy is None and everywhere:
                    yield Move(f"a snapshot of {NAMES[n]} at {here.key.mark}", s._replace(copy=Copy(move, here.key)))
        if s.copy is not None:
            n, let_go = 1 - s.copy.move % 2, s._replace(copy=None)
            target = s.shards[n].primary
            if target.piece == COPYING and target.move == s.copy.move:
                part = s.copy.part if self._on("producers along") else s.copy.part._replace(seen=0)
                yield Move(f"{NAMES[n]} has the copy", put_node(let_go, n, target._replace(piece=CATCHING, key=part)))
            else:
                yield Move("the copy is void", let_go)

    def _followed(self, s: State) -> Iterator[Move]:
        """Let the target decide what every node of the source has decided, and as the source has."""
        for n in (0, 1):
            source, target = s.shards[n], s.shards[1 - n].primary
            if target.piece != CATCHING or target.move != source.primary.move or source.primary.piece != OWNED:
                continue
            key, low = target.key, min(node.key.mark for node in source)
            found = next_entry(s.log, key.mark)
            if key.mark >= low:
                continue
            if found is None or found[0][0] != key.mark[0] or found[0] > low:
                yield Move(f"{NAMES[1 - n]} copies anew", put_node(s, 1 - n, target._replace(piece=COPYING)))
                continue
            place, op = found
            if place <= s.trimmed:
                yield Move("follow", s._replace(fault=f"{NAMES[1 - n]} needs op {op}, which is trimmed"))
                continue
            theirs = source.primary.key
            if op > key.seen:
                for field in ("rows", "aside", "dropped"):
                    if op in getattr(theirs, field):
                        key = key._replace(**{field: (*getattr(key, field), op)})
            after = target._replace(key=self._passed(key, KEY_PART, place, op))
            yield Move(f"{NAMES[1 - n]} follows with op {op}", put_node(s, 1 - n, after))

    def _levelled(self, s: State) -> Iterator[Move]:
        """On the way back, let whoever is behind go on to where the other stands; both have stopped."""
        a, b = (shard.primary for shard in s.shards)
        if not (a.stopped and b.stopped and a.move == b.move and a.move % 2 and a.piece != OWNED):
            return
        every = [shard if self._on("level replicated") else shard[:1] for shard in s.shards]
        if not all(node.stopped and node.move == a.move for nodes in every for node in nodes):
            return
        here = [_passed_by(node.others, self._on("sequences level")) for node in every[0]]
        there = [_passed_by(node.key, self._on("sequences level")) for node in every[1]]
        if here[0] < min(there):
            yield from self.decided(s, 0, (OTHERS_PART,))
        elif there[0] < min(here):
            yield from self.decided(s, 1, (KEY_PART,))

    # steps: what a mover has looked for on one shard, and does on the other ----------------------------------

    def _steps(self, s: State) -> Iterator[Step]:
        for n in (0, 1):
            source, target = s.shards[n], s.shards[1 - n]
            here, there, move = source.primary, target.primary, source.primary.move
            if there.piece in (COPYING, CATCHING) and all(node.move != there.move for node in source):
                yield Step("let the move go", 1 - n, there.move)
            if here.piece == AWAY and here.key.rows and target.all_say(OWNED):
                yield Step("delete the rows", n, move)
            if not move or move % 2 != n or here.piece == AWAY:
                continue
            rule = "begun replicated" if n == 0 else "merged replicated"
            if target.all_say(OWNED, move) or (there.piece == OWNED and there.move == move and not self._on(rule)):
                yield Step("part", n, move)
            if there.piece == OWNED:
                continue
            given_up = there.piece == AWAY and there.move == move and self._on("given up for good")
            if s.want == n or given_up or self._group_held(here):
                yield Step("forget the move", n, move)
                yield Step("let the move go", 1 - n, move)
                nobody = all(x.piece == AWAY or x.move != move for x in target)
                if nobody or (there.piece == AWAY and not self._on("given up everywhere")):
                    yield Step("resume", n, move)
            if s.want == n or given_up:
                continue
            if there.piece == AWAY:
                yield Step("say copying", 1 - n, move, min(node.key.mark for node in source))
            if target.all_say(CATCHING, move):
                yield Step("stop", n, move)
            if here.stopped and n == 1:
                yield Step("stop the bucket", 0, move)
            stopped = all(x.stopped and x.move == move and x.key.mark == here.key.mark for x in source)
            if here.stopped and (stopped or not self._on("stopped replicated")):
                yield Step("begin", 1 - n, move, here.key.mark)

    def _done(self, s: State, step: Step) -> State | None:
        """Return the state after a step; None where the shard is no more as the step needs it."""
        name, n, move, place = step
        s = s._replace(seen=None) if s.seen == step else s
        node = s.shards[n].primary
        same = node.move == move or not self._on("same move")
        bucket = n == 0  # what stops, or has to be level, here: the bucket, or the key alone
        after = None
        if name == "say copying" and node.piece == AWAY and (node.move != move or not self._on("given up for good")):
            after = node._replace(piece=COPYING, move=move, key=node.key._replace(mark=place))
        elif name == "delete the rows" and ((node.piece == AWAY and same) or not self._on("clean fenced")):
            after = node._replace(key=node.key._replace(rows=())) if node.key.rows else None
        elif not same:
            return None
        elif name in ("stop", "stop the bucket") and self._may_stop(node, name):
            after = node._replace(stopped=True)
        elif name == "begin" and node.piece == CATCHING:
            level = node.key.mark == place or not self._on("exactly level")
            if bucket and self._on("both stop"):
                level = level and node.stopped and node.others.mark == place
                level = level and (node.others.seen == node.key.seen or not self._on("sequences level"))
            other = s.shards[1 - n].primary.key
            if node.key[1:] != other[1:]:
                s = s._replace(fault=f"{NAMES[n]} begins with {node.key[1:]}, and {NAMES[1 - n]} had {other[1:]}")
            after = node._replace(piece=OWNED, stopped=False) if level else None
        elif name == "part" and node.stopped and node.piece == OWNED:
            aside = () if self._on("aside parts") else node.key.aside
            after = node._replace(piece=AWAY, stopped=False, key=node.key._replace(aside=aside))
        elif name == "forget the move" and node.applies_key:
            after = node._replace(move=0)
        elif name == "let the move go" and node.piece in (COPYING, CATCHING):
            after = node._replace(piece=AWAY, stopped=False, key=node.key._replace(aside=()))
        elif name == "resume" and node.stopped and node.piece == OWNED:
            after = node._replace(stopped=False, move=0)
        return None if after is None else put_node(s, n, after)

    def _may_stop(self, node: Node, name: str) -> bool:
        if name == "stop":
            return node.applies_key and not self._group_held(node)
        return node.piece == CATCHING and not node.stopped and self._on("both stop")

    def _group_held(self, node: Node) -> bool:
        return self._on("groups held") and any(self.ops[op - 1].kind == BOTH for op in node.key.aside)

    def _on(self, rule: str) -> bool:
        return rule not in self.off


def _with(node: Node, parts: tuple[str, ...], **op: int) -> Node:
    [(field, number)] = op.items()
    changed = {}
    for name in parts:
        part: Part = getattr(node, name)
        changed[name] = part._replace(**{field: (*getattr(part, field), number)})
    return node._replace(**changed)


def _passed_by(part: Part, sequences: bool) -> tuple[Place, int]:
    return part.mark, part.seen * sequences


def _replayed(part: Part) -> Part:
    return part._replace(rows=(*part.rows, *part.aside), aside=())
