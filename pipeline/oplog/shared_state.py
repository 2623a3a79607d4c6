"""Define what processes share beside the ops: leases, counters, notes of batches and waits. Redis may forget it.

Name the counters that the processes of a deployment add up in Redis, in a hash for each shard. A counter only grows,
until Redis forgets it. A counter's name is words with a blank between: what is counted, then the labels; the last label
may hold blanks.

Write and read the notes of the newest batches of a shard: who committed each, when, and what of each bucket.
A note names both ends of what its transaction applied, so it proves what it says of an op, or says nothing of it. Notes
are bounded in number and size, and Redis forgets them: they explain, and nothing depends on them.
"""

from __future__ import annotations

import os
import socket
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec

from pipeline.model import Given, Position
from pipeline.oplog.appends import Scope

_DAY_MS = 86_400_000

#: A Celery message that no worker fetched for so long no longer counts as on its way: the longest delay of a lost ring.
BELL_MS = 1000
#: A worker that is at a shard holds its bell for so long: while a batch takes longer, the next op rings for another.
HELD_MS = 200
#: Producers stop so soon after memory has run short, and go on so soon after there is room.
ROOM_MS = 1000
#: What rests, rings or refuses lies no further ahead, by the log's clock: what does was set before the clock went back.
MOST_AHEAD_MS = 5_000
#: An idempotency key is claimed for a day.
IDEMPOTENCY_TTL_MS = _DAY_MS
#: A producer's sequences outlive the day after which an idle producer starts anew under another number.
PRODUCER_TTL_MS = 2 * _DAY_MS
#: The size of a bucket's largest op is forgotten when no large one comes for so long: longer than ops wait.
BIG_TTL_MS = 7 * _DAY_MS
#: The time between two notes of a shard's watermarks.
NOTE_MS = 60_000
#: Counts of reads are forgotten when no process reads for so long.
READS_MS = _DAY_MS
#: A record of a shard is shown, with its age, for so long; its history outlives the day that it shows.
RECORD_MS, HISTORY_MS = 600_000, _DAY_MS + 3_600_000
#: What a host said of its spool is kept for so long after it fell silent, and of so many hosts at most.
HOST_MS, MOST_HOSTS = _DAY_MS, 500
#: Points of a history: 15 minutes at 5 s, and 24 hours at 5 minutes.
MOST_RECENT, MOST_OF_DAY = 180, 288


#: `applied <kind> <table>`: ops.
APPLIED = "applied"
#: `rejected <table>`: ops; one that a replay tries again is not refused a second time.
REJECTED = "rejected"
#: Transactions, and `batch_ms <bound>`: those that took so long at most, by the least bound that holds.
BATCHES, BATCH_MS = "batches", "batch_ms"
#: What an operator has ordered on the shard: stops, and their ends.
ORDERS = "orders"
#: `commit_ms <bound>`: the same of their COMMITs alone; and the sums of both.
COMMIT_MS, BATCH_SUM_MS, COMMIT_SUM_US = "commit_ms", "batch_sum_ms", "commit_sum_us"
#: Ops that were set aside without being refused; ops that the shard had already.
PARKED, SEEN = "parked", "seen"
#: `held <kind>`: how often a batch left a bucket waiting, by the kind of the reason.
HELD = "held"
#: Upper bounds of the histogram of a batch, ms; a longer batch counts under `inf`.
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
#: `enqueued <way> <kind> <table>`: ops that processes have enqueued, by the way that they took first.
ENQUEUED, DIRECT, SPOOLED, OUTBOX = "enqueued", "direct", "spool", "outbox"
#: `refused <reason> <kind> <table>`: ops that a process could not enqueue, so that their caller got an error.
REFUSED = "refused"
#: `enqueue_ms <way> <bound>`: calls, by the time until the log or the spool had their ops; and the sums.
ENQUEUE_MS, ENQUEUE_SUM_US = "enqueue_ms", "enqueue_sum_us"
#: Upper bounds of that histogram, ms.
ENQUEUE_BOUNDS_MS = (0.1, 0.2, 0.5, *BOUNDS_MS)
#: The most counters of one shard: more tables than that are not told apart.
MOST_COUNTERS = 2000
#: The newest notes of a shard, and the most buckets of one, 50 bytes each: 1.6 MB in all. Further ones are left out.
MOST_NOTES, MOST_NOTED = 500, 64
_HOST = socket.gethostname()[:64]
#: The lease that every worker of a shard holds while it runs, under one token, and for how long a sweep lengthens it.
ALIVE, ALIVE_TOKEN, ALIVE_MS = "alive:{}", "worker", 6_000


def bound_of(value: float, bounds: Sequence[float]) -> str:
    """Return the least bound that a value does not pass, as text; `inf` where it passes all.

    Args:
        value: such as ms.
        bounds: in ascending order.
    """
    n = bisect_left(bounds, value)
    return f"{bounds[n]:g}" if n < len(bounds) else "inf"


def quantile(counted: Mapping[str, int], share: float) -> float | None:
    """Return the bound that holds for a share of what a histogram counted; None for nothing, inf behind the last bound.

    Args:
        counted: how many by bound, as `bound_of` gives it.
        share: 0.0 to 1.0.
    """
    ordered = sorted((float(bound), n) for bound, n in counted.items() if n > 0)
    left = share * sum(n for _, n in ordered)
    for bound, n in ordered:
        left -= n
        if left <= 0:
            return bound
    return None


def this_process() -> str:
    """Return host and process, for people."""
    return f"{_HOST}:{os.getpid()}"


class Committed(NamedTuple):
    """Who committed a batch, as host and process, and when by that host's clock, ms since 1970."""

    at_ms: int
    worker: str


class _Note(msgspec.Struct, frozen=True, array_like=True):
    """A note: the encoder takes the batch's own values, since each bucket's own text would cost a microsecond."""

    at_ms: int
    worker: str
    before: Mapping[int, Position]
    after: Mapping[int, Position]


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(_Note)


def note_of(now_ms: int, before: Mapping[int, Position], after: Mapping[int, Position]) -> str:
    """Return the note of a batch that this process has committed; empty where it has applied nothing.

    Args:
        now_ms: the time of the commit, ms since 1970.
        before: of each bucket, the watermark that the batch found.
        after: of each bucket that it moved, the watermark that it left.
    """
    if not after:
        return ""
    if len(before) > MOST_NOTED:
        after = dict(islice(after.items(), MOST_NOTED))
        before = {bucket: before[bucket] for bucket in after}
    return _encoder.encode(_Note(now_ms, this_process(), before, after)).decode()


def committed_in(notes: Iterable[str], bucket: int, position: Position) -> Committed | None:
    """Return which batch took an op; None where no note says so.

    Args:
        notes: from `note_of`.
        bucket: the op's bucket.
        position: the op's position.
    """
    for text in notes:
        try:
            note = _decoder.decode(text)
        except msgspec.MsgspecError:  # no note of ours
            continue
        if bucket in note.after and note.before.get(bucket, position) < position <= note.after[bucket]:
            return Committed(note.at_ms, note.worker)
    return None


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

    def stirs(self, shards: Iterable[str]) -> dict[str, str]:
        """Return of each shard a text that is another one after each batch and order, in one round trip.

        It is empty while the shard has work, or somebody is at it.

        Args:
            shards: their names.
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

    def histories(self, names: Iterable[str], most: int | None = None) -> dict[str, tuple[list[str], list[str]]]:
        """Return by record the points of its last minutes and of its last hours, the oldest first.

        Args:
            names: of the records.
            most: how many of each, the newest; None for all.
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
