"""Judge the health of one shard's nodes, probe by probe. Pure: probe results go in, reports come out.

Invariant: only a good probe brings a node back. A node that fails and answers by turns, as with a third of its probes
lost, stays out. It needs many good probes in a row, and each relapse doubles the number. A node that was restarted has
failed once, for some seconds, and is back soon.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Mapping

from pipeline.errors import ShardUnavailable
from pipeline.events import Event
from pipeline.reads.health.probe import LagMeter, NoResult, ProbeResult
from pipeline.reads.health.report import Report
from pipeline.shard.nodes import writable_of

#: A node is stalled if it got, since the probe before, less than this share of what the primary did meanwhile. If it
#: had to be nothing at all, a node that was stopped a moment after a probe would be seen two probes later only.
LEAST_SHARE = 1 / 3
logger = logging.getLogger("pipeline.prober")


class ShardHealth:
    """The health of one shard's nodes.

    Args:
        shard: also the name of its configured primary.
        nodes: all its nodes.
        out: those that the last prober had taken out of rotation.
    """

    def __init__(self, shard: str, nodes: Collection[str], out: Collection[str] = ()):
        self.shard, self.primary = shard, shard
        self._judges = {node: FlapJudge(out=node in out) for node in nodes}
        self._results: dict[str, ProbeResult | NoResult] = {}
        self._meter = LagMeter()
        self._horizons_ms: dict[str, int] = {}
        #: The primary's clock at its last probe, if that was a good one.
        self._now_ms: int | None = None
        self._stalled: set[str] = set()
        #: The unfit nodes, and why.
        self.unfit: Mapping[str, str] = {}

    def take(self, results: Mapping[str, ProbeResult | NoResult], asked_at_s: float) -> None:
        """Take one probe of every node, all begun at the same moment.

        Args:
            results: by node.
            asked_at_s: that moment, by this process's clock.
        """
        self._results = dict(results)
        for node, result in results.items():
            refused = isinstance(result, NoResult) and result.refused
            if self._judges[node].see(isinstance(result, ProbeResult), refused=refused):
                out = self._judges[node].out
                logger.warning(
                    Event("node_out" if out else "node_back", shard=self.shard, node=node, why=self._why(node, result))
                )
        self.primary = self._find_primary()
        primary = results[self.primary]
        if isinstance(primary, ProbeResult) and self._meter.add(self.primary, primary, asked_at_s):
            self._horizons_ms.clear()
        now_ms = primary.now_ms if isinstance(primary, ProbeResult) else None
        self._stalled = {node for node, result in results.items() if self._measure(node, result, now_ms)}
        self._now_ms = now_ms

    def reports(self, at_s: float) -> dict[str, Report]:
        """Return the report of each node.

        Args:
            at_s: the moment, by this process's clock, at which the lag is to hold.
        """
        return {node: self._report(node, at_s) for node in self._results}

    def silent(self, node: str) -> bool:
        """Return whether the last probe of a node failed.

        Args:
            node: its name.
        """
        return isinstance(self._results.get(node), NoResult)

    def _measure(self, node: str, result: ProbeResult | NoResult, now_ms: int | None) -> bool:
        """Note a node's horizon; return whether it has hardly moved, though the primary went on."""
        if isinstance(result, NoResult):
            return False
        before, horizon_ms = self._horizons_ms.pop(node, None), self._meter.horizon_ms(result)
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
        result, out, unfit = self._results[node], self._judges[node].out, self.unfit.get(node, "")
        lag_ms = self._lag_ms(node, at_s)
        if isinstance(result, NoResult):
            return Report(lag_ms, out, why=result.why, unfit=unfit)
        marks = {bucket: position for bucket, position in result.marks.items() if position.epoch > 0}
        # an unfit node is never followed, whatever it says of itself
        takes_writes = result.takes_writes if not unfit else None
        stalled, most_bytes = node in self._stalled, result.statement_bytes
        return Report(lag_ms, out, takes_writes, "", marks, unfit, stalled, most_bytes, result.holding)

    def _lag_ms(self, node: str, at_s: float) -> int | None:
        horizon_ms = self._horizons_ms.get(node)
        if horizon_ms is None:
            return None
        return max(0, round(self._meter.now_ms(at_s) - horizon_ms))

    def _find_primary(self) -> str:
        takes_writes = {
            node: result.takes_writes if isinstance(result, ProbeResult) and node not in self.unfit else None
            for node, result in self._results.items()
        }
        try:
            found = writable_of(self.shard, takes_writes)
        except ShardUnavailable as error:
            logger.error(Event("primary_unclear", shard=self.shard, error=error))
            return self.primary
        if found is not None and found != self.primary:
            logger.warning(Event("primary_changed", shard=self.shard, node=found, before=self.primary))
        return found or self.primary

    def _why(self, node: str, result: ProbeResult | NoResult) -> str:
        judge = self._judges[node]
        if judge.out:
            return result.why if isinstance(result, NoResult) else ""
        return f"it answers; next time it takes {judge.needed} good probes in a row"


