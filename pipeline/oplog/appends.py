"""How a producer adds ops to the logs: under an epoch, in its own dense sequence, once per idempotency key.

What stands under an idempotency key: the receipt of the first op that was sent with it, or a reserved id only.

A reservation is the id of a row as text; a receipt is five numbers, the last of them the row's id, 0 for none. Only a
receipt means that an op is in a log: `enqueue.lua` tells them apart by the blank, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pipeline.model.op import Position

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


class IdReserved(Exception):
    """The idempotency key stands for another row's id than the op has: append the op with that one."""

    def __init__(self, row_id: int):
        super().__init__(row_id)
        self.row_id = row_id


class Line(Protocol):
    """A connection of one producer. Not thread-safe."""

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """Append all; try once more on a new connection if the answer does not come.

        Raises:
            EpochStale: nothing was written.
            IdReserved: nothing was written; not where *row_id* is 0.
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


class Epochs(Protocol):
    """The number that tells a lineage of the server from those before it, per scope."""

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        """Return the scope's epoch (0: none), whether it was given out on this server, and what to raise it from."""
        ...

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        """Set the epoch if nobody else did since *seen*."""
        ...


class Appending(Protocol):
    """The lines of producers, and what stands under idempotency keys."""

    def line(self, *, patient: bool = False) -> Line:
        """Return a line of its own for one producer; a patient one waits longer, for many ops at once."""
        ...

    def reserve(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        """Return the id that a key of a bucket stands for; let it stand for *row_id* where it stands for none.

        A reservation is no op: the next `append` with that key and that id appends.

        Raises:
            PipelineFull: it stands for none, and there is no room.
        """
        ...


def is_receipt(text: str) -> bool:
    """Whether an op was sent with the key."""
    return " " in text


def row_id_in(text: str) -> int:
    """Return the row's id, 0 where the op makes no row or its database gives the id."""
    return int(text.rpartition(" ")[2])
