"""Know the epochs under which this process appends; raise the epoch of a scope when Redis is another server.

Raising an epoch queries databases, which may hang: a thread does it, and a request waits for as long as it can.

A new epoch is above every watermark on every node that answers. The new epoch is above every epoch that the primary
gave out, and at least the unix time. So no position comes twice, whatever Redis has forgotten. A replica that does not
answer holds nothing that a primary did not give it. A node that has no tables yet holds nothing. The clock covers one
that was promoted and is gone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future

from pipeline import clock
from pipeline.bounds import WaitBudgets, WaitBudgetSpent, perform, waited
from pipeline.config import Topology
from pipeline.enqueue import buckets
from pipeline.enqueue.deployment import verify
from pipeline.enqueue.final_values import SchemaPublisher
from pipeline.enqueue.shipment import Acked, Sender
from pipeline.errors import LogUnavailable, NotMigrated, Unavailable
from pipeline.events import Event
from pipeline.model.fingerprint import Fingerprint, newest
from pipeline.model.receipt import Seal
from pipeline.oplog import Log
from pipeline.oplog.appends import EVERYWHERE, Appends, Scope
from pipeline.shard import NodeSession, records
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import LostRange, Mark, ledger_queries, moves

#: How long one raise may take in all, s; databases have to be asked.
RAISE_S = 10.0
#: What the log says of the bucket that ended an epoch, and what that means.
_ENDED = {"forgot": "has forgotten entries", "ahead": "has entries, or a watermark, of a later epoch"}
logger = logging.getLogger("pipeline.lineage")


class EpochCache:
    """Knows epochs, and learns new ones. Thread-safe.

    Args:
        log: has the epochs.
        authority: raises an epoch if the server's lineage has changed, and renews what Redis may have forgotten.
        wait_budgets: of the callers: no caller waits longer for a new epoch.

    Attributes:
        known: of each scope the epoch to send under, until it is over or something has to be compared before.
        last: of each scope the last epoch that was known.
        learnt: how often an epoch that this process had sent under was over.
    """

    def __init__(self, log: Appends, authority: Authority, wait_budgets: WaitBudgets):
        self._log, self._authority, self._wait_budgets = log, authority, wait_budgets
        self.known: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self._admitted = 0
        self.start()

    def start(self) -> None:
        """Begin, in a child anew: a fork may have taken place while another thread held a lock."""
        self.learnt = 0
        self._raising, self._running_lock, self._admitting = threading.Lock(), threading.Lock(), threading.Lock()
        self._running: dict[str, Future[int]] = {}

    def of(self, scope: Scope) -> int:
        """Return a scope's epoch, learnt if need be; see `after`."""
        while not (epoch := self.known.get(scope.name)):
            self.after(scope, 0)  # what another thread learns for this one may have been compared without its tables
        return epoch

    def admit(self, tables: Collection[str], scope: str = "") -> bool:
        """See that it is noted how tables are spread; else epochs are learnt anew, which compares and notes it.

        Args:
            tables: of which this process sends ops from now on.
            scope: the name of the one scope that they go to; by default any.

        Returns:
            Whether it is noted already.
        """
        if self._authority.agrees(tables, scope):
            return True
        with self._admitting:
            self._admitted += 1
            self.known = {}
        return False

    def asked(self, scope: Scope) -> int:
        """Read a scope's epoch from the server, and learn it; raise it if it was given out on another; see `after`."""
        return self._in_time(f"{scope.name} asked", lambda: self._asked(scope), scope)

    def after(self, scope: Scope, stale: int) -> int:
        """Return an epoch that is not *stale*.

        Raises:
            LogUnavailable: there is none as soon as its caller needs it; it is being raised, and nothing was sent.
            ShardUnavailable: a primary did not answer.
        """
        return self._in_time(scope.name, lambda: self._raised(scope, stale), scope)

    def _in_time(self, what: str, work: Callable[[], int], scope: Scope) -> int:
        """Return an epoch; where the caller has a budget, one thread at a time finds it: all callers wait for it."""
        budget = self._wait_budgets.here.budget
        if budget is None:
            return work()

        def once() -> int:
            try:
                return work()
            finally:
                with self._running_lock:
                    del self._running[what]  # the next caller begins anew: what has ended may not be true any more

        with self._wait_budgets.spending():
            wait_s = max(0.0, budget.left_s)
            with self._running_lock:
                future = self._running.get(what)
                if future is None:
                    future = self._running[what] = Future()
                    given = (once, future, self._wait_budgets.ended)
                    threading.Thread(target=perform, args=given, name="pipeline-epochs", daemon=True).start()
            try:
                return waited(future, wait_s)
            except WaitBudgetSpent as error:
                why = f"a new epoch of {scope.name!r} was not raised within {wait_s * 1000:.0f} ms; it is being raised"
                raise LogUnavailable(why, sent=False) from error

    def _asked(self, scope: Scope) -> int:
        known, (epoch, current, _) = self.known.get(scope.name, 0), self._log.epoch(scope.name)
        return known if epoch == known and current else self._raised(scope, known)

    def _raised(self, scope: Scope, stale: int) -> int:
        with self._raising:
            known = self.known.get(scope.name, 0)
            while known in (0, stale):
                last, admitted = self.last.get(scope.name, 0), self._admitted
                epoch = self._authority.raise_epoch(scope, last)
                over = known > 0 or last not in (0, epoch)
                self.learnt += over
                if over or self._lineage_changed(scope):
                    self._authority.renew()
                with self._admitting:
                    self.last[scope.name] = epoch
                    if admitted == self._admitted:  # else a table came that was not compared
                        known = self.known[scope.name] = epoch
            return known

    def _lineage_changed(self, scope: Scope) -> bool:
        """Whether the server is another than the one that gave another scope's epoch."""
        together = self._authority.together
        other = next((one for one in self.known.items() if one[0] != scope.name and together(one[0], scope.name)), None)
        return other is not None and self._log.epoch(other[0])[:2] != (other[1], True)


