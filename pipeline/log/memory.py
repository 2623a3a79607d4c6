"""The log in this process, for tests and for the sandbox: it answers as `redis_log.RedisLog` does, faults included.

All of the server's state is one `_Server` value, so a replica is a copy of it and a failover is taking another one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from pipeline import clock
from pipeline.errors import NoProducerNumber, PipelineFull
from pipeline.ids import HOSTS, PRODUCERS, SPAN_MS, Lease
from pipeline.log.contract import APPENDED, HOLE, SEEN, Append, Appended, EpochStale, IdReserved, Placed, Scope
from pipeline.log.memory_line import MemoryLine
from pipeline.log.same import is_receipt, row_id_in
from pipeline.op import START, Entry, Position

#: As in the log over Redis: see `line` and `redis_log` for the reasons.
BELL_MS, IDEMPOTENCY_TTL_MS, LEASE_MS, NOTE_MS, BIG_BYTES = 1000, 86_400_000, 60_000, 60_000, 16_384
BUDGET_MS, HOST_LEASE_MS = 60_000, 2 * 86_400_000


class _Timed(NamedTuple):
    """A value that is forgotten at a time, in ms."""

    value: str
    until_ms: int


class _Sent(NamedTuple):
    """A producer's last sequence in a bucket, and where it stands."""

    seq: int
    position: Position


@dataclass(slots=True)
class _Server:
    """What a server holds; `lineage` is its identity, as `master_replid` is Redis's."""

    lineage: str = field(default_factory=lambda: uuid4().hex)
    logs: dict[int, list[Entry]] = field(default_factory=dict)
    last: dict[int, Position] = field(default_factory=dict)  # given out, trimmed or not
    big: dict[int, int] = field(default_factory=dict)
    producers: dict[int, dict[int, _Sent]] = field(default_factory=dict)
    epochs: dict[str, tuple[int, str]] = field(default_factory=dict)
    dirty: dict[str, dict[int, int]] = field(default_factory=dict)
    marks: dict[str, dict[int, Position]] = field(default_factory=dict)
    notes: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    schemas: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    leases: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # number -> token, last ms, ends at
    health: dict[str, _Timed] = field(default_factory=dict)  # node -> what is known, and when it was published
    health_until_ms: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    keys: dict[str, _Timed] = field(default_factory=dict)  # bells, idempotency keys, chores, full


