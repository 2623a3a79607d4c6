"""The picture of one shard that the prober draws, look by look. Pure: looks go in, reports come out.

When a node is taken out for not answering, and when it comes back. Pure: looks go in, a verdict comes out.

Invariant: only a good look brings a node back. A node that keeps failing and answering by turns, as one does of which
a third of the looks time out, takes many good looks in a row, and each relapse doubles what it takes: it stays out. One
that was restarted has failed once, for some seconds, and is back soon.

What the prober tells every reader of a node, through Redis, once a second.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Mapping

import msgspec

from pipeline.errors import ShardUnavailable
from pipeline.model.op import Position
from pipeline.reads.health.probe import Look, NoReading, Reading, Yardstick
from pipeline.shard.nodes import writable_of

#: A node stands still that has got, since the look before, less than this share of what the primary did meanwhile. With
#: nothing at all, it could have been stopped a moment after a look, and be seen two looks later only.
LEAST_SHARE = 1 / 3
logger = logging.getLogger("pipeline.prober")


class Picture:
    """What is known of the nodes of one shard.

    Args:
        shard: also the name of its configured primary.
        nodes: all its nodes.
        out: those that the last prober had taken out.
    """

    def __init__(self, shard: str, nodes: Collection[str], out: Collection[str] = ()):
        self.shard, self.primary = shard, shard
        self._judges = {node: Judge(out=node in out) for node in nodes}
        self._looks: dict[str, Look] = {}
        self._yardstick = Yardstick()
        self._horizons_ms: dict[str, int] = {}
        #: The primary's clock at its last look, if that was a good one.
        self._now_ms: int | None = None
        self._still: set[str] = set()
        #: The nodes that were away for too long, and since when, wall clock in ms.
        self.unfit: Mapping[str, int] = {}

    def draw(self, looks: Mapping[str, Look], asked_at_s: float) -> None:
        """Take one look at every node, all of them asked at that moment of this process's clock."""
        self._looks = dict(looks)
        for node, look in looks.items():
            refused = isinstance(look, NoReading) and look.refused
            if self._judges[node].see(isinstance(look, Reading), refused=refused):
                logger.warning("node %s is %s: %s", node, *self._verdict(node, look))
        self.primary = self._find_primary()
        primary = looks[self.primary]
        if isinstance(primary, Reading) and self._yardstick.add(self.primary, primary, asked_at_s):
            self._horizons_ms.clear()
        now_ms = primary.now_ms if isinstance(primary, Reading) else None
        self._still = {node for node, look in looks.items() if self._stands_still(node, look, now_ms)}
        self._now_ms = now_ms

    def reports(self, at_s: float) -> dict[str, Report]:
        """Return what to tell of each node at a moment of this process's clock."""
        return {node: self._report(node, at_s) for node in self._looks}

    def silent(self, node: str) -> bool:
        """Whether a node gave no answer when it was last looked at."""
        return isinstance(self._looks.get(node), NoReading)

    def _stands_still(self, node: str, look: Look, now_ms: int | None) -> bool:
        """Note a node's horizon; return whether it has hardly moved, though the primary went on."""
        if not isinstance(look, Reading):
            return False
        before, horizon_ms = self._horizons_ms.pop(node, None), self._yardstick.horizon_ms(look)
        if horizon_ms is None:
            return False
        self._horizons_ms[node] = horizon_ms
        if before is None or now_ms is None:
            return False
        # a primary that has just begun to answer again has a longer time behind it, of which nothing is known
        passed_ms = now_ms - self._now_ms if self._now_ms is not None else 0
        # a healthy one has got the heartbeat since, or the writes that made it needless
        return horizon_ms - before <= LEAST_SHARE * passed_ms

    def _report(self, node: str, at_s: float) -> Report:
        look, out, unfit = self._looks[node], self._judges[node].out, self.unfit.get(node)
        lag_ms = self._lag_ms(node, at_s)
        if not isinstance(look, Reading):
            return Report(lag_ms, out, why=look.why, unfit_since_ms=unfit)
        marks = {bucket: position for bucket, position in look.marks.items() if position.epoch > 0}
        # nobody is to follow an unfit node, whatever it says of itself
        takes_writes = look.takes_writes if unfit is None else None
        return Report(lag_ms, out, takes_writes, marks=marks, unfit_since_ms=unfit, still=node in self._still)

    def _lag_ms(self, node: str, at_s: float) -> int | None:
        horizon_ms = self._horizons_ms.get(node)
        if horizon_ms is None:
            return None
        return max(0, round(self._yardstick.now_ms(at_s) - horizon_ms))

    def _find_primary(self) -> str:
        told = {
            node: look.takes_writes if isinstance(look, Reading) and node not in self.unfit else None
            for node, look in self._looks.items()
        }
        try:
            found = writable_of(self.shard, told)
        except ShardUnavailable as error:
            logger.error("%s", error)
            return self.primary
        if found is not None and found != self.primary:
            logger.warning("the primary of shard %s is %s now (was %s)", self.shard, found, self.primary)
        return found or self.primary

    def _verdict(self, node: str, look: Look) -> tuple[str, str]:
        judge = self._judges[node]
        if judge.out:
            return "out of rotation", look.why if not isinstance(look, Reading) else ""
        return "back", f"it answers; next time it takes {judge.needed} good looks in a row"


