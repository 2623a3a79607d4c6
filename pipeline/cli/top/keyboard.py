"""Read single keys of a terminal, without Enter; its mode is restored at the end."""

from __future__ import annotations

import os
import re
import select
import sys
from typing import Any, Self

from pipeline import clock

try:
    import termios
    import tty

    _POSIX = True
except ImportError:  # Windows
    _POSIX = False

#: One key: an arrow as terminals send it, or a character.
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_NAMES = {"A": "up", "B": "down", "C": "enter", "D": "escape"}
_SINGLE = {"\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "escape", "\b": "escape", "k": "up", "j": "down"}


class Keyboard:
    """The keys of this process's terminal; where there is none, a wait and no key."""

    def __init__(self) -> None:
        self._before: Any = None
        self._keys: list[str] = []

    def __enter__(self) -> Self:
        if _POSIX and sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def pressed(self, seconds: float) -> str:
        """Return the next key by its name, or the empty string.

        Args:
            seconds: how long to wait for one.
        """
        if not self._keys:
            self._read(seconds)
        return self._keys.pop(0) if self._keys else ""

    def _read(self, seconds: float) -> None:
        if self._before is None:
            clock.sleep_s(seconds)
        elif select.select([sys.stdin], [], [], seconds)[0]:
            self._keys = keys_in(os.read(sys.stdin.fileno(), 256).decode(errors="ignore"))


def keys_in(text: str) -> list[str]:
    """Return the names of keys: `up`, `down`, `enter`, `escape`, or the character.

    Args:
        text: as a terminal sends it.
    """
    return [_NAMES.get(key[-1], "") if len(key) > 1 else _SINGLE.get(key, key) for key in _KEY.findall(text)]
