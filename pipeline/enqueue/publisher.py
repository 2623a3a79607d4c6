"""Publish ops: append them under the right epoch by an idle producer, ring the bell, record by name what Redis lost."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from msgspec.structs import replace

from pipeline import clock
from pipeline.config.topology import Topology
from pipeline.enqueue.epochs import Authority, EpochCache
from pipeline.enqueue.producer import FRESH_S, Producer
from pipeline.enqueue.redis_away import RedisAway
from pipeline.enqueue.resend import Run, resend
from pipeline.enqueue.shipment import OpPlace, Shipment
from pipeline.errors import LogUnavailable, PipelineFull, Unavailable
from pipeline.model.op import Position
from pipeline.oplog.appends import EVERYWHERE, HOLE, Appends, EpochStale, Scope, scopes_of
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.shard.records.ledger import LostRange
from pipeline.wait_budget import WaitBudgetSpent

#: So many ops at once have the short time-out of a request also where there is none; more are a bulk load's.
FEW = 20
Share = TypeVar("Share")
logger = logging.getLogger("pipeline.publish")


class Publisher:
    """Appends ops to logs. Thread-safe; after a fork the child starts with producers of its own.

    Args:
        bell: wakes the workers of a shard.
        authority: raises epochs, and records what the log lost; a loss is recorded later where it raises `Unavailable`.
        away: has the wait budgets: raising an epoch and recording a loss ask databases.

    Attributes:
        scopes: all scopes by name.
        idle: producers of requests, not in use now.
    """

    def __init__(
        self,
        log: Appends,
        topology: Topology,
        bell: Bell | SilentBell,
        authority: Authority,
        *,
        away: RedisAway | None = None,
    ):
        self._log, self._bell, self._authority, self.away = log, bell, authority, away or RedisAway()
        self.scopes = scopes_of(topology.shards)
        self._reference = self.scopes[EVERYWHERE]
        self._scope_of = [self.scopes[topology.shard_of(bucket)] for bucket in range(topology.buckets)]
        self._scope_of.append(self._reference)
        self._epochs = EpochCache(log, authority, self.away.wait_budgets, self._audit)
        self._start()

    def ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        """Append ops, in one round trip per shard; return the place of each bucket's first.

        Raises:
            KeyClaimed: the key has claimed another id; nothing was sent.
            PipelineFull: nothing was sent.
            LogUnavailable: no answer in time; the ops may be queued or not.
            ShardUnavailable: a new epoch was due and the shard's primary did not answer; nothing was sent.
        """
        runs = shipment.runs
        if len(runs) == 1 and not shipment.key and shipment.durability == "redis":
            [(bucket, payloads)] = runs.items()
            scope = self._scope_of[bucket]
            if len(payloads) == 1 and scope is not self._reference:
                place = self._ship_one(scope, bucket, payloads[0])
                if place is not None:
                    return {bucket: place}
        places: dict[int, OpPlace] = {}
        for scope, share in self.by_scope(runs).items():
            places |= self._ship(scope, shipment.part(share))
        return places

    def resend(
        self, producer: int, runs: Mapping[int, Run], *, epoch: int = 0, patient: bool = True
    ) -> dict[int, Position]:
        """Append ops under a producer and sequences that the caller keeps, as often as it likes, from any process.

        Args:
            producer: a random 63-bit number; see the module `resend` for when to take a new one.
            runs: of each bucket all that the caller still holds, from the lowest sequence on.
            epoch: under which the caller thinks that all below stands in the log: the current one if it is not given.
            patient: wait for a slow Redis as a bulk load does; a request must not.

        Returns:
            Of each bucket, the position at or before which its last op stands.

        Raises:
            EpochStale: the epoch is not *epoch* any more; some may have been sent.
            PipelineFull, LogUnavailable, ShardUnavailable: some or all may have been sent; call again.
        """
        reached: dict[int, Position] = {}
        for scope, share in self.by_scope(runs).items():
            with closing(self._log.line(patient=patient)) as line:
                positions, ring = resend(line, self._epochs, scope, producer, share, epoch, self._authority)
            reached |= positions
            if ring:
                self._bell.ring(ring, sum(len(run.payloads) for run in share.values()))
        return reached

    def claim(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that an idempotency key has claimed; *row_id* for a new key, or without Redis's answer."""
        try:
            return self._log.claim_key(bucket, key, row_id)
        except (LogUnavailable, PipelineFull) as error:
            logger.warning("two calls with one idempotency key may tell two ids: %s", error)
            if isinstance(error, LogUnavailable):
                self.away.claim_failed(error)
            return row_id

    def scope_of(self, bucket: int) -> Scope:
        """Return the scope of a bucket's log."""
        return self._scope_of[bucket]

    def epoch_of(self, scope: Scope) -> int:
        """Ask the server for a scope's epoch; raise it if it was given out on another.

        Raises:
            LogUnavailable, ShardUnavailable: it could not be raised, or not within the caller's wait budget.
        """
        return self._epochs.asked(scope)

    def warm(self) -> None:
        """Connect and learn the shards' epochs at leisure: the next op will not have to within its wait budget.

        Raises:
            LogUnavailable, ShardUnavailable: as `epoch_of`.
        """
        for scope in self.scopes.values():
            if scope is not self._reference:
                self._epochs.refresh(scope)
        producer = self._take()
        try:
            producer.line.sequences(producer.producer)
        except BaseException:
            producer.line.close()
            raise
        self._put_back(producer)

    def by_scope(self, runs: Mapping[int, Share]) -> dict[Scope, dict[int, Share]]:
        """Sort buckets by scope."""
        shares: dict[Scope, dict[int, Share]] = {}
        for bucket, run in runs.items():
            shares.setdefault(self._scope_of[bucket], {})[bucket] = run
        return shares

    def close(self) -> None:
        """Give all connections back."""
        for idle in (self.idle, self._idle_patient):
            while idle:
                idle.pop().line.close()

    # parts --------------------------------------------------------------------------------------------------

    def _ship_one(self, scope: Scope, bucket: int, payload: bytes) -> OpPlace | None:
        """Append one op when nothing is unusual, with half the work; None where nothing was written."""
        producer, epochs = self._take(), self._epochs
        epoch = epochs.known.get(scope.name)
        if epoch is None or producer.lineages != epochs.learnt:
            self._put_back(producer)
            return None
        try:
            placed = producer.send_one(scope, epoch, bucket, payload)
        except BaseException:
            producer.line.close()
            raise
        if producer.lineages == epochs.learnt:
            self.idle.append(producer)
        else:
            self._put_back(producer)
        if placed is None:
            return None
        position, seq, ring = placed
        if ring:
            self._bell.ring(scope.shards, 1)
        if self._losses:
            self._report_losses()
        return OpPlace(position, producer.producer, seq)

    def _ship(self, scope: Scope, shipment: Shipment) -> dict[int, OpPlace]:
        patient = self.away.wait_budgets.here.budget is None and shipment.size > FEW
        producer = self._take(patient=patient)
        try:
            places, producer = self._send(producer, scope, shipment)
            if not producer.reached(shipment.durability):
                places = {bucket: replace(place, durable=False) for bucket, place in places.items()}
        except BaseException:
            producer.line.close()
            raise
        self._put_back(producer)
        if self._losses:
            self._report_losses()
        return places

    def _send(self, producer: Producer, scope: Scope, shipment: Shipment) -> tuple[dict[int, OpPlace], Producer]:
        """Send, and return the places and the producer to go on with."""
        for _ in range(3):
            epoch = self._epochs.of(scope)
            producer = self._checked(producer)
            try:
                answer, first = producer.send(scope, epoch, shipment)
            except EpochStale:
                self._epochs.after(scope, epoch)
                continue
            if answer.ring:
                self._bell.ring(answer.ring, shipment.size)
            if answer.claim is not None:
                return {bucket: producer.claimed(answer.claim, bucket) for bucket in shipment.runs}, producer
            places, holes = dict[int, OpPlace](), dict[int, Sequence[bytes]]()
            for (bucket, ops), (code, position) in zip(shipment.runs.items(), answer.placed, strict=True):
                places[bucket] = OpPlace(position, producer.producer, first[bucket])
                if code == HOLE:
                    holes[bucket] = ops
            if not holes:
                return places, producer
            # the log knows less of this producer than it acknowledged: name the loss, go on as a new producer
            try:
                again, fresh = self._send(self._replaced(producer), scope, shipment.part(holes))
            except Unavailable as error:
                placed = {b: (producer.producer, first[b]) for b in shipment.runs if b not in holes}
                error.numbered = {**placed, **error.numbered}
                raise
            return places | again, fresh
        raise LogUnavailable("the server's lineage keeps changing", sent=False)

    # producers ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin, in a child anew: a fork must not send on its parent's connections, nor wait for its locks."""
        self.idle: deque[Producer] = deque()
        self._idle_patient: deque[Producer] = deque()
        self._losses: deque[LostRange] = deque(maxlen=10_000)
        self._epochs.start()
        self._pid = os.getpid()

    def _take(self, *, patient: bool = False) -> Producer:
        """Return a producer for this caller alone, until `_put_back`; a patient one waits longer, for many ops."""
        if self._pid != os.getpid():
            self._start()
        try:
            producer = (self._idle_patient if patient else self.idle).pop()
        except IndexError:
            return self._made(patient)
        idle_since_s, producer.used_at_s = producer.used_at_s, clock.mono_s()
        if producer.used_at_s - idle_since_s <= FRESH_S:
            return producer
        producer.line.close()
        return self._made(patient)

    def _made(self, patient: bool) -> Producer:
        return Producer(self._log.line(patient=patient), patient, self._epochs.learnt)

    def _put_back(self, producer: Producer) -> None:
        """Let others use a producer; one that missed a change of lineage is checked now: it may never send again."""
        try:
            producer = self._checked(producer)
        except LogUnavailable as error:
            logger.warning("a producer will be checked at its next use: %s", error)
        (self._idle_patient if producer.patient else self.idle).append(producer)

    def _checked(self, producer: Producer) -> Producer:
        """Return a producer of which the log has lost nothing: this one, or after a change of lineage another."""
        learnt = self._epochs.learnt
        if producer.lineages != learnt:
            if producer.losses():
                return self._replaced(producer)
            producer.lineages = learnt
        return producer

    def _replaced(self, producer: Producer) -> Producer:
        """Note what the log lost of a producer, and return another in its place."""
        self._losses.extend(producer.losses())
        producer.line.close()
        return self._made(producer.patient)

    def _audit(self) -> None:
        """Ask the server of a new lineage what it knows of the idle producers: their next op may never come."""
        for idle, patient in ((self.idle, False), (self._idle_patient, True)):
            for _ in range(len(idle)):
                self._put_back(self._take(patient=patient))
                idle.rotate()

    def _report_losses(self) -> None:
        """Record what was lost; what cannot be recorded now is tried again at the next call."""
        try:
            self.away.wait_budgets.aside(self._record_losses)
        except WaitBudgetSpent:
            logger.warning("the loss is being recorded, or will be: the database has not answered yet")

    def _record_losses(self) -> None:
        while self._losses:
            lost = self._losses.popleft()
            try:
                gone = self._authority.record_lost(lost)
            except Unavailable as error:
                self._losses.append(lost)
                logger.warning("a loss in bucket %d could not be recorded yet: %s", lost.bucket, error)
                return
            if gone is not None:
                where = gone.bucket, gone.producer, gone.first, gone.last
                logger.error("Redis lost %d ops: bucket=%d producer=%d seq=%d..%d", gone.last - gone.first + 1, *where)
