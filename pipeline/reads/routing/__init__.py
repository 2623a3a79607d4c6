"""Choose the node that serves a read, by what is known of the nodes; count the choices and the reads that run now.

Choose the node that serves a read: a pure function from what is known of the nodes to a choice and its reason.
Invariants: a read with a token is never sent where the token may not be seen. A lag that was never measured is never
taken for no lag. No replica at all is not the same as all replicas being well. Only a replica that is merely behind
limits the primary.

`Bounds` is what a caller wants of one read: how fresh, how long it may wait, and what else will do.

Count the reads of one process: those that run now, and which choices were made, for `status`, the demo and metrics. A
process counts for itself. The newest counts of choices go to Redis in the round trip that fetches the reports.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline.errors import BadRead, did_you_mean
from pipeline.reads.health import IN_ROTATION, NodeState

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
OVER_LIMIT, ALL_BUSY, PRIMARY_AWAY, SET_ASIDE = "over-limit", "all-busy", "primary-away", "set-aside"
_CHOICES = ("primary", "stale", "error")
#: Reads of this process that may wait at a time. More would take all threads of a web server for one slow replica.
MOST_WAITING = 32


class Candidate(NamedTuple):
    """A replica's newest report, as this process may use it now.

    Attributes:
        node: its name.
        lag_s: an upper bound of its lag now: as published, and the report's age; None: it was never measured.
        state: by its report; a node that this process skips is out.
        in_flight: reads of this process that run there now.
        weight: its share of the reads; a node of weight 0 takes none.
        reached: whether it has the token: yes, no, or not known here. True where there is no token.
        limit: reads of this process that may run there at once; None: any number.
    """

    node: str
    lag_s: float | None
    state: NodeState = NodeState.IN
    in_flight: int = 0
    weight: float = 1.0
    reached: bool | None = None
    limit: int | None = None


class Choice(NamedTuple):
    """What to do, where, and why.

    `replica`: read there. `ask`: probe the fresh replicas for the token, waiting a little. `primary`: read there.
    `stale`: read there, and mark the result as stale. `error`: refuse.

    Attributes:
        limited: the read needs one of the places that its primary has for replicas that are merely behind. Where none
            is free, `over_limit` chooses.
    """

    kind: ChoiceKind
    node: str | None
    reason: str
    limited: bool = False


#: A shard without replicas has no choice.
ONLY_PRIMARY = Choice("primary", None, NO_REPLICA)


def choose(
    candidates: Sequence[Candidate],
    bounds: Bounds,
    *,
    token: bool,
    jitter: Callable[[], float],
) -> Choice:
    """Choose a node for one read.

    Args:
        candidates: the replicas of the shard.
        bounds: a replica serves only within `max_lag_s`; `on_stale` says what to do where none may.
        token: whether the read must see something; then `reached` of the candidates counts.
        jitter: returns a random number in [0, 1).
    """
    fresh = fresh_among(candidates, bounds.max_lag_s)
    ready = [one for one in fresh if one.reached] if token else fresh
    if len(ready) == 1:
        return Choice("replica", ready[0].node, TOKEN_KNOWN if token else FRESH)
    if ready:
        # the fewest reads for its weight; among equals a random one, by weight. In a race of exponential clocks each
        # wins with a probability proportional to its weight.
        best = min(ready, key=lambda one: (one.in_flight / one.weight, -math.log(1.0 - jitter()) / one.weight))
        return Choice("replica", best.node, TOKEN_KNOWN if token else FRESH)
    if fresh:
        return Choice("ask", min(fresh, key=_lag_s).node, TOKEN_ASKED)
    why = _why_none(candidates, bounds.max_lag_s)
    return fall_back(candidates, bounds, why, token=token)


def fall_back(candidates: Sequence[Candidate], bounds: Bounds, reason: str, *, token: bool) -> Choice:
    """Choose for a read that no replica may serve; a router calls it too, after an `ask` came to nothing.

    Where no replica is merely behind, the primary serves every read. Otherwise a dead, stopped or unfit replica would
    have readers refused for as long as it is away.

    Args:
        candidates: as for `choose`.
        bounds: as for `choose`.
        reason: why no replica may serve.
        token: as for `choose`.
    """
    if not candidates:
        return ONLY_PRIMARY
    if bounds.on_stale == "error":
        return Choice("error", None, reason)
    stale = _best_stale(candidates, token)
    if bounds.on_stale == "stale" and stale is not None and stale.lag_s is not None:
        return Choice("stale", stale.node, reason)
    limited = any(_merely_behind(one, bounds.max_lag_s) for one in candidates)
    return Choice("primary", None, reason, limited)


def over_limit(candidates: Sequence[Candidate], *, token: bool) -> Choice:
    """Choose for a read that the primary limits, and that finds no place free there.

    A read with a token is refused: it may fail, but it may not lie. A replica of unknown lag, and one that is
    recovering, is the last resort of a read without a token.

    Args:
        candidates: as for `choose`.
        token: as for `choose`.
    """
    stale = _best_stale(candidates, token)
    return Choice("error", None, OVER_LIMIT) if stale is None else Choice("stale", stale.node, OVER_LIMIT)


def last_resorts(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the replicas that answer, however far behind, the best first: for a read that may be marked as stale.

    Args:
        candidates: the replicas of the shard.
    """
    able = [one for one in candidates if _free(one, last_resort=True)]
    return sorted(able, key=lambda one: (one.state is NodeState.RECOVERING, _lag_s(one)))


def _best_stale(candidates: Sequence[Candidate], token: bool) -> Candidate | None:
    return next((one for one in last_resorts(candidates) if one.reached or not token), None)


