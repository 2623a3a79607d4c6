"""Keep in Redis why ops wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.oplog.redis.connection import RedisServer, hash_of, translated
from pipeline.oplog.waits import ALIVE, Note, Noted


class RedisWaits(RedisServer):
    """See `waits.Waits`."""

    def note_waits(self, shard: str, notes: Mapping[int, tuple[str, str]], for_ms: int) -> None:
        words = [word for bucket, (cause, text) in notes.items() for word in (bucket, cause, text)]
        self._run("note_waits", [self.keys.waits(shard)], [for_ms, *words])

    def waits(self, shard: str) -> Noted:
        with translated():
            pipe: Any = self._client.pipeline(transaction=False)
            pipe.exists(self.keys.lease(ALIVE.format(shard)))
            pipe.hgetall(self.keys.waits(shard))
            pipe.time()
            alive, found, (seconds, micros) = pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        parts = {int(bucket): text.split(" ", 3) for bucket, text in hash_of(found).items()}
        notes = {b: Note(int(since), text) for b, (ends, since, _, text) in parts.items() if int(ends) > now_ms}
        return Noted(bool(alive), notes)
