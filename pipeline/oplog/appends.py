"""Define how a producer appends ops: under an epoch, in its own dense sequence, once per idempotency key.

A claim is the text that the log keeps under an idempotency key. A claim is a row's id alone, or the receipt of the
first op with the key. A receipt is five numbers; the last is the id of the op's row, 0 for none. Only a receipt means
that an op is in a log. The blank distinguishes the two, here and in `enqueue.lua`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from pipeline.model import Position

#: Codes of `Placed`.
APPENDED, SEEN, HOLE, HELD = 0, 1, 2, 3
#: From this size on the log notes the size of a bucket's largest op, so that a worker measures its ops before it reads
#: them. Ops of other buckets are read unmeasured: 3,900 of them fit into a batch of 8 MB.
BIG_BYTES = 2_048
#: Above this share of Redis's memory no op is accepted; the rest is for draining and for the broker.
FULL_SHARE = 0.70
#: The name of the reference log's scope.
EVERYWHERE = "*"


class Append(NamedTuple):
    """Ops of one bucket, in order.

    Attributes:
        bucket: the log that they go to.
        first: the producer's sequence number of the first op; the others follow densely.
        payloads: the encoded ops.
    """

    bucket: int
    first: int
    payloads: Sequence[bytes]


class Placed(NamedTuple):
    """The place of the first op of an `Append`.

    Attributes:
        code: APPENDED, SEEN (the log had the ops already), or HOLE (nothing was written: ops before them are missing).
            Or HELD: nothing was written, for a hole of another log. Ops of a call come into their logs together, so
            that none passes an older one of another bucket.
        position: in the log; after HOLE, `position.seq` is the last sequence number that the log has seen.
    """

    code: int
    position: Position


class Appended(NamedTuple):
    """The answer to one call.

    Attributes:
        placed: a place per `Append`.
        ring: the shards whose bell the caller now has to ring.
        claim: the receipt of the first op with the idempotency key, if there is one: nothing was written then.
    """

    placed: list[Placed]
    ring: list[str]
    claim: str | None = None


class Scope(NamedTuple):
    """The logs that share an epoch: those of a shard; the reference log has one of its own, for all shards."""

    name: str
    shards: tuple[str, ...]


def scopes_of(shards: tuple[str, ...]) -> dict[str, Scope]:
    """Return all scopes of a deployment by name.

    Args:
        shards: the names of all shards.
    """
    return {EVERYWHERE: Scope(EVERYWHERE, shards), **{shard: Scope(shard, (shard,)) for shard in shards}}


class EpochStale(Exception):
    """The epoch is not the scope's, or has ended: raise the epoch, then append again.

    An epoch ends with the lineage of the server that it was given out on, and where a log has forgotten entries of it.
    """


class KeyClaimed(Exception):
    """The idempotency key is claimed for another row's id than the op has: append the op with that id.

    Args:
        row_id: the id that the key has claimed.
    """

    def __init__(self, row_id: int):
        super().__init__(row_id)
        self.row_id = row_id


def is_receipt(claim: str) -> bool:
    """Return whether an op was sent with the key.

    Args:
        claim: what the log keeps under the key.
    """
    return " " in claim


def claimed_id(claim: str) -> int:
    """Return the id that a key has claimed; 0 if its op makes no row, or the database gives the row its id.

    Args:
        claim: what the log keeps under the key.
    """
    return int(claim.rpartition(" ")[2])


class Appends(Protocol):
    """How ops get into the logs: the epochs of scopes, the lines of producers, the claims of idempotency keys."""

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        """Return a scope's epoch, which distinguishes a lineage of the server from those before it.

        Args:
            scope: the scope's name.

        Returns:
            The epoch (0: none), whether it was given out on this server and has not ended, and what `raise_epoch` takes
            as *seen*. The last ends with what `audit` returns, if that ended the epoch.
        """
        ...

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        """Set a scope's epoch if no other process did; return whether it was set.

        Args:
            scope: the scope's name.
            seen: the third value that `epoch` returned.
            epoch: the new epoch.
        """
        ...

    def deployment(self, scope: str = EVERYWHERE) -> str:
        """Return the fingerprint of the deployment that these logs belong to, as JSON; empty where none is noted.

        Args:
            scope: of the logs; the server that has them keeps a copy.
        """
        ...

    def note_deployment(self, seen: str, text: str, scope: str = EVERYWHERE) -> bool:
        """Note a fingerprint if no other process did meanwhile; return whether it was noted.

        Args:
            seen: what `deployment` returned.
            text: the fingerprint as JSON.
            scope: as for `deployment`.
        """
        ...

    def placement(self) -> str:
        """Return the map of buckets that have moved, as JSON; empty where there is none. See `config/buckets`."""
        ...

    def note_placement(self, seen: str, text: str) -> bool:
        """Note a map if no other process did meanwhile; return whether it was noted.

        Args:
            seen: what `placement` returned.
            text: the map as JSON.
        """
        ...

    def audit(self, scope: str, marks: Mapping[int, Position]) -> str:
        """End a scope's epoch if a log has forgotten entries of it, or if a log or a watermark is ahead of it.

        Args:
            scope: the scope's name.
            marks: of each bucket of the scope, a watermark that is committed.

        Returns:
            "forgot:<bucket>" or "ahead:<bucket>" if the epoch has ended; the empty text while it stays.
        """
        ...

    def senders(self, scope: str = EVERYWHERE) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        """Yield each producer that the log knows: of each bucket the last sequence, and the epoch that it stands under.

        The epoch is 0 where the producer has passed a hole and sent nothing since.

        Args:
            scope: the server that has its logs is asked; buckets of other scopes may be there, too.
        """
        ...

    def sender(self, producer: int) -> str | None:
        """Return host and process that send as a producer; None where the log does not know it any more.

        Args:
            producer: its number.
        """
        ...

    def line(self, *, patient: bool = False) -> Line:
        """Return a line of its own for one producer.

        Args:
            patient: whether the line waits longer, for many ops at once.
        """
        ...

    def claim_key(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        """Return the row id that a key of a bucket has claimed; a new key claims *row_id*.

        A claim is no op: the next `append` with the key and the id appends.

        Args:
            bucket: the bucket of the op.
            idempotency_key: the key, not empty.
            row_id: the id to claim the key for.

        Raises:
            PipelineFull: the key is new, and there is no room.
        """
        ...


class Line(Protocol):
    """A connection of one producer. Not thread-safe."""

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """Append all; try once more on a new connection if the answer does not come.

        Args:
            scope: the scope of all the buckets.
            epoch: the scope's epoch, as the producer knows it.
            producer: the producer's number.
            appends: the ops, at most one `Append` per bucket.
            idempotency_key: of a single op; the empty text: none.
            row_id: the id of the row that the op with the key makes, 0 for none.

        Raises:
            EpochStale: nothing was written, or not all; append all again, and the shard drops what comes twice.
            KeyClaimed: nothing was written; not raised for a *row_id* of 0.
            PipelineFull: nothing was written.
            LogUnavailable: no answer in time; with `sent` the ops may be in the log.
        """
        ...

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """Append one op of a scope with one shard, as a web request does: the same as `append`, but shorter.

        Args:
            scope: the scope of the bucket.
            epoch: the scope's epoch, as the producer knows it.
            producer: the producer's number.
            bucket: the log that the op goes to.
            seq: the producer's sequence number of the op.
            payload: the encoded op.

        Returns:
            The op's position and whether to ring; None if nothing was written: `append` says why.

        Raises:
            PipelineFull, LogUnavailable: as `append`.
        """
        ...

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """Wait until what this line appended is on a replica, or on disk; return whether it is.

        Args:
            fsync: wait for this server's disk rather than for a replica.
            timeout_s: the longest wait.
        """
        ...

    def connect(self) -> None:
        """Open the connection if it is not open; return once the server answers on it."""
        ...

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """Let a producer go on behind sequence numbers that the log has lost; return whether it may.

        The caller has accounted for them first: they are applied, or recorded as lost.

        Args:
            producer: the producer's number.
            bucket: the log with the hole.
            seen: the last sequence number that the log returned; the log refuses if it knows another by now.
            last: the last sequence number of the hole.
        """
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...
