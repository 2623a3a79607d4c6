"""Which node serves a read: a pure function from what is known of the nodes to a choice and its reason.

Invariants: a read with a token is never sent where the token may not be seen; no reading is never taken for no lag;
no replica at all is not the same as all replicas being well; only a replica that is merely behind limits the primary.

What a caller asks of one read: how fresh, how long it may wait, and what else will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline.config.settings import ReadSettings
from pipeline.errors import BadRead, did_you_mean

OnStale = Literal["primary", "stale", "error"]
ChoiceKind = Literal["replica", "ask", "primary", "stale", "error"]

#: The reasons, all of them: metrics count by them.
FRESH, TOKEN_KNOWN, TOKEN_ASKED = "fresh", "token-known", "token-asked"
NO_REPLICA, NO_READING, ALL_OUT, ALL_LAGGING, NOT_REACHED = (
    "no-replica",
    "no-reading",
    "all-out",
    "all-lagging",
    "token-not-reached",
)
OVER_LIMIT, ALL_BUSY = "over-limit", "all-busy"


class Candidate(NamedTuple):
    """What this process knows of one replica.

    Attributes:
        lag_s: an upper bound of its lag now: what was read, and the reading's age; None without a reading.
        out: taken out by the health judge.
        outstanding: reads of this process that run there now.
        weight: its share of the reads; a node of weight 0 takes none.
        reached: whether it has the token: yes, no, or not known here. True where there is no token.
        limit: reads of this process that may run there at once; None: any number.
        doubtful: the last look at it came to nothing, or showed that it stands still. It serves only where no other
            may: one look is no verdict yet.
        recovering: it is out, but answered the last look: the last resort before a read is refused.
    """

    node: str
    lag_s: float | None
    out: bool = False
    outstanding: int = 0
    weight: float = 1.0
    reached: bool | None = None
    limit: int | None = None
    doubtful: bool = False
    recovering: bool = False


class Choice(NamedTuple):
    """What to do, where, and why.

    `replica`: read there. `ask`: go to this replica, but look at its watermark first, waiting a little. `primary`:
    read there. `stale`: read there, and mark the result as stale. `error`: refuse.

    Attributes:
        limited: whether the read took one of the places that its primary has; give the place back at the end.
    """

    kind: ChoiceKind
    node: str | None
    reason: str
    limited: bool = False


def choose(
    candidates: Iterable[Candidate],
    *,
    max_lag_s: float,
    token: bool,
    on_stale: OnStale,
    primary_allowed: Callable[[], bool],
    jitter: Callable[[], float],
) -> Choice:
    """Choose a node for one read.

    Args:
        candidates: the replicas of the shard.
        max_lag_s: a replica serves only with a lag of at most that.
        token: whether the read must see something; then `reached` of the candidates counts.
        on_stale: what to do where no replica may serve.
        primary_allowed: takes one of the places that the primary has for replicas that are merely behind; called only
            when the answer depends on it.
        jitter: returns a random number in [0, 1).
    """
    everyone = list(candidates)
    fresh = fresh_among(everyone, max_lag_s)
    ready = [one for one in fresh if one.reached] if token else fresh
    if ready:
        return Choice("replica", least_busy(ready, jitter).node, TOKEN_KNOWN if token else FRESH)
    if fresh:
        return Choice("ask", min(fresh, key=_lag_s).node, TOKEN_ASKED)
    why = _why_none(everyone, max_lag_s)
    behind = any(merely_behind(one, max_lag_s) for one in everyone)
    return fall_back(everyone, why, token=token, on_stale=on_stale, behind=behind, primary_allowed=primary_allowed)


def fall_back(
    candidates: Sequence[Candidate],
    reason: str,
    *,
    token: bool,
    on_stale: OnStale,
    behind: bool,
    primary_allowed: Callable[[], bool],
) -> Choice:
    """Choose for a read that no replica may serve; a router calls it too, after an `ask` came to nothing.

    Where no replica is merely behind, as none that is dead, stopped or unfit is, the primary serves every read: a
    limit would refuse readers for as long as the replica is away. A read with a token takes a place like any other,
    and is refused when none is free: it may fail, but it may not lie.

    A replica of which there is no reading, and one that is out but answers, is the last resort of a read without a
    token.

    Args:
        behind: whether a replica is merely behind.
    """
    if not candidates:
        return Choice("primary", None, NO_REPLICA)
    if on_stale == "error":
        return Choice("error", None, reason)
    able = [one for one in candidates if _free(one, recovering=True) and (one.reached or not token)]
    stale = sorted(able, key=lambda one: (one.recovering, _lag_s(one)))
    if on_stale == "stale" and stale and stale[0].lag_s is not None:
        return Choice("stale", stale[0].node, reason)
    if not behind:
        return Choice("primary", None, reason)
    if primary_allowed():
        return Choice("primary", None, reason, limited=True)
    return Choice("stale", stale[0].node, OVER_LIMIT) if stale else Choice("error", None, OVER_LIMIT)


def least_busy(candidates: Sequence[Candidate], jitter: Callable[[], float]) -> Candidate:
    """Return the candidate with the fewest reads for its weight; among equals a random one, by weight.

    The random part is a race of exponential clocks: each wins with a probability proportional to its weight.
    """
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda one: (one.outstanding / one.weight, -math.log(1.0 - jitter()) / one.weight))


def fresh_among(candidates: Iterable[Candidate], max_lag_s: float) -> list[Candidate]:
    """Return those that may serve a read: in rotation, below their limit, and no further behind than that."""
    fresh = [one for one in candidates if _free(one) and one.lag_s is not None and one.lag_s <= max_lag_s]
    return [one for one in fresh if not one.doubtful] or fresh


def merely_behind(candidate: Candidate, max_lag_s: float) -> bool:
    """Return whether a replica is in rotation and goes on, but lags too much or is known to lack the token."""
    if not _answers(candidate) or candidate.doubtful or candidate.lag_s is None:
        return False
    return candidate.lag_s > max_lag_s or candidate.reached is False


def _answers(candidate: Candidate) -> bool:
    return not candidate.out and candidate.weight > 0


def _free(candidate: Candidate, *, recovering: bool = False) -> bool:
    if candidate.weight <= 0 or (candidate.out and not (recovering and candidate.recovering)):
        return False
    return candidate.limit is None or candidate.outstanding < candidate.limit


def _why_none(candidates: Sequence[Candidate], max_lag_s: float) -> str:
    within = [one for one in candidates if _answers(one)]
    if not within:
        return ALL_OUT
    if any(one.lag_s is not None and one.lag_s <= max_lag_s for one in within):
        return ALL_BUSY
    return NO_READING if all(one.lag_s is None for one in within) else ALL_LAGGING


def _lag_s(candidate: Candidate) -> float:
    return math.inf if candidate.lag_s is None else candidate.lag_s


#: The names under which a call may give them.
ON_STALE = ("max_lag_s", "wait_s", "on_stale")
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
