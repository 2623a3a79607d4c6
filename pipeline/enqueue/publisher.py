"""Publish ops: append them under the right epoch by an idle producer, ring the bell, have named what Redis lost."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from typing import TypeVar

from msgspec.structs import replace

from pipeline import clock
from pipeline.config import Topology
from pipeline.enqueue.epochs import Authority
from pipeline.enqueue.producer import EPOCHS, FRESH_S, Acknowledged, Producer, Run, resend
from pipeline.enqueue.shipment import OpPlace, Shipment, queued
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import LogUnavailable, PipelineFull, Unavailable
from pipeline.events import Event
from pipeline.model import Position
from pipeline.oplog.appends import HELD, HOLE, Appends, EpochStale, Scope
from pipeline.oplog.doorbell import Bell, SilentBell
from pipeline.spool import Number

#: Rounds of one call: the first, one under another epoch, one behind a hole, and in case the server goes on changing.
SEND_ROUNDS = 5
#: So many ops at once have the short time-out of a request also where there is none; more are a bulk load's.
FEW = 20
Share = TypeVar("Share")
logger = logging.getLogger("pipeline.publish")


class Publisher(Acknowledged):
    """Appends ops to logs. Thread-safe; after a fork the child starts with producers of its own.

    Args:
        bell: wakes the workers of a shard.
        authority, away: see `Acknowledged`.

    Attributes:
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
        super().__init__(log, topology, authority, away or RedisAway())
        self._bell = bell

    def ship(self, shipment: Shipment) -> dict[int, OpPlace]:
        """Append ops, in one round trip per shard; return the place of each bucket's first.

        Raises:
            KeyClaimed: the key has claimed another id; nothing was sent.
            PipelineFull: nothing was sent.
            LogUnavailable: no answer in time; the ops may be queued or not.
            ShardUnavailable: a new epoch was due and the shard's primary did not answer; nothing was sent.
        """
        runs = shipment.runs
        if shipment.numbered:
            return self._ship_again(shipment)
        if len(runs) == 1 and not shipment.key and shipment.durability == "redis":
            [(bucket, payloads)] = runs.items()
            if len(payloads) == 1:
                return {bucket: self._ship_one(bucket, payloads[0])}
        places: dict[int, OpPlace] = {}
        for share in self.by_scope(runs).values():
            part = shipment.part(share)
            patient = self.away.wait_budgets.here.budget is None and part.size > FEW
            try:
                places |= self._ship_by(self._take(patient=patient), part)
            except Unavailable as error:
                error.numbered = queued(places, error)
                raise
        return places

    def ship_one(self, bucket: int, payload: bytes) -> OpPlace:
        """Append one op that has neither key nor wish, with half the work where nothing is unusual; see `ship`."""
        scope = self.scopes[self.topology.owners[bucket]]
        producer, epochs = self._take(), self._epochs
        epoch = epochs.known.get(scope.name) if scope is not self._reference else None
        try:
            placed = producer.send_one(scope, epoch, bucket, payload) if epoch is not None else None
        except BaseException:
            self._end(producer)
            raise
        if placed is None:  # the same producer goes on: its first try may have been taken, and its answer lost
            return self._ship_by(producer, Shipment({bucket: (payload,)}))[bucket]
        if producer.lineages == epochs.learnt:
            self.idle.append(producer)
        else:
            self._put_back(producer)
        self.away.wait_budgets.cold = False
        position, seq, ring = placed
        if ring:
            self._bell.ring(scope.shards, 1)
        return OpPlace(position, producer.producer, seq)

    _ship_one = ship_one  # for `ship`: a subclass may wrap both

    def resend(
        self, producer: int, runs: Mapping[int, Run], *, epoch: int = 0, patient: bool = True
    ) -> dict[int, Position]:
        """Append ops under a producer and sequences that the caller keeps, as often as it likes, from any process.

        Args:
            producer: a random 63-bit number; see the module `producer` for when to take a new one.
            runs: of each bucket all that the caller still holds, from the lowest sequence on.
            epoch: under which the caller thinks that all below stands in the log: the current one if it is not given.
            patient: wait for a slow Redis as a bulk load does; a request must not.

        Returns:
            Of each bucket, the position at or before which its last op stands.

        Raises:
            EpochStale: the epoch is not *epoch* any more; some may have been sent.
            PipelineFull, LogUnavailable, ShardUnavailable: some or all may have been sent; call again. Once the caller
                holds them no more, it calls `remember`.
        """
        reached: dict[int, Position] = {}
        left, stale = dict(runs), 0
        while left:
            scope, share = next(iter(self.by_scope(left).items()))
            under = epoch or self._epochs.of(scope)
            try:
                with closing(self._log.line(patient=patient)) as line:
                    positions, ring = resend(line, under, scope, producer, share)
            except EpochStale as error:
                stale += 1
                if epoch:
                    raise
                if stale == EPOCHS:
                    raise LogUnavailable("the server's lineage keeps changing") from error
                self._epochs.after(scope, under)
                continue
            reached |= positions
            left = {bucket: run for bucket, run in left.items() if bucket not in reached}
            if ring:
                self._bell.ring(ring, sum(len(run.payloads) for run in share.values()))
        return reached

    def claim(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that an idempotency key has claimed; *row_id* for a new key, or without Redis's answer."""
        try:
            return self._log.claim_key(bucket, key, row_id)
        except (LogUnavailable, PipelineFull) as error:
            logger.warning(
                Event(
                    "key_not_claimed",
                    bucket=bucket,
                    error=error,
                    text="two calls with one idempotency key may tell two ids",
                )
            )
            if isinstance(error, LogUnavailable):
                self.away.claim_failed(error)
            return row_id

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
                self._epochs.asked(scope)
        producer = self._take()
        try:
            producer.line.connect()
        except BaseException:
            self._end(producer)
            raise
        self._put_back(producer)

    def by_scope(self, runs: Mapping[int, Share]) -> dict[Scope, dict[int, Share]]:
        """Sort buckets by scope."""
        shares: dict[Scope, dict[int, Share]] = {}
        owners = self.topology.owners
        for bucket, run in runs.items():
            shares.setdefault(self.scopes[owners[bucket]], {})[bucket] = run
        return shares

    def close(self) -> None:
        """Give all connections back, and name what is known to be lost."""
        for idle in (self.idle, self._idle_patient):
            while idle:
                self._end(idle.pop())
        super().close()

    # parts --------------------------------------------------------------------------------------------------

    def _ship_again(self, shipment: Shipment) -> dict[int, OpPlace]:
        """Append ops that may have been sent before, under their numbers. A repeat waits for no replica and no disk."""
        places, durable = dict[int, OpPlace](), shipment.durability not in ("replica", "fsync")
        try:
            for bucket, (producer, first) in shipment.numbered.items():
                run = Run(first, shipment.runs[bucket])
                reached = self.resend(producer, {bucket: run}, patient=False)
                self.remember(producer, {bucket: (run.last, reached[bucket])})
                places[bucket] = OpPlace(reached[bucket], producer, first, durable=durable)
        except Unavailable as error:
            error.numbered = shipment.numbered
            raise
        return places

    def _ship_by(self, producer: Producer, shipment: Shipment) -> dict[int, OpPlace]:
        try:
            places = self._send(producer, shipment)
            if not producer.reached(shipment.durability):
                places = {bucket: replace(place, durable=False) for bucket, place in places.items()}
        except BaseException:
            self._end(producer)
            raise
        self._put_back(producer)
        self.away.wait_budgets.cold = False
        return places

    def _send(self, producer: Producer, shipment: Shipment) -> dict[int, OpPlace]:
        numbers, places, left = producer.numbers(shipment.runs), dict[int, OpPlace](), shipment
        doubt: dict[int, Number] = {}
        try:
            for _ in range(SEND_ROUNDS):
                # each time anew: whoever learns an epoch learns the map with it, and buckets may have moved
                scope, share = next(iter(self.by_scope(left.runs).items()))
                epoch, part = self._epochs.of(scope), left if len(share) == len(left.runs) else left.part(share)
                try:
                    answer, first = producer.send(scope, epoch, part)
                except EpochStale:
                    doubt = numbers  # a first try may have been taken, and its answer lost
                    self._question()
                    self._epochs.after(scope, epoch)
                    continue
                if answer.ring:
                    self._bell.ring(answer.ring, part.size)
                if answer.claim is not None:
                    return {bucket: producer.claimed(answer.claim, bucket) for bucket in part.runs}
                placed = dict(zip(part.runs, answer.placed, strict=True))
                places |= {b: OpPlace(at, producer.producer, first[b]) for b, (_, at) in placed.items()}
                holes = {bucket: at.seq for bucket, (code, at) in placed.items() if code == HOLE}
                taken = {bucket for bucket, (code, _) in placed.items() if code not in (HOLE, HELD)}
                rest = {bucket: run for bucket, run in left.runs.items() if bucket not in taken}
                if not rest:
                    return places
                if holes:
                    # the log knows less of this producer than it acknowledged: the ops go on under their numbers
                    doubt = numbers
                    producer.pass_holes(holes)
                left = left.part(rest)
            raise LogUnavailable("the server's lineage keeps changing", sent=False)
        except Unavailable as error:
            error.numbered = {**doubt, **error.numbered}
            raise

    # producers --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin, in a child anew: a fork must not send on its parent's connections."""
        super()._start()
        self.idle: deque[Producer] = deque()
        self._idle_patient: deque[Producer] = deque()

    def _take(self, *, patient: bool = False) -> Producer:
        """Return a producer for this caller alone, until `_put_back`; a patient one waits longer, for many ops."""
        if self._pid != os.getpid():
            self._start()
        try:
            producer = (self._idle_patient if patient else self.idle).pop()
        except IndexError:
            return self._made(patient)
        if producer.lineages == self._epochs.learnt and clock.mono_s() - producer.made_at_s <= FRESH_S:
            return producer
        self._end(producer)
        return self._made(patient)

    def _made(self, patient: bool) -> Producer:
        self._keep_watch()
        return Producer(self._log.line(patient=patient), patient, self._epochs.learnt)

    def _put_back(self, producer: Producer) -> None:
        """Let others use a producer; one whose epoch is over ends, so that what it was told can be judged."""
        if producer.lineages == self._epochs.learnt:
            (self._idle_patient if producer.patient else self.idle).append(producer)
        else:
            self._end(producer)

    def _end(self, producer: Producer) -> None:
        """Use a producer no more; what was acknowledged to it stays in mind."""
        producer.line.close()
        if producer.acked:
            self._acked.append((producer.producer, producer.acked))

    def _end_stale(self) -> None:
        for idle in (self.idle, self._idle_patient):
            for _ in range(len(idle)):
                self._put_back(self._take(patient=idle is self._idle_patient))
                idle.rotate()
