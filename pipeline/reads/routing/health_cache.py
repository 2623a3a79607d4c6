"""Keep the prober's reports at hand in this process, so that a read costs no round trip for a node's health.

A thread fetches the reports once a second, shortly after their publication, for as long as reads go on. Ages are
reckoned by Redis's clock and by this machine's steady one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from pipeline import clock
from pipeline.config.bucket_ranges import Placement
from pipeline.config.topology import Topology
from pipeline.errors import PipelineError, WrongDeployment
from pipeline.events import Event
from pipeline.oplog.shared_state import SharedState
from pipeline.per_process import PerProcess
from pipeline.reads.health.prober import PROBE_EVERY_S
from pipeline.reads.health.report import NO_REPORT, Report
from pipeline.reads.routing.accounting import Counters

#: How long after the next publication is due it is fetched, s: a probe takes a few ms. All of it counts as lag.
AFTER_S = 0.02
#: The time between two fetches while the prober is late, as when a node answers late, s.
LEAST_S = 0.1
#: The thread ends without a read for so long, s.
REST_S = 30.0
#: Reports that were fetched longer ago than this are fetched anew before they are used, s; and how long that may take.
OLD_S, FIRST_S = 3.0, 0.25
#: A report further ahead of Redis's clock is of before that was set back, and of unknown age, ms.
SET_BACK_MS = 1_000
logger = logging.getLogger("pipeline.reads")


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
            here.first.wait(FIRST_S)
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
