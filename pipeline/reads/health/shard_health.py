"""The picture of one shard that the prober draws, look by look. Pure: looks go in, reports come out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from pipeline.errors import ShardUnavailable
from pipeline.reads.health.health import Judge
from pipeline.reads.health.reading import Look, NoReading, Reading, Yardstick
from pipeline.reads.health.report import Report
from pipeline.shard.writable import writable_of

#: A node stands still that has got, since the look before, less than this share of what the primary did meanwhile. With
#: nothing at all, it could have been stopped a moment after a look, and be seen two looks later only.
LEAST_SHARE = 1 / 3
_log = logging.getLogger("pipeline.prober")


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
                _log.warning("node %s is %s: %s", node, *self._verdict(node, look))
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
            _log.error("%s", error)
            return self.primary
        if found is not None and found != self.primary:
            _log.warning("the primary of shard %s is %s now (was %s)", self.shard, found, self.primary)
        return found or self.primary

    def _verdict(self, node: str, look: Look) -> tuple[str, str]:
        judge = self._judges[node]
        if judge.out:
            return "out of rotation", look.why if not isinstance(look, Reading) else ""
        return "back", f"it answers; next time it takes {judge.needed} good looks in a row"
