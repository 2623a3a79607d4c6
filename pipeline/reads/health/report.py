"""What the prober publishes of a node, once a second through Redis, and what every reader makes of the report."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from pipeline import clock
from pipeline.model.op import Position

#: The prober publishes once a second; an older report says nothing of how the node is now, s.
SILENT_S = 3.0


class NodeState(StrEnum):
    """What readers make of a node, by its newest report."""

    #: It serves.
    IN = "in"
    #: It serves only where no other may: it answered, but got nothing while its primary went on.
    STALLED = "stalled"
    #: It serves only where no other may: the last probe failed, or its lag was never measured. Never a lag of zero.
    NO_READING = "no reading"
    #: Out of rotation, but the last probe succeeded: the last resort before a read is refused.
    RECOVERING = "recovering"
    #: Out of rotation: it has failed to answer.
    OUT = "out"
    #: Away for too long, or not like its primary: it never serves, and is never followed, until that is mended.
    UNFIT = "unfit"
    #: Nothing is published about it.
    NO_PROBER = "no prober"
    #: Redis does not answer.
    UNKNOWN = "unknown"


#: Only a node of these states is in rotation.
IN_ROTATION = frozenset((NodeState.IN, NodeState.STALLED, NodeState.NO_READING, NodeState.NO_PROBER))


class Report(msgspec.Struct, frozen=True):
    """One node, as published; in a reading process with the time of its publication.

    Attributes:
        lag_ms: an upper bound of its lag when this was published; None: its lag was never measured.
        out: whether the flap judge has taken it out of rotation.
        takes_writes: whether it is a primary; None where its engine cannot say, or it does not answer.
        why: why the last probe failed; empty after a good one.
        marks: its watermarks; empty where the last probe failed, since the node may be a rebuilt one.
        unfit: why it is unfit and what to do; empty where it is fit.
        stalled: whether it got next to nothing between the last two probes, though its primary went on.
        statement_bytes: the size of the largest statement that it takes; 0: not known.
        holding: the buckets in which it has ops that are set aside; None: not known.
        published_s: when this was published, by this process's steady clock; never published itself.
    """

    lag_ms: int | None = None
    out: bool = False
    takes_writes: bool | None = None
    why: str = ""
    marks: dict[int, Position] = msgspec.field(default_factory=dict)
    unfit: str = ""
    stalled: bool = msgspec.field(default=False, name="still")
    statement_bytes: int = 0
    holding: frozenset[int] | None = None
    published_s: float | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_json(cls, text: str, published_s: float | msgspec.UnsetType = msgspec.UNSET) -> Report:
        """Read what `to_json` wrote; a field that this version does not know is passed over.

        Args:
            text: the JSON.
            published_s: when it was published, by this process's steady clock; left out where that does not matter.
        """
        try:
            told = _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeError):  # no prober has written it: nothing is known
            told = cls()
        return msgspec.structs.replace(told, published_s=published_s)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return msgspec.json.encode(self).decode()

    @property
    def state(self) -> NodeState:
        """What readers made of the node when this was published."""
        if self.unfit:
            return NodeState.UNFIT
        if self.out:
            return NodeState.OUT if self.why or self.stalled else NodeState.RECOVERING
        if self.why or self.lag_ms is None:
            return NodeState.NO_READING
        return NodeState.STALLED if self.stalled else NodeState.IN

    def state_at(self, now_s: float) -> NodeState:
        """Return what readers make of the node now: of a prober that is silent, no report is news.

        Args:
            now_s: by this process's steady clock.
        """
        state = self.state
        if state is NodeState.IN and isinstance(self.published_s, float) and now_s - self.published_s > SILENT_S:
            return NodeState.STALLED
        return state

    @property
    def lag_s(self) -> float | None:
        """An upper bound of the node's lag now; None where it was never measured."""
        return self.lag_at(clock.mono_s())

    def lag_at(self, now_s: float) -> float | None:
        """Return an upper bound of the node's lag: as published, and the report's age. None: it was never measured.

        Args:
            now_s: by this process's steady clock.
        """
        if self.lag_ms is None or not isinstance(self.published_s, float):
            return None
        return now_s - self.published_s + self.lag_ms / 1000


_decoder = msgspec.json.Decoder(Report)

#: The report of a node about which nothing is published.
NO_REPORT = Report()


def unfit_of(text: str) -> dict[str, str]:
    """Return a shard's unfit nodes as upkeep publishes them, each with the reason; none where nobody of ours has.

    Args:
        text: JSON.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError):
        return {}
