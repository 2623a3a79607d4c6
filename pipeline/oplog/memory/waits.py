"""Keep in this process why ops wait."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.oplog.memory.server import MemoryServer
from pipeline.oplog.waits import ALIVE, Note, Noted


class MemoryWaits(MemoryServer):
    """See `waits.Waits`."""

    def note_waits(self, shard: str, notes: Mapping[int, tuple[str, str]], for_ms: int) -> None:
        with self._lock:
            now_ms, kept = self.now_ms(), self._server.waits.setdefault(shard, {})
            for bucket, (cause, text) in notes.items():
                ends_ms, before, note = kept.get(bucket, (0, "", Note(0, "")))
                goes_on = before == cause and 0 < ends_ms - now_ms <= for_ms
                since_ms = min(note.since_ms, now_ms) if goes_on else now_ms
                kept[bucket] = now_ms + for_ms, cause, Note(since_ms, text)

    def waits(self, shard: str) -> Noted:
        with self._lock:
            now_ms, kept = self.now_ms(), self._server.waits.get(shard, {})
            notes = {bucket: note for bucket, (ends_ms, _, note) in kept.items() if ends_ms > now_ms}
            return Noted(self._get(f"lease:{ALIVE.format(shard)}") is not None, notes)
