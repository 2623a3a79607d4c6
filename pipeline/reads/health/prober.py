"""Probe every node of the deployment once a second, and publish the reports for all readers.

There is one prober in a deployment, in whichever worker holds the lease. So a node is probed once a second, however
many processes read from it. A quiet shard without replicas is probed every five seconds: no read has a choice there.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterable

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.oplog.quiet import Quiet
from pipeline.oplog.shared_state import SharedState
from pipeline.reads.health.probe import NodeProbe
from pipeline.reads.health.report import Report, unfit_of
from pipeline.reads.health.shard_health import ShardHealth
from pipeline.shard.nodes import Nodes

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
logger = logging.getLogger("pipeline.prober")


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
