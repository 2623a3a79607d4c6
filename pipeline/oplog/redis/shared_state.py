"""Keep in Redis what processes share beside the ops: leases, the full flag, the secret, reports, waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from pipeline import clock
from pipeline.errors import LogUnavailable
from pipeline.model.ids import EPOCH_MS, PER_MS, SPAN, Given, counter_at
from pipeline.oplog.redis.connection import RedisServer, hash_of, text_of, translated
from pipeline.oplog.redis.server_info import setting
from pipeline.oplog.ttls import READS_MS
from pipeline.oplog.waits import ALIVE, Note, Noted


class RedisSharedState(RedisServer):
    """See `contract.SharedState`."""

    def take_lease(self, name: str, for_ms: int) -> bool:
        return bool(self._run("hold_lease", [self.keys.lease(name)], ["1", for_ms, 1]))

    def hold_lease(self, name: str, token: str, for_ms: int) -> bool:
        return bool(self._run("hold_lease", [self.keys.lease(name)], [token, for_ms, 0]))

    def release_lease(self, name: str, token: str) -> None:
        self._run("hold_lease", [self.keys.lease(name)], [token, 0, 0])

    def give_ids(self, shard: str, wanted: Mapping[int, int], new_span: int = 0) -> Given:
        clocks = (counter_at(clock.wall_ms()), EPOCH_MS, PER_MS)
        counts = [part for pair in wanted.items() for part in pair]
        fixed = (f"span {shard}", new_span, SPAN, *clocks)
        # a second try, as a line does; a span whose first try has no answer may be in use on a server that is lost
        again = (f"span {shard}", 0, SPAN, *clocks)

        def ask(redis: redis.Redis) -> Any:
            try:
                return self._run("give_ids", [self.keys.ids], [*fixed, *counts], redis)
            except LogUnavailable:
                return self._run("give_ids", [self.keys.ids], [*again, *counts], redis)

        with translated():
            span, due, *starts = self._soon(ask)
        return Given(span, due, dict(zip(wanted, starts, strict=True)) if len(starts) == len(wanted) else None)

    def set_full(self, reason: str | None, for_ms: int = 5000) -> None:
        if reason is None:
            self._despite_oom("DEL", self.keys.full)
        else:
            self._despite_oom("SET", self.keys.full, reason, "PX", for_ms)

    def full(self) -> str | None:
        with translated():
            found = self._client.get(self.keys.full)
        return text_of(found) if found is not None else None

    def memory_share(self) -> float:
        with translated():
            memory = self._client.info("memory")
        return memory["used_memory"] / memory["maxmemory"] if memory.get("maxmemory") else 0.0

    def largest_bytes(self) -> int:
        with translated():
            return int(setting(self._client, "proto-max-bulk-len") or 0)

    def secret(self, proposed: str) -> str:
        def first(redis: redis.Redis) -> Any:
            pipe: Any = redis.pipeline(transaction=False)
            pipe.set(self.keys.secret, proposed, nx=True)
            pipe.get(self.keys.secret)
            return pipe.execute()[1]

        with translated():
            return text_of(self._soon(first))

    def publish_health(self, nodes: Mapping[str, str], for_ms: int) -> None:
        self._run("publish_health", [self.keys.health], [for_ms, *(part for pair in nodes.items() for part in pair)])

    def health(self, counted: Mapping[str, int] = {}) -> tuple[int, dict[str, tuple[int, str]]]:
        with translated():
            found, time = self._exchanged(counted)
        reports = {node: text.partition(" ") for node, text in hash_of(found).items()}
        seconds, micros = time
        return seconds * 1000 + micros // 1000, {node: (int(at), text) for node, (at, _, text) in reports.items()}

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

    def _exchanged(self, counted: Mapping[str, int]) -> tuple[Any, Any]:
        """Add counts of reads, return the reports and the server's time, in one round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hgetall(self.keys.health)
        pipe.time()
        for what, more in counted.items():
            pipe.hincrby(self.keys.reads, what, more)
        if counted:
            pipe.pexpire(self.keys.reads, READS_MS)
        # a full server refuses the counts: no reason to do without the reports
        found, time, *_ = pipe.execute(raise_on_error=False)
        for failed in (found, time):
            if isinstance(failed, Exception):
                raise failed
        return found, time


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
