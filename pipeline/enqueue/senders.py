"""The senders of a process: each is used by one thread at a time, and none of whose ops the log has lost some."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from pipeline.enqueue.producers import Lost, Sender
from pipeline.errors import LogUnavailable, Unavailable
from pipeline.oplog.contract import Appending
from pipeline.wait_budget import OutOfPatience, Patience

_log = logging.getLogger("pipeline.publish")


class Senders:
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
        log: Appending,
        learnt: Callable[[], int],
        record_lost: Callable[[Lost], None],
        patience: Patience,
        ended: Callable[[], object],
    ):
        self._log, self._learnt, self._record_lost = log, learnt, record_lost
        self._patience, self._ended = patience, ended
        self.reset()

    def reset(self) -> None:
        """Begin anew in a child."""
        self.free: deque[Sender] = deque()
        self._patient: deque[Sender] = deque()
        self.losses: deque[Lost] = deque(maxlen=10_000)

    def take(self, *, patient: bool) -> Sender:
        """Return a sender that nobody else has until `put_back`; a patient one waits longer, for many ops at once."""
        try:
            sender = (self._patient if patient else self.free).pop()
        except IndexError:
            return self._made(patient)
        if sender.awake():
            return sender
        sender.line.close()
        return self._made(patient)

    def put_back(self, sender: Sender) -> None:
        """Let others use a sender; one that missed a change of lineage is asked about now: it may never send again."""
        if sender.lineages != self._learnt():
            try:
                sender = self.checked(sender)
            except LogUnavailable as error:
                _log.warning("a sender will be checked at its next use: %s", error)
        (self._patient if sender.patient else self.free).append(sender)

    def checked(self, sender: Sender) -> Sender:
        """Return a sender of which the log has lost nothing: this one, or after a change of lineage perhaps another."""
        learnt = self._learnt()
        if sender.lineages != learnt:
            if sender.losses():
                return self.replaced(sender)
            sender.lineages = learnt
        return sender

    def replaced(self, sender: Sender) -> Sender:
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
            self._patience.aside(self._record_losses, ended=self._ended)
        except OutOfPatience:
            _log.warning("the loss is being recorded, or will be: the database has not answered yet")

    def close(self) -> None:
        """Give all connections back."""
        for idle in (self.free, self._patient):
            while idle:
                idle.pop().line.close()

    def _made(self, patient: bool) -> Sender:
        return Sender(self._log.line(patient=patient), patient, self._learnt())

    def _record_losses(self) -> None:
        while self.losses:
            lost = self.losses.popleft()
            _log.error("Redis lost ops: bucket=%d producer=%d seq=%d..%d", *lost)
            try:
                self._record_lost(lost)
            except Unavailable as error:
                self.losses.append(lost)
                _log.warning("the loss could not be recorded yet: %s", error)
                return
