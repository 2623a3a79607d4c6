"""Hold back Ctrl-C, SIGTERM and SIGHUP while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What a terminal, `kill` and a closed connection send.
HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Deliver the signals of `HELD` only after the block. Does nothing in other threads, where no signal arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    # A handler that Python does not know (None) could not be put back.
    numbers = [number for number in HELD if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, hold) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
