"""What a caller asks of one read: how fresh, how long it may wait, and what else will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.settings import ReadSettings
from pipeline.errors import BadRead, did_you_mean
from pipeline.reads.routing.policy import OnStale

#: The names under which a call may give them.
OPTIONS = ("max_lag_s", "wait_s", "on_stale")
_CHOICES = ("primary", "stale", "error")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one read."""

    max_lag_s: float
    wait_s: float
    on_stale: OnStale


class Defaults:
    """The bounds that the settings give, and those that a call changes."""

    def __init__(self, settings: ReadSettings):
        self.bounds = Bounds(settings.max_lag_s, settings.wait_s, settings.on_stale)  # type: ignore[arg-type]

    def changed(self, max_lag_s: Any = None, wait_s: Any = None, on_stale: Any = None) -> Bounds:
        """Return the bounds of a call.

        Raises:
            BadRead: a negative bound, or an unknown choice.
        """
        if max_lag_s is None and wait_s is None and on_stale is None:
            return self.bounds
        if on_stale is not None and on_stale not in _CHOICES:
            raise BadRead(f"on_stale is one of {', '.join(_CHOICES)}, not {on_stale!r}{_hint(on_stale)}")
        default = self.bounds
        return Bounds(
            default.max_lag_s if max_lag_s is None else seconds("max_lag_s", max_lag_s),
            default.wait_s if wait_s is None else seconds("wait_s", wait_s),
            on_stale or default.on_stale,
        )


def seconds(name: str, value: Any) -> float:
    """Return a number of seconds.

    Raises:
        BadRead: it is negative, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadRead(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def _hint(word: Any) -> str:
    return did_you_mean(word, _CHOICES) if isinstance(word, str) else ""
