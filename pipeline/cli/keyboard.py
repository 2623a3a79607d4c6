"""Single keys, without Enter; the terminal is as it was afterwards."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import clock

try:
    import termios
    import tty

    _POSIX = True
except ImportError:  # Windows
    _POSIX = False

#: Waits so many seconds for a key, and returns it, or nothing.
Pressed = Callable[[float], str]


@contextmanager
def keyboard() -> Iterator[Pressed]:
    """Yield what waits for a key; it only waits where no terminal is at the other end."""
    if not (_POSIX and sys.stdin.isatty()):
        yield _wait
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    clock.sleep_s(seconds)
    return ""


def _key(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""
