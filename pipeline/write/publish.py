"""Publish ops: the right scope and epoch, a free sender, the bell; what Redis lost is recorded by name."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pipeline.errors import LogUnavailable, Unavailable
from pipeline.log.bell import Bell, SilentBell
from pipeline.log.contract import EVERYWHERE, HOLE, EpochStale, Line, Log, Scope, scopes_of
from pipeline.log.patience import Patience, threads_run
from pipeline.op import Position
from pipeline.topology import Topology
from pipeline.write import earlier
from pipeline.write.earlier import Place
from pipeline.write.elsewhere import Elsewhere
from pipeline.write.relay import Run, relay
from pipeline.write.sender import Lost, Sender

#: So many ops at once have the short time-out of a request also where there is none; more are a bulk load's.
FEW = 20
Share = TypeVar("Share")
_log = logging.getLogger("pipeline.publish")


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
        log: Log,
        topology: Topology,
        bell: Bell | SilentBell,
        raise_epoch: Callable[[Scope], int],
        record_lost: Callable[[Lost], None],
        *,
        patience: Patience | None = None,
        renewed: Callable[[], object] = lambda: None,
        ended: Callable[[], object] = lambda: None,
    ):
        self._log, self._bell = log, bell
        self._patience, self._renewed, self._ended = patience or Patience(math.inf), renewed, ended
        self._raise_epoch, self._record_lost = raise_epoch, record_lost
        self.scopes = scopes_of(topology.shards)
        self._reference = self.scopes[EVERYWHERE]
        self._scope_of = [self.scopes[topology.shard_of(bucket)] for bucket in range(topology.buckets)]
        self._scope_of.append(self._reference)
        self._epochs: dict[str, int] = {}
        self._reset()

    def publish(
        self,
        bucket: int,
        payload: bytes,
        *,
        key: str = "",
        row_id: int | None = None,
        then: Callable[[Sender], None] | None = None,
    ) -> Place:
        """Append one op; *then* may use the sender's line while it is still ours.

        Args:
            row_id: of the new row, so that others with that key get to know it.

        Raises:
            IdReserved: the key stands for another id; nothing was sent.
            PipelineFull: nothing was sent.
            LogUnavailable: no answer in time; the op may be queued or not.
            ShardUnavailable: a new epoch was due and the shard's primary did not answer; nothing was sent.
        """
        scope = self._scope_of[bucket]
        if not key and then is None and scope is not self._reference:
            sender = self._take(self._free)
            epoch = self._epochs.get(scope.name)
            if epoch is not None and sender.lineages == self._lineages:
                place = self._publish_one(sender, scope, epoch, bucket, payload)
                if place is not None:
                    return place
            else:
                self._put_back(sender)
        return self._share(scope, {bucket: (payload,)}, key, row_id, then, self._free)[bucket]

    def publish_many(
        self,
        payloads: Mapping[int, Sequence[bytes]],
        *,
        key: str = "",
        row_id: int | None = None,
        then: Callable[[Sender], None] | None = None,
    ) -> dict[int, Place]:
        """Append ops of several buckets, in one round trip per shard; return the place of each bucket's first."""
        places: dict[int, Place] = {}
        for scope, share in self.by_scope(payloads).items():
            hasty = self._patience.here.budget is not None or sum(map(len, share.values())) <= FEW
            places |= self._share(scope, share, key, row_id, then, self._free if hasty else self._patient)
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
        return earlier.reserved(self._log, bucket, key, row_id)

    def scope_of(self, bucket: int) -> Scope:
        """Return the scope of a bucket's log."""
        return self._scope_of[bucket]

    def epoch_of(self, scope: Scope) -> int:
        """Ask the server for a scope's epoch; raise it if it was given out on another.

        Raises:
            LogUnavailable, ShardUnavailable: it could not be raised, or not within the caller's patience.
        """
        epoch, current, _ = self._log.epoch(scope.name)
        return epoch if epoch and current else self._raised(scope, self._epochs.get(scope.name, 0))

    def close(self) -> None:
        """Give all connections back."""
        for free in (self._free, self._patient):
            while free:
                free.pop().line.close()

    # parts --------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._raising = threading.Lock()  # a fork may have taken place while another thread held it
        self._elsewhere: Elsewhere[int] = Elsewhere("pipeline-epochs", self._ended)
        self._lineages = 0  # how many epochs were raised or learnt here
        self._free: deque[Sender] = deque()
        self._patient: deque[Sender] = deque()
        self._losses: deque[Lost] = deque(maxlen=10_000)

    def _publish_one(self, sender: Sender, scope: Scope, epoch: int, bucket: int, payload: bytes) -> Place | None:
        """Append one op when nothing is unusual, with half the work; None where nothing was written."""
        try:
            placed = sender.send_one(scope, epoch, bucket, payload)
        except BaseException:
            sender.line.close()
            raise
        if sender.lineages == self._lineages:
            self._free.append(sender)
        else:
            self._put_back(sender)
        if placed is None:
            return None
        position, seq, ring = placed
        if ring:
            self._bell.ring(scope.shards, 1)
        if self._losses:
            self._report_losses()
        return Place(position, sender.producer, seq)

    def _share(
        self,
        scope: Scope,
        payloads: dict[int, Sequence[bytes]],
        key: str,
        row_id: int | None,
        then: Callable[[Sender], None] | None,
        free: deque[Sender],
    ) -> dict[int, Place]:
        sender = self._take(free)
        try:
            places, sender = self._send(sender, scope, payloads, key, row_id)
            if then is not None:
                then(sender)
        except BaseException:
            sender.line.close()
            raise
        self._put_back(sender)
        if self._losses:
            self._report_losses()
        return places

    def _take(self, free: deque[Sender]) -> Sender:
        patient = free is self._patient
        if self._pid != os.getpid():
            self._reset()
            free = self._patient if patient else self._free
        try:
            sender = free.pop()
        except IndexError:
            return self._made(patient)
        if sender.awake():
            return sender
        sender.line.close()
        return self._made(patient)

    def _made(self, patient: bool) -> Sender:
        return Sender(self._log.line(patient=patient), patient, self._lineages)

    def _put_back(self, sender: Sender) -> None:
        """Let others use a sender; one that missed a change of lineage is asked about now: it may never send again."""
        if sender.lineages != self._lineages:
            try:
                sender = self._checked(sender)
            except LogUnavailable as error:
                _log.warning("a sender will be checked at its next use: %s", error)
        (self._patient if sender.patient else self._free).append(sender)

    def by_scope(self, payloads: Mapping[int, Share]) -> dict[Scope, dict[int, Share]]:
        """Sort buckets by scope."""
        shares: dict[Scope, dict[int, Share]] = {}
        for bucket, ops in payloads.items():
            shares.setdefault(self.scope_of(bucket), {})[bucket] = ops
        return shares

    def _relay(self, line: Line, scope: Scope, producer: int, runs: dict[int, Run], only: int) -> dict[int, Position]:
        for _ in range(3):
            epoch = only or self._epochs.get(scope.name) or self._raised(scope, 0)
            try:
                reached, ring = relay(line, scope, epoch, producer, runs, self._record_lost)
            except EpochStale:
                if only:
                    raise
                self._raised(scope, epoch)
                continue
            if ring:
                self._bell.ring(ring, sum(len(run.payloads) for run in runs.values()))
            return reached
        raise LogUnavailable("the server's lineage keeps changing")

    def _send(
        self, sender: Sender, scope: Scope, payloads: dict[int, Sequence[bytes]], key: str, row_id: int | None
    ) -> tuple[dict[int, Place], Sender]:
        """Send, and return the places and the sender to go on with."""
        for _ in range(3):
            epoch = self._epochs.get(scope.name) or self._raised(scope, 0)
            sender = self._checked(sender)
            try:
                answer, first = sender.send(scope, epoch, payloads, key, row_id or 0)
            except EpochStale:
                self._raised(scope, epoch)
                continue
            if answer.ring:
                self._bell.ring(answer.ring, sum(map(len, payloads.values())))
            if answer.same is not None:
                return {bucket: _same(answer.same, sender, bucket) for bucket in payloads}, sender
            places, holes = {}, []
            for bucket, (code, position) in zip(payloads, answer.placed, strict=True):
                places[bucket] = Place(position, sender.producer, first[bucket])
                if code == HOLE:
                    holes.append(bucket)
            if not holes:
                return places, sender
            # the log knows less of this producer than it acknowledged: name the loss, go on as a new producer
            try:
                again, fresh = self._send(self._replaced(sender), scope, {b: payloads[b] for b in holes}, key, row_id)
            except Unavailable as error:
                placed = {b: (sender.producer, first[b]) for b in payloads if b not in holes}
                error.numbered = {**placed, **error.numbered}
                raise
            return places | again, fresh
        raise LogUnavailable("the server's lineage keeps changing", sent=False)

    def _checked(self, sender: Sender) -> Sender:
        """Return a sender of which the log has lost nothing: this one, or after a change of lineage perhaps another."""
        lineages = self._lineages
        if sender.lineages != lineages:
            if sender.losses():
                return self._replaced(sender)
            sender.lineages = lineages
        return sender

    def _replaced(self, sender: Sender) -> Sender:
        """Note what the log lost of a sender, and return another in its place."""
        self._losses.extend(sender.losses())
        sender.line.close()
        return self._made(sender.patient)

    def _raised(self, scope: Scope, stale: int) -> int:
        """Return an epoch that is not *stale*.

        Raises:
            LogUnavailable: there is none as soon as its caller needs it; it is being raised, and nothing was sent.
        """
        patience = self._patience
        budget = patience.here.budget
        if budget is None:
            return self._raise(scope, stale)
        if not threads_run():
            return self._found(scope, stale)
        with patience.spending():
            return self._elsewhere.result(scope.name, lambda: self._raise(scope, stale), max(0.0, budget.left_s))

    def _found(self, scope: Scope, stale: int) -> int:
        """Return the epoch that others have raised: the workers do, where a request cannot leave it to a thread."""
        epoch, current, _ = self._log.epoch(scope.name)
        if not epoch or not current:
            raise LogUnavailable(f"the epoch of {scope.name!r} is not raised yet; a worker raises it", sent=False)
        return self._learnt(scope, stale, lambda: epoch)

    def _raise(self, scope: Scope, stale: int) -> int:
        return self._learnt(scope, stale, lambda: self._raise_epoch(scope))

    def _learnt(self, scope: Scope, stale: int, learn: Callable[[], int]) -> int:
        with self._raising:
            known = self._epochs.get(scope.name, 0)
            if known == stale:
                known = self._epochs[scope.name] = learn()
                self._lineages += 1
                if self._lineage_changed(scope, stale):
                    self._renewed()
                self._audit()
            return known

    def _lineage_changed(self, scope: Scope, stale: int) -> bool:
        """Whether the server is another than the one that took what this process has sent so far."""
        other = next((name for name in self._epochs if name != scope.name), None)
        return stale > 0 or (other is not None and self._log.epoch(other)[:2] != (self._epochs[other], True))

    def _audit(self) -> None:
        """Ask the server of the new lineage what it knows of the idle senders: their next op may never come."""
        for free in (self._free, self._patient):
            for _ in range(len(free)):
                self._put_back(self._take(free))
                free.rotate()

    def _report_losses(self) -> None:
        try:
            self._patience.aside(self._record_losses, ended=self._ended)
        except TimeoutError:
            _log.warning("the loss is being recorded, or will be: the database has not answered yet")

    def _record_losses(self) -> None:
        while self._losses:
            lost = self._losses.popleft()
            _log.error("Redis lost ops: bucket=%d producer=%d seq=%d..%d", *lost)
            try:
                self._record_lost(lost)
            except Unavailable as error:
                self._losses.append(lost)
                _log.warning("the loss could not be recorded yet: %s", error)
                return


def _same(text: str, sender: Sender, bucket: int) -> Place:
    place = earlier.kept(text)
    if place.producer == sender.producer:
        sender.skip(bucket, place.seq)
    return place
