"""The epochs under which this process appends, of each scope; and what it does when Redis is another server."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.enqueue.elsewhere import Elsewhere
from pipeline.errors import LogUnavailable
from pipeline.oplog.contract import Epochs, Scope
from pipeline.wait_budget import Patience, threads_run


class CurrentEpochs:
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
        log: Epochs,
        raise_epoch: Callable[[Scope], int],
        patience: Patience,
        renewed: Callable[[], object],
        changed: Callable[[], object],
        ended: Callable[[], object],
    ):
        self._log, self._raise_epoch, self._patience = log, raise_epoch, patience
        self._renewed, self._changed, self._ended = renewed, changed, ended
        self.known: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Begin anew in a child: a fork may have taken place while another thread held the lock."""
        self.learnt = 0
        self._raising = threading.Lock()
        self._elsewhere: Elsewhere[int] = Elsewhere("pipeline-epochs", self._ended)

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
        patience = self._patience
        budget = patience.here.budget
        if budget is None:
            return self._raised(scope, stale)
        if not threads_run():
            return self._found(scope, stale)
        with patience.spending():
            return self._elsewhere.result(scope.name, lambda: self._raised(scope, stale), max(0.0, budget.left_s))

    def _raised(self, scope: Scope, stale: int) -> int:
        return self._learnt(scope, stale, lambda: self._raise_epoch(scope))

    def _found(self, scope: Scope, stale: int) -> int:
        """Return the epoch that others have raised: the workers do, where a request cannot leave it to a thread."""
        epoch, current, _ = self._log.epoch(scope.name)
        if not epoch or not current:
            raise LogUnavailable(f"the epoch of {scope.name!r} is not raised yet; a worker raises it", sent=False)
        return self._learnt(scope, stale, lambda: epoch)

    def _learnt(self, scope: Scope, stale: int, learn: Callable[[], int]) -> int:
        with self._raising:
            known = self.known.get(scope.name, 0)
            if known == stale:
                known = self.known[scope.name] = learn()
                self.learnt += 1
                if self._lineage_changed(scope, stale):
                    self._renewed()
                self._changed()
            return known

    def _lineage_changed(self, scope: Scope, stale: int) -> bool:
        """Whether the server is another than the one that took what this process has sent so far."""
        other = next((name for name in self.known if name != scope.name), None)
        return stale > 0 or (other is not None and self._log.epoch(other)[:2] != (self.known[other], True))
