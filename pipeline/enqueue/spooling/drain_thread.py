"""Drain this process's spooled ops in a thread, as soon as Redis takes them again.

Workers and `pipeline spool drain` do the same for the whole host, whoever comes first.
"""

from __future__ import annotations

import logging
import threading

from pipeline import clock
from pipeline.enqueue.spooling.drain import Drainer
from pipeline.enqueue.spooling.host_news import HostNews
from pipeline.enqueue.spooling.redis_away import RedisAway
from pipeline.errors import PipelineError, WaitTimeout
from pipeline.events import Event
from pipeline.oplog.shared_state import SharedState
from pipeline.spool.store import Spool

#: Pause between two passes while something waits, s; after failures it grows.
PAUSE_S, MOST_S = 0.05, 0.25
#: How long one pass may take, and how long a process that has just begun gets ready before its first, s.
PASS_S, COLD_S = 10.0, 2.0
#: Kept ops are looked after at this interval, s: whether Redis has lost them, whether every node has them.
TEND_S = 2.0
logger = logging.getLogger("pipeline.spool")


class DrainThread:
    """Drains for this process, in a thread that starts when it is first needed. A fork makes its own.

    Args:
        spool: of this host.
        drainer: sends what is in it.
        away: is closed once Redis takes ops again.
        log: is told what waits.
    """

    def __init__(self, spool: Spool, drainer: Drainer, away: RedisAway, log: SharedState):
        self.drainer, self._spool, self._away, self._ended = drainer, spool, away, False
        self._log, self._news = log, HostNews(spool, "web")
        self._called, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Note that something waits; never raises."""
        self._start()
        self._called.set()

    def wait_empty(self, timeout_s: float) -> None:
        """Wait until nothing waits in the spool.

        Raises:
            WaitTimeout: something still does.
        """
        for _ in clock.polls(timeout_s):
            if not self._spool.waiting():
                return
            self.wake()
        raise WaitTimeout(f"the spool {self._spool.path}", timeout_s, "spooled")

    def close(self) -> None:
        """Let the thread end."""
        self._ended = True
        self._called.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="pipeline-spool", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        called, failures, tended_s = self._called, 0, 0.0
        self._warm_up().join(COLD_S)  # a cold process would keep others from draining meanwhile
        while not self._ended:
            called.clear()
            quiet = self._pass()
            self._news.publish(self._log)
            if not quiet and not self._warming.is_alive():
                self._warm_up()
            failures = 0 if quiet else failures + 1
            if quiet and not self._tended(tended_s):
                called.wait()
            elif quiet:
                tended_s = clock.mono_s()
                called.wait(TEND_S)
            else:
                clock.sleep_s(clock.backoff_s(failures, first_s=PAUSE_S, most_s=MOST_S))

    def _pass(self) -> bool:
        """Drain once; whether nothing waits any more."""
        try:
            done = self.drainer.drain(PASS_S, patient=True)
        except PipelineError as error:
            logger.warning(Event("spool_not_drained", error=error))
            return False
        if done.sent:
            self._away.close()
            logger.info(Event("spool_drained", ops=done.sent, pause_ms=round(1000 * done.pause_s)))
        return done.empty or (not done.mine and not self._spool.waiting())

    def _warm_up(self) -> threading.Thread:
        """Let this process be ready for the direct way, though it is cold or Redis is another server; a thread does."""
        self._warming = threading.Thread(target=self._warm, name="pipeline-warm", daemon=True)
        self._warming.start()
        return self._warming

    def _warm(self) -> None:
        try:
            self.drainer.warm()
        except PipelineError as error:
            logger.info(Event("direct_way_not_ready", error=error))

    def _tended(self, before_s: float) -> bool:
        """Forget what every node has; whether something is still kept."""
        try:
            if clock.mono_s() - before_s >= TEND_S:
                self.drainer.forget()
            return bool(self._spool.pairs())
        except PipelineError as error:
            logger.warning(Event("spool_not_kept", error=error))
            return True
