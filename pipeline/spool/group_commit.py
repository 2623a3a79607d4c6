"""Group commit: threads that come while another one's commit is on its way to the disk share the next.

One thread at a time leads. It commits the writes of every thread queued so far, in arrival order, and wakes them.
Then the first thread that queued during the commit leads. A thread waits for the commit under way and for its own, and
for no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Commit = TypeVar("Commit")


class GroupCommit(Generic[Commit]):
    """Does the wishes of all threads, those that come together at once.

    Args:
        do: does some wishes; must not raise, but note in each what became of it.
    """

    def __init__(self, do: Callable[[Sequence[Commit]], None]):
        self._do = do
        self._mutex = threading.Lock()
        self._waiting: list[_Turn[Commit]] = []
        self._led = False

    def done(self, wish: Commit) -> None:
        """Return once a wish has been done, by this thread or by another."""
        turn = _Turn(wish)
        with self._mutex:
            self._waiting.append(turn)
            turn.leads, self._led = not self._led, True
        if not turn.leads:
            turn.gate.acquire()
        if turn.leads:
            self._lead(turn)

    def _lead(self, own: _Turn[Commit]) -> None:
        with self._mutex:
            taken, self._waiting = self._waiting, []
        try:
            self._do([turn.wish for turn in taken])
        finally:
            self._hand_over()
            for turn in taken:
                if turn is not own:
                    turn.gate.release()

    def _hand_over(self) -> None:
        with self._mutex:
            heir = self._waiting[0] if self._waiting else None
            self._led = heir is not None
        if heir is not None:
            heir.leads = True
            heir.gate.release()


class _Turn(Generic[Commit]):
    """One thread's wish, and the gate at which it waits."""

    __slots__ = ("gate", "leads", "wish")

    def __init__(self, wish: Commit):
        self.wish, self.leads = wish, False
        self.gate = threading.Lock()
        self.gate.acquire()
