"""What workers ask: entries, dirty sets, bells and the copies of watermarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.model.op import START, Entry, Position
from pipeline.oplog.memory.server import Server
from pipeline.oplog.ttls import BELL_MS, NOTE_MS


class MemoryEntries(Server):
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
                entries[:] = [entry for entry in entries if entry.position > position]
            return before - self._count()

    def _count(self) -> int:
        return sum(map(len, self._server.logs.values()))


class MemoryWork(Server):
    """See `contract.Work`."""

    def due(self, shard: str, limit: int) -> dict[int, int]:
        with self._lock:
            self._server.keys.pop(f"bell:{shard}", None)
            waiting, now = self._server.dirty.get(shard, {}), self.now_ms()
            oldest = sorted((at, str(bucket)) for bucket, at in waiting.items() if at <= now)
            return {int(bucket): self._server.big.get(int(bucket), 0) for _, bucket in oldest[:limit]}

    def finish(self, shard: str, marks: Mapping[int, Position], *, delay_ms: int = 0) -> tuple[bool, int]:
        with self._lock:
            published = self._server.marks.setdefault(shard, {})
            dirty, tails = self._server.dirty.setdefault(shard, {}), self._server.tails(marks)
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

    def dirty(self, shard: str) -> int:
        with self._lock:
            return len(self._server.dirty.get(shard, {}))


class MemoryWatermarks(Server):
    """See `contract.Watermarks`."""

    def marks(self, shard: str) -> dict[int, Position]:
        with self._lock:
            return dict(self._server.marks.get(shard, {}))

    def mark(self, shard: str, bucket: int) -> Position | None:
        return self.marks(shard).get(bucket)

    def note_marks(self, shard: str, now_ms: int, text: str, *, older_than_ms: int) -> str | None:
        with self._lock:
            notes = self._server.notes.setdefault(shard, [])
            found = next((note for at, note in notes if now_ms - at >= older_than_ms), None)
            if not notes or now_ms - notes[0][0] >= NOTE_MS:
                notes.insert(0, (now_ms, text))
                del notes[older_than_ms // NOTE_MS + 2 :]
            return found
