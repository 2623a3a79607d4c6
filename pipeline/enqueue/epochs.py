"""The epochs under which this process appends, of each scope; and what it does when Redis is another server.

Raising an epoch asks databases, which may hang: a thread does it, and a request waits for as long as it can.

Raise an epoch: whenever Redis is no longer the server that gave the last one out, before anything is appended.

A new epoch is above every watermark on every node that can be asked, above every epoch that the primary ever gave out,
and at least the unix time: so no position comes twice, whatever Redis has forgotten. A replica that does not answer
holds nothing that a primary did not give it, one that has no tables yet holds nothing; the clock covers one that was
promoted and has died.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from pipeline import clock
from pipeline.errors import LogUnavailable, NotMigrated, Unavailable
from pipeline.oplog.appends import Appends, Scope
from pipeline.shard import ledger_queries
from pipeline.shard.nodes import Nodes
from pipeline.wait_budget import WaitBudgets, WaitBudgetSpent, perform, waited


class EpochCache:
    """Knows epochs, and learns new ones. Thread-safe.

    Args:
        raise_epoch: returns the epoch of a scope, raising it if the server's lineage has changed. Asks databases.
        patience: of the callers: nobody waits longer for that.
        renewed: called once this process knows of a new lineage: Redis may have forgotten what it was told.
        changed: called after each epoch that was learnt.
        ended: called in a thread that has asked databases, to close what is its own.

    Attributes:
        known: of each scope the last epoch.
        learnt: how many were raised or learnt here.
    """

    def __init__(
        self,
        log: Appends,
        raise_epoch: Callable[[Scope], int],
        wait_budgets: WaitBudgets,
        renewed: Callable[[], object],
        changed: Callable[[], object],
        ended: Callable[[], object],
    ):
        self._log, self._raise_epoch, self._wait_budgets = log, raise_epoch, wait_budgets
        self._renewed, self._changed, self._ended = renewed, changed, ended
        self.known: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Begin anew in a child: a fork may have taken place while another thread held the lock."""
        self.learnt = 0
        self._raising = threading.Lock()
        self._elsewhere: SingleFlight[int] = SingleFlight("pipeline-epochs", self._ended)

    def of(self, scope: Scope) -> int:
        """Return a scope's epoch, learnt if need be; see `after`."""
        return self.known.get(scope.name) or self.after(scope, 0)

    def asked(self, scope: Scope) -> int:
        """Ask the server for a scope's epoch; raise it if it was given out on another; see `after`."""
        epoch, current, _ = self._log.epoch(scope.name)
        return epoch if epoch and current else self.after(scope, self.known.get(scope.name, 0))

    def after(self, scope: Scope, stale: int) -> int:
        """Return an epoch that is not *stale*.

        Raises:
            LogUnavailable: there is none as soon as its caller needs it; it is being raised, and nothing was sent.
            ShardUnavailable: a primary did not answer.
        """
        wait_budgets = self._wait_budgets
        budget = wait_budgets.here.budget
        if budget is None:
            return self._raised(scope, stale)
        with wait_budgets.spending():
            return self._elsewhere.result(scope.name, lambda: self._raised(scope, stale), max(0.0, budget.left_s))

    def _raised(self, scope: Scope, stale: int) -> int:
        with self._raising:
            known = self.known.get(scope.name, 0)
            if known == stale:
                known = self.known[scope.name] = self._raise_epoch(scope)
                self.learnt += 1
                if self._lineage_changed(scope, stale):
                    self._renewed()
                self._changed()
            return known

    def _lineage_changed(self, scope: Scope, stale: int) -> bool:
        """Whether the server is another than the one that took what this process has sent so far."""
        other = next((name for name in self.known if name != scope.name), None)
        return stale > 0 or (other is not None and self._log.epoch(other)[:2] != (self.known[other], True))


_Result = TypeVar("_Result")


class SingleFlight(Generic[_Result]):
    """Does work in threads, one at a time for each key: callers who want the same wait for the same.

    Args:
        afterwards: called in the thread at its end: what belongs to it is to be closed.
    """

    def __init__(self, name: str, afterwards: Callable[[], object] = lambda: None):
        self._name, self._afterwards = name, afterwards
        self._lock = threading.Lock()
        self._running: dict[str, Future[_Result]] = {}

    def result(self, key: str, work: Callable[[], _Result], wait_s: float) -> _Result:
        """Return what the work under way for a key comes to, begun if there is none.

        Raises:
            LogUnavailable: it has not ended yet, and goes on.
            what the work raised.
        """
        with self._lock:
            future = self._running.get(key)
            if future is None:
                future = self._running[key] = Future()
                given = (lambda: self._done(key, work), future, self._afterwards)
                threading.Thread(target=perform, args=given, name=self._name, daemon=True).start()
        try:
            return waited(future, wait_s)
        except WaitBudgetSpent as error:
            why = f"a new epoch of {key!r} was not raised within {wait_s * 1000:.0f} ms; it is being raised"
            raise LogUnavailable(why, sent=False) from error

    def _done(self, key: str, work: Callable[[], _Result]) -> _Result:
        try:
            return work()
        finally:
            with self._lock:
                del self._running[key]  # the next caller begins anew: what has ended may not be true any more


#: How long one raise may take in all, s; databases have to be asked.
RAISE_S = 10.0
logger = logging.getLogger("pipeline.lineage")


class Lineage:
    """Knows how to raise epochs.

    Args:
        renewed: called after a new epoch was set: the server may have forgotten the table definitions too.
    """

    def __init__(self, log: Appends, nodes: Nodes, renewed: Callable[[], object]):
        self._log, self._nodes, self._renewed = log, nodes, renewed

    def raise_epoch(self, scope: Scope) -> int:
        """Return the scope's epoch on the server as it is now.

        Raises:
            ShardUnavailable: the primary of a shard in the scope did not answer; nothing changed.
            NotMigrated: the pipeline's tables are missing on a primary.
        """
        for _ in clock.polls(RAISE_S, first_s=0.01):
            epoch, current, seen = self._log.epoch(scope.name)
            if epoch and current:
                return epoch
            new = self._new_epoch(scope, epoch)
            if self._log.raise_epoch(scope.name, seen, new):
                level = logging.WARNING if epoch else logging.INFO
                logger.log(level, "new lineage scope=%s epoch=%d (was %d)", scope.name, new, epoch)
                self._renewed()
                return new
        raise LogUnavailable(f"the epoch of {scope.name!r} could not be raised", sent=False)

    def _new_epoch(self, scope: Scope, known: int) -> int:
        for shard in scope.shards:
            for replica in self._nodes.replicas(shard):
                try:
                    known = max(known, ledger_queries.highest_epoch(replica))
                except NotMigrated:
                    continue  # a replica without our tables has no watermark
                except Unavailable as error:
                    logger.warning("raising the epoch without asking %s: %s", replica.node, error)
        for shard in scope.shards:
            primary = self._nodes.primary(shard)
            known = ledger_queries.give_epoch(primary, scope.name, known, clock.wall_ms() // 1000) - 1
        return known + 1