class Authority:
    """Queries the shards' databases, which are the authority on epochs and on what was lost.

    Args:
        log: has the epochs, and what is not applied yet.
        nodes: the databases.
        topology: which shards hold a bucket.
        schemas: have to publish anew what a new server has forgotten.
        seal: its secret is learnt with the first epoch, so that receipts are printed also while Redis is away.
    """

    def __init__(self, log: Log, nodes: Nodes, topology: Topology, schemas: SchemaPublisher, seal: Seal):
        self._log, self._nodes, self._topology, self._schemas = log, nodes, topology, schemas
        self._seal = seal
        self._used: set[str] = set()
        self._noted: dict[str, Fingerprint] = {}

    @property
    def deployment(self) -> Fingerprint | None:
        """The deployment's fingerprint, as it was compared last; None: it was not yet."""
        return newest(tuple(self._noted.values()))

    def agrees(self, tables: Collection[str], scope: str = "") -> bool:
        """Return whether the deployment has noted that tables are spread as this process does it.

        Args:
            tables: their names; the next comparison notes them.
            scope: the name of the one scope that they go to; by default any that was compared.
        """
        self._used.update(tables)
        mine, compared = self._topology.fingerprint, dict(self._noted)
        notes = [compared[scope]] if scope in compared else [] if scope else [*compared.values()]
        return bool(notes) and all(
            noted.names(name) and noted.spread(name) == mine.spread(name) for noted in notes for name in tables
        )

    def raise_epoch(self, scope: Scope, known: int = 0) -> int:
        """Return the scope's epoch on the server as it is now, raised if it was given out on another.

        Args:
            scope: whose epoch.
            known: the last epoch that this process knows: a server that gives an older one went back in time.

        Raises:
            ShardUnavailable: the primary of a shard in the scope did not answer; nothing changed.
            WrongDeployment: the configuration does not fit the deployment.
            NotMigrated: the pipeline's tables are missing on a primary.
        """
        log = self._log
        for _ in clock.polls(RAISE_S, first_s=0.01):
            epoch, current, seen = log.epoch(scope.name)
            # after the epoch was read: a change of the fingerprint is noted before it raises the epochs
            given = bool(epoch and current and epoch >= known)
            self._noted[scope.name] = verify(
                log, self._nodes, self._topology, scope, asking=not given, used=frozenset(self._used)
            )
            self._seal.learn()
            # after the epoch, too: a change of the map is noted before it raises the epochs
            buckets.follow(log, self._nodes, self._topology, anew=not given)
            if given:
                return epoch
            new = new_epoch(self._nodes, scope, max(epoch, known))
            if log.raise_epoch(scope.name, seen, new):
                level = logging.WARNING if epoch else logging.INFO
                why, _, bucket = seen.rpartition(" ")[2].partition(":")
                said = _ENDED[why] if bucket else None
                logger.log(
                    level,
                    Event(
                        "epoch_raised",
                        scope=scope.name,
                        epoch=new,
                        before=epoch,
                        bucket=bucket or None,
                        why=said,
                    ),
                )
                self.renew()
                return new
        raise LogUnavailable(f"the epoch of {scope.name!r} could not be raised", sent=False)

    def together(self, one: str, other: str) -> bool:
        """Return whether one Redis has the logs of both scopes.

        Args:
            one: the name of a scope.
            other: that of another.
        """
        return self._topology.group_of(one) == self._topology.group_of(other)

    def renew(self) -> None:
        """Give a new server what it may have forgotten: the schemas of this process."""
        self._schemas.republish()

    def settle(self, scope: Scope, epoch: int, acked: Mapping[Sender, Acked]) -> set[Sender]:
        """Judge what was acknowledged under an epoch that is over, and record what is lost on each shard.

        What is still in a log is not judged, nor what a worker may be applying: call again later.

        Args:
            scope: the scope of all the buckets.
            epoch: the scope's epoch on the server as it is now; 0: not known.
            acked: of each bucket and producer, what was acknowledged last.

        Returns:
            Those of which every node had all when this was called: it is applied, set aside, or recorded as lost. What
            only a primary has may go with the primary.

        Raises:
            ShardUnavailable: a primary did not answer; call again later.
        """
        done = set(acked)
        for shard in scope.shards:
            done &= self._settle_on(shard, scope, epoch, acked)
            lent = moves.lent_by(shard, moves.legs(self._nodes.primary(shard))) if scope.name != EVERYWHERE else {}
            for bucket, (other, piece) in lent.items():
                there = {(piece, producer): one for (b, producer), one in acked.items() if b == bucket}
                if there:
                    left = there.keys() - self._settle_on(other, scope, epoch, there)
                    done -= {(bucket, producer) for _, producer in left}
        return done

    def _settle_on(self, shard: str, scope: Scope, epoch: int, acked: Mapping[Sender, Acked]) -> set[Sender]:
        """Judge on one shard, and record what is lost there; return what every node of it has."""
        session = self._nodes.primary(shard)
        reached = ledger_queries.sequences(session, acked)
        missing = {pair: one for pair, one in acked.items() if reached.get(pair, 0) < one[0]}
        done = acked.keys() - missing.keys()
        for replica in self._nodes.replicas(shard) if done else ():
            done = self._on_replica(replica, {pair: acked[pair][0] for pair in done})
        for bucket in {bucket for bucket, _ in missing}:
            here = {pair: one for pair, one in missing.items() if pair[0] == bucket}
            with session.translated(), session.transaction():
                losses = self._judge(session, shard, scope, epoch, bucket, here)
            for lost in losses:
                logger.error(Event("ops_lost", ops=lost.last - lost.first + 1, **lost._asdict()))
        return done

    def _on_replica(self, replica: NodeSession, last: Mapping[Sender, int]) -> set[Sender]:
        """Return of what a replica has all; one that will not be promoted counts as one that has."""
        if not last or self._nodes.unfit(replica.node):
            return set(last)
        try:
            there = ledger_queries.sequences(replica, last)
        except (Unavailable, NotMigrated) as error:
            logger.info(Event("acknowledged_kept", node=replica.node, error=error))
            return set()
        return {pair for pair, seq in last.items() if there.get(pair, 0) >= seq}

    def _judge(
        self, session: NodeSession, shard: str, scope: Scope, epoch: int, bucket: int, acked: Mapping[Sender, Acked]
    ) -> list[LostRange]:
        """Record what one bucket has lost, under the lock of its watermark: no worker applies anything there then."""
        mark = records.lock(session, [bucket], 1).get(bucket)
        if mark is None or not mark.owned or moves.moving(session, shard, [bucket]):
            return []  # a worker holds it, or nothing may change it beside its log while it moves
        over = mark.position.epoch
        if any(over <= under < epoch for _, under in acked.values()) and self._all_applied(scope, epoch, bucket, mark):
            over = epoch
        last = {pair: seq for pair, (seq, under) in acked.items() if under < over}
        seen = records.seen(session, last) if last else {}
        lost = {pair: seq for pair, seq in last.items() if seen[pair] < seq}
        losses = [LostRange(bucket, 0, pair[1], seen[pair] + 1, seq) for pair, seq in lost.items()]
        if lost:
            records.lose(session, losses)
            records.remember(session, lost)  # what is told lost is never applied: an entry that comes after all is seen
        return losses

    def _all_applied(self, scope: Scope, epoch: int, bucket: int, mark: Mark) -> bool:
        """Whether the server of an epoch has nothing older than the epoch behind a bucket's watermark."""
        ahead = self._log.heads({bucket: mark.position}).get(bucket)
        return (ahead is None or ahead.position.epoch >= epoch) and self._log.epoch(scope.name)[:2] == (epoch, True)


def new_epoch(nodes: Nodes, scope: Scope, known: int) -> int:
    """Return an epoch above all that are known of a scope; its primaries have given it out.

    Args:
        nodes: the databases.
        scope: whose epoch.
        known: an epoch that the new one is above.

    Raises:
        ShardUnavailable: the primary of a shard in the scope did not answer.
    """
    replicas = [replica for shard in scope.shards for replica in nodes.replicas(shard)]
    # who has a key of a bucket has a watermark in its log, too
    for shard in scope.shards if scope.name != EVERYWHERE else ():
        for other in {other for other, _ in moves.lent_by(shard, moves.legs(nodes.primary(shard))).values()}:
            replicas += [nodes.primary(other), *nodes.replicas(other)]
    for replica in replicas:
        try:
            known = max(known, ledger_queries.highest_epoch(replica))
        except NotMigrated:
            continue  # a replica without our tables has no watermark
        except Unavailable as error:
            logger.warning(Event("epoch_without_node", node=replica.node, error=error))
    for shard in scope.shards:
        primary = nodes.primary(shard)
        known = ledger_queries.give_epoch(primary, scope.name, known, clock.wall_ms() // 1000) - 1
    return known + 1