#: Missing looks in a row that take a node out: one alone may be a lost packet.
BAD_LOOKS = 2
#: Good looks in a row that bring it back the first time, and at the most.
GOOD_LOOKS, MOST_GOOD_LOOKS = 5, 40
#: A silence of fewer looks than that may be lost packets, and there will be more: then it takes so many good looks.
#: Of nodes that begin to lose 30 % of their looks, one in ten thousand changes twice within a minute.
SHORT_LOOKS, AFTER_SHORT_LOOKS = 8, 30
#: A node that has begun to answer again more often than that in the last minute is unsteady.
STEADY_RETURNS, MINUTE_LOOKS = 2, 60
#: Looks without a relapse after which one relapse is forgotten: ten minutes, a look a second.
QUIET_LOOKS = 600


class Judge:
    """Judges one node.

    Args:
        out: the verdict of the judge before this one, which died.
    """

    __slots__ = ("_bad", "_good", "_looks", "_new", "_quiet", "_refused", "_returns", "_short", "needed", "out")

    def __init__(self, *, out: bool = False) -> None:
        #: Whether the node is out of rotation.
        self.out = out
        #: Good looks in a row that the next return takes.
        self.needed = GOOD_LOOKS
        self._bad = self._good = self._quiet = self._looks = 0
        #: Whether it said no in its last failure, and whether that was short, without a word.
        self._refused = self._short = False
        #: It has never answered yet: then it is being set up, and cannot flap.
        self._new = not out
        #: The looks at which it answered after one that it had not.
        self._returns: deque[int] = deque(maxlen=STEADY_RETURNS + 1)

    def see(self, good: bool, *, refused: bool = False) -> bool:
        """Take one look; return whether it changed the verdict.

        Args:
            refused: it was told to be down, which a lost packet does not tell.
        """
        before = self.out
        self._looks += 1
        if good:
            self._see_good()
        else:
            self._see_bad(refused)
        return self.out != before

    def _see_good(self) -> None:
        if self._new:
            self._new, self.out, self._bad = False, False, 0
        if self._bad:
            self._returns.append(self._looks)
            self._short = self._bad < SHORT_LOOKS and not self._refused
        self._bad = 0
        self._refused = False
        if self.out:
            self._good += 1
            if self._good >= self._needed_now:
                self.out, self._quiet = False, 0
                self.needed = min(2 * self.needed, MOST_GOOD_LOOKS)
            return
        self._quiet += 1
        if self._quiet >= QUIET_LOOKS:
            self._quiet = 0
            self.needed = max(self.needed // 2, GOOD_LOOKS)

    @property
    def _needed_now(self) -> int:
        if self._unsteady:
            return MOST_GOOD_LOOKS
        return max(self.needed, AFTER_SHORT_LOOKS) if self._short else self.needed

    @property
    def _unsteady(self) -> bool:
        return len(self._returns) > STEADY_RETURNS and self._looks - self._returns[0] < MINUTE_LOOKS

    def _see_bad(self, refused: bool) -> None:
        self._good = 0
        self._refused |= refused
        self._bad += 1
        if self._bad >= BAD_LOOKS:
            self.out = True


class Report(msgspec.Struct, frozen=True):
    """One node.

    Attributes:
        lag_ms: an upper bound of its lag when this was published; None: it has never been measured.
        out: whether the health judge has taken it out.
        takes_writes: whether it is a primary; None where its engine cannot tell, or it does not answer.
        why: why the last look came to nothing; empty after a good one.
        still: since the look before it has got nothing, though the primary went on: its link or its replication stands.
        unfit_since_ms: when it was last with its primary, if it was away for too long since; it takes no part then.
        marks: its watermarks; empty where the last look came to nothing, since the node may be a rebuilt one.
    """

    lag_ms: int | None = None
    out: bool = False
    takes_writes: bool | None = None
    why: str = ""
    marks: dict[int, Position] = msgspec.field(default_factory=dict)
    unfit_since_ms: int | None = None
    still: bool = False


_decoder = msgspec.json.Decoder(Report)


def encode(report: Report) -> str:
    """Return a report as JSON."""
    return msgspec.json.encode(report).decode()


def decode(text: str) -> Report:
    """Read what `encode` wrote; a field that this version does not know is passed over."""
    return _decoder.decode(text)
