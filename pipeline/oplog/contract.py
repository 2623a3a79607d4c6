"""Define what a log does, in five roles. `RedisLog` plays them over Redis or Valkey, `MemoryLog` in this process.

A user of the log takes one role. A producer takes `Appends` (see `appends`), a reader of ops `Entries`, a worker `Work`
with `Waits` (see `waits`); what processes share beside the ops is `SharedState`. The wiring takes a whole `Log`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Protocol

from pipeline.model.ids import Given
from pipeline.model.op import Entry, Position
from pipeline.model.sheet import Read
from pipeline.oplog.appends import Appends, Scope
from pipeline.oplog.waits import Waits

#: The lease on the chore that compares a shard's watermarks with its logs.
RECONCILE = "reconcile:{}"
#: How often who waits for an op may look at other things, s.
SLICE_S = 0.02


class Entries(Protocol):
    """What the logs hold: entries, the schemas that their ops name, copies of how far each bucket is applied."""

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        """Return entries of each bucket behind a position, in order.

        Args:
            after: of each bucket, the position.
            count: of each bucket, the most entries to return.
        """
        ...

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        """Return the last position of each log that has entries.

        Args:
            buckets: the logs.
        """
        ...

    def queued(self, after: Mapping[int, Position]) -> dict[int, int]:
        """Return how many entries each log has behind a position: exact, and also across epochs.

        Args:
            after: of each bucket, the position.
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

    def listen(self, shard: str, holder: str, for_s: float) -> Generator[bool | None]:
        """Wait for an op while nothing is due; yield False every `SLICE_S`, True once one has come.

        Ends with True, with None where somebody else holds the bell, or with False when the time is over.

        Args:
            shard: the shard's name.
            holder: as for `due`.
            for_s: the longest wait, s.
        """
        ...

    def leave(self, shard: str, holder: str, *, within_ms: int | None = None) -> tuple[bool, int]:
        """Give up a bell, and look once more; return whether to ring and how many buckets are dirty.

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
    ) -> tuple[bool, int]:
        """Publish watermarks, un-dirty drained buckets, forget their attempts; return whether to ring and how many are
        dirty.

        A log that ends behind its watermark has forgotten entries: then the lease on `RECONCILE` is given up.

        Args:
            shard: the shard's name.
            marks: of each bucket, its watermark.
            delay_ms: how long a bucket with entries left rests; then no process is to ring.
            counts: is added to the shard's counters, see `oplog/counts`.
            note: of the batch, see `oplog/batches`; empty: none.
            holder: as for `due`: it goes on or leaves, instead of ringing at once.
        """
        ...

    def batches(self, shard: str) -> list[str]:
        """Return the notes of a shard's newest batches, the newest first; see `oplog/batches`.

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


