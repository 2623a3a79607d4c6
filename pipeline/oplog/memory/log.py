"""Keep the log in this process, for tests and the sandbox: it answers as `RedisLog` does, faults included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from pipeline import clock
from pipeline.errors import LogUnavailable, PipelineFull
from pipeline.model.op import START, Entry, Position
from pipeline.oplog.appends import (
    APPENDED,
    BIG_BYTES,
    EVERYWHERE,
    FULL_SHARE,
    HOLE,
    SEEN,
    Append,
    Appended,
    EpochStale,
    KeyClaimed,
    Placed,
    Scope,
    claimed_id,
    is_receipt,
)
from pipeline.oplog.batches import MOST_NOTES, this_process
from pipeline.oplog.contract import RECONCILE
from pipeline.oplog.counts import MOST_COUNTERS
from pipeline.oplog.memory.server import GivenOut, MemoryServer, Sent
from pipeline.oplog.memory.shared_state import MemorySharedState, MemoryWaits
from pipeline.oplog.ttls import BELL_MS, IDEMPOTENCY_TTL_MS, MOST_AHEAD_MS, NOTE_MS


class MemoryAppends(MemoryServer):
    """See `appends.Appends`; and what its lines ask."""

    def line(self, *, patient: bool = False) -> MemoryLine:
        return MemoryLine(self)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with self._lock:
            server, given = self._server, self._given(scope)
            return given.epoch, given.lineage == server.lineage, f"{server.lineage} {given.epoch} {given.lineage}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        with self._lock:
            if self.epoch(scope)[2] != seen:
                return False
            self._server.epochs[scope] = GivenOut(epoch, self._server.lineage)
            return True

    def deployment(self, scope: str = EVERYWHERE) -> str:
        with self._lock:
            return self._server.deployment

    def note_deployment(self, seen: str, text: str, scope: str = EVERYWHERE) -> bool:
        with self._lock:
            noted = self._server.deployment == seen
            self._server.deployment = text if noted else self._server.deployment
            return noted

    def audit(self, scope: str, marks: Mapping[int, Position]) -> str:
        with self._lock:
            return self._server.audit(self._given(scope), marks)

    def _given(self, scope: str) -> GivenOut:
        return self._server.epochs.get(scope) or GivenOut()

    def claim_key(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        with self._lock:
            name = f"claim:{bucket}:{idempotency_key}"
            found = self._get(name)
            if found is None:
                self._set(name, str(row_id), IDEMPOTENCY_TTL_MS)
            return claimed_id(found) or row_id if found else row_id

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], key: str, row_id: int
    ) -> Appended:
        """Do what `enqueue.lua` does."""
        with self._lock:
            name, given = f"claim:{appends[0].bucket}:{key}", self._server.epochs.get(scope.name)
            if self.limit_bytes and self._size_bytes() >= self.limit_bytes:
                raise PipelineFull("the memory log is at its limit")
            if given is None or (given.epoch, given.lineage) != (epoch, self._server.lineage):
                raise EpochStale
            if "full" in self._server.keys and (full := self._get("full")) is not None:
                raise PipelineFull(full)
            if self.limit_bytes and (share := self._size_bytes() / self.limit_bytes) > FULL_SHARE:
                raise PipelineFull(f"Redis uses {share:.0%} of its memory")
            if key and (claim := self._get(name)) is not None:
                if is_receipt(claim):
                    return Appended([], [], claim)
                if row_id and claimed_id(claim) != row_id:
                    raise KeyClaimed(claimed_id(claim))
            placed: list[Placed] = []
            for append in appends:
                if (place := self._place(given, producer, append)) is None:
                    break
                placed.append(place)
            wrote = [append for append, place in zip(appends, placed, strict=False) if place.code == APPENDED]
            for bucket, first, _ in wrote if key else ():
                last = self._server.last[bucket]
                self._set(name, f"{last.epoch} {last.seq} {producer} {first} {row_id}", IDEMPOTENCY_TTL_MS)
            if wrote and producer not in self._server.senders:
                self._server.senders[producer] = this_process()
            ring = [shard for shard in scope.shards if wrote and self._wake(shard, [a.bucket for a in wrote])]
            if len(placed) < len(appends):
                raise EpochStale
            return Appended(placed, ring)

    def senders(self, scope: str = EVERYWHERE) -> Iterator[tuple[int, dict[int, tuple[int, int]]]]:
        with self._lock:
            known = {producer: dict(sent) for producer, sent in self._server.producers.items()}
        for producer, buckets in known.items():
            yield producer, {bucket: (sent.seq, sent.position.epoch) for bucket, sent in buckets.items()}

    def sender(self, producer: int) -> str | None:
        with self._lock:
            return self._server.senders.get(producer)

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `appends.Line.pass_hole`."""
        with self._lock:
            sent = self._server.producers.setdefault(producer, {})
            if sent.get(bucket, Sent(0, START)).seq != seen:
                return False
            sent[bucket] = Sent(last, Position(0, 0))
            return True

    def _place(self, given: GivenOut, producer: int, append: Append) -> Placed | None:
        server, epoch, (bucket, first, payloads) = self._server, given.epoch, append
        sent = server.producers.setdefault(producer, {})
        last, (last_epoch, last_seq) = sent.get(bucket, Sent(0, Position(0, 0)))
        if first + len(payloads) - 1 <= last and last_epoch == epoch:
            return Placed(SEEN, Position(last_epoch, last_seq - (last - first)))
        if first > last + 1 or (first <= last and last_epoch == epoch):
            return Placed(HOLE, Position(0, last))
        before = server.last.get(bucket, START)
        start = before.seq + 1 if before.epoch == epoch else 0
        behind = last_seq if last_epoch == epoch else -1
        if (start == 0 or start <= behind) and server.ends(given, bucket, start, behind):
            return None
        entries = server.logs.setdefault(bucket, [])
        for nth, payload in enumerate(payloads):
            entries.append(Entry(bucket, Position(epoch, start + nth), producer, first + nth, payload))
        server.last[bucket] = entries[-1].position
        sent[bucket] = Sent(first + len(payloads) - 1, entries[-1].position)
        largest = max(map(len, payloads))
        if largest >= BIG_BYTES:
            server.big[bucket] = max(largest, server.big.get(bucket, 0))
        return Placed(APPENDED, Position(epoch, start))

    def _wake(self, shard: str, buckets: Iterable[int]) -> bool:
        dirty = self._server.dirty.setdefault(shard, {})
        now = clock.wall_ns() // 1_000_000 + self.ahead_ms  # as `now_ms`, once per op
        for bucket in buckets:
            dirty.setdefault(bucket, now)
        bell = self._server.keys.get(f"bell:{shard}")  # as `_take`, once per op
        if bell is not None and now < bell.until_ms:
            return False
        self._set(f"bell:{shard}", "1", BELL_MS)
        return True


