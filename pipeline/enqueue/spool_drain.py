"""Drain the spool into the logs, and forget what every node has.

Invariant: of each bucket, ops are sent in the order in which they were spooled, beginning with the lowest that Redis
may lack. After a change of Redis' lineage that is everything which is still kept.

The way back: while others go on spooling, the spool may never be empty. So the last ops are sent while nobody else
writes. Then the marker is removed, and whoever has waited for its turn goes directly (docs/notes/15).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline import clock
from pipeline.bounds import WaitBudget, WaitBudgetSpent
from pipeline.config import Topology
from pipeline.enqueue.producer import Run
from pipeline.enqueue.publisher import Publisher
from pipeline.errors import LogUnavailable, NotMigrated, Unavailable
from pipeline.events import Event
from pipeline.model import tables_written
from pipeline.oplog import Entries
from pipeline.oplog.appends import EpochStale, Scope
from pipeline.shard.nodes import Nodes
from pipeline.shard.records import ledger_queries, moves
from pipeline.spool import HEAD_BYTES, HEAD_OPS, Definition, Spool, Spooled

#: How often a pass begins anew when Redis changes its lineage under it.
DRAIN_TRIES = 3
#: How long a pass waits until Redis says its epochs, s: a connection from before an outage may take seconds to fail.
PROBE_S = 0.5
#: How many ops are the last, and how long others wait until Redis has them, s.
LAST_OPS, LAST_S = 200, 0.02
#: Where Redis took longer for the ops before them, since the machine is busy, the last ops have twice as long, up to
#: that, s; and as many are the last as one look takes. At a load of 28 on two cores 20 ms were never enough.
MOST_LAST_S = 0.25
logger = logging.getLogger("pipeline.spool")


@dataclass(slots=True)
class DrainResult:
    """What a pass did."""

    mine: bool = True  # whether nobody else was draining
    sent: int = 0
    forgotten: int = 0
    empty: bool = False  # nothing waits any more
    why: str = ""  # what is in the way
    pause_s: float = 0.0  # the longest for which nobody else could write, while the last ops were sent


class Drainer:
    """Sends what one host has spooled. Any number may try at once, one does it.

    Args:
        step: called with the name of each step before it is taken; crash tests kill the process in it.
    """

    def __init__(
        self,
        spool: Spool,
        publisher: Publisher,
        log: Entries,
        nodes: Nodes,
        topology: Topology,
        step: Callable[[str], None] = lambda name: None,
    ):
        self._spool, self._publisher, self._log = spool, publisher, log
        self._nodes, self._topology, self._step = nodes, topology, step
        self._reminded: dict[str, int] = {}  # scope -> the epoch under which Redis has all definitions
        self._budgets = publisher.away.wait_budgets
        self._took_s = 0.0  # how long Redis took for the last call of this pass

    def drain(
        self, for_s: float = 3600.0, *, patient: bool = True, report: Callable[[int], None] = lambda sent: None
    ) -> DrainResult:
        """Send what waits, for a while at most. What is in the way is returned, not raised.

        Raises:
            SpoolUnavailable: the file cannot be used.
        """
        done, deadline, self._took_s = DrainResult(), clock.Deadline(for_s), 0.0
        with self._spool.lock().tried() as mine:
            if not mine:
                done.mine = False
                return done
            while True:
                probes: dict[str, WaitBudget] = {}
                if self._definitions_first(done):
                    for scope, buckets in self._scopes().items():
                        # a Redis that is silent delays no ops of another
                        probe = probes.setdefault(self._topology.group_of(scope.name), WaitBudget(PROBE_S))
                        self._drain(scope, buckets, done, deadline, patient, report, probe)
                self._step("settle")
                done.empty = self._last_sent(done)
                if done.empty or done.why or deadline.passed:
                    break
            if done.sent:
                self._spool.file.sync()
                if done.empty:
                    self._spool.file.shed()
        return done

    def warm(self) -> None:
        """Prepare this process for the direct way; see `Publisher.warm`."""
        self._publisher.warm()

    def forget(self) -> int:
        """Delete the kept ops that every node of their shards has; return how many. A node that is away keeps all."""
        pairs = self._spool.pairs()
        reached: dict[tuple[int, int], int] = {}
        for shard in self._topology.shards:
            mine = [pair for pair in pairs if self._topology.owners[pair[0]] in (shard, "*")]
            if mine:
                lowest = self._on_every_node(shard, mine)
                for pair in mine:
                    reached[pair] = min(reached.get(pair, lowest.get(pair, 0)), lowest.get(pair, 0))
                self._count_pieces(shard, mine, reached)
        forgotten = self._spool.forget({pair: seq for pair, seq in reached.items() if seq})
        if forgotten:
            self._spool.file.shed()
        return forgotten

    # parts --------------------------------------------------------------------------------------------------

    def _scopes(self) -> dict[Scope, list[int]]:
        """Return the scopes of all ops in here with all their buckets; first that of reference tables.

        Rows of all shards may refer to those; and to rows of a bucket that others spool to only now.
        """
        here = {self._publisher.scope_of(bucket) for bucket in self._spool.buckets()}
        scopes: dict[Scope, list[int]] = {}
        for bucket in sorted(range(len(self._topology.owners)), key=self._is_of_one_shard):
            if (scope := self._publisher.scope_of(bucket)) in here:
                scopes.setdefault(scope, []).append(bucket)
        return scopes

    def _is_of_one_shard(self, bucket: int) -> bool:
        return bucket != self._topology.reference_bucket

    def _definitions_first(self, done: DrainResult) -> bool:
        """Publish the definitions that Redis has never had; whether it took them."""
        self._step("definitions")
        try:
            if waiting := [known for known in self._spool.definitions() if known.waits]:
                self._announce(waiting)
                self._spool.published(known.hash for known in waiting)
        except Unavailable as error:
            done.why = str(error)
        return not done.why

    def _announce(self, definitions: Iterable[Definition]) -> None:
        lacking = [known for known in definitions if self._log.schema(known.hash) is None]
        self._log.publish_schemas((known.table, known.hash, known.text) for known in lacking)

    def _remind(self, scope: Scope, epoch: int) -> None:
        """Publish what Redis may have forgotten with its last lineage: who drains may not be who defined."""
        if self._reminded.get(scope.name) != epoch:
            self._announce(self._spool.definitions())
            self._reminded[scope.name] = epoch

    def _drain(
        self,
        scope: Scope,
        buckets: list[int],
        done: DrainResult,
        deadline: clock.Deadline,
        patient: bool,
        report: Callable[[int], None],
        probe: WaitBudget,
    ) -> None:
        for _ in range(DRAIN_TRIES):
            try:
                with self._budgets.within(probe):
                    epoch = self._publisher.epoch_of(scope)
                self._spool.agree(self._publisher.deployment)  # it was compared with the epoch
                self._remind(scope, epoch)
                self._spool.renew(buckets, epoch)
                while not deadline.passed and (head := self._spool.head(buckets)):
                    if not self._publisher.admit(_tables_of(head), scope.name):
                        with self._budgets.within(probe):  # it is noted how a table is spread before its first op
                            if self._publisher.epoch_of(scope) != epoch:
                                raise EpochStale
                        self._spool.agree(self._publisher.deployment)
                    for producer, runs, ops in _turns(head):
                        self._step("send")
                        began_s = clock.mono_s()
                        reached = self._publisher.resend(producer, runs, epoch=epoch, patient=patient)
                        self._took_s = clock.mono_s() - began_s
                        self._step("sent")
                        self._spool.sent(ops, epoch)
                        self._publisher.remember(producer, {b: (runs[b].last, at) for b, at in reached.items()})
                        done.sent += len(ops)
                        report(len(ops))
                    if len(head) <= LAST_OPS and _are_all(head):
                        break  # others go on spooling: there may never be none
                return
            except EpochStale:
                continue
            except Unavailable as error:
                done.why = str(error)
                logger.info(Event("spool_waits", scope=scope.name, error=error))
                return
        done.why = str(LogUnavailable("the server's lineage keeps changing", sent=False))

    def _last_sent(self, done: DrainResult) -> bool:
        """Send the last ops while nobody else writes, and let all go directly again; whether nothing waits."""
        last_s = max(LAST_S, min(MOST_LAST_S, 2 * self._took_s))
        with self._spool.file.alone():
            began_s = clock.mono_s()
            last = self._spool.head() if not done.why else []
            if not last or len(last) > (LAST_OPS if last_s == LAST_S else HEAD_OPS) or not _are_all(last):
                return self._spool.settle()
            by_scope = self._publisher.by_scope({op.bucket: None for op in last})
            if not all(
                self._publisher.admit(_tables_of(op for op in last if op.bucket in buckets), scope.name)
                for scope, buckets in by_scope.items()
            ):
                return self._spool.settle()  # the next round has it noted how a table is spread
            try:
                return self._hand_over(last, last_s, done)
            finally:
                done.pause_s = max(done.pause_s, clock.mono_s() - began_s)

    def _hand_over(self, last: list[Spooled], last_s: float, done: DrainResult) -> bool:
        sent: dict[int, list[Spooled]] = {}
        try:
            with self._budgets.within(WaitBudget(last_s)):
                self._budgets.aside(lambda: self._send_last(last))
        except (WaitBudgetSpent, EpochStale, Unavailable) as error:
            done.why = f"the last ops wait: {type(error).__name__}: {error}"
            logger.info(Event("spool_waits", error=error))
            return False
        for op in last:
            sent.setdefault(self._reminded[self._publisher.scope_of(op.bucket).name], []).append(op)
        for epoch, ops in sent.items():
            self._spool.sent(ops, epoch)
        done.sent += len(last)
        return self._spool.settle()

    def _send_last(self, last: list[Spooled]) -> None:
        """Send ops under the epochs of this pass. To send them twice is harmless."""
        buckets_of_last = sorted({op.bucket for op in last}, key=self._is_of_one_shard)
        for scope, buckets in self._publisher.by_scope(dict.fromkeys(buckets_of_last)).items():
            if not (epoch := self._reminded.get(scope.name, 0)):
                raise EpochStale
            for producer, runs, _ in _turns([op for op in last if op.bucket in buckets]):
                reached = self._publisher.resend(producer, runs, epoch=epoch, patient=False)
                self._publisher.remember(producer, {b: (runs[b].last, at) for b, at in reached.items()})

    def _count_pieces(self, shard: str, mine: Iterable[tuple[int, int]], reached: dict[tuple[int, int], int]) -> None:
        """Let what a shard's buckets have counts only as far as who has a key of one has it, too."""
        try:
            lent = moves.lent_by(shard, moves.legs(self._nodes.primary(shard)))
        except Unavailable as error:
            logger.info(Event("spool_keeps", shard=shard, node=shard, error=error))
            reached |= dict.fromkeys(mine, 0)
            return
        for bucket, (other, piece) in lent.items():
            pairs = {(piece, producer): (bucket, producer) for b, producer in mine if b == bucket}
            there = self._on_every_node(other, pairs) if pairs else {}
            for number, pair in pairs.items():
                reached[pair] = min(reached[pair], there.get(number, 0))

    def _on_every_node(self, shard: str, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
        """Return the lowest sequence of each pair over all nodes; nothing where one of them does not answer."""
        lowest: dict[tuple[int, int], int] | None = None
        for session in (self._nodes.primary(shard), *self._nodes.replicas(shard)):
            if self._nodes.unfit(session.node):
                continue
            try:
                there = ledger_queries.sequences(session, pairs)
            except (Unavailable, NotMigrated) as error:
                logger.info(Event("spool_keeps", shard=shard, node=session.node, error=error))
                return {}
            lowest = there if lowest is None else {p: min(seq, there[p]) for p, seq in lowest.items() if p in there}
        return lowest or {}


def _tables_of(ops: Iterable[Spooled]) -> set[str]:
    return set().union(*(tables_written(op.payload) for op in ops))


def _are_all(head: list[Spooled]) -> bool:
    """Return whether no more bytes wait than one look takes: a large op is sent while others go on spooling."""
    return sum(len(op.payload) for op in head) < HEAD_BYTES


def _turns(head: list[Spooled]) -> Iterator[tuple[int, dict[int, Run], list[Spooled]]]:
    """Cut ops into calls, in the order in which they were spooled: of each bucket a dense run of one producer.

    No op passes an older one of another bucket: its row may refer to that one's, and be refused where it comes first.
    """
    left = head
    while left:
        producer, runs, taken = left[0].producer, dict[int, list[Spooled]](), list[Spooled]()
        for op in left:
            run = runs.get(op.bucket)
            if op.producer != producer or (run and run[-1].seq + 1 != op.seq):
                break
            runs.setdefault(op.bucket, []).append(op)
            taken.append(op)
        yield producer, {b: Run(ops[0].seq, [op.payload for op in ops]) for b, ops in runs.items()}, taken
        left = left[len(taken) :]
