"""Publish ops: the right scope and epoch, a free sender, the bell; what Redis lost is recorded by name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pipeline.config.topology import Topology
from pipeline.enqueue import idempotency
from pipeline.enqueue.epochs import EpochCache
from pipeline.enqueue.idempotency import OpPlace
from pipeline.enqueue.producers import Lost, Producer, Producers
from pipeline.enqueue.resend import Run, resend
from pipeline.errors import LogUnavailable, Unavailable
from pipeline.model.op import Position
from pipeline.oplog.appends import EVERYWHERE, HOLE, Appends, EpochStale, Line, Scope, scopes_of
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.wait_budget import WaitBudgets

#: So many ops at once have the short time-out of a request also where there is none; more are a bulk load's.
FEW = 20
Share = TypeVar("Share")


class Publisher:
    """Appends ops to logs. Thread-safe; after a fork the child starts with senders of its own.

    Args:
        raise_epoch: returns the epoch of a scope, raising it if the server's lineage has changed.
        record_lost: writes down what the log lost; may raise `Unavailable`, then it is called again later.
        patience: of the callers. Raising an epoch asks databases, recording a loss does; nobody waits longer for that.
        renewed: called once this process knows of a new lineage: Redis may have forgotten what it was told.
        ended: called in a thread that has asked databases, to close what is its own.

    Attributes:
        scopes: all scopes by name.
    """

    def __init__(
        self,
        log: Appends,
        topology: Topology,
        bell: Bell | SilentBell,
        raise_epoch: Callable[[Scope], int],
        record_lost: Callable[[Lost], None],
        *,
        wait_budgets: WaitBudgets | None = None,
        renewed: Callable[[], object] = lambda: None,
        ended: Callable[[], object] = lambda: None,
    ):
        self._log, self._bell, self._record_lost, self._pid = log, bell, record_lost, os.getpid()
        self._wait_budgets = wait_budgets or WaitBudgets(math.inf)
        self.scopes = scopes_of(topology.shards)
        self._reference = self.scopes[EVERYWHERE]
        self._scope_of = [self.scopes[topology.shard_of(bucket)] for bucket in range(topology.buckets)]
        self._scope_of.append(self._reference)
        self._senders = Producers(log, lambda: self._epochs.learnt, record_lost, self._wait_budgets, ended)
        self._epochs = EpochCache(log, raise_epoch, self._wait_budgets, renewed, self._senders.audit, ended)

    def publish(
        self,
        bucket: int,
        payload: bytes,
        *,
        key: str = "",
        row_id: int | None = None,
        then: Callable[[Producer], None] | None = None,
    ) -> OpPlace:
        """Append one op; *then* may use the sender's line while it is still ours.

        Args:
            row_id: of the new row, so that others with that key get to know it.

        Raises:
            KeyClaimed: the key stands for another id; nothing was sent.
            PipelineFull: nothing was sent.
            LogUnavailable: no answer in time; the op may be queued or not.
            ShardUnavailable: a new epoch was due and the shard's primary did not answer; nothing was sent.
        """
        scope = self._scope_of[bucket]
        if not key and then is None and scope is not self._reference:
            sender = self._take()
            epoch = self._epochs.known.get(scope.name)
            if epoch is not None and sender.lineages == self._epochs.learnt:
                place = self._publish_one(sender, scope, epoch, bucket, payload)
                if place is not None:
                    return place
            else:
                self._senders.put_back(sender)
        return self._share(scope, {bucket: (payload,)}, key, row_id, then)[bucket]

    def publish_many(
        self,
        payloads: Mapping[int, Sequence[bytes]],
        *,
        key: str = "",
        row_id: int | None = None,
        then: Callable[[Producer], None] | None = None,
    ) -> dict[int, OpPlace]:
        """Append ops of several buckets, in one round trip per shard; return the place of each bucket's first."""
        places: dict[int, OpPlace] = {}
        for scope, share in self.by_scope(payloads).items():
            patient = self._wait_budgets.here.budget is None and sum(map(len, share.values())) > FEW
            places |= self._share(scope, share, key, row_id, then, patient=patient)
        return places

    def publish_as(
        self, producer: int, runs: Mapping[int, Run], *, epoch: int = 0, patient: bool = True
    ) -> dict[int, Position]:
        """Append ops under a producer and sequences that the caller keeps, as often as it likes, from any process.

        The caller gives of each bucket all that it still holds, from the lowest sequence on: what is below has been
        sent before. Nothing is doubled: the log drops what it has seen, and so does the shard. What the log has lost
        of what is below is recorded by name, unless it was applied. A producer that has sent nothing to a bucket for
        a day must not go on there: log and shard may have forgotten it. Take a new random 63-bit number then.

        Args:
            epoch: under which the caller thinks that all below stands in the log: the current one if it is not given.

        Returns:
            Of each bucket, the position at or before which its last op stands.

        Raises:
            EpochStale: the epoch is not *epoch* any more; some may have been sent.
            PipelineFull, LogUnavailable, ShardUnavailable: some or all may have been sent; call again.
        """
        reached: dict[int, Position] = {}
        for scope, share in self.by_scope(runs).items():
            line = self._log.line(patient=patient)
            try:
                reached |= self._relay(line, scope, producer, share, epoch)
            finally:
                line.close()
        return reached

    def reserve(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that an idempotency key stands for, *row_id* where it stood for none; raises nothing."""
        return idempotency.reserved(self._log, bucket, key, row_id)

    def scope_of(self, bucket: int) -> Scope:
        """Return the scope of a bucket's log."""
        return self._scope_of[bucket]

    def epoch_of(self, scope: Scope) -> int:
        """Ask the server for a scope's epoch; raise it if it was given out on another.

        Raises:
            LogUnavailable, ShardUnavailable: it could not be raised, or not within the caller's patience.
        """
        return self._epochs.asked(scope)

    def by_scope(self, payloads: Mapping[int, Share]) -> dict[Scope, dict[int, Share]]:
        """Sort buckets by scope."""
        shares: dict[Scope, dict[int, Share]] = {}
        for bucket, ops in payloads.items():
            shares.setdefault(self.scope_of(bucket), {})[bucket] = ops
        return shares

    def close(self) -> None:
        """Give all connections back."""
        self._senders.close()

    # parts --------------------------------------------------------------------------------------------------

    def _take(self, *, patient: bool = False) -> Producer:
        if self._pid != os.getpid():  # a fork must not send on its parent's connections, nor wait for its locks
            self._pid = os.getpid()
            self._senders.reset()
            self._epochs.reset()
        return self._senders.take(patient=patient)

    def _publish_one(self, sender: Producer, scope: Scope, epoch: int, bucket: int, payload: bytes) -> OpPlace | None:
        """Append one op when nothing is unusual, with half the work; None where nothing was written."""
        try:
            placed = sender.send_one(scope, epoch, bucket, payload)
        except BaseException:
            sender.line.close()
            raise
        if sender.lineages == self._epochs.learnt:
            self._senders.free.append(sender)
        else:
            self._senders.put_back(sender)
        if placed is None:
            return None
        position, seq, ring = placed
        if ring:
            self._bell.ring(scope.shards, 1)
        if self._senders.losses:
            self._senders.report_losses()
        return OpPlace(position, sender.producer, seq)

    def _share(
        self,
        scope: Scope,
        payloads: dict[int, Sequence[bytes]],
        key: str,
        row_id: int | None,
        then: Callable[[Producer], None] | None,
        *,
        patient: bool = False,
    ) -> dict[int, OpPlace]:
        sender = self._take(patient=patient)
        try:
            places, sender = self._send(sender, scope, payloads, key, row_id)
            if then is not None:
                then(sender)
        except BaseException:
            sender.line.close()
            raise
        self._senders.put_back(sender)
        if self._senders.losses:
            self._senders.report_losses()
        return places

    def _relay(self, line: Line, scope: Scope, producer: int, runs: dict[int, Run], only: int) -> dict[int, Position]:
        for _ in range(3):
            epoch = only or self._epochs.of(scope)
            try:
                reached, ring = resend(line, scope, epoch, producer, runs, self._record_lost)
            except EpochStale:
                if only:
                    raise
                self._epochs.after(scope, epoch)
                continue
            if ring:
                self._bell.ring(ring, sum(len(run.payloads) for run in runs.values()))
            return reached
        raise LogUnavailable("the server's lineage keeps changing")

    def _send(
        self, sender: Producer, scope: Scope, payloads: dict[int, Sequence[bytes]], key: str, row_id: int | None
    ) -> tuple[dict[int, OpPlace], Producer]:
        """Send, and return the places and the sender to go on with."""
        for _ in range(3):
            epoch = self._epochs.of(scope)
            sender = self._senders.checked(sender)
            try:
                answer, first = sender.send(scope, epoch, payloads, key, row_id or 0)
            except EpochStale:
                self._epochs.after(scope, epoch)
                continue
            if answer.ring:
                self._bell.ring(answer.ring, sum(map(len, payloads.values())))
            if answer.claim is not None:
                return {bucket: _same(answer.claim, sender, bucket) for bucket in payloads}, sender
            places, holes = {}, []
            for bucket, (code, position) in zip(payloads, answer.placed, strict=True):
                places[bucket] = OpPlace(position, sender.producer, first[bucket])
                if code == HOLE:
                    holes.append(bucket)
            if not holes:
                return places, sender
            # the log knows less of this producer than it acknowledged: name the loss, go on as a new producer
            try:
                again, fresh = self._send(
                    self._senders.replaced(sender), scope, {b: payloads[b] for b in holes}, key, row_id
                )
            except Unavailable as error:
                placed = {b: (sender.producer, first[b]) for b in payloads if b not in holes}
                error.numbered = {**placed, **error.numbered}
                raise
            return places | again, fresh
        raise LogUnavailable("the server's lineage keeps changing", sent=False)


def _same(text: str, sender: Producer, bucket: int) -> OpPlace:
    place = idempotency.kept(text)
    if place.producer == sender.producer:
        sender.skip(bucket, place.seq)
    return place