class MemoryLine:
    """A `appends.Line` of a memory log."""

    def __init__(self, log: MemoryAppends):
        self._log = log

    def append(
        self, scope: Scope, epoch: int, producer: int, appends: Sequence[Append], idempotency_key: str, row_id: int
    ) -> Appended:
        """See `appends.Line.append`."""
        log = self._log
        for last in (False, True):
            try:
                if log.fault is not None:
                    log.fault("send")
                answer = log.append(scope, epoch, producer, appends, idempotency_key, row_id)
                if log.fault is not None:
                    log.fault("reply")
                return answer
            except ConnectionError as error:
                if last:
                    raise LogUnavailable(f"{type(error).__name__}: {error}", silent=True) from error
        raise AssertionError("the second try returns or raises")

    def append_one(
        self, scope: Scope, epoch: int, producer: int, bucket: int, seq: int, payload: bytes
    ) -> tuple[Position, bool] | None:
        """See `appends.Line.append_one`."""
        try:
            answer = self.append(scope, epoch, producer, [Append(bucket, seq, (payload,))], "", 0)
        except EpochStale:
            return None
        [(code, position)] = answer.placed
        return None if code == HOLE else (position, bool(answer.ring))

    def replicated(self, *, fsync: bool, timeout_s: float) -> bool:
        """See `appends.Line.replicated`."""
        return self._log.durable

    def connect(self) -> None:
        """See `appends.Line.connect`."""

    def pass_hole(self, producer: int, bucket: int, seen: int, last: int) -> bool:
        """See `appends.Line.pass_hole`."""
        return self._log.pass_hole(producer, bucket, seen, last)

    def close(self) -> None:
        """Do nothing."""


