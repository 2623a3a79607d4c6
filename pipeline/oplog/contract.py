"""What a log can do, role by role. `redis_log.RedisLog` does it over Redis, `memory.MemoryLog` in this process.

Who needs one role takes that one; only the wiring takes a whole `Log`. One contract suite runs over both.

What processes share out among themselves: chores, producer numbers, the room that is left, a secret.

The definitions of tables: ops carry only their hashes.

How ops leave the logs: what is there, which buckets have work, and how far each has been applied.

What the prober, upkeep and readers tell one another of the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.model.ids import Lease
from pipeline.model.op import Entry, Position
from pipeline.oplog.appends import (
    APPENDED,
    EVERYWHERE,
    HOLE,
    SEEN,
    Append,
    Appended,
    Appending,
    Epochs,
    EpochStale,
    IdReserved,
    Line,
    Placed,
    Scope,
    scopes_of,
)


class Chores(Protocol):
    """Leases on what one process at a time does."""

    def claim(self, name: str, for_ms: int) -> bool:
        """Take a lease on a chore that one worker at a time does; return whether it was free."""
        ...

    def hold(self, name: str, token: str, for_ms: int) -> bool:
        """Take the lease on a chore, or lengthen one's own; return whether it is held under this token."""
        ...

    def release(self, name: str, token: str) -> None:
        """Give up a lease that is held under this token, if it still is."""
        ...


class Numbers(Protocol):
    """Leases on the numbers that make ids unique; see `ids`."""

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        """Lease a producer number, or lengthen a lease; see `ids`."""
        ...

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        """Lease a number for a whole host, or lengthen its lease; of those that no process gets."""
        ...


class Admission(Protocol):
    """Whether ops are let in."""

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        """Let nothing in for a while, or let everything in again."""
        ...

    def full(self) -> str | None:
        """Return why nothing is let in, or None while everything is."""
        ...

    def memory_share(self) -> float:
        """Return used memory as a share of the limit; 0.0 where there is no limit."""
        ...


class Secrets(Protocol):
    """What this deployment signs session tokens with."""

    def secret(self, proposed: str) -> str:
        """Return the secret of this deployment, which is the first that anybody proposed."""
        ...


class Definitions(Protocol):
    """All that were ever published, and the newest of each table."""

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        """Make a table definition known to workers, and the table's newest one known to migrate."""
        ...

    def schema(self, hash: str) -> str | None:
        """Return the definition with that hash."""
        ...

    def tables(self) -> dict[str, str]:
        """Return the newest definition of every table, by name."""
        ...


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


class News(Protocol):
    """What the prober knows of each node, for counts of reads."""

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        """Publish what is known of the nodes, at the server's time; what nobody renews is forgotten."""
        ...

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        """Return the server's time in ms and, of each node, when it was published and what.

        Args:
            counted: is added to the counts of `reads`, in the same round trip; a full server drops it.
        """
        ...

    def reads(self) -> dict[str, int]:
        """Return what all processes have counted."""
        ...


class Fitness(Protocol):
    """Which nodes are behind what the logs keep."""

    def seen(self, node: str) -> str | None:
        """Return what upkeep noted of a node when it last looked at it."""
        ...

    def note_seen(self, node: str, text: str) -> None:
        """Note what upkeep saw of a node."""
        ...

    def unfit(self) -> dict[str, str]:
        """Return, of each shard of which it is known, which of its nodes are unfit."""
        ...

    def publish_unfit(self, shard: str, text: str) -> None:
        """Tell which nodes of a shard are unfit; the shard's database knows it for good."""
        ...


__all__ = [
    "APPENDED",
    "EVERYWHERE",
    "HOLE",
    "SEEN",
    "Admission",
    "Append",
    "Appended",
    "Appending",
    "Chores",
    "Definitions",
    "Entries",
    "EpochStale",
    "Epochs",
    "Fitness",
    "IdReserved",
    "Line",
    "Log",
    "News",
    "Numbers",
    "Placed",
    "Readable",
    "Scope",
    "Secrets",
    "Watermarks",
    "Work",
    "scopes_of",
]


class Log(
    Epochs,
    Appending,
    Readable,
    Work,
    Watermarks,
    Chores,
    Numbers,
    Admission,
    Secrets,
    News,
    Fitness,
    Protocol,
):
    """The logs of all buckets, the dirty sets and the bells, and all that processes tell one another."""

    def close(self) -> None:
        """Close all connections."""
        ...
