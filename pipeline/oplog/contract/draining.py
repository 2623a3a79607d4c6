"""How ops leave the logs: what is there, which buckets have work, and how far each has been applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.model.op import Entry, Position
from pipeline.oplog.contract.definitions import Definitions


class Entries(Protocol):
    """What the logs hold."""

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        """Return up to *count* entries of each bucket behind a position, in order."""
        ...

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        """Return the last position of each log that has entries."""
        ...

    def queued(self, after: Mapping[int, Position]) -> dict[int, int]:
        """Return how many entries each log has behind a position: exact, and also across epochs."""
        ...

    def trim(self, behind: Mapping[int, Position]) -> int:
        """Delete entries up to and including each position; return how many were deleted, about."""
        ...


class Readable(Entries, Definitions, Protocol):
    """Entries, and the definitions that their ops name."""


class Work(Protocol):
    """The dirty sets and the bells: which buckets a worker should look at."""

    def due(self, shard: str, limit: int) -> dict[int, int]:
        """Silence the bell; return the oldest due buckets, each with the bytes of its largest op (0: small)."""
        ...

    def finish(self, shard: str, marks: Mapping[int, Position], *, delay_ms: int = 0) -> tuple[bool, int]:
        """Publish watermarks, un-dirty what is drained; return whether to ring and how many buckets are dirty."""
        ...

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        """Take a bell that nobody rings; return whether to ring and how many buckets are dirty."""
        ...

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        """Mark buckets as having unapplied entries."""
        ...

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        """Let dirty buckets rest for a while: their database does not answer."""
        ...

    def dirty(self, shard: str) -> int:
        """Return how many buckets are marked dirty."""
        ...


class Watermarks(Protocol):
    """Copies of the watermarks, and notes of past ones; the truth is in the databases."""

    def marks(self, shard: str) -> dict[int, Position]:
        """Return the published watermarks: a copy, perhaps old, never ahead of what was committed somewhere."""
        ...

    def mark(self, shard: str, bucket: int) -> Position | None:
        """Return one published watermark."""
        ...

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        """Note a shard's watermarks, at most once a minute; return the newest note that is old enough."""
        ...
