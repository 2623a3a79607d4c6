"""Define what a log does, in five roles. `RedisLog` plays them over Redis or Valkey, `MemoryLog` in this process.

A user of the log takes one role. A producer takes `Appends` (see `appends`), a reader of ops `Entries`, a worker `Work`
with `Waits` (see `waits`). What processes share beside the ops is `SharedState` (see `shared_state`). The wiring takes
a whole `Log`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Literal, Protocol

from pipeline.model import Entry, Position
from pipeline.model.sheet import Read
from pipeline.oplog.appends import Appends
from pipeline.oplog.shared_state import SharedState, Waits

#: The lease on the chore that compares a shard's watermarks with its logs.
RECONCILE = "reconcile:{}"
#: How often who waits for an op may look at other things, s.
SLICE_S = 0.02
#: What a wait for an op yields: False while it lasts; at last what is due, or None, see `Work.listen`.
Looked = dict[int, int] | Literal[False] | None


class Entries(Protocol):
    """What the logs hold: entries, the schemas that their ops name, copies of how far each bucket is applied."""

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        """Return entries of each bucket behind a position, in order.

        Args:
            after: of each bucket, the position.
            count: of each bucket, the most entries to return.
        """
        ...

    def read_whole(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Read]]:
        """Return what `read` does, with sheets as they are; the last one is cut where `count` ends.

        Args:
            after: as for `read`.
            count: of each bucket, the most ops to return.
        """
        ...

    def heads(self, after: Mapping[int, Position]) -> dict[int, Entry]:
        """Return the first entry of each bucket behind a position, where it has one, as it begins.

        Of a large op the payload is cut, and its signature is not looked at: enough to tell when it was enqueued.

        Args:
            after: of each bucket, the position.
        """
        ...

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        """Return the last position of each log that has entries.

        Args:
            buckets: the logs.
        """
        ...

    def queued(self, after: Mapping[int, Position], up_to: Mapping[int, Position] = {}) -> dict[int, int]:
        """Return how many entries each log has behind a position: exact, and also across epochs.

        A log of large ops that has lost its last entries may be counted with them for half a minute.

        Args:
            after: of each bucket, the position.
            up_to: of some buckets, the position of the last op to count: what was deleted of its epoch counts, too.
        """
        ...

    def trim(self, behind: Mapping[int, Position]) -> int:
        """Delete entries up to and including each position, up to 100 per bucket too few; return how many went.

        Args:
            behind: of each bucket, the position.
        """
        ...

    def trimmed(self, bucket: int) -> bool:
        """Return whether entries were deleted from a log that is there; one that is gone, or began anew, has forgotten.

        Args:
            bucket: the log.
        """
        ...

    def publish_schemas(self, schemas: Iterable[tuple[str, str, str]]) -> None:
        """Store schemas by their hashes, each as its table's newest: all in one round trip, or none.

        Args:
            schemas: of each, the table's name, the hash that ops name the schema by, and the schema as JSON.
        """
        ...

    def withdraw_schema(self, name: str) -> None:
        """Forget that a table has a newest schema; ops that name one are still understood.

        Args:
            name: the table's name.
        """
        ...

    def schema(self, hash: str) -> str | None:
        """Return a schema as JSON; None if it was never published here.

        Args:
            hash: the schema's hash.
        """
        ...

    def newest_schemas(self) -> dict[str, str]:
        """Return the newest schema of every table as JSON, by the table's name."""
        ...

    def marks(self, shard: str) -> dict[int, Position]:
        """Return the published watermarks: a copy, perhaps old, never ahead of what was committed somewhere.

        Args:
            shard: the shard's name.
        """
        ...

    def mark(self, shard: str, bucket: int) -> Position | None:
        """Return one published watermark.

        Args:
            shard: the shard's name.
            bucket: the bucket.
        """
        ...

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        """Note a shard's watermarks, at most once a minute; return the newest note that is old enough.

        Args:
            shard: the shard's name.
            now_ms: the time, in ms since 1970.
            text: the note.
            older_than_ms: the least age of the note to return.
        """
        ...


