"""This process's view of the nodes: what the prober told, kept at hand so that a read asks nobody.

A thread fetches it once a second, shortly after the prober has told it, for as long as somebody looks; under a uWSGI
without threads the reader fetches it himself. Ages are reckoned by Redis's clock and by this machine's steady one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.errors import PipelineError
from pipeline.log.bell import threads_run
from pipeline.log.contract import Log
from pipeline.op import Position
from pipeline.reads.counters import Counters
from pipeline.reads.prober import LOOK_EVERY_S
from pipeline.reads.report import Report, decode

#: How long after the prober is due its word is fetched, s: a look takes a few ms. All of it counts as lag.
AFTER_S = 0.02
#: The shortest time between two fetches, for when the prober is late, s.
LEAST_S = 0.25
#: Without anybody looking for so long, the thread ends, s.
REST_S = 30.0
#: What is older than this is not worth a look before it is fetched anew, s; and how long that may take.
OLD_S, FIRST_S = 3.0, 0.25
_log = logging.getLogger("pipeline.reads")


class View(NamedTuple):
    """What is known of one node.

    Attributes:
        lag_s: an upper bound of its lag now; None where it was never measured, or nothing is told.
        out: whether it is out of rotation, or unfit.
        marks: watermarks that it has passed.
        primary: whether it takes writes; None where that is not known.
        why: why the prober has no news of it; empty where it has.
        doubtful: whether it serves only where no other may: the last look came to nothing, or showed it standing still.
        unfit: whether it was away for too long, and is not to serve, nor to be followed, until it was rebuilt.
    """

    lag_s: float | None = None
    out: bool = False
    marks: Mapping[int, Position] = {}
    primary: bool | None = None
    why: str = ""
    unfit: bool = False
    doubtful: bool = False


class _Told(NamedTuple):
    """One fetch: each node's report with the moment, by this process's clock, to which its lag belongs."""

    at_s: float
    nodes: Mapping[str, tuple[float, Report]]


_NOTHING = View()


class Readings:
    """The view of one process; threads may share it, and a fork starts its own.

    Args:
        counters: what the process counts; goes to Redis in the round trip of a fetch, so it costs none of its own.
    """

    def __init__(self, log: Log, counters: Counters | None = None):
        self._log, self._counters = log, counters or Counters()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._reset()

    def view(self, node: str) -> View:
        """Return what is known of a node; asks nobody as long as somebody looks now and then."""
        now_s = clock.mono_s()
        self._keep_fresh(now_s)
        told = self._told.nodes.get(node)
        if told is None:
            return _NOTHING
        at_s, report = told
        lag_s = None if report.lag_ms is None else report.lag_ms / 1000 + max(0.0, now_s - at_s)
        unfit = report.unfit_since_ms is not None
        doubtful = report.still or bool(report.why)
        return View(lag_s, report.out or unfit, report.marks, report.takes_writes, report.why, unfit, doubtful)

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
        age_s = now_s - self._told.at_s
        if (age_s <= OLD_S and self._thread is not None) or self._closed:
            return
        if not threads_run():
            if min(age_s, now_s - self._tried_at_s) > LOOK_EVERY_S:
                self._fetch()
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
        asked_at_s = self._tried_at_s = clock.mono_s()
        try:
            counted = self._counters.unsent()
            now_ms, found = self._log.health(counted)
            self._counters.sent(counted)
            # the way to Redis counts as age: a bound must not be too small
            nodes = {n: (asked_at_s - (now_ms - at_ms) / 1000, decode(text)) for n, (at_ms, text) in found.items()}
        except (PipelineError, ValueError) as error:
            _log.warning("no news of the nodes: %s", error)
            return LOOK_EVERY_S
        self._told = _Told(asked_at_s, nodes)
        newest_s = max((at_s for at_s, _ in nodes.values()), default=asked_at_s)
        return min(max(newest_s + LOOK_EVERY_S + AFTER_S - clock.mono_s(), LEAST_S), LOOK_EVERY_S)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed, self._fetched = threading.Condition(), threading.Event()
        self._thread = None
        self._told = _Told(-OLD_S, {})
        self._tried_at_s = -OLD_S
        self._looked_at_s = 0.0
