"""A sender: one producer as the log sees it, with a dense sequence per bucket and a connection of its own.

Used by one thread at a time, so that its ops reach a log in the order of its sequence. After a failure whose outcome
is unknown a sender is thrown away, never used on: its next sequence number could hide the op in doubt.

The senders of a process: each is used by one thread at a time, and none of whose ops the log has lost some.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline import clock
from pipeline.errors import LogUnavailable, Unavailable
from pipeline.model.op import Position
from pipeline.oplog.appends import HOLE, Append, Appended, Appends, Line, Scope
from pipeline.wait_budget import WaitBudgets, WaitBudgetSpent

#: A sender that idled longer starts anew under another number: Redis forgets its sequences after two days.
FRESH_S = 86_400


OnePlace = tuple[Position, int, bool]


class Lost(NamedTuple):
    """Ops of one producer that the log had acknowledged and no longer has."""

    bucket: int
    producer: int
    first: int
    last: int


class Producer:
    """Sends ops over one line.

    Attributes:
        producer: a random 63-bit number, never used twice.
        patient: whether its line waits longer, for many ops at once.
        lineages: how many changes of the server's lineage its sequences were checked after.
    """

    __slots__ = ("_next", "line", "lineages", "patient", "producer", "used_at")

    def __init__(self, line: Line, patient: bool = False, lineages: int = 0):
        self.line, self.patient, self.lineages = line, patient, lineages
        self.producer = int.from_bytes(os.urandom(8), "big") >> 1
        self._next: dict[int, int] = {}
        self.used_at = clock.mono_s()

    def send(
        self, scope: Scope, epoch: int, payloads: Mapping[int, Sequence[bytes]], key: str = "", row_id: int = 0
    ) -> tuple[Appended, dict[int, int]]:
        """Append ops per bucket; return the log's answer and the first sequence of each bucket."""
        first = {bucket: self._next.get(bucket, 1) for bucket in payloads}
        appends = [Append(bucket, first[bucket], ops) for bucket, ops in payloads.items()]
        try:
            answer = self.line.append(scope, epoch, self.producer, appends, key, row_id)
        except LogUnavailable as error:
            self._in_doubt(error, first)
            raise
        for append, placed in zip(appends, answer.placed, strict=False):
            if placed.code != HOLE:
                self._next[append.bucket] = append.first + len(append.payloads)
        return answer, first

    def send_one(self, scope: Scope, epoch: int, bucket: int, payload: bytes) -> OnePlace | None:
        """Append one op of a scope with one shard; None where nothing was written: `send` tells why.

        Returns:
            Its position, its sequence, and whether to ring.
        """
        seq = self._next.get(bucket, 1)
        try:
            placed = self.line.append_one(scope, epoch, self.producer, bucket, seq, payload)
        except LogUnavailable as error:
            self._in_doubt(error, {bucket: seq})
            raise
        if placed is None:
            return None
        self._next[bucket] = seq + 1
        return placed[0], seq, placed[1]

    def skip(self, bucket: int, seq: int) -> None:
        """Go on behind a sequence that turned out to be used."""
        self._next[bucket] = max(self._next.get(bucket, 1), seq + 1)

    def losses(self) -> list[Lost]:
        """Return what the log acknowledged to this sender and no longer knows; then the sender must not be used on."""
        known = self.line.sequences(self.producer) if self._next else {}
        return [
            Lost(bucket, self.producer, known.get(bucket, 0) + 1, seq - 1)
            for bucket, seq in self._next.items()
            if known.get(bucket, 0) < seq - 1
        ]

    def _in_doubt(self, error: LogUnavailable, first: Mapping[int, int]) -> None:
        """Note under which numbers ops may be in the log."""
        if error.sent:
            error.numbered = {bucket: (self.producer, seq) for bucket, seq in first.items()}

    def awake(self) -> bool:
        """Note that it is used now; whether it has not idled so long that the log may have forgotten it."""
        idle_since, self.used_at = self.used_at, clock.mono_s()
        return self.used_at - idle_since <= FRESH_S


logger = logging.getLogger("pipeline.publish")


class Producers:
    """Lends senders, and records by name what the log has lost of one.

    Args:
        learnt: how many epochs this process has learnt: each may be of another server.
        record_lost: writes down what the log lost; may raise `Unavailable`, then it is called again later.
        patience: of the callers: recording asks databases, and nobody waits longer for that.
        ended: called in a thread that has asked databases, to close what is its own.

    Attributes:
        free: those that a request's ops go over, idle.
    """

    def __init__(
        self,
        log: Appends,
        learnt: Callable[[], int],
        record_lost: Callable[[Lost], None],
        wait_budgets: WaitBudgets,
        ended: Callable[[], object],
    ):
        self._log, self._learnt, self._record_lost = log, learnt, record_lost
        self._wait_budgets, self._ended = wait_budgets, ended
        self.reset()

    def reset(self) -> None:
        """Begin anew in a child."""
        self.free: deque[Producer] = deque()
        self._patient: deque[Producer] = deque()
        self.losses: deque[Lost] = deque(maxlen=10_000)

    def take(self, *, patient: bool) -> Producer:
        """Return a sender that nobody else has until `put_back`; a patient one waits longer, for many ops at once."""
        try:
            sender = (self._patient if patient else self.free).pop()
        except IndexError:
            return self._made(patient)
        if sender.awake():
            return sender
        sender.line.close()
        return self._made(patient)

    def put_back(self, sender: Producer) -> None:
        """Let others use a sender; one that missed a change of lineage is asked about now: it may never send again."""
        if sender.lineages != self._learnt():
            try:
                sender = self.checked(sender)
            except LogUnavailable as error:
                logger.warning("a sender will be checked at its next use: %s", error)
        (self._patient if sender.patient else self.free).append(sender)

    def checked(self, sender: Producer) -> Producer:
        """Return a sender of which the log has lost nothing: this one, or after a change of lineage perhaps another."""
        learnt = self._learnt()
        if sender.lineages != learnt:
            if sender.losses():
                return self.replaced(sender)
            sender.lineages = learnt
        return sender

    def replaced(self, sender: Producer) -> Producer:
        """Note what the log lost of a sender, and return another in its place."""
        self.losses.extend(sender.losses())
        sender.line.close()
        return self._made(sender.patient)

    def audit(self) -> None:
        """Ask the server of the new lineage what it knows of the idle senders: their next op may never come."""
        for idle, patient in ((self.free, False), (self._patient, True)):
            for _ in range(len(idle)):
                self.put_back(self.take(patient=patient))
                idle.rotate()

    def report_losses(self) -> None:
        """Record what was lost; what cannot be recorded now is tried again at the next call."""
        try:
            self._wait_budgets.aside(self._record_losses, ended=self._ended)
        except WaitBudgetSpent:
            logger.warning("the loss is being recorded, or will be: the database has not answered yet")

    def close(self) -> None:
        """Give all connections back."""
        for idle in (self.free, self._patient):
            while idle:
                idle.pop().line.close()

    def _made(self, patient: bool) -> Producer:
        return Producer(self._log.line(patient=patient), patient, self._learnt())

    def _record_losses(self) -> None:
        while self.losses:
            lost = self.losses.popleft()
            logger.error("Redis lost ops: bucket=%d producer=%d seq=%d..%d", *lost)
            try:
                self._record_lost(lost)
            except Unavailable as error:
                self.losses.append(lost)
                logger.warning("the loss could not be recorded yet: %s", error)
                return