class Work(Entries, Waits, Protocol):
    """What a worker does with entries: it takes buckets from the dirty sets, and finishes them. The bells are here."""

    def due(self, shard: str, limit: int, holder: str = "") -> dict[int, int]:
        """Silence or hold the bell; return the oldest due buckets, each with the bytes of its largest op (0: small).

        While a bell is held, nobody rings: its holder comes back to `due`, or leaves. If nothing is due it listens.

        Args:
            shard: the shard's name.
            limit: the most buckets to return.
            holder: holds the bell, unless another does; a word. The empty text silences it.
        """
        ...

    def listen(self, shard: str, holder: str, for_s: float, limit: int) -> Generator[Looked]:
        """Wait for an op while nothing is due, and look as `due` does; yield False every `SLICE_S` while it waits.

        Ends with what is due once an op has come, or the time is over. Ends with None where nothing is due and somebody
        else holds the bell.

        Args:
            shard: the shard's name.
            holder: as for `due`.
            for_s: the longest wait, s.
            limit: as for `due`.
        """
        ...

    def is_held(self, shard: str) -> bool:
        """Return whether somebody holds a shard's bell, see `due`: whoever it is looks again before it leaves.

        Args:
            shard: the shard's name.
        """
        ...

    def leave(self, shard: str, holder: str, *, within_ms: int | None = None) -> tuple[bool, int]:
        """Give up a bell, and check once more; return whether to ring and how many buckets are dirty.

        Args:
            shard: the shard's name.
            holder: as for `due`; one that holds nothing looks all the same.
            within_ms: nobody is to ring for what has been due for longer; None: for all that is due.
        """
        ...

    def sizes(self, after: Mapping[int, Position], count: int, most_bytes: int) -> dict[int, list[int]]:
        """Return the bytes of the entries behind a position of each bucket, until all together have so many bytes.

        Args:
            after: of each bucket, the position; the buckets are measured in this order.
            count: the most entries of one bucket.
            most_bytes: no entry is measured once this is reached, and no bucket: such buckets are left out.
        """
        ...

    def finish(
        self,
        shard: str,
        marks: Mapping[int, Position],
        *,
        delay_ms: int = 0,
        counts: Mapping[str, int] = {},
        note: str = "",
        holder: str = "",
        own: Mapping[int, str] = {},
    ) -> tuple[bool, int]:
        """Publish watermarks, un-dirty drained buckets, forget their attempts; return whether to ring and how many are
        dirty.

        A log that ends behind its watermark has forgotten entries: then the lease on `RECONCILE` is given up. A
        caller may publish late: a later watermark stays, and what another worker has noted behind this one.

        Args:
            shard: the shard's name.
            marks: of each bucket, its watermark.
            delay_ms: how long a bucket with entries left rests; then no process is to ring.
            counts: is added to the shard's counters, see `oplog/shared_state`.
            note: of the batch, see `oplog/shared_state`; empty: none.
            holder: as for `due`: it goes on or leaves, instead of ringing at once.
            own: what the caller itself has noted, by bucket.
        """
        ...

    def batches(self, shard: str) -> list[str]:
        """Return the notes of a shard's newest batches, the newest first; see `oplog/shared_state`.

        Args:
            shard: the shard's name.
        """
        ...

    def counts(self, shard: str) -> dict[str, int]:
        """Return the counters of a shard: what the processes of the deployment have added up.

        Args:
            shard: the shard's name.
        """
        ...

    def note_attempts(self, shard: str, notes: Mapping[int, str], *, anew: bool = False) -> dict[int, str]:
        """Note what a worker is about to apply, until `finish`; return the earlier notes that stay.

        An earlier note stays if it is about the same watermark.

        Args:
            shard: the shard's name.
            notes: of each bucket, a text whose first word is its watermark; the empty text forgets.
            anew: whether to replace every earlier note.
        """
        ...

    def read_noted(
        self,
        shard: str,
        after: Mapping[int, Position],
        count: Mapping[int, int],
        notes: Mapping[int, str],
        *,
        anew: bool,
    ) -> tuple[dict[int, list[Read]], dict[int, str]]:
        """Note attempts, then read the entries for them, in one round trip; see `note_attempts` and `read`.

        Like inserts that were sent together may come as a sheet, or as a part of one, in place of an entry each.

        Args:
            shard: the shard's name.
            after: of each bucket, the position to read behind.
            count: of each bucket, the most ops to return.
            notes: of each bucket, a text whose first word is its watermark.
            anew: whether to replace every earlier note.

        Returns:
            The entries of each bucket, and the earlier notes that stay.
        """
        ...

    def attempts(self, shard: str) -> dict[int, str]:
        """Return the notes of a shard's attempts, by bucket.

        Args:
            shard: the shard's name.
        """
        ...

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        """Take a bell that no process rings; return whether to ring and how many buckets are dirty.

        Args:
            shard: the shard's name.
            due_ms: how long a bucket must have been due.
        """
        ...

    def sweep_all(self, shards: Iterable[str], *, due_ms: int) -> dict[str, tuple[bool, int]]:
        """Sweep shards in one round trip; return what `sweep` returns for each.

        Args:
            shards: their names; of one Redis, as one that is away fails all.
            due_ms: how long a bucket must have been due.
        """
        ...

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        """Mark buckets as having unapplied entries.

        Args:
            shard: the shard's name.
            buckets: the buckets; one that rests goes on to rest.
        """
        ...

    def mark_clean(self, shard: str, buckets: Iterable[int]) -> None:
        """Mark buckets as none of a shard's: another shard has them.

        Args:
            shard: the shard's name.
            buckets: the buckets.
        """
        ...

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        """Let dirty buckets rest, because their database does not answer.

        Args:
            shard: the shard's name.
            buckets: the buckets; clean ones stay clean.
            delay_ms: how long they rest.
        """
        ...

    def dirty(self, shard: str) -> int:
        """Return how many buckets are marked dirty.

        Args:
            shard: the shard's name.
        """
        ...

    def dirty_buckets(self, shard: str) -> set[int]:
        """Return which buckets are marked dirty.

        Args:
            shard: the shard's name.
        """
        ...


class Log(Appends, Work, SharedState, Protocol):
    """The logs of all buckets, the dirty sets and the bells, and what processes share."""

    def close(self) -> None:
        """Close all connections."""
        ...
