"""Say in one sentence why ops wait: what waits, since when, because of what, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple


class Kind(NamedTuple):
    """The words of one kind of reason, with {scope}, {shard} and {detail} to fill in.

    Attributes:
        because: what the ops wait for.
        mend: the command that mends it, or what happens by itself.
    """

    because: str
    mend: str


#: Every reason that can be given; `docs/troubleshooting.md` has a row for each.
KINDS = {
    "paused": Kind("{scope} is paused ({detail})", "run: pipeline resume {scope}"),
}


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Why some ops of a shard wait.

    Attributes:
        kind: a key of `KINDS`.
        shard: the shard whose ops wait.
        scope: the shard, the table or the node that the reason is about.
        detail: who or what caused it, in its own words.
        since_ms: since when, ms since 1970; 0: unknown.
    """

    kind: str
    shard: str
    scope: str
    detail: str = ""
    since_ms: int = 0

    def sentence(self, what: str = "") -> str:
        """Return the whole sentence.

        Args:
            what: what waits, by default what the reason is about.
        """
        because, mend = (text.format(**self._words()) for text in KINDS[self.kind])
        since = f" since {moment(self.since_ms)}" if self.since_ms else ""
        return f"{what or f'ops of {self.scope}'} wait{since} because {because}; {mend}"

    def _words(self) -> dict[str, str]:
        return {"scope": self.scope, "shard": self.shard, "detail": self.detail}


def moment(at_ms: int) -> str:
    """Return a time for people, the same on every machine.

    Args:
        at_ms: ms since 1970.
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
