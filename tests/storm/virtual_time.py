"""A clock that moves when somebody sleeps, so that a schedule of minutes takes milliseconds; it can be set back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import clock

#: 2026-01-01, in ns.
BEGIN_NS = 1_767_225_600_000_000_000


class VirtualTime:
    """What `pipeline.clock` reads: the wall may jump, the other never goes back."""

    def __init__(self) -> None:
        self.passed_s, self.wall_off_s = 0.0, 0.0

    def sleep_s(self, seconds: float) -> None:
        """Let time pass."""
        self.passed_s += seconds

    def mono_s(self) -> float:
        """Return seconds that never go back."""
        self.passed_s += 1e-6  # whoever only looks at the clock gets on, too
        return 1000.0 + self.passed_s

    def wall_ns(self) -> int:
        """Return ns since 1970, by a clock that may have been set."""
        return BEGIN_NS + int((self.passed_s + self.wall_off_s) * 1e9)

    def wall_ms(self) -> int:
        """Return ms since 1970, by a clock that may have been set."""
        return self.wall_ns() // 1_000_000


@contextmanager
def virtual_time() -> Iterator[VirtualTime]:
    """Let this thread live in virtual time. Others, such as what an earlier test has left, would move it on."""
    made, names = VirtualTime(), ("sleep_s", "mono_s", "wall_ns", "wall_ms")
    before = {name: getattr(clock, name) for name in names}
    try:
        for name in names:
            setattr(clock, name, _for_this_thread(getattr(made, name), before[name]))
        yield made
    finally:
        for name, value in before.items():
            setattr(clock, name, value)


def _for_this_thread(here: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    mine = threading.get_ident()
    return lambda *arguments: (here if threading.get_ident() == mine else elsewhere)(*arguments)
