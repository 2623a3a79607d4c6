"""Raising an epoch asks databases, which may hang: a thread does it, and a request waits for as long as it can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from pipeline.errors import LogUnavailable
from pipeline.wait_budget import OutOfPatience, perform, waited

Result = TypeVar("Result")


class Elsewhere(Generic[Result]):
    """Does work in threads, one at a time for each key: callers who want the same wait for the same.

    Args:
        afterwards: called in the thread at its end: what belongs to it is to be closed.
    """

    def __init__(self, name: str, afterwards: Callable[[], object] = lambda: None):
        self._name, self._afterwards = name, afterwards
        self._lock = threading.Lock()
        self._running: dict[str, Future[Result]] = {}

    def result(self, key: str, work: Callable[[], Result], wait_s: float) -> Result:
        """Return what the work under way for a key comes to, begun if there is none.

        Raises:
            LogUnavailable: it has not ended yet, and goes on.
            what the work raised.
        """
        with self._lock:
            future = self._running.get(key)
            if future is None:
                future = self._running[key] = Future()
                given = (lambda: self._done(key, work), future, self._afterwards)
                threading.Thread(target=perform, args=given, name=self._name, daemon=True).start()
        try:
            return waited(future, wait_s)
        except OutOfPatience as error:
            why = f"a new epoch of {key!r} was not raised within {wait_s * 1000:.0f} ms; it is being raised"
            raise LogUnavailable(why, sent=False) from error

    def _done(self, key: str, work: Callable[[], Result]) -> Result:
        try:
            return work()
        finally:
            with self._lock:
                del self._running[key]  # the next caller begins anew: what has ended may not be true any more
