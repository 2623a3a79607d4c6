"""Probe every node once a second, judge each shard's nodes by that, and publish the reports for all readers.

Judge the health of one shard's nodes, probe by probe. Pure: probe results go in, reports come out. Invariant: only a
good probe brings a node back. A node that fails and answers by turns, as with a third of its probes lost, stays out.
Such a node needs many good probes in a row, and each relapse doubles the number. A node that was restarted has failed
once, for some seconds, and is back soon.

There is one prober in a deployment, in whichever worker holds the lease. So a node is probed once a second, however
many processes read from it. A quiet shard without replicas is probed every five seconds: no read has a choice there.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

from pipeline import clock
from pipeline.errors import PipelineError, ShardUnavailable
from pipeline.events import Event
from pipeline.oplog.doorbell import Quiet
from pipeline.oplog.shared_state import SharedState
from pipeline.reads.health import LagMeter, NodeProbe, NoResult, ProbeResult, Report, unfit_of
from pipeline.shard.nodes import Nodes, writable_of

#: A node is stalled if it got, since the probe before, less than this share of what the primary did meanwhile. If it
#: had to be nothing at all, a node that was stopped a moment after a probe would be seen two probes later only.
LEAST_SHARE = 1 / 3
logger = logging.getLogger("pipeline.prober")
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
QUIET_AFTER_PROBES = 600
#: Time between two probes, and how long their results are waited for, s. A node whose last probe failed is waited for
#: a shorter time, so that it delays no report of the others.
PROBE_EVERY_S, RESULT_S, SILENT_RESULT_S = 1.0, 0.5, 0.25
#: How long after a probe an idle primary's heartbeat is renewed, s. A healthy replica has it by the next probe. If a
#: replica was stopped before the heartbeat, that probe shows it; if after, the next one does, 1.5 s later at most.
BEAT_S = 0.5
#: The lease of a prober that has died ends after so long; a live one lengthens it with every probe, ms.
LEASE_MS = 2000
#: A quiet shard of one node is probed at every so many probes of the others.
QUIET_PROBES = 5
#: A report that is not renewed expires after so long, ms.
REPORT_MS = 30_000


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
        if self._quiet >= QUIET_AFTER_PROBES:
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


class Prober:
    """Probes, judges, publishes.

    Args:
        nodes: their addresses.
        shards: those whose nodes are probed.
        log: where reports are published, and where upkeep has noted the unfit nodes.
        out: the nodes that the last prober had taken out of rotation.
        switched: called with the name of a shard that has another primary, once every process may know it.
    """

    def __init__(
        self,
        nodes: Nodes,
        shards: Iterable[str],
        log: SharedState,
        out: Collection[str] = (),
        switched: Callable[[str], object] = lambda shard: None,
    ):
        self._log, self._switched = log, switched
        self._shards = [ShardHealth(shard, nodes.names(shard), out) for shard in shards]
        self._quiet, self._turn = Quiet(log, [health.shard for health in self._shards]), 0
        self._texts: dict[str, str] = {}
        names = [name for health in self._shards for name in nodes.names(health.shard)]
        self._probes = {name: NodeProbe(name, nodes.uri(name), nodes.uri(name, writing=True)) for name in names}
        self._nodes = nodes
        self._new_primaries: list[str] = []

    def probe(self) -> None:
        """Probe every node, but not each time those of quiet shards without replicas, and publish the reports.

        Raises:
            LogUnavailable: nothing could be published.
        """
        self._quiet.look()
        self._turn += 1
        asked = [health for number, health in enumerate(self._shards, self._turn) if not self._rests(number, health)]
        deadline, soon = clock.Deadline(RESULT_S), clock.Deadline(SILENT_RESULT_S)
        before = {health.shard: health.primary for health in asked}
        known, self._new_primaries = self._new_primaries, []
        self._fetch_unfit()
        for health in asked:
            for name in self._nodes.names(health.shard):
                self._probes[name].begin()
        for health in asked:
            results = {
                name: self._probes[name].result(soon if health.silent(name) else deadline)
                for name in self._nodes.names(health.shard)
            }
            health.take(results, deadline.started)
            if health.primary != before[health.shard]:
                self._new_primaries.append(health.shard)
        now_s = clock.mono_s()
        reports = {node: report for health in asked for node, report in health.reports(now_s).items()}
        self._texts |= {node: report.to_json() for node, report in reports.items()}
        self._log.publish_health(self._texts, REPORT_MS)
        # published a probe ago, so all processes have fetched it by now
        for shard in known:
            self._switched(shard)

    def beat(self) -> None:
        """Renew the heartbeats of idle primaries that have replicas: see `BEAT_S`."""
        for health in self._shards:
            if len(self._nodes.names(health.shard)) > 1 and not health.silent(health.primary):
                self._probes[health.primary].beat()

    def _rests(self, number: int, health: ShardHealth) -> bool:
        """Return whether a shard's last report will do: it is quiet, has one node, and that answered."""
        if len(self._nodes.names(health.shard)) > 1 or number % QUIET_PROBES == 0:
            return False
        return self._quiet.is_quiet(health.shard) and health.shard in self._texts and not health.silent(health.primary)

    def _fetch_unfit(self) -> None:
        """Fetch the unfit nodes. A shard that Redis says nothing of keeps what was known: Redis may have forgotten."""
        unfit = self._log.unfit()
        for health in self._shards:
            if health.shard in unfit:
                health.unfit = unfit_of(unfit[health.shard])

    def close(self) -> None:
        """Close all connections."""
        for probe in self._probes.values():
            probe.close()


class Duty:
    """Probes for as long as this process holds the lease.

    Args:
        log: which has the lease, and the last prober's reports.
        engage: returns a prober, given the nodes that are out of rotation; called when the lease has been won.
    """

    def __init__(self, log: SharedState, engage: Callable[[Collection[str]], Prober]):
        self._log, self._engage = log, engage
        self._token = secrets.token_hex(8)
        self._prober: Prober | None = None
        #: When the next probe is due, while a heartbeat is to come before it.
        self._probe_due_s = 0.0

    @property
    def held(self) -> bool:
        """Whether this process is the prober."""
        return self._prober is not None

    def turn(self) -> float:
        """Probe, or beat between two probes, if the lease is ours or free; return the seconds to the next turn.

        Raises no error of the pipeline's own.
        """
        started, (due_s, self._probe_due_s) = clock.mono_s(), (self._probe_due_s, 0.0)
        if self._prober is not None and started < due_s:
            self._prober.beat()
            return max(0.0, due_s - clock.mono_s())
        try:
            if not self._log.hold_lease("probe", self._token, LEASE_MS):
                self._stand_down()
                return PROBE_EVERY_S / 2
            if self._prober is None:
                self._prober = self._engage(self._known_out())
                logger.info(Event("probing"))
            self._prober.probe()
        except PipelineError as error:
            logger.warning(Event("report_not_published", error=error))
        self._probe_due_s = started + PROBE_EVERY_S
        return max(0.0, started + BEAT_S - clock.mono_s())

    def end(self) -> None:
        """Stop, and let another take over at once."""
        if not self.held:
            return
        self._stand_down()
        try:
            self._log.release_lease("probe", self._token)
        except PipelineError as error:
            logger.info(Event("lease_not_released", lease="probe", error=error))

    def _known_out(self) -> list[str]:
        return [node for node, (_, text) in self._log.health()[1].items() if Report.from_json(text).out]

    def _stand_down(self) -> None:
        if self._prober is not None:
            self._prober.close()
            self._prober = None
