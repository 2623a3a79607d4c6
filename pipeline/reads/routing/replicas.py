"""Keep the prober's reports at hand, make replicas candidates for a read, and wait until one has what it must see.

Keep the prober's reports at hand in this process, so that a read costs no round trip for a node's health.
A thread fetches the reports once a second, shortly after their publication, for as long as reads go on. Ages are
reckoned by Redis's clock and by this machine's steady one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from threading import BoundedSemaphore

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.buckets import Placement
from pipeline.config.sections import Load
from pipeline.errors import PipelineError, ShardUnavailable, WrongDeployment
from pipeline.events import Event
from pipeline.model import Position
from pipeline.oplog.shared_state import SharedState
from pipeline.per_process import PerProcess
from pipeline.reads import Need
from pipeline.reads.connections import NodeReader, NodeReaders
from pipeline.reads.health import NO_REPORT, NodeState, Report
from pipeline.reads.health.prober import PROBE_EVERY_S
from pipeline.reads.routing import Candidate, Counters, InFlight
from pipeline.shard.nodes import Nodes

#: How long after the next publication is due it is fetched, s: a probe takes a few ms. All of it counts as lag.
AFTER_S = 0.02
#: The time between two fetches while the prober is late, as when a node answers late, s.
LEAST_S = 0.1
#: The thread ends without a read for so long, s.
REST_S = 30.0
#: Reports that were fetched longer ago than this are fetched anew before they are used, s; and how long that may take.
OLD_S, FIRST_REPORT_S = 3.0, 0.25
#: A report further ahead of Redis's clock is of before that was set back, and of unknown age, ms.
SET_BACK_MS = 1_000
logger = logging.getLogger("pipeline.reads")
#: A node that no connection can be made to is skipped for so long: by then the prober knows. One whose connection broke
#: in the middle of a read is skipped just until that read has been tried elsewhere, s.
AWAY_S, BROKEN_S = 2.0, 0.02
_ONE_SHARE, _NOWHERE = Load(), Position(-1, -1)
#: The pause before the second question, and the longest, s. A question costs 0.1 ms; a healthy replica follows within
#: 1 ms.
FIRST_PAUSE_S, MOST_PAUSE_S = 0.0002, 0.005


class _Fetched:
    """The reports that one process has, and the thread that fetches them."""

    def __init__(self) -> None:
        self.changed, self.first = threading.Condition(), threading.Event()
        self.thread: threading.Thread | None = None
        self.reports: Mapping[str, Report] = {}
        self.fetched_at_s = -OLD_S
        self.used_at_s = 0.0
        #: Of each node, the stamp of its newest report, and when that was published, by this process's steady clock.
        self._stamps: dict[str, tuple[int, float]] = {}

    def published_s(self, node: str, at_ms: int, asked_at_s: float, now_ms: int) -> float:
        """Return when a report was published, by this process's steady clock.

        Args:
            node: its name.
            at_ms: the report's stamp, by Redis's clock.
            asked_at_s: when Redis was asked, by this process's clock: the way there counts as age.
            now_ms: the clock of Redis then.
        """
        found_s = asked_at_s - max(0, now_ms - at_ms) / 1000
        before_ms, before_s = self._stamps.get(node, (None, 0.0))
        if before_ms == at_ms:  # the same report is no younger for a clock that was set back
            found_s = min(found_s, before_s)
        self._stamps[node] = at_ms, found_s
        return found_s


class HealthCache:
    """The reports in this process; threads may share it, and a fork starts its own.

    Args:
        log: which has the reports; the process's counts of reads go there in the round trip of a fetch.
        topology: hears of the map with each fetch.
    """

    def __init__(self, log: SharedState, topology: Topology | None = None):
        self._log, self._topology = log, topology
        self._closed = False
        #: What this process counts.
        self.counters = PerProcess(Counters)
        self._here = PerProcess(_Fetched)

    def reports(self) -> Mapping[str, Report]:
        """Return the report of every node; costs no round trip as long as reads go on.

        It is the same object until there is news, so that what follows from it may be kept.
        """
        here = self._here()
        self._keep_fresh(here, clock.mono_s())
        return here.reports

    def report(self, node: str) -> Report:
        """Return the report of a node, an empty one where nothing is published.

        Args:
            node: its name.
        """
        return self.reports().get(node, NO_REPORT)

    def takes_writes(self, node: str) -> bool | None:
        """Return whether a node takes writes; None where that is not known.

        Args:
            node: its name.
        """
        return self.report(node).takes_writes

    def unfit(self, node: str) -> bool:
        """Return whether a node is known to be unfit.

        Args:
            node: its name.
        """
        return bool(self.report(node).unfit)

    def close(self) -> None:
        """Stop the thread, and send what was counted last, if Redis takes it."""
        here = self._here()
        if not self._closed and self.counters().unsent():
            self._fetch(here)
        self._closed = True
        with here.changed:
            here.changed.notify_all()

    def _keep_fresh(self, here: _Fetched, now_s: float) -> None:
        here.used_at_s = now_s
        age_s = now_s - here.fetched_at_s
        if (age_s <= OLD_S and here.thread is not None) or self._closed:
            return
        with here.changed:
            if here.thread is None:
                here.thread = threading.Thread(target=self._run, args=(here,), name="pipeline-health", daemon=True)
                here.first.clear()
                here.thread.start()
        # once: while Redis is away no read waits for it a second time
        if not here.first.is_set():
            here.first.wait(FIRST_REPORT_S)
            here.first.set()

    def _run(self, here: _Fetched) -> None:
        while not self._closed:
            due_s = self._fetch(here)
            here.first.set()
            with here.changed:
                here.changed.wait_for(lambda: self._closed, due_s)
                if clock.mono_s() - here.used_at_s > REST_S:
                    here.thread = None
                    return

    def _follow(self, text: str, asked_at_s: float) -> None:
        """Follow the map that Redis has. One that is missing is none: whoever writes next makes it anew."""
        topology, placement = self._topology, Placement.noted(text)
        if topology is None or placement is None:
            return
        try:
            topology.follow(placement)
        except WrongDeployment as error:
            logger.info(Event("map_unknown", error=error))
            return
        topology.heard_at_s = asked_at_s

    def _fetch(self, here: _Fetched) -> float:
        """Fetch the reports; return in how many seconds the next ones are due."""
        asked_at_s = clock.mono_s()
        counters = self.counters()
        try:
            counted = counters.unsent()
            now_ms, found, placement = self._log.health(counted)
            counters.sent(counted)
            found = {node: told for node, told in found.items() if told[0] - now_ms < SET_BACK_MS}
            published_s = {
                node: here.published_s(node, at_ms, asked_at_s, now_ms) for node, (at_ms, _) in found.items()
            }
            reports = {node: Report.from_json(text, published_s[node]) for node, (_, text) in found.items()}
        except (PipelineError, ValueError) as error:
            logger.warning(Event("reports_unknown", error=error))
            return PROBE_EVERY_S
        here.reports, here.fetched_at_s = reports, asked_at_s
        self._follow(placement, asked_at_s)
        newest_s = max(published_s.values(), default=asked_at_s)
        due_s = newest_s + PROBE_EVERY_S + AFTER_S - clock.mono_s()
        # a prober that is gone need not be asked for so often
        return PROBE_EVERY_S if due_s < -PROBE_EVERY_S else max(due_s, LEAST_S)


class Replicas:
    """The replicas of all shards, as this process knows them. Threads may share it.

    Args:
        nodes: who is a replica, and of what.
        readers: what this process has seen of each node.
        health: what the prober has published of each.
        loads: what each replica is to carry; a node that is not named, such as a former primary, carries one share.
    """

    def __init__(self, nodes: Nodes, readers: NodeReaders, health: HealthCache, loads: Mapping[str, Load]):
        self._nodes, self._readers, self._health, self._loads = nodes, readers, health, loads
        self._skipped_until_s: dict[str, float] = {}

    def candidates(self, shard: str, needs: Mapping[int, Need], in_flight: InFlight) -> list[Candidate]:
        """Return the replicas of a shard that may take reads at all, as they are for this one.

        Args:
            shard: its name.
            needs: what the read must see, by bucket.
            in_flight: the reads of this process that run now.
        """
        now_s, reports, found = clock.mono_s(), self._health.reports(), []
        for node in self._nodes.replica_names(shard):
            load = self._loads.get(node, _ONE_SHARE)
            # one of weight 0 is there to be promoted: a shard that has no others reads from its primary
            if load.weight <= 0:
                continue
            report = reports.get(node, NO_REPORT)
            skipped = self._skipped_until_s.get(node, 0.0) > now_s
            found.append(
                Candidate(
                    node,
                    report.lag_at(now_s),
                    NodeState.OUT if skipped else report.state_at(now_s),
                    in_flight.by_node.get(node, 0),
                    load.weight,
                    True if not needs or self.has(node, needs, report) else None,
                    load.limit,
                )
            )
        return found

    def limit(self, node: str) -> int | None:
        """Return how many reads of this process may run on a replica; None: any number.

        Args:
            node: its name.
        """
        return self._loads.get(node, _ONE_SHARE).limit

    def has(self, node: str, needs: Mapping[int, Need], report: Report) -> bool:
        """Return whether a node is known to have it all, by this thread's own question or by the prober's.

        The report counts if this thread's connection is older than the report, whose age is part of the lag. Then the
        server has not been restarted since, and a server that runs does not go back.

        Args:
            node: its name.
            needs: what the read must see, by bucket.
            report: the node's newest.
        """
        reader = self._readers[node]
        if reader.has(needs):
            return True
        lag_s = report.lag_s
        if lag_s is None or reader.connected_for_s() <= lag_s:
            return False
        return all(need.reached(report.marks.get(bucket, _NOWHERE), {}) for bucket, need in needs.items())

    def passed(self, shard: str) -> dict[int, Position]:
        """Return the watermarks that every node of a shard is known to have passed, with nothing set aside before.

        Args:
            shard: its name.
        """
        reports = self._health.reports()
        names = (self._nodes.primary_name(shard), *self._nodes.replica_names(shard))
        return least_marks(_all_applied(reports.get(name, NO_REPORT)) for name in names)

    def skip(self, node: str, for_s: float = AWAY_S) -> None:
        """Skip a node for a while.

        Args:
            node: its name.
            for_s: how long, s.
        """
        until_s = clock.mono_s() + for_s
        self._skipped_until_s[node] = max(until_s, self._skipped_until_s.get(node, 0.0))


def _all_applied(report: Report) -> Mapping[int, Position]:
    """Return the watermarks before which a node has nothing that is set aside."""
    if not report.holding:
        return report.marks if report.holding is not None else {}
    return {bucket: mark for bucket, mark in report.marks.items() if bucket not in report.holding}


def least_marks(marks: Iterable[Mapping[int, Position]]) -> dict[int, Position]:
    """Return the watermarks that every node has passed; none where there is a node of which nothing is known.

    Args:
        marks: of each node, by bucket.
    """
    least: dict[int, Position] | None = None
    for known in marks:
        if least is None:
            least = dict(known)
        else:
            least = {bucket: min(position, known[bucket]) for bucket, position in least.items() if bucket in known}
    return least or {}


def first_with(
    readers: Sequence[NodeReader],
    needs: Mapping[int, Need],
    deadline: clock.Deadline,
    waiting: BoundedSemaphore,
    replicas: Replicas | None = None,
) -> NodeReader | None:
    """Return the first node that has it all; None when the time is over, after at least one question to each.

    Probes their watermarks at growing intervals. There is no server-side wait: MASTER_GTID_WAIT needs the GTID of a
    commit that another process made, and on a promoted server it blocks until its time-out (docs/notes/04-reads.md).

    Args:
        readers: of the nodes, asked in this order.
        needs: what the read must see, by bucket.
        deadline: when to give up.
        waiting: has a place for each read of this process that may wait; without a place the read does not wait.
        replicas: where a node that does not answer is skipped; None: its error goes through.
    """
    left = list(readers)
    for reader in readers:
        if _has(reader, needs, left, replicas):
            return reader
    if not left or deadline.passed or not waiting.acquire(blocking=False):
        return None
    try:
        return _poll(left, needs, deadline, replicas)
    finally:
        waiting.release()


def _poll(
    left: list[NodeReader], needs: Mapping[int, Need], deadline: clock.Deadline, replicas: Replicas | None
) -> NodeReader | None:
    pause, turn = FIRST_PAUSE_S, 0
    while left and not deadline.passed:
        clock.sleep_s(min(pause, deadline.left_s))
        pause = min(pause * 1.5, MOST_PAUSE_S)
        reader = left[turn % len(left)]
        turn += 1
        if _has(reader, needs, left, replicas):
            return reader
    return None


def _has(reader: NodeReader, needs: Mapping[int, Need], left: list[NodeReader], replicas: Replicas | None) -> bool:
    try:
        return reader.probe(needs)
    except ShardUnavailable:
        if replicas is None:
            raise
        replicas.skip(reader.node)
        left.remove(reader)
        return False
