"""Define where workers note why ops wait, so that others can say it; what goes on is noted nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

#: The lease that every worker of a shard holds while it runs, under one token, and for how long a sweep lengthens it.
ALIVE, ALIVE_TOKEN, ALIVE_MS = "alive:{}", "worker", 6_000


class Note(NamedTuple):
    """Why a bucket waits.

    Attributes:
        since_ms: since when it waits for this, by the log's clock, ms since 1970.
        text: the note, as the worker wrote it.
    """

    since_ms: int
    text: str


class Noted(NamedTuple):
    """What is known about the ops of a shard that wait.

    Attributes:
        alive: whether a worker of the shard ran within the last seconds.
        notes: by bucket, its last note that has not expired.
    """

    alive: bool
    notes: dict[int, Note]


class Waits(Protocol):
    """Why ops wait: a hint for people, which expires by itself. At most one note for each bucket."""

    def note_waits(self, shard: str, notes: Mapping[int, tuple[str, str]], for_ms: int) -> None:
        """Note why buckets wait.

        Args:
            shard: the shard's name.
            notes: of each bucket, what it waits for, without a blank, and the note. While a bucket waits for the same,
                the time of its first note is kept.
            for_ms: when the notes expire.
        """
        ...

    def waits(self, shard: str) -> Noted:
        """Return the notes of a shard, and whether it has a worker.

        Args:
            shard: the shard's name.
        """
        ...
