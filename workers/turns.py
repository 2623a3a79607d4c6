"""Run a work in a thread of its own, turn by turn, whatever it raises."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from pipeline import clock
from pipeline.events import Event

#: How long a stopping worker waits for the current turns of all threads, s.
STOP_S = 3.0
#: The time to the next turn after one that failed, s.
FAILED_S = 1.0
logger = logging.getLogger("pipeline.worker")


class Work(Protocol):
    """What a thread does, turn by turn."""

    def turn(self) -> float:
        """Do what is due, and return the seconds to the next turn."""
        ...

    def close(self) -> None:
        """End, and close this thread's connections."""
        ...


class Turns:
    """A thread at its work.

    Args:
        name: of the thread, and in its log.
        work: what it does.

    Attributes:
        turn_s: when the last turn began or ended, by the steady clock.
    """

    def __init__(self, name: str, work: Work):
        self._work, self.turn_s = work, clock.mono_s()
        self._ended, self._due = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pipeline-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Let the next turn begin now."""
        self._due.set()

    def ask_to_stop(self) -> None:
        """Let the current turn be the last."""
        self._ended = True
        self._due.set()

    def stop(self, within_s: float = STOP_S) -> None:
        """Stop the thread after its current turn.

        Args:
            within_s: how long to wait for that.
        """
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def _run(self) -> None:
        pause_s = 0.0
        while not self._ended:
            self._due.wait(pause_s)
            self._due.clear()
            if self._ended:
                break
            self.turn_s = clock.mono_s()
            try:
                pause_s = self._work.turn()
            except Exception:  # the outermost loop: the thread goes on after any error
                logger.exception(Event("turn_failed", thread=self._thread.name))
                pause_s = FAILED_S
            self.turn_s = clock.mono_s()
        self._work.close()
