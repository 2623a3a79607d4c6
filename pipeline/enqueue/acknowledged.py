"""Keep in mind what was acknowledged to this process, until every shard has it.

What was acknowledged comes in question when its epoch is over: Redis is another server, or has forgotten a part. Then
the shards judge it, see `Authority.settle`. A thread does it, since the process may send nothing more. The sender that
met the failure may be gone by then: what was acknowledged to it stays in mind.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Collection, Mapping

from pipeline import clock
from pipeline.config.topology import Topology
from pipeline.enqueue.epochs import Authority, EpochCache
from pipeline.enqueue.shipment import Acked, Sender
from pipeline.enqueue.spooling.redis_away import RedisAway
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.model.fingerprint import Fingerprint
from pipeline.model.op import Position
from pipeline.oplog.appends import EVERYWHERE, Appends, Scope, scopes_of

#: A process asks whether an epoch is over at this interval, s.
LOOK_S = 5.0
logger = logging.getLogger("pipeline.losses")


class Acknowledged:
    """What was acknowledged to one process. Thread-safe; after a fork the child starts with nothing in mind.

    Args:
        authority: raises epochs, and judges what the log lost.
        away: has the wait budgets, since raising an epoch asks databases; and the spool.

    Attributes:
        scopes: all scopes by name.
        topology: says which scope a bucket is of.
    """

    def __init__(self, log: Appends, topology: Topology, authority: Authority, away: RedisAway):
        self._log, self._authority, self.away = log, authority, away
        self.scopes = scopes_of(topology.shards)
        self._reference = self.scopes[EVERYWHERE]
        self.topology = topology
        self._epochs = EpochCache(log, authority, away.wait_budgets)
        self._watching: threading.Thread | None = None
        self._start()

    @property
    def deployment(self) -> Fingerprint | None:
        """The deployment's fingerprint, as it was compared last; None: it was not yet."""
        return self._authority.deployment

    def admit(self, tables: Collection[str], scope: str = "") -> bool:
        """See that it is noted how tables are spread, before their first op; see `EpochCache.admit`."""
        return self._epochs.admit(tables, scope)

    def scope_of(self, bucket: int) -> Scope:
        """Return the scope of a bucket's log."""
        return self.scopes[self.topology.owners[bucket]]

    def remember(self, producer: int, reached: Mapping[int, tuple[int, Position]]) -> None:
        """Keep in mind what `resend` has sent and nobody holds any more: this process has it named if it is lost.

        Args:
            producer: the number that the ops have.
            reached: of each bucket, the last sequence and its position.
        """
        self._acked.append((producer, {bucket: (seq, at.epoch) for bucket, (seq, at) in reached.items() if at.epoch}))
        self._keep_watch()

    def settle(self) -> bool:
        """Have judged what was acknowledged to this process; return whether nothing is in question any more.

        What was acknowledged is in mind until every shard of its bucket has it. It comes in question when its epoch is
        over: Redis is another server, or has forgotten a part.
        """
        self._begin_in_child()
        with self._settling:
            learnt = self._learn_epochs()
            self._end_stale()
            while self._acked:
                producer, acked = self._acked.popleft()
                for bucket, one in acked.items():
                    self._in_mind[bucket, producer] = max(one, self._in_mind.get((bucket, producer), one))
            for pair in self.judge(self._in_mind):
                del self._in_mind[pair]
            known = self._epochs.last
            over = (under < known.get(self.topology.owners[pair[0]], 0) for pair, (_, under) in self._in_mind.items())
            self._settled = learnt and not any(over)
            return self._settled

    def judge(self, acked: Mapping[Sender, Acked]) -> set[Sender]:
        """Have the shards judge what was acknowledged, as far as they can now; see `Authority.settle`.

        Args:
            acked: of each bucket and producer the last sequence, and the epoch under which it was acknowledged.

        Returns:
            What every shard of its bucket has: it is applied, set aside, or recorded as lost.
        """
        shares: dict[Scope, dict[Sender, Acked]] = {}
        done = set[Sender]()
        try:
            for (bucket, producer), one in acked.items():
                if not self.away.spool.keeps(bucket, producer, one[0]):  # else it is sent again
                    shares.setdefault(self.scope_of(bucket), {})[bucket, producer] = one
            for scope, share in shares.items():
                epoch, current, _ = self._log.epoch(scope.name)
                done |= self._authority.settle(scope, epoch if current else 0, share)
        except PipelineError as error:
            logger.warning(Event("losses_judged_later", error=error))
        return done

    def close(self) -> None:
        """Name what is known to be lost, and end the thread."""
        self._begin_in_child()
        if not self._settled:
            self.settle()
        self._watching = None
        self._look.set()

    # parts --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin, in a child anew: a fork must not wait for its parent's locks."""
        self._acked: deque[tuple[int, dict[int, Acked]]] = deque()
        self._in_mind: dict[Sender, Acked] = {}
        self._settling, self._look = threading.Lock(), threading.Event()
        self._settled, self._watching = True, None
        self._epochs.start()
        self._pid = os.getpid()

    def _begin_in_child(self) -> None:
        if self._pid != os.getpid():
            self._start()

    def _question(self) -> None:
        """Note that an epoch is over; the thread does the rest."""
        self._settled = False
        self._look.set()

    def _end_stale(self) -> None:
        """Give up what is kept under an epoch that is over, so that it can be judged."""

    def _learn_epochs(self) -> bool:
        """Learn the epochs of all scopes that were sent to; whether all are known."""
        try:
            for name in list(self._epochs.last):
                self._epochs.asked(self.scopes[name])
        except PipelineError as error:
            logger.warning(Event("losses_not_known", error=error))
            return False
        return True

    def _keep_watch(self) -> None:
        """Let a thread settle what is acknowledged to this process, which may send nothing more."""
        if self._watching is None or not self._watching.is_alive():
            self._watching = threading.Thread(target=self._watch, name="pipeline-losses", daemon=True)
            self._watching.start()

    def _settled_safely(self) -> bool:
        try:
            return self.settle()
        except Exception as error:  # the outermost loop: the thread goes on
            logger.warning(Event("losses_not_judged", error=error))
            return False

    def _watch(self) -> None:
        failures, look = 0, self._look
        while self._watching is threading.current_thread():
            look.wait(clock.backoff_s(failures, most_s=LOOK_S) if failures else LOOK_S)
            look.clear()
            if self._watching is threading.current_thread():
                failures = 0 if self._settled_safely() else failures + 1
        self.away.wait_budgets.ended()
