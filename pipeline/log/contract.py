"""What a log can do. `redis_log.RedisLog` does it over Redis, `memory.MemoryLog` in this process.

One contract suite runs over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pipeline.ids import Lease
from pipeline.op import Entry, Position

#: Codes of `Placed`.
APPENDED, SEEN, HOLE = 0, 1, 2


class Append(NamedTuple):
    """Ops of one bucket, in order, and the producer's sequence of the first of them."""

    bucket: int
    first: int
    payloads: Sequence[bytes]


class Placed(NamedTuple):
    """Where the first op of an `Append` stands; after HOLE, `position.seq` is the last producer sequence seen."""

    code: int
    position: Position


class Appended(NamedTuple):
    """The answer to one call: a place per `Append`, and the shards whose bell the caller now has to ring."""

    placed: list[Placed]
    ring: list[str]
    same: str | None = None  # the first call's receipt, where the idempotency key was seen


class Scope(NamedTuple):
    """The logs that share an epoch: those of a shard; the reference log has one of its own, for all shards."""

    name: str
    shards: tuple[str, ...]


#: The name of the reference log's scope.
EVERYWHERE = "*"


def scopes_of(shards: tuple[str, ...]) -> dict[str, Scope]:
    """Return all scopes of a deployment by name."""
    return {EVERYWHERE: Scope(EVERYWHERE, shards), **{shard: Scope(shard, (shard,)) for shard in shards}}


class EpochStale(Exception):
    """The server is not the one that this epoch was given out on: raise the epoch, then append again."""


class Line(Protocol):
    """A connection of one producer. Not thread-safe."""

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """Append all; try once more on a new connection if the answer does not come.

        Raises:
            EpochStale: nothing was written.
            PipelineFull: nothing was written.
            LogUnavailable: no answer in time; with `sent` the ops may be in the log.
        """
        ...

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """Append one op of a scope with one shard: what a web request does; the same as `append`, but shorter.

        Returns:
            Its position and whether to ring, or None where nothing was written: `append` tells why.

        Raises:
            PipelineFull, LogUnavailable: as `append`.
        """
        ...

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """Wait until what this line appended is on a Redis replica, or fsynced here; return whether it is."""
        ...

    def sequences(self, producer: int) -> dict[int, int]:
        """Return the last sequence that the log knows of a producer, per bucket."""
        ...

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """Let a producer go on behind *last*, if the log still knows its sequences up to *seen* only; whether it does.

        For sequences that the log has lost, once they are accounted for: applied, or recorded as lost.
        """
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


def one_by_append(
    line: Line, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
) -> tuple[Position, bool] | None:
    """Do by `append` what `append_one` does."""
    try:
        answer = line.append(scope, epoch, producer, [Append(bucket, seq, (payload,))], "", 0)
    except EpochStale:
        return None
    [(code, position)] = answer.placed
    return None if code == HOLE else (position, bool(answer.ring))


class Log(Protocol):
    """The logs of all buckets, the dirty sets and the bells."""

    def line(self, *, patient: bool = False) -> Line:
        """Return a line of its own for one producer; a patient one waits longer, for many ops at once."""
        ...

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        """Return the scope's epoch (0: none), whether it was given out on this server, and what to raise it from."""
        ...

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        """Set the epoch if nobody else did since *seen*."""
        ...

    def earlier(self, bucket: int, idempotency_key: str) -> str | None:
        """Return what `Appended.same` would hold: the receipt of the first op with that key in that bucket."""
        ...

    def note_earlier(self, bucket: int, idempotency_key: str, receipt: str) -> None:
        """Let `earlier` know of an op that was appended without its key, unless it knows of one."""
        ...

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        """Make a table definition known to workers, and the table's newest one known to migrate."""
        ...

    def schema(self, hash: str) -> str | None:
        """Return the definition with that hash."""
        ...

    def tables(self) -> dict[str, str]:
        """Return the newest definition of every table, by name."""
        ...

    def due(self, shard: str, limit: int) -> dict[int, int]:
        """Silence the bell; return the oldest due buckets, each with the bytes of its largest op (0: small)."""
        ...

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        """Return up to *count* entries of each bucket behind a position, in order."""
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

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        """Return the last position of each log that has entries."""
        ...

    def queued(self, after: Mapping[int, Position]) -> dict[int, int]:
        """Return how many entries each log has behind a position: exact, and also across epochs."""
        ...

    def dirty(self, shard: str) -> int:
        """Return how many buckets are marked dirty."""
        ...

    def marks(self, shard: str) -> dict[int, Position]:
        """Return the published watermarks: a copy, perhaps old, never ahead of what was committed somewhere."""
        ...

    def mark(self, shard: str, bucket: int) -> Position | None:
        """Return one published watermark."""
        ...

    def trim(self, behind: Mapping[int, Position]) -> int:
        """Delete entries up to and including each position; return how many were deleted, about."""
        ...

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        """Note a shard's watermarks, at most once a minute; return the newest note that is old enough."""
        ...

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        """Lease a producer number, or lengthen a lease; see `ids`."""
        ...

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        """Lease a number for a whole host, or lengthen its lease; of those that no process gets."""
        ...

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        """Let nothing in for a while, or let everything in again."""
        ...

    def full(self) -> str | None:
        """Return why nothing is let in, or None while everything is."""
        ...

    def memory_share(self) -> float:
        """Return used memory as a share of the limit; 0.0 where there is no limit."""
        ...

    def claim(self, name: str, for_ms: int) -> bool:
        """Take a lease on a chore that one worker at a time does; return whether it was free."""
        ...

    def hold(self, name: str, token: str, for_ms: int) -> bool:
        """Take the lease on a chore, or lengthen one's own; return whether it is held under this token."""
        ...

    def release(self, name: str, token: str) -> None:
        """Give up a lease that is held under this token, if it still is."""
        ...

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

    def earn(self, shard: str, reads: float, most: float, *, take: bool) -> bool:
        """Add to the budget of a shard's primary, in reads, up to *most*; take one off; return whether it was there.

        A budget that nobody has used for a while is full.
        """
        ...

    def secret(self, proposed: str) -> str:
        """Return the secret of this deployment, which is the first that anybody proposed."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...