class SharedState(Protocol):
    """What processes share beside the ops: leases, counters of ids, the full flag, the secret, and reports on nodes."""

    def take_lease(self, name: str, for_ms: int) -> bool:
        """Take the lease on a chore if it is free; return whether it was. It ends by itself.

        Args:
            name: the chore.
            for_ms: how long the lease lasts; for one name always the same.
        """
        ...

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        """Take the lease on a chore, or lengthen one's own; return whether it is held under the token.

        Args:
            name: the chore.
            token: the holder's.
            for_ms: how long the lease lasts from now on.
        """
        ...

    def hold_leases(self, names: Iterable[str], token: str, for_ms: int) -> None:
        """Do as `hold_lease` for each name, in one round trip.

        Args:
            names: the chores.
            token: the holder's.
            for_ms: how long the leases last from now on.
        """
        ...

    def look(self, leases: Iterable[str], scopes: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        """Return which leases are there, and which scopes have an epoch of this server, in one round trip.

        Args:
            leases: chores.
            scopes: names of scopes.
        """
        ...

    def release_lease(self, name: str, token: str) -> None:
        """End a lease, if it is still held under the token.

        Args:
            name: the chore.
            token: the holder's.
        """
        ...

    def give_ids(self, shard: str, wanted: Mapping[int, int], new_span: int = 0) -> Given:
        """Give blocks of counters, of which row ids are made; see `model.ids`.

        Args:
            shard: whose buckets they are.
            wanted: of each bucket, how many: fewer than a span has.
            new_span: from now on counters are given of this span, if it is above the one in use. Its database gave it
                a moment ago, for this call alone.
        """
        ...

    def mend(self, scope: Scope, buckets: Iterable[int], leases: Iterable[str], *, delete: bool) -> list[str]:
        """Return the names of keys that no process of ours has written, by their type, size and expiry.

        What is deleted is as what a Redis forgets: the databases know it, or it is made anew.

        Args:
            scope: whose keys are judged, beside those of the whole deployment.
            buckets: whose logs are judged.
            leases: names of chores.
            delete: whether to delete them.
        """
        ...

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        """Refuse all appends for a while, or accept appends again.

        Args:
            reason: the text of the refusal; None: accept.
            for_ms: how long to refuse.
        """
        ...

    def full(self) -> str | None:
        """Return why appends are refused, or None while they are accepted."""
        ...

    def memory(self) -> tuple[float, int]:
        """Return used memory as a share of the limit, 0.0 if there is no limit, and in bytes."""
        ...

    def largest_bytes(self) -> int:
        """Return the size of the largest op that the log takes; 0: not known."""
        ...

    def secret(self, proposed: str) -> str:
        """Return the secret that this deployment signs session tokens with: the first that anybody proposed.

        Args:
            proposed: the secret to store if there is none.
        """
        ...

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        """Publish a report on each node, at the server's time, in place of all earlier ones.

        Args:
            nodes: of each node, its report.
            for_ms: when the reports expire.
        """
        ...

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]], str]:
        """Return the server's time in ms; of each node, when its report was published and the report; and the map.

        Args:
            counted: is added to `reads` in the same round trip; a full server drops it.
        """
        ...

    def reads(self) -> dict[str, int]:
        """Return the counts of reads of all processes."""
        ...

    def note_host(self, host: str, text: str) -> None:
        """Note what a host says of its spool, also while memory is full; hosts that are silent for a day are forgotten.

        Args:
            host: what kind of host it is, a blank, and its name.
            text: what it says.
        """
        ...

    def hosts(self) -> dict[str, tuple[int, str]]:
        """Return what each host has said last, and when, ms since 1970 by the log's clock."""
        ...

    def publish_records(self, records: Mapping[str, str], points: Mapping[str, tuple[str, str]] = {}) -> None:
        """Publish records at the server's time, each in place of the one before; and add points to their histories.

        Args:
            records: by name, the record: of each shard, or `EVERYWHERE`.
            points: by the same names, a point for the last minutes and one for the last hours; empty: none.
        """
        ...

    def records(self, names: Iterable[str]) -> tuple[int, dict[str, tuple[int, str]]]:
        """Return the server's time in ms and, of each record there is, when it was published and the record.

        Args:
            names: of the records.
        """
        ...

    def history(self, name: str) -> tuple[list[str], list[str]]:
        """Return the points of a record's last minutes and of its last hours, the oldest first.

        Args:
            name: of the record.
        """
        ...

    def seen(self, node: str) -> str | None:
        """Return upkeep's last note on a node.

        Args:
            node: the node's name.
        """
        ...

    def note_seen(self, node: str, text: str) -> None:
        """Store upkeep's note on a node.

        Args:
            node: the node's name.
            text: the note.
        """
        ...

    def unfit(self) -> dict[str, str]:
        """Return the published unfit nodes of each shard."""
        ...

    def publish_unfit(self, shard: str, text: str) -> None:
        """Publish which nodes of a shard are unfit: a copy of what the shard's database says.

        Args:
            shard: the shard's name.
            text: its unfit nodes.
        """
        ...


class Log(Appends, Work, SharedState, Protocol):
    """The logs of all buckets, the dirty sets and the bells, and what processes share."""

    def close(self) -> None:
        """Close all connections."""
        ...
