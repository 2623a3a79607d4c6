"""What the prober tells every reader of a node, through Redis, once a second."""

from __future__ import annotations

import msgspec

from pipeline.model.op import Position


class Report(msgspec.Struct, frozen=True):
    """One node.

    Attributes:
        lag_ms: an upper bound of its lag when this was published; None: it has never been measured.
        out: whether the health judge has taken it out.
        takes_writes: whether it is a primary; None where its engine cannot tell, or it does not answer.
        why: why the last look came to nothing; empty after a good one.
        still: since the look before it has got nothing, though the primary went on: its link or its replication stands.
        unfit_since_ms: when it was last with its primary, if it was away for too long since; it takes no part then.
        marks: its watermarks; empty where the last look came to nothing, since the node may be a rebuilt one.
    """

    lag_ms: int | None = None
    out: bool = False
    takes_writes: bool | None = None
    why: str = ""
    marks: dict[int, Position] = msgspec.field(default_factory=dict)
    unfit_since_ms: int | None = None
    still: bool = False


_decoder = msgspec.json.Decoder(Report)


def encode(report: Report) -> str:
    """Return a report as JSON."""
    return msgspec.json.encode(report).decode()


def decode(text: str) -> Report:
    """Read what `encode` wrote; a field that this version does not know is passed over."""
    return _decoder.decode(text)