def fresh_among(candidates: Iterable[Candidate], max_lag_s: float) -> list[Candidate]:
    """Return those that may serve a read: in rotation, below their limit, and fresh enough.

    Args:
        candidates: the replicas of the shard.
        max_lag_s: no replica that lags more is fresh.
    """
    fresh = [one for one in candidates if _free(one) and one.lag_s is not None and one.lag_s <= max_lag_s]
    return [one for one in fresh if one.state is NodeState.IN] or fresh


def _merely_behind(candidate: Candidate, max_lag_s: float) -> bool:
    """Return whether a replica is in rotation and goes on, but lags too much or is known to lack the token."""
    if candidate.state is not NodeState.IN or candidate.weight <= 0 or candidate.lag_s is None:
        return False
    return candidate.lag_s > max_lag_s or candidate.reached is False


def _free(candidate: Candidate, *, last_resort: bool = False) -> bool:
    serves = candidate.state in IN_ROTATION or (last_resort and candidate.state is NodeState.RECOVERING)
    if not serves or candidate.weight <= 0:
        return False
    return candidate.limit is None or candidate.in_flight < candidate.limit


def _why_none(candidates: Sequence[Candidate], max_lag_s: float) -> str:
    within = [one for one in candidates if one.state in IN_ROTATION and one.weight > 0]
    if not within:
        return ALL_OUT
    if any(one.lag_s is not None and one.lag_s <= max_lag_s for one in within):
        return ALL_BUSY
    return NO_READING if all(one.lag_s is None for one in within) else ALL_LAGGING


def _lag_s(candidate: Candidate) -> float:
    return math.inf if candidate.lag_s is None else candidate.lag_s


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one read.

    Attributes:
        max_lag_s: how far behind a replica may be.
        wait_s: how long the read may wait for what it must see.
        on_stale: what to do where no replica may serve.
    """

    max_lag_s: float
    wait_s: float
    on_stale: OnStale

    def changed(
        self, max_lag_s: float | None = None, wait_s: float | None = None, on_stale: str | None = None
    ) -> Bounds:
        """Return the bounds of a call, these where the call says nothing.

        Args:
            max_lag_s: seconds, 0 or more.
            wait_s: seconds, 0 or more.
            on_stale: `primary`, `stale` or `error`.

        Raises:
            BadRead: a negative bound, or an unknown choice.
        """
        if max_lag_s is None and wait_s is None and on_stale is None:
            return self
        if on_stale is not None and on_stale not in _CHOICES:
            raise BadRead(f"on_stale is one of {', '.join(_CHOICES)}, not {on_stale!r}{_hint(on_stale)}")
        return Bounds(
            self.max_lag_s if max_lag_s is None else seconds("max_lag_s", max_lag_s),
            self.wait_s if wait_s is None else seconds("wait_s", wait_s),
            self.on_stale if on_stale is None else on_stale,  # type: ignore[arg-type]
        )


def seconds(name: str, value: Any) -> float:
    """Return a number of seconds.

    Args:
        name: of the option, for the message.
        value: what the caller gave.

    Raises:
        BadRead: it is negative, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadRead(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def _hint(word: Any) -> str:
    return did_you_mean(word, _CHOICES) if isinstance(word, str) else ""


class InFlight:
    """The reads of one process that run now. Threads may share it.

    Attributes:
        by_node: how many run on each node that ever had one.
        limited: how many of those each shard's primary limits.
        waiting: a place each for the reads that wait until a node catches up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_node: dict[str, int] = {}
        self.limited: dict[str, int] = {}
        self.waiting = threading.BoundedSemaphore(MOST_WAITING)

    def enter(self, counts: dict[str, int], name: str, limit: int | None) -> bool:
        """Count a read, unless that many run already: many threads choose at once. Return whether it is counted.

        Args:
            counts: `by_node` or `limited`.
            name: of the node, or of the shard.
            limit: how many may run; None: any number.
        """
        with self._lock:
            running = counts.get(name, 0)
            if limit is not None and running >= limit:
                return False
            counts[name] = running + 1
            return True

    def leave(self, counts: dict[str, int], name: str) -> None:
        """Count a read no longer.

        Args:
            counts: as for `enter`.
            name: as for `enter`.
        """
        with self._lock:
            counts[name] -= 1


class Chosen(NamedTuple):
    """One choice. Of a read that was refused, the node is the shard's name: its configured primary."""

    node: str
    kind: str
    reason: str

    @classmethod
    def parse(cls, text: str) -> Chosen:
        """Read a choice as `Counters.unsent` writes it.

        Args:
            text: such as `s0-r1 replica fresh`.
        """
        node, kind, reason = text.split(" ")
        return cls(node, kind, reason)


class Counters:
    """How often each choice was made in one process. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
        self._sent: dict[Chosen, int] = {}

    def count(self, node: str, kind: str, reason: str) -> None:
        """Count one choice.

        Args:
            node: as in `Chosen`.
            kind: of the choice, see `policy.Choice`.
            reason: one of those in `policy`.
        """
        key = (node, kind, reason)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def counts(self) -> dict[Chosen, int]:
        """Return how often each choice was made."""
        with self._lock:
            return {Chosen(*key): n for key, n in self._counts.items()}

    def unsent(self) -> dict[str, int]:
        """Return what was counted and not sent yet, each choice as text: `s0-r1 replica fresh`."""
        now = self.counts()
        with self._lock:
            return {" ".join(key): more for key, n in now.items() if (more := n - self._sent.get(key, 0))}

    def sent(self, arrived: Mapping[str, int]) -> None:
        """Note that counts have arrived.

        Args:
            arrived: as `unsent` returned them.
        """
        with self._lock:
            for text, more in arrived.items():
                key = Chosen.parse(text)
                self._sent[key] = self._sent.get(key, 0) + more
