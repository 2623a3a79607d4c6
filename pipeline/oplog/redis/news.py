"""What the prober, upkeep and readers tell one another through Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.oplog.redis.connection import translated
from pipeline.oplog.redis.replies import hash_of, text_of
from pipeline.oplog.redis.server import Server
from pipeline.oplog.ttls import BUDGET_MS, READS_MS


class RedisNews(Server):
    """See `contract.News`, `contract.Fitness` and `contract.Budgets`."""

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        self._run("publish_health", [self.keys.health], [for_ms, *(part for pair in nodes.items() for part in pair)])

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        with translated():
            found, time = self._exchanged(counted)
        told = {node: text.partition(" ") for node, text in hash_of(found).items()}
        seconds, micros = time
        return seconds * 1000 + micros // 1000, {node: (int(at), text) for node, (at, _, text) in told.items()}

    def reads(self) -> dict[str, int]:
        with translated():
            return {what: int(n) for what, n in hash_of(self._client.hgetall(self.keys.reads)).items()}

    def seen(self, node: str) -> str | None:
        with translated():
            return text_of(self._client.hget(self.keys.seen, node)) or None

    def note_seen(self, node: str, text: str) -> None:
        self._despite_oom("HSET", self.keys.seen, node, text)

    def unfit(self) -> dict[str, str]:
        with translated():
            return hash_of(self._client.hgetall(self.keys.unfit))

    def publish_unfit(self, shard: str, text: str) -> None:
        self._despite_oom("HSET", self.keys.unfit, shard, text)

    def earn(self, shard: str, reads: float, most: float, *, take: bool) -> bool:
        arguments = [f"{reads:.6f}", f"{most:.6f}", int(take), BUDGET_MS]
        return bool(self._run("earn", [self.keys.budget(shard)], arguments, self._quick))

    def _exchanged(self, counted: Mapping[str, int]) -> tuple[Any, Any]:
        """Add counts of reads, return the news and the server's time, in one round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hgetall(self.keys.health)
        pipe.time()
        for what, more in counted.items():
            pipe.hincrby(self.keys.reads, what, more)
        if counted:
            pipe.pexpire(self.keys.reads, READS_MS)
        # a server that is full refuses the counts: no reason to do without the news
        found, time, *_ = pipe.execute(raise_on_error=False)
        for failed in (found, time):
            if isinstance(failed, Exception):
                raise failed
        return found, time