class MemoryEntries(MemoryServer):
    """See `contract.Entries`."""

    def read(self, after: Mapping[int, Position], count: Mapping[int, int]) -> dict[int, list[Entry]]:
        with self._lock:
            logs = self._server.logs
            found = {b: [e for e in logs.get(b, ()) if e.position > position] for b, position in after.items()}
            return {bucket: entries[: count[bucket]] for bucket, entries in found.items()}

    def tails(self, buckets: Iterable[int]) -> dict[int, Position]:
        with self._lock:
            return self._server.tails(buckets)

    def queued(self, after: Mapping[int, Position]) -> dict[int, int]:
        with self._lock:
            logs = self._server.logs
            return {b: sum(entry.position > mark for entry in logs.get(b, [])) for b, mark in after.items()}

    def trim(self, behind: Mapping[int, Position]) -> int:
        with self._lock:
            before = self._count()
            for bucket, position in behind.items():
                entries = self._server.logs.get(bucket, [])
                self._server.trimmed |= {bucket} if entries and entries[0].position <= position else set()
                entries[:] = [entry for entry in entries if entry.position > position]
            return before - self._count()

    def trimmed(self, bucket: int) -> bool:
        with self._lock:
            return bucket in self._server.trimmed

    def publish_schemas(self, schemas: Iterable[tuple[str, str, str]]) -> None:
        found = list(schemas)
        with self._lock:
            new = [text for _, hash, text in found if hash not in self._server.schemas]
            self._server.schemas |= {hash: text for _, hash, text in found}
            self._server.newest_schemas |= {name: hash for name, hash, _ in found}
        for text in new:
            self.published(text)

    def withdraw_schema(self, name: str) -> None:
        with self._lock:
            self._server.newest_schemas.pop(name, None)

    def schema(self, hash: str) -> str | None:
        with self._lock:
            return self._server.schemas.get(hash)

    def newest_schemas(self) -> dict[str, str]:
        with self._lock:
            return {name: self._server.schemas[hash] for name, hash in self._server.newest_schemas.items()}

    def marks(self, shard: str) -> dict[int, Position]:
        with self._lock:
            return dict(self._server.marks.get(shard, {}))

    def mark(self, shard: str, bucket: int) -> Position | None:
        return self.marks(shard).get(bucket)

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        with self._lock:
            notes = self._server.notes.setdefault(shard, [])
            if notes and notes[0][0] - now_ms > NOTE_MS:
                notes.clear()
            old = notes[max(0, older_than_ms // NOTE_MS - 1) :]
            found = next((note for at, note in old if now_ms - at >= older_than_ms), None)
            if not notes or now_ms - notes[0][0] >= NOTE_MS:
                notes.insert(0, (now_ms, text))
                del notes[older_than_ms // NOTE_MS + 2 :]
            return found

    def _count(self) -> int:
        return sum(map(len, self._server.logs.values()))


class MemoryWork(MemoryEntries):
    """See `contract.Work`."""

    def due(self, shard: str, limit: int) -> dict[int, int]:
        with self._lock:
            self._server.keys.pop(f"bell:{shard}", None)
            waiting, now = self._server.dirty.get(shard, {}), self.now_ms()
            oldest = sorted((at, str(bucket)) for bucket, at in waiting.items() if at <= now)
            return {int(bucket): self._server.big.get(int(bucket), 0) for _, bucket in oldest[:limit]}

    def sizes(self, after: Mapping[int, Position], count: int, most_bytes: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for bucket, position in after.items():
            entries = (entry for entry in self._server.logs.get(bucket, ()) if entry.position > position)
            sizes = [len(entry.payload) for entry in islice(entries, count)]
            while most_bytes > 0 and len(found.setdefault(bucket, [])) < len(sizes):
                found[bucket].append(sizes[len(found[bucket])])
                most_bytes -= found[bucket][-1]
        return found

    def finish(
        self,
        shard: str,
        marks: Mapping[int, Position],
        *,
        delay_ms: int = 0,
        counts: Mapping[str, int] = {},
        note: str = "",
    ) -> tuple[bool, int]:
        with self._lock:
            if note:
                self._server.batches[shard] = [note, *self._server.batches.get(shard, ())][:MOST_NOTES]
            counted = self._server.counts.setdefault(shard, {})
            for name, more in counts.items():
                if len(counted) < MOST_COUNTERS or name in counted:
                    counted[name] = counted.get(name, 0) + more
            published = self._server.marks.setdefault(shard, {})
            dirty, tails = self._server.dirty.setdefault(shard, {}), self._server.tails(marks)
            for bucket, (epoch, seq) in marks.items():
                self._server.attempts.get(shard, {}).pop(bucket, None)
                published[bucket] = mark = Position(epoch, seq if epoch else 0)
                tail = tails.get(bucket, START)
                if epoch and (bucket not in self._server.last or Position(epoch, -1) < tail < mark):
                    self._server.keys.pop(f"lease:{RECONCILE.format(shard)}", None)
                if tail <= mark:
                    dirty.pop(bucket, None)
                elif bucket in dirty:
                    dirty[bucket] = self.now_ms() + delay_ms
            due = delay_ms == 0 and any(at <= self.now_ms() for at in dirty.values())
            return due and self._take(f"bell:{shard}", BELL_MS), len(dirty)

    def batches(self, shard: str) -> list[str]:
        with self._lock:
            return list(self._server.batches.get(shard, ()))

    def counts(self, shard: str) -> dict[str, int]:
        with self._lock:
            return dict(self._server.counts.get(shard, {}))

    def note_attempts(self, shard: str, notes: Mapping[int, str], *, anew: bool = False) -> dict[int, str]:
        with self._lock:
            noted = self._server.attempts.setdefault(shard, {})
            stay = {b: noted[b] for b, note in notes.items() if not anew and _about(noted.get(b, " ")) == _about(note)}
            noted |= {bucket: note for bucket, note in notes.items() if bucket not in stay}
            self._server.attempts[shard] = {bucket: note for bucket, note in noted.items() if note}
            return stay

    def read_noted(
        self,
        shard: str,
        after: Mapping[int, Position],
        count: Mapping[int, int],
        notes: Mapping[int, str],
        *,
        anew: bool,
    ) -> tuple[dict[int, list[Entry]], dict[int, str]]:
        earlier = self.note_attempts(shard, notes, anew=anew)
        return self.read(after, count), earlier

    def attempts(self, shard: str) -> dict[int, str]:
        with self._lock:
            return dict(self._server.attempts.get(shard, {}))

    def sweep(self, shard: str, *, due_ms: int) -> tuple[bool, int]:
        with self._lock:
            now_ms, dirty = self.now_ms(), self._server.dirty.get(shard, {})
            for key in (f"bell:{shard}", "full"):
                if self._left_ms(key) > MOST_AHEAD_MS:
                    del self._server.keys[key]
            dirty |= {bucket: now_ms for bucket, at in dirty.items() if at > now_ms + MOST_AHEAD_MS}
            forgotten = any(at <= now_ms - due_ms for at in dirty.values())
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

    def dirty(self, shard: str) -> int:
        with self._lock:
            return len(self._server.dirty.get(shard, {}))


class MemoryLog(MemoryAppends, MemoryWork, MemoryWaits, MemorySharedState):
    """A `contract.Log` of one process: all roles on one `MemoryServer`; thread-safe."""


def _about(note: str) -> str:
    """Return the watermark that a note is about."""
    return note.partition(" ")[0]
