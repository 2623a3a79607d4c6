"""Table definitions: a hash of texts by their hashes, and one of hashes by table."""

from __future__ import annotations

import redis

from pipeline.oplog.redis.connection import translated
from pipeline.oplog.redis.replies import hash_of, text_of
from pipeline.oplog.redis.server import Server


class RedisDefinitions(Server):
    """See `contract.Definitions`."""

    def publish_schema(self, name: str, hash: str, text: str) -> None:
        def publish(redis: redis.Redis) -> None:
            pipe = redis.pipeline()
            pipe.hset(self.keys.schemas, hash, text)
            pipe.hset(self.keys.tables, name, hash)
            pipe.execute()

        with translated():
            self._soon(publish)

    def schema(self, hash: str) -> str | None:
        with translated():
            found = self._soon(lambda redis: redis.hget(self.keys.schemas, hash))
        return text_of(found) if found is not None else None

    def tables(self) -> dict[str, str]:
        with translated():
            names = hash_of(self._client.hgetall(self.keys.tables))
            texts = self._client.hmget(self.keys.schemas, list(names.values())) if names else []
        return {name: text_of(text) for name, text in zip(names, texts, strict=True) if text is not None}