#: Failed probes in a row that take a node out: one alone may be a lost packet.
BAD_PROBES = 2
#: How a node was silent -> the good probes in a row that bring it back.
#: *long*: 8 failed probes or more, or it said no: it was restarted. Each relapse doubles the number, up to the last.
#: *short*: fewer, so perhaps lost packets, with more to come.
#: *unsteady*: it began to answer again more than twice within the last minute.
#: Of nodes that begin to lose 30 % of their probes, one in ten thousand changes twice within a minute.
GOOD_PROBES = {"long": 5, "short": 30, "unsteady": 40}
LONG_PROBES, STEADY_RETURNS, MINUTE_PROBES = 8, 2, 60
#: Probes without a relapse after which one relapse is forgotten: ten minutes, a probe a second.
QUIET_PROBES = 600


class FlapJudge:
    """Judges whether one node is in rotation.

    Args:
        out: the verdict of the last prober's judge.
    """

    __slots__ = ("_bad", "_good", "_new", "_probes", "_quiet", "_refused", "_returns", "_short", "needed", "out")

    def __init__(self, *, out: bool = False) -> None:
        #: Whether the node is out of rotation.
        self.out = out
        #: Good probes in a row that the next return takes after a long silence.
        self.needed = GOOD_PROBES["long"]
        self._bad = self._good = self._quiet = self._probes = 0
        #: Whether it said no in its last failure, and whether that was a short silence.
        self._refused = self._short = False
        #: It has never answered yet: then it is being set up, and cannot flap.
        self._new = not out
        #: The probes at which it answered after a failed one.
        self._returns: deque[int] = deque(maxlen=STEADY_RETURNS + 1)

    def see(self, good: bool, *, refused: bool = False) -> bool:
        """Take one probe; return whether it changed the verdict.

        Args:
            good: whether the node answered.
            refused: whether the node said no, which a lost packet does not.
        """
        before = self.out
        self._probes += 1
        if good:
            self._see_good()
        else:
            self._see_bad(refused)
        return self.out != before

    def _see_good(self) -> None:
        if self._new:
            self._new, self.out, self._bad = False, False, 0
        if self._bad:
            self._returns.append(self._probes)
            self._short = self._bad < LONG_PROBES and not self._refused
        self._bad = 0
        self._refused = False
        if self.out:
            self._good += 1
            if self._good >= max(self.needed, GOOD_PROBES[self._silence]):
                self.out, self._quiet = False, 0
                self.needed = min(2 * self.needed, GOOD_PROBES["unsteady"])
            return
        self._quiet += 1
        if self._quiet >= QUIET_PROBES:
            self._quiet = 0
            self.needed = max(self.needed // 2, GOOD_PROBES["long"])

    @property
    def _silence(self) -> str:
        if len(self._returns) > STEADY_RETURNS and self._probes - self._returns[0] < MINUTE_PROBES:
            return "unsteady"
        return "short" if self._short else "long"

    def _see_bad(self, refused: bool) -> None:
        self._good = 0
        self._refused |= refused
        self._bad += 1
        if self._bad >= BAD_PROBES:
            self.out = True