class MemoryLog:
    """A `contract.Log` of one process; thread-safe.

    Attributes:
        fault: called with `send` before and `reply` after each try of an append; raise ConnectionError in it, and the
            connection breaks there.
        limit_bytes: the size of all ops at which appends are refused, as Redis does at `maxmemory`; 0: none.
        published: called with each definition that was not known.
        durable: what a wait for Redis's replica or disk comes to.
        now_ms: the server's clock.
    """

    def __init__(self, *, now_ms: Callable[[], int] = clock.wall_ms):
        self.now_ms = now_ms
        self.fault: Callable[[str], None] = lambda where: None
        self.published: Callable[[str], None] = lambda definition: None
        self.limit_bytes = 0
        self.durable = True
        self._server = _Server()
        self._lock = threading.RLock()

    # faults -------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Restart the server: all is still there, under a new lineage."""
        self.fail_over(self.replica())

    def replica(self) -> object:
        """Return a copy of the server as it is now, to be promoted later."""
        with self._lock:
            return copy.deepcopy(self._server)

    def fail_over(self, replica: object = None) -> None:
        """Promote a replica; without one, go on with an empty server."""
        promoted = copy.deepcopy(replica) if isinstance(replica, _Server) else _Server()
        promoted.lineage = uuid4().hex
        with self._lock:
            self._server = promoted

    # producers ----------------------------------------------------------------------------------------------

    def line(self, *, patient: bool = False) -> MemoryLine:
        """See `contract.Log`; so are all below."""
        return MemoryLine(self)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with self._lock:
            server = self._server
            epoch, given_on = server.epochs.get(scope, (0, ""))
            return epoch, given_on == server.lineage, f"{server.lineage} {epoch}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        with self._lock:
            if self.epoch(scope)[2] != seen:
                return False
            self._server.epochs[scope] = epoch, self._server.lineage
            return True

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], key: str, row_id: int
    ) -> Appended:
        """Do what `enqueue.lua` does."""
        with self._lock:
            server, same = self._server, f"same:{appends[0].bucket}:{key}"
            if self.limit_bytes and self._size_bytes() >= self.limit_bytes:
                raise PipelineFull("the memory log is at its limit")
            if server.epochs.get(scope.name) != (epoch, server.lineage):
                raise EpochStale
            full = self._get("full")
            if full is not None:
                raise PipelineFull(full)
            if key and (seen := self._get(same)) is not None:
                if is_receipt(seen):
                    return Appended([], [], seen)
                if row_id and row_id_in(seen) != row_id:
                    raise IdReserved(row_id_in(seen))
            placed = [self._place(epoch, producer, append) for append in appends]
            wrote = [append for append, place in zip(appends, placed, strict=True) if place.code == APPENDED]
            for bucket, first, _ in wrote if key else ():
                last = server.last[bucket]
                self._set(same, f"{last.epoch} {last.seq} {producer} {first} {row_id}", IDEMPOTENCY_TTL_MS)
            return Appended(placed, [s for s in scope.shards if wrote and self._wake(s, [a.bucket for a in wrote])])

    def sequences(self, producer: int) -> dict[int, int]:
        """See `contract.Line.sequences`."""
        with self._lock:
            return {bucket: sent.seq for bucket, sent in self._server.producers.get(producer, {}).items()}

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `contract.Line.pass_hole`."""
        with self._lock:
            sent = self._server.producers.setdefault(producer, {})
            if sent.get(bucket, _Sent(0, START)).seq != seen:
                return False
            sent[bucket] = _Sent(last, Position(0, 0))
            return True

    def _place(self, epoch: int, producer: int, append: Append) -> Placed:
        server, (bucket, first, payloads) = self._server, append
        sent = server.producers.setdefault(producer, {})
        last, (last_epoch, last_seq) = sent.get(bucket, _Sent(0, Position(0, 0)))
        if first + len(payloads) - 1 <= last:
            return Placed(SEEN, Position(last_epoch, last_seq - (last - first)))
        if first != last + 1:
            return Placed(HOLE, Position(0, last))
        before = server.last.get(bucket, START)
        start = before.seq + 1 if before.epoch == epoch else 0
        entries = server.logs.setdefault(bucket, [])
        for nth, payload in enumerate(payloads):
            entries.append(Entry(bucket, Position(epoch, start + nth), producer, first + nth, payload))
        server.last[bucket] = entries[-1].position
        sent[bucket] = _Sent(first + len(payloads) - 1, entries[-1].position)
        largest = max(map(len, payloads))
        if largest >= BIG_BYTES:
            server.big[bucket] = max(largest, server.big.get(bucket, 0))
        return Placed(APPENDED, Position(epoch, start))

    def _wake(self, shard: str, buckets: Iterable[int]) -> bool:
        dirty, now = self._server.dirty.setdefault(shard, {}), self.now_ms()
        for bucket in buckets:
            dirty.setdefault(bucket, now)
        return self._take(f"bell:{shard}", BELL_MS)

    def reserve(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        with self._lock:
            name = f"same:{bucket}:{idempotency_key}"
            found = self._get(name)
            if found is None:
                self._set(name, str(row_id), IDEMPOTENCY_TTL_MS)
            return row_id_in(found) or row_id if found else row_id

    # table definitions --------------------------------------------------------------------------------------

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        with self._lock:
            new = hash not in self._server.schemas
            self._server.schemas[hash] = text
            self._server.tables[name] = hash
        if new:
            self.published(text)

    def schema(self, hash: str) -> str | None:
        with self._lock:
            return self._server.schemas.get(hash)

    def tables(self) -> dict[str, str]:
        with self._lock:
            return {name: self._server.schemas[hash] for name, hash in self._server.tables.items()}

    # draining -----------------------------------------------------------------------------------------------

    def due(self, shard: str, limit: int) -> dict[int, int]:
        with self._lock:
            self._server.keys.pop(f"bell:{shard}", None)
            waiting, now = self._server.dirty.get(shard, {}), self.now_ms()
            oldest = sorted((at, str(bucket)) for bucket, at in waiting.items() if at <= now)
            return {int(bucket): self._server.big.get(int(bucket), 0) for _, bucket in oldest[:limit]}

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        with self._lock:
            logs = self._server.logs
            found = {b: [e for e in logs.get(b, ()) if e.position > position] for b, position in after.items()}
            return {bucket: entries[: count[bucket]] for bucket, entries in found.items()}

    def finish(self, shard: str, marks: Mapping[int, Position], *, delay_ms: int = 0) -> tuple[bool, int]:
        with self._lock:
            published = self._server.marks.setdefault(shard, {})
            dirty, tails = self._server.dirty.setdefault(shard, {}), self.tails(marks)
            for bucket, (epoch, seq) in marks.items():
                published[bucket] = mark = Position(epoch, seq if epoch else 0)
                if tails.get(bucket, START) <= mark:
                    dirty.pop(bucket, None)
                elif bucket in dirty:
                    dirty[bucket] = self.now_ms() + delay_ms
            due = delay_ms == 0 and any(at <= self.now_ms() for at in dirty.values())
            return due and self._take(f"bell:{shard}", BELL_MS), len(dirty)

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        with self._lock:
            dirty, oldest = self._server.dirty.get(shard, {}), self.now_ms() - due_ms
            forgotten = any(at <= oldest for at in dirty.values())
            return forgotten and self._take(f"bell:{shard}", BELL_MS), len(dirty)

    def mark_dirty(self, shard: str, buckets: Iterable[int]) -> None:
        with self._lock:
            dirty = self._server.dirty.setdefault(shard, {})
            for bucket in buckets:
                dirty.setdefault(bucket, 0)

    def postpone(self, shard: str, buckets: Iterable[int], delay_ms: int) -> None:
        with self._lock:
            dirty = self._server.dirty.get(shard, {})
            dirty |= {bucket: self.now_ms() + delay_ms for bucket in buckets if bucket in dirty}

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        with self._lock:
            logs = self._server.logs
            return {bucket: logs[bucket][-1].position for bucket in buckets if logs.get(bucket)}

    def queued(self, after: Mapping[int, Position]) -> dict[int, int]:
        with self._lock:
            logs = self._server.logs
            return {b: sum(entry.position > mark for entry in logs.get(b, [])) for b, mark in after.items()}

    def dirty(self, shard: str) -> int:
        with self._lock:
            return len(self._server.dirty.get(shard, {}))

    def full(self) -> str | None:
        with self._lock:
            return self._get("full")

    def marks(self, shard: str) -> dict[int, Position]:
        with self._lock:
            return dict(self._server.marks.get(shard, {}))

    def mark(self, shard: str, bucket: int) -> Position | None:
        return self.marks(shard).get(bucket)

    def trim(self, behind: Mapping[int, Position]) -> int:
        with self._lock:
            before = self._count()
            for bucket, position in behind.items():
                entries = self._server.logs.get(bucket, [])
                entries[:] = [entry for entry in entries if entry.position > position]
            return before - self._count()

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        with self._lock:
            notes = self._server.notes.setdefault(shard, [])
            found = next((note for at, note in notes if now_ms - at >= older_than_ms), None)
            if not notes or now_ms - notes[0][0] >= NOTE_MS:
                notes.insert(0, (now_ms, text))
                del notes[older_than_ms // NOTE_MS + 2 :]
            return found

    # chores -------------------------------------------------------------------------------------------------

    def lease_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._leased(token, lease, until_ms, LEASE_MS, range(PRODUCERS))

    def lease_host_ids(self, token: str, lease: Lease | None, until_ms: int) -> Lease:
        return self._leased(token, lease, until_ms, HOST_LEASE_MS, range(PRODUCERS, PRODUCERS + HOSTS))

    def _leased(self, token: str, lease: Lease | None, until_ms: int, for_ms: int, numbers: Iterable[int]) -> Lease:
        with self._lock:
            leases, now = self._server.leases, self.now_ms()
            if lease is not None and leases.get(lease.number, ("", 0, 0))[0] == token:
                return Lease(lease.number, 0, self._lease(lease.number, token, until_ms, for_ms))
            for number in numbers:
                _, after, ends = leases.get(number, ("", 0, 0))
                if ends < now:
                    return Lease(number, after, self._lease(number, token, until_ms, for_ms))
            raise NoProducerNumber

    def _lease(self, number: int, token: str, until_ms: int, for_ms: int) -> int:
        after = self._server.leases.get(number, ("", 0, 0))[1]
        last = max(until_ms, after + SPAN_MS)
        self._server.leases[number] = token, last, self.now_ms() + for_ms
        return last

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        with self._lock:
            if reason is None:
                self._server.keys.pop("full", None)
            else:
                self._set("full", reason, for_ms)

    def memory_share(self) -> float:
        with self._lock:
            return self._size_bytes() / self.limit_bytes if self.limit_bytes else 0.0

    def claim(self, name: str, for_ms: int) -> bool:
        with self._lock:
            return self._take(f"chore:{name}", for_ms)

    # reads --------------------------------------------------------------------------------------------------

    def hold(self, name: str, token: str, for_ms: int) -> bool:
        with self._lock:
            if self._get(f"chore:{name}") not in (None, token):
                return False
            self._set(f"chore:{name}", token, for_ms)
            return for_ms > 0

    def release(self, name: str, token: str) -> None:
        self.hold(name, token, 0)

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        with self._lock:
            self._server.health = {node: _Timed(text, self.now_ms()) for node, text in nodes.items()}
            self._server.health_until_ms = self.now_ms() + for_ms

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        with self._lock:
            for what, more in counted.items():
                self._server.reads[what] = self._server.reads.get(what, 0) + more
            known = self._server.health if self.now_ms() < self._server.health_until_ms else {}
            return self.now_ms(), {node: (said.until_ms, said.value) for node, said in known.items()}

    def reads(self) -> dict[str, int]:
        with self._lock:
            return dict(self._server.reads)

    def seen(self, node: str) -> str | None:
        with self._lock:
            return self._server.seen.get(node)

    def note_seen(self, node: str, text: str) -> None:
        with self._lock:
            self._server.seen[node] = text

    def unfit(self) -> dict[str, str]:
        with self._lock:
            return dict(self._server.unfit)

    def publish_unfit(self, shard: str, text: str) -> None:
        with self._lock:
            self._server.unfit[shard] = text

    def earn(self, shard: str, reads: float, most: float, *, take: bool) -> bool:
        with self._lock:
            left = min(float(self._get(f"budget:{shard}") or most) + reads, most)
            taken = take and left >= 1 - 1e-6
            self._set(f"budget:{shard}", str(left - taken), BUDGET_MS)
            return taken

    def secret(self, proposed: str) -> str:
        with self._lock:
            return self._server.keys.setdefault("secret", _Timed(proposed, 1 << 62)).value

    def close(self) -> None:
        """Do nothing."""

    # keys that expire ---------------------------------------------------------------------------------------

    def _get(self, key: str) -> str | None:
        found = self._server.keys.get(key)
        return found.value if found is not None and self.now_ms() < found.until_ms else None

    def _set(self, key: str, value: str, for_ms: int) -> None:
        self._server.keys[key] = _Timed(value, self.now_ms() + for_ms)

    def _take(self, key: str, for_ms: int) -> bool:
        """Set a key that is not there; return whether it was not."""
        if self._get(key) is not None:
            return False
        self._set(key, "1", for_ms)
        return True

    def _count(self) -> int:
        return sum(map(len, self._server.logs.values()))

    def _size_bytes(self) -> int:
        return sum(len(entry.payload) for entries in self._server.logs.values() for entry in entries)
