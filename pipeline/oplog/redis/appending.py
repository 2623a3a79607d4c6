"""Producers: their connections, the epochs of the server's lineages, and idempotency keys."""

from __future__ import annotations

from pipeline.errors import PipelineFull
from pipeline.oplog.redis.connection import translated
from pipeline.oplog.redis.line import RedisLine
from pipeline.oplog.redis.link import Link
from pipeline.oplog.redis.replies import text_of
from pipeline.oplog.redis.server import Server
from pipeline.oplog.same import row_id_in
from pipeline.oplog.ttls import IDEMPOTENCY_TTL_MS


class RedisAppending(Server):
    """See `contract.Appending` and `contract.Epochs`."""

    def line(self, *, patient: bool = False) -> RedisLine:
        if patient:
            return RedisLine(Link(self._leisurely, 0, None), self.keys)
        return RedisLine(Link(self._lines, self._reply_s, self._patience), self.keys)

    def epoch(self, scope: str) -> tuple[int, bool, str]:
        with translated():
            given, info = self._soon(lambda redis: (redis.get(self.keys.epoch(scope)), redis.info("replication")))
        seen, replid = text_of(given), info["master_replid"]
        epoch, _, given_on = seen.partition(" ")
        return int(epoch or 0), given_on == replid, f"{replid} {seen}"

    def raise_epoch(self, scope: str, seen: str, epoch: int) -> bool:
        replid, _, value = seen.partition(" ")
        return bool(self._run("raise_epoch", [self.keys.epoch(scope)], [value, epoch, replid]))

    def reserve(self, bucket: int, idempotency_key: str, row_id: int) -> int:
        name = self.keys.same(bucket, idempotency_key)
        try:
            with translated():
                found = self._soon(lambda redis: redis.set(name, row_id, nx=True, get=True, px=IDEMPOTENCY_TTL_MS))
        except PipelineFull:
            with translated():
                found = self._soon(lambda redis: redis.get(name))
            if found is None:
                raise
        return row_id_in(text_of(found)) or row_id if found is not None else row_id
