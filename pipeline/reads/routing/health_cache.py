"""This process's view of the nodes: what the prober told, kept at hand so that a read asks nobody.

A thread fetches it once a second, shortly after the prober has told it, for as long as somebody looks; under a uWSGI
without threads the reader fetches it himself. Ages are reckoned by Redis's clock and by this machine's steady one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.oplog.contract import SharedState
from pipeline.reads.health.prober import LOOK_EVERY_S
from pipeline.reads.health.shard_health import Report, decode
from pipeline.reads.routing.accounting import Counters
from pipeline.reads.routing.replicas import NOTHING, View

#: How long after the prober is due its word is fetched, s: a look takes a few ms. All of it counts as lag.
AFTER_S = 0.02
#: The time between two fetches while the prober is late, as when a node answers late, s.
LEAST_S = 0.1
#: Without anybody looking for so long, the thread ends, s.
REST_S = 30.0
#: What is older than this is not worth a look before it is fetched anew, s; and how long that may take.
OLD_S, FIRST_S = 3.0, 0.25
logger = logging.getLogger("pipeline.reads")


class Readings:
    """The view of one process; threads may share it, and a fork starts its own.

    Args:
        counters: what the process counts; goes to Redis in the round trip of a fetch, so it costs none of its own.
    """

    def __init__(self, log: SharedState, counters: Counters | None = None):
        self._log, self._counters = log, counters or Counters()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._views: Mapping[str, View] = {}
        self._reset()

    def views(self) -> Mapping[str, View]:
        """Return what is known of every node; asks nobody as long as somebody looks now and then.

        It is the same object until there is news, so that what follows from it may be kept.
        """
        self._keep_fresh(clock.mono_s())
        return self._views

    def view(self, node: str) -> View:
        """Return what is known of a node."""
        return self.views().get(node, NOTHING)

    def takes_writes(self, node: str) -> bool | None:
        """Return whether a node takes writes, as the prober saw it; None where that is not known."""
        return self.view(node).primary

    def unfit(self, node: str) -> bool:
        """Return whether a node is known to be unfit."""
        return self.view(node).unfit

    def close(self) -> None:
        """Stop the thread, and leave nothing uncounted that Redis would take."""
        if not self._closed and self._counters.unsent():
            self._fetch()
        self._closed = True
        with self._changed:
            self._changed.notify_all()

    def _keep_fresh(self, now_s: float) -> None:
        if self._pid != os.getpid():
            self._reset()
        self._looked_at_s = now_s
        age_s = now_s - self._told_at_s
        if (age_s <= OLD_S and self._thread is not None) or self._closed:
            return
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pipeline-readings", daemon=True)
                self._fetched.clear()
                self._thread.start()
        # once: while Redis is away nobody waits for it a second time
        if not self._fetched.is_set():
            self._fetched.wait(FIRST_S)
            self._fetched.set()

    def _run(self) -> None:
        changed = self._changed
        while not self._closed and self._changed is changed:
            due_s = self._fetch()
            self._fetched.set()
            with changed:
                changed.wait_for(lambda: self._closed, due_s)
                if clock.mono_s() - self._looked_at_s > REST_S:
                    self._thread = None
                    return

    def _fetch(self) -> float:
        """Fetch what was told; return in how many seconds there will be more."""
        asked_at_s = clock.mono_s()
        try:
            counted = self._counters.unsent()
            now_ms, found = self._log.health(counted)
            self._counters.sent(counted)
            # the way to Redis counts as age: a bound must not be too small
            told_s = {node: asked_at_s - max(0, now_ms - at_ms) / 1000 for node, (at_ms, _) in found.items()}
            views = {node: _view(decode(text), told_s[node]) for node, (_, text) in found.items()}
        except (PipelineError, ValueError) as error:
            logger.warning("no news of the nodes: %s", error)
            return LOOK_EVERY_S
        self._views, self._told_at_s = views, asked_at_s
        newest_s = max(told_s.values(), default=asked_at_s)
        due_s = newest_s + LOOK_EVERY_S + AFTER_S - clock.mono_s()
        # of a prober that is gone nobody need ask so often
        return LOOK_EVERY_S if due_s < -LOOK_EVERY_S else max(due_s, LEAST_S)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed, self._fetched = threading.Condition(), threading.Event()
        self._thread = None
        self._views = {}
        self._told_at_s = -OLD_S
        self._looked_at_s = 0.0


def _view(report: Report, told_s: float) -> View:
    """Return what a report says, told at that moment of this process's clock."""
    horizon_s = None if report.lag_ms is None else told_s - report.lag_ms / 1000
    unfit = report.unfit_since_ms is not None
    doubtful = report.still or bool(report.why)
    return View(horizon_s, report.out or unfit, report.marks, report.takes_writes, report.why, unfit, doubtful, told_s)
